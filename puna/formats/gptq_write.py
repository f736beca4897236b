"""Writing GPTQ folders that transformers, AutoGPTQ and GPTQModel load.

The weights are called model.safetensors, the one name that all three look for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puna import __version__
from puna.formats import names
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.files import atomic_directory
from puna.formats.gptq import CHECKPOINT_FORMATS, SETTINGS_FILE, SETTINGS_KEY
from puna.formats.gptq_layer import (
    WIDTH_STEP,
    ZERO_POINTS,
    Spec,
    layer_arrays,
    layer_specs,
)
from puna.formats.huggingface import (
    MAX_SHARD_BYTES,
    config_json,
    shards,
    write_index,
    write_json,
    write_tokenizer,
)
from puna.formats.model_card import write_card
from puna.formats.safetensors_file import write_arrays
from puna.formats.stored import FLOAT_TYPES
from puna.quantize.block_type import Bytes
from puna.quantize.grouped import Grouped, group_count
from puna.quantize.packing import BITS
from puna.quantize.rounding import round_to_nearest

_DEFAULT_BITS, _DEFAULT_GROUP_SIZE = 4, 128
_LABEL = re.compile(r"gptq-(\d)bit-(-1|\d+)g(-actorder)?")
_STORED_NAMES = {ours: theirs for theirs, ours in FLOAT_TYPES.items()}


@dataclass(slots=True)
class _Plan:
    """How a folder's layers are stored. `symmetric` and `act_order` become what its layers are."""

    bits: int
    group_size: int
    round_symmetric: bool
    zero_points: str
    symmetric: bool = True
    act_order: bool = False

    def keeps(self, tensor: LazyTensor) -> bool:
        """Whether the integers that a tensor is made of are written as they are."""
        return _scheme(tensor) == (self.bits, self.group_size)

    def group(self, tensor: LazyTensor) -> Grouped:
        """A layer's integers; notes what its zeros and order are."""
        if tensor.packed is not None and self.keeps(tensor):
            grouped = tensor.packed.read()
        else:
            matrix = tensor.read_float32()
            grouped = round_to_nearest(matrix, self.bits, self.group_size, self.round_symmetric)
        self.symmetric &= grouped.symmetric
        self.act_order |= not grouped.in_order
        return grouped


