"""A checkpoint -> what runs it on a device."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from puna.engine.batch import Runner
from puna.engine.memory import chosen_kv_dtype, free_memory, plan_kv_tokens
from puna.formats.checkpoint import Checkpoint
from puna.kernels import native
from puna.kernels.tiles import grouped_bytes
from puna.quantize.storage import STORAGE

if TYPE_CHECKING:
    from puna.model import Llama

DTYPES = {"auto": None, "fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # -> storage type
GPU_DTYPES = ("int8", "int4")  # what weights are also packed to, on a GPU
# Parameters below which waking a second thread takes longer than its share of the work.
SMALL_MODEL = 50_000_000


def load_network(checkpoint: Checkpoint, device: str, dtype: str) -> Llama:
    """The network of a checkpoint, on a device, ready to run."""
    import torch

    from puna.formats.network import load_model

    if checkpoint.config.num_parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    types = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}
    types["fp16"] = torch.float16
    if dtype not in types:
        raise ValueError(f"no dtype {dtype!r} here; there are: {', '.join(types)}")
    check_device(device)
    return load_model(checkpoint, device=device, dtype=types[dtype]).eval()


def check_device(device: str) -> None:
    """ValueError, saying why, unless torch can use a device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from None


def load_runner(
    checkpoint: Checkpoint,
    device: str = "cpu",
    dtype: str = "auto",
    *,
    kv_dtype: str = "auto",
    kv_tokens: int | None = None,
    num_threads: int | None = None,
    cache_folder: Path | None = None,
    tensor_parallel: bool = False,
) -> Runner:
    """What runs a checkpoint, with pages for the keys and values of `kv_tokens` tokens.

    On a CPU that is native code, and `dtype` "auto" means as stored; on CUDA the network with its
    weights packed and decoding captured; elsewhere, and without native code, the plain network,
    which is said. Keys and values are kept as `kv_dtype`, f32, f16 or int8; "auto" is f32 beside
    weights in float32, else f16 (of a network: as its weights; on CUDA nothing else). `kv_tokens`
    None takes what suits the memory that is free, at least one context. A large model's weights,
    packed for the CPU, are kept in `cache_folder` (None: not). With `tensor_parallel` the processes
    that torchrun started share the model: in all but the first this call does not return, and ends
    the process when the first ends. Raises ValueError, before reading weights, for what does not
    fit.
    """
    checkpoint.check_speaks()
    if device.startswith("cuda") or tensor_parallel:
        if kv_dtype != "auto":
            raise ValueError(
                f"a GPU keeps keys and values as its activations, not as {kv_dtype}; leave kv_dtype"
            )
        return _gpu_runner(checkpoint, device, dtype, kv_tokens, tensor_parallel)
    if dtype in GPU_DTYPES:
        raise ValueError(f"the dtype {dtype} runs on a GPU (--device cuda), not on {device}")
    if dtype not in DTYPES:
        raise ValueError(f"no dtype {dtype!r}; there are: {', '.join((*DTYPES, *GPU_DTYPES))}")
    config = checkpoint.config
    is_native = device == "cpu" and native.available()
    stored = DTYPES[dtype] if is_native else (DTYPES[dtype] or "f32")
    weight_bytes = sum(
        grouped_bytes(tensor.packed.bits, tensor.shape)
        if tensor.packed is not None and stored is None and name.startswith("layers.")
        else STORAGE[stored or tensor.dtype].num_bytes(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    )
    kept = chosen_kv_dtype(kv_dtype, checkpoint, stored)
    free = free_memory() if device == "cpu" else None
    num_tokens = plan_kv_tokens(checkpoint, weight_bytes, free, kv_tokens, kept)
    if is_native:
        from puna.engine.cpu.runner import NativeRunner
        from puna.engine.cpu.tile_cache import TileCache

        if num_threads is None and config.num_parameters < SMALL_MODEL:
            num_threads = 1
        num_pages = -(-num_tokens // NativeRunner.page_size)
        return NativeRunner(
            checkpoint,
            num_pages=num_pages,
            dtype=stored,
            kv_dtype=kept,
            num_threads=num_threads,
            cache=None if cache_folder is None else TileCache(cache_folder),
        )
    if device == "cpu":
        if importlib.util.find_spec("torch") is None:
            raise ValueError(
                "native code was not built and there is no torch; install a C++ compiler (g++) "
                "and Puna again, or puna[train]"
            )
        logging.getLogger("puna").warning(
            "native code was not built; running on torch, which is slower"
        )

    from puna.engine.torch_runner import TorchRunner

    network = load_network(checkpoint, device, dtype)
    num_pages = -(-num_tokens // TorchRunner.page_size)
    return TorchRunner(network, num_pages=num_pages, kv_dtype=kv_dtype)


def _gpu_runner(
    checkpoint: Checkpoint, device: str, dtype: str, kv_tokens: int | None, tensor_parallel: bool
) -> Runner:
    if dtype not in (*DTYPES, *GPU_DTYPES):
        raise ValueError(f"no dtype {dtype!r}; there are: {', '.join((*DTYPES, *GPU_DTYPES))}")
    if importlib.util.find_spec("torch") is None:
        raise ValueError(f"the device {device} needs torch: install puna[train]")
    if not (tensor_parallel and _has_gpu()):  # each process tries its own GPU alone
        check_device(device)
    if device != "cpu" and importlib.util.find_spec("triton") is None:
        raise ValueError("GPUs need Triton, which torch's CUDA packages bring: pip install triton")

    from puna.engine.gpu.loading import load_gpu_runner

    if not tensor_parallel:
        return load_gpu_runner(checkpoint, device, dtype, kv_tokens=kv_tokens)

    from puna.engine.gpu.parallel import LeadingRunner, follow
    from puna.parallel.ranks import join

    ranks = join(device)
    runner = load_gpu_runner(checkpoint, device, dtype, kv_tokens=kv_tokens, ranks=ranks)
    if ranks.rank == 0:
        return LeadingRunner(runner, ranks)
    follow(runner, ranks)
    raise SystemExit(0)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
