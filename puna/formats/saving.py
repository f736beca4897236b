"""`save_checkpoint`: any checkpoint in any format, tensor by tensor, and what that costs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.table import FORMATS, Format, writable
from puna.quantize.mixes import FLOATS, mix_name, storage_types
from puna.quantize.storage import Floats


def save_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    format: str,
    *,
    dtype: str | None = None,
    pure: bool = False,
    importance: Mapping[str, Floats] | None = None,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
    **options: Any,
) -> list[str]:
    """Writes `path` in a format, its matrices as `dtype`: a float type or mix, None as they are.

    `pure` and the names are those of `quantize.mixes`; `importance` weights the columns of the
    matrices that it names. `options` go to the format's writer. Returns what fell back to another
    type or was lost, for people to read. Raises ValueError if the format cannot be written or
    `path` may not be.
    """
    row = writable(format)
    if unknown := sorted(set(options) - set(row.options)):
        raise ValueError(f"{row.name} files have no option {', '.join(unknown)}")
    if importance is not None:
        _check_importance(checkpoint, importance)
    notes = [
        f"the {field.replace('_', ' ')} {'are' if field.endswith('s') else 'is'} lost: "
        f"{row.name} has no place for {'them' if field.endswith('s') else 'it'}"
        for field in row.lacks
        if getattr(checkpoint, field)
    ]
    if "heads" in row.lacks:
        checkpoint = checkpoint.without_heads()
    if checkpoint.vocabulary is None:
        notes.append("there is no tokenizer to write")
    dtypes, more = _storage(checkpoint, row, dtype, pure, importance is not None)
    notes += more
    tensors = {
        name: tensor
        if dtypes[name] is None
        else tensor.converted(dtypes[name] or "", (importance or {}).get(name))
        for name, tensor in checkpoint.tensors.items()
    }
    notes += _rounded_again(checkpoint.tensors, tensors)
    checkpoint = replace(checkpoint, tensors=tensors)
    notes += row.losses(checkpoint, **options)
    if dtype is not None and "file_type" in row.options:
        options["file_type"] = _file_type(dtype, pure)
    assert row.write is not None
    try:
        if overwrite:
            _check_replaceable(path)
        row.write(checkpoint, path, overwrite=overwrite, on_tensor=on_tensor, **options)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None
    return notes


def _storage(
    checkpoint: Checkpoint, row: Format, dtype: str | None, pure: bool, importance: bool
) -> tuple[dict[str, str | None], list[str]]:
    """Tensor -> storage type (None: as it is), and notes on what fell back."""
    matrices: Mapping[str, str] = {}
    notes: list[str] = []
    if dtype is not None:
        matrices, notes = storage_types(checkpoint.config, dtype, pure=pure, importance=importance)
    norms = dtype if dtype in FLOATS else None
    dtypes: dict[str, str | None] = {}
    unheld: Counter[tuple[str, str]] = Counter()
    for name, tensor in checkpoint.tensors.items():
        wanted = matrices.get(name) or norms or ("f32" if dtype else tensor.dtype)
        if len(tensor.shape) == 1 and row.float32_norms:
            wanted = "f32"
        elif wanted not in row.holds:
            unheld[wanted, row.fallback] += 1
            wanted = row.fallback
        kept = dtype is None and tensor.packed is not None and row.packs
        dtypes[name] = None if kept else wanted
        if dtype is None and tensor.packed is not None and not row.packs:
            unheld[tensor.packed.label, wanted] += 1
    notes += [
        f"{row.name} cannot hold {theirs}: {count} tensors are stored as {ours}"
        for (theirs, ours), count in unheld.items()
    ]
    return dtypes, notes


def _rounded_again(before: Mapping[str, LazyTensor], after: Mapping[str, LazyTensor]) -> list[str]:
    """Notes on tensors that were rounded once already and now are a second time."""
    changed: Counter[tuple[str, str]] = Counter()
    for name, tensor in before.items():
        old = tensor.packed.label if tensor.packed else tensor.dtype
        new = after[name]
        if new.packed is None and new.dtype not in FLOATS and old not in (*FLOATS, new.dtype):
            changed[old, new.dtype] += 1
    return [
        f"{count} tensors were {old} already and are rounded a second time, to {new}; start from "
        "the original weights where you have them"
        for (old, new), count in changed.items()
    ]


def _file_type(dtype: str, pure: bool) -> str:
    """The mix's name, or where every matrix has its base type, that mix's plainest name."""
    name = mix_name(dtype)
    if not pure or name in FLOATS:
        return name
    return f"{name[:4]}_s" if name.startswith(("q2_k", "q3_k", "q4_k", "q5_k")) else name


def _check_importance(checkpoint: Checkpoint, importance: Mapping[str, Floats]) -> None:
    for name, weights in importance.items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None or weights.shape != tensor.shape[-1:]:
            raise ValueError(
                f"the importance matrix has {name} {weights.shape}, which is none of this model's"
            )


def _check_replaceable(path: Path) -> None:
    """ValueError for a folder that holds something other than a checkpoint: it would be lost."""
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not any(row.detect(path) for row in FORMATS.values()):
        raise ValueError(f"{path} is a folder without a checkpoint; remove it yourself to reuse it")


def bits_per_weight(checkpoint: Checkpoint) -> float:
    """Bits that one parameter takes on average, scales included."""
    return 8 * checkpoint.num_bytes / checkpoint.config.num_parameters
