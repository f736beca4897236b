"""A checkpoint -> the network that a GPU runs, its weights packed as the file has them.

Matrices of blocks and of GPTQ integers are never blown up; they are moved into the planes that
kernels read (`quantize/block_schemes.py`), on the GPU itself. The embedding, of which rows are
looked up, is in the type of the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from puna.engine.gpu.layer_plan import Sizes, cpu_bytes, plan_layers, plan_tokens
from puna.engine.gpu.runner import GPURunner
from puna.engine.memory import free_memory
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.network import read_tensor
from puna.model import Llama, empty
from puna.parallel.ranks import Ranks, least
from puna.parallel.tensor import check, place
from puna.quantize.block_schemes import BLOCK_SCHEMES, planes
from puna.quantize.linear import QuantizedLinear, in_blocks
from puna.quantize.schemes import SCHEMES, scheme_for_bits
from puna.quantize.storage import STORAGE

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STORED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_PACKED_BITS = {"int8": 8, "int4": 4}  # what `dtype` may also ask for
_CONTEXTS = 64  # whose keys and values are held at most, where there is memory for so many
_WORK = 1 << 30  # bytes for activations, captured graphs and libraries
_SHARE = 0.9  # of the free memory that is planned with

Place = Callable[[str, nn.Module], nn.Module]


def compute_type(checkpoint: Checkpoint, dtype: str) -> torch.dtype:
    """The type of activations, embedding, keys and values."""
    if dtype in FLOATS:
        return FLOATS[dtype]
    tensors = checkpoint.tensors.values()
    is_float = all(t.packed is None and t.dtype in _STORED for t in tensors)
    if dtype == "auto" and is_float:
        return _STORED[checkpoint.main_dtype]
    return torch.bfloat16


def read_linear(
    name: str, tensor: LazyTensor, dtype: str, compute: torch.dtype, device: torch.device
) -> nn.Module:
    """The linear layer of the matrix `name`, packed or in floats as `dtype` and the file say."""
    if dtype == "auto" and tensor.packed is not None:
        integers = tensor.packed.read()
        kind = scheme_for_bits(integers.bits)
        return QuantizedLinear.from_grouped(integers, kind).to(device)
    if dtype == "auto" and tensor.dtype in BLOCK_SCHEMES:
        scheme = BLOCK_SCHEMES[tensor.dtype]
        stored = torch.from_numpy(np.ascontiguousarray(tensor.read())).to(device)
        return QuantizedLinear(scheme, planes(tensor.dtype, stored), scheme.group_size)
    weight = read_tensor(tensor)
    if dtype in _PACKED_BITS and in_blocks(name):
        return QuantizedLinear.from_weight(weight, dtype).to(device)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    moved = weight.to(device=device, dtype=compute)
    linear.weight = nn.Parameter(moved, requires_grad=False)
    return linear


def read_network(
    checkpoint: Checkpoint,
    dtype: str,
    device_of: Callable[[str], torch.device],
    placed: Place = lambda name, module: module,
) -> Llama:
    """The network with each tensor on the device that `device_of` its name says.

    `placed` may put another module in place of a linear layer (a rank's share of it), before the
    next is read.
    """
    compute = compute_type(checkpoint, dtype)
    model = empty(checkpoint.config)
    for name in checkpoint.config.tensor_shapes():
        tensor, device = checkpoint.tensors[name], device_of(name)
        path = name.removesuffix(".weight")
        if isinstance(model.get_submodule(path), nn.Linear):
            linear = read_linear(name, tensor, dtype, compute, device)
            model.set_submodule(path, placed(path, linear))
        else:
            weight = read_tensor(tensor).to(device=device, dtype=compute)
            owner = model.get_submodule(path)
            owner.weight = nn.Parameter(weight, requires_grad=False)
    return model


def sizes_of(checkpoint: Checkpoint, dtype: str, ranks: int = 1) -> Sizes:
    """Bytes that the network takes, of which each of `ranks` holds a share of the matrices."""
    config, compute = checkpoint.config, compute_type(checkpoint, dtype)
    layers, others = [0] * config.num_layers, 0
    for name, tensor in checkpoint.tensors.items():
        size = _num_bytes(name, tensor, dtype, compute.itemsize)
        if in_blocks(name):
            layers[int(name.split(".")[1])] += size // ranks
        else:
            others += size
    kv_token = 2 * compute.itemsize * config.kv_dim // ranks
    return Sizes(tuple(layers), others, kv_token, _WORK)


def _num_bytes(name: str, tensor: LazyTensor, dtype: str, itemsize: int) -> int:
    numbers = int(np.prod(tensor.shape))
    is_linear = len(tensor.shape) == 2 and name != "tok_embeddings.weight"
    if is_linear and dtype == "auto" and tensor.packed is not None:
        return tensor.packed.num_bytes
    if is_linear and dtype == "auto" and tensor.dtype in BLOCK_SCHEMES:
        # Planes are larger than blocks, by how much one row tells.
        row = np.zeros((1, STORAGE[tensor.dtype].num_bytes(tensor.shape[1:])), np.uint8)
        fields = planes(tensor.dtype, torch.from_numpy(row))
        return tensor.shape[0] * sum(field.nbytes for field in fields.values())
    if is_linear and dtype in _PACKED_BITS and in_blocks(name):
        group = SCHEMES[dtype].group_size
        groups = numbers // (tensor.shape[1] if group == -1 else group)
        return numbers * _PACKED_BITS[dtype] // 8 + 3 * groups
    return numbers * itemsize


def load_gpu_runner(
    checkpoint: Checkpoint,
    device: str,
    dtype: str = "auto",
    *,
    kv_tokens: int | None = None,
    free: int | None = None,
    ranks: Ranks | None = None,
) -> GPURunner:
    """The runner of a checkpoint on a GPU; layers that do not fit it run on the CPU.

    `free` bytes of the GPU are used (None: what is free, less a reserve). With `ranks`, one
    process's share of it. Raises ValueError, before weights are read, where it cannot be.
    """
    target = torch.device(device) if ranks is None else ranks.device
    config = checkpoint.config
    if ranks is not None:
        check(config, ranks.size)
    size = 1 if ranks is None else ranks.size
    sizes = sizes_of(checkpoint, dtype, size)
    if free is None:
        free = _free(target, size)
    if ranks is not None:
        free = least(free, ranks)
    context = config.context_length
    num_tokens = kv_tokens or plan_tokens(sizes, context, _CONTEXTS * context, free)
    on_cpu = plan_layers(sizes, num_tokens, free, checkpoint.path)
    if ranks is not None and on_cpu:
        raise ValueError(
            f"{checkpoint.path}: the {size} GPUs do not hold the model and keys and values of "
            f"{num_tokens} tokens, and in several processes no layer runs on the CPU. Use more "
            "GPUs, a smaller type or fewer tokens (kv_tokens)"
        )
    check_cpu(checkpoint, cpu_bytes(sizes, on_cpu, num_tokens))
    names = layer_devices(config.num_layers, on_cpu, target)

    def placed(path: str, linear: nn.Module) -> nn.Module:
        return linear if ranks is None else place(path, linear, ranks)

    model = read_network(checkpoint, dtype, lambda name: names.get(_layer(name), target), placed)
    num_pages = -(-num_tokens // GPURunner.page_size)
    runner = GPURunner(model, num_pages=num_pages)
    if target.type == "cuda":
        runner.warm_up()  # so that no request waits for it; the same on every rank
    return runner


def _free(device: torch.device, ranks: int) -> int:
    """Bytes to plan with; processes on one CPU share its memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE)
    free = free_memory()
    return 1 << 62 if free is None else int(free * _SHARE) // ranks


def layer_devices(num_layers: int, on_cpu: int, target: torch.device) -> Mapping[str, torch.device]:
    """The device of each layer, by its name in the network."""
    cpu = torch.device("cpu")
    return {str(layer): cpu if layer < on_cpu else target for layer in range(num_layers)}


def check_cpu(checkpoint: Checkpoint, needed: int) -> None:
    """ValueError where layers that were left to the CPU do not fit its memory."""
    free = free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{checkpoint.path}: the layers that do not fit the GPU take {needed / 1e9:.1f} GB; "
            f"{free / 1e9:.1f} GB of memory are free. Use a smaller type or fewer tokens"
        )


def _layer(name: str) -> str:
    return name.split(".")[1] if in_blocks(name) else ""