def write(
    checkpoint: Checkpoint,
    path: Path,
    *,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    zero_points: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a folder whose layers are `bits` in groups of `group_size` inputs (-1: all).

    Layers that are GPTQ of that kind already are written as they are, others rounded to the
    nearest, `symmetric` or not (`losses` tells how many). Not given, bits and group size are those
    of the checkpoint's own layers, else 4 and 128; `zero_points` v1, which every reader knows, for
    symmetric layers and v2 for others, as readers disagree on v1's zero of 0. Raises ValueError,
    before anything is written, where a layer does not fit. One layer is in memory at a time.
    """
    plan = _plan(checkpoint, bits, group_size, symmetric, zero_points)
    tensors = {name: tensor.watched(on_tensor, name) for name, tensor in checkpoint.tensors.items()}
    specs = {name: _specs(name, tensor, plan) for name, tensor in tensors.items()}
    sizes = {name: sum(map(_num_bytes, parts.values())) for name, parts in specs.items()}
    index: dict[str, str] = {}
    with atomic_directory(path, overwrite=overwrite) as folder:
        for file_name, shard in shards(sizes, max_shard_bytes).items():
            held = {part: spec for name in shard for part, spec in specs[name].items()}
            arrays = (array for name in shard for array in _arrays(name, tensors[name], plan))
            with open(folder / file_name, "xb") as file:
                write_arrays(file, held, arrays, {"format": "pt"})
            index |= dict.fromkeys(held, file_name)
        write_index(folder, index, sum(sizes.values()))
        settings = _settings(plan)
        config = config_json(checkpoint, "float16") | {SETTINGS_KEY: settings}
        write_json(folder / "config.json", config)
        write_json(folder / SETTINGS_FILE, settings)
        write_tokenizer(checkpoint, folder)
        write_card(folder, checkpoint.name, checkpoint.license)


def losses(
    checkpoint: Checkpoint,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    **options: Any,
) -> list[str]:
    """What `write` with the same options rounds, for people to read; ValueError as it raises."""
    plan = _plan(checkpoint, bits, group_size, symmetric=True, zero_points="v1")
    layers = {name: t for name, t in checkpoint.tensors.items() if _is_layer(name, t)}
    rounded = [tensor for tensor in layers.values() if not plan.keeps(tensor)]
    notes = []
    if rounded:
        groups = "whole rows" if plan.group_size == -1 else f"groups of {plan.group_size}"
        notes.append(
            f"{len(rounded)} tensors are rounded to the nearest of {plan.bits} bits in {groups}; "
            "puna quantize loses less"
        )
    if again := sum(tensor.packed is not None for tensor in rounded):
        notes.append(f"{again} of them were GPTQ of another kind: they are rounded a second time")
    for name, tensor in checkpoint.tensors.items():
        if name not in layers and tensor.packed is not None:
            notes.append(f"{name} was {tensor.packed.label} and is stored as f16")
    return notes


def _plan(
    checkpoint: Checkpoint,
    bits: int | None,
    group_size: int | None,
    symmetric: bool,
    zero_points: str | None,
) -> _Plan:
    """ValueError for options that there are not, and for layers that cannot be packed so."""
    layers = {name: t for name, t in checkpoint.tensors.items() if _is_layer(name, t)}
    schemes = [scheme for scheme in map(_scheme, layers.values()) if scheme is not None]
    own_bits, own_size = schemes[0] if schemes else (_DEFAULT_BITS, _DEFAULT_GROUP_SIZE)
    plan = _Plan(
        own_bits if bits is None else bits,
        own_size if group_size is None else group_size,
        symmetric,
        "v1" if zero_points is None else zero_points,
    )
    if plan.bits not in BITS:
        raise ValueError(f"GPTQ files hold {', '.join(map(str, BITS))} bits, not {plan.bits}")
    if plan.group_size < 1 and plan.group_size != -1:
        raise ValueError(f"group_size must be positive or -1, not {plan.group_size}")
    if plan.zero_points not in ZERO_POINTS:
        raise ValueError(f"zero points are {' or '.join(ZERO_POINTS)}, not '{plan.zero_points}'")
    for name, tensor in layers.items():
        outputs, inputs = tensor.shape
        if outputs % WIDTH_STEP or inputs % WIDTH_STEP:
            raise ValueError(
                f"{name} is {outputs} by {inputs}: GPTQ files hold multiples of {WIDTH_STEP} only; "
                "choose another format"
            )
        if plan.group_size != -1 and inputs % plan.group_size and not plan.keeps(tensor):
            raise ValueError(
                f"{name} has {inputs} inputs, which groups of {plan.group_size} do not divide; "
                "choose another group size, or -1"
            )
    if zero_points is None:
        first = next(iter(layers.values()))
        kept = first.packed.read() if first.packed is not None and plan.keeps(first) else None
        plan.zero_points = "v1" if (kept.symmetric if kept else symmetric) else "v2"
    return plan


def _is_layer(name: str, tensor: LazyTensor) -> bool:
    """Whether it is one of the matrices that GPTQ's loaders expect to be quantized."""
    return name.startswith("layers.") and len(tensor.shape) == 2


def _scheme(tensor: LazyTensor) -> tuple[int, int] | None:
    """Bits and group size of a tensor that is GPTQ already."""
    found = tensor.packed and _LABEL.fullmatch(tensor.packed.label)
    return (int(found[1]), int(found[2])) if found else None


def _specs(name: str, tensor: LazyTensor, plan: _Plan) -> dict[str, Spec]:
    """File's name -> type and shape, of what a tensor is stored as."""
    foreign = names.HUGGINGFACE.foreign(name)
    if _is_layer(name, tensor):
        stem = foreign.removesuffix("weight")
        outputs, inputs = tensor.shape
        parts = layer_specs((outputs, inputs), plan.bits, plan.group_size)
        return {stem + part: spec for part, spec in parts.items()}
    dtype = _plain(tensor).dtype
    if dtype not in _STORED_NAMES:
        raise ValueError(f"safetensors cannot hold {name} as {dtype}; give --dtype f16")
    return {foreign: (_STORED_NAMES[dtype], tensor.shape)}


def _arrays(name: str, tensor: LazyTensor, plan: _Plan) -> Iterator[Bytes]:
    """The bytes of each part, in the order of `_specs`."""
    if not _is_layer(name, tensor):
        yield _plain(tensor).read()
        return
    grouped = plan.group(tensor)
    expected = group_count(tensor.shape[1], plan.group_size)
    if grouped.bits != plan.bits or grouped.scales.shape[1] != expected:
        raise ValueError(f"{name} is {grouped.bits} bits in {grouped.scales.shape[1]} groups")
    yield from layer_arrays(grouped, plan.zero_points)


def _plain(tensor: LazyTensor) -> LazyTensor:
    return tensor if tensor.packed is None else tensor.converted("f16")


def _num_bytes(spec: Spec) -> int:
    dtype, shape = spec
    return int(np.prod(shape)) * (4 if dtype in ("I32", "F32") else 2)


def _settings(plan: _Plan) -> dict[str, Any]:
    versions = {ours: theirs for theirs, ours in CHECKPOINT_FORMATS.items()}
    return {
        "quant_method": "gptq",
        "bits": plan.bits,
        "group_size": plan.group_size,
        "desc_act": plan.act_order,
        "sym": plan.symmetric,
        "true_sequential": True,
        "lm_head": False,
        "checkpoint_format": versions[plan.zero_points],
        "model_file_base_name": "model",
        "meta": {"quantizer": [f"puna:{__version__}"]},
    }
