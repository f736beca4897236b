"""Every file format a Llama ships in: `open_checkpoint` reads any, `save_checkpoint` writes any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.formats import gguf, huggingface, llama2c, meta
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import printable
from puna.quantize.storage import storage_type
from puna.tokenizer import Vocabulary

__all__ = ["FORMATS", "Checkpoint", "Format", "LazyTensor", "open_checkpoint", "save_checkpoint"]

_FALLBACK = "f16"  # for rows that the blocks of a type do not fill


@dataclass(frozen=True, slots=True)
class Format:
    """A row of the table of formats.

    `suffix` is that of its files, empty for folders; `lacks` the fields of Checkpoint that it has
    no place for, `float32_norms` whether it stores 1-D tensors as f32 whatever the rest is.
    """

    name: str
    looks_like: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]
    write: Callable[..., None] | None
    suffix: str = ""
    lacks: tuple[str, ...] = ()
    float32_norms: bool = False


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            name=huggingface.NAME,
            looks_like="a folder with config.json",
            detect=huggingface.detect,
            read=huggingface.read,
            write=huggingface.write,
            lacks=("license",),
        ),
        Format(
            name=meta.NAME,
            looks_like="a folder with params.json and consolidated.00.pth",
            detect=meta.detect,
            read=meta.read,
            write=meta.write,
            lacks=("chat_template", "license"),
        ),
        Format(
            name=gguf.NAME,
            looks_like="a .gguf file",
            detect=gguf.detect,
            read=gguf.read,
            write=gguf.write,
            suffix=".gguf",
            float32_norms=True,
        ),
        Format(
            name=llama2c.NAME,
            looks_like="a .bin file of llama2.c",
            detect=llama2c.detect,
            read=llama2c.read,
            write=None,
            suffix=".bin",
        ),
    )
}
_ALIASES = {"hf": huggingface.NAME}


def open_checkpoint(path: Path, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """Opens a file or folder of any format, reading no weight; `vocabulary` replaces its own.

    Raises ValueError if it is not there, of no known format, damaged or not a Llama.
    """
    try:
        if not path.exists():
            raise ValueError(f"no such file or folder: {path}")
        known = next((row for row in FORMATS.values() if row.detect(path)), None)
        if known is None:
            kinds = "; ".join(f"{row.name} ({row.looks_like})" for row in FORMATS.values())
            raise ValueError(f"{path} is of no known format; known are {kinds}")
        checkpoint = known.read(path)
        if vocabulary is None:
            return checkpoint
        checkpoint = checkpoint.with_vocabulary(vocabulary)
        checkpoint.tokenizer()  # says now if it does not belong to the weights
        return checkpoint
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} holds text that is not UTF-8: {error.reason}") from None
    except ValueError as error:
        raise ValueError(printable(str(error))) from error  # names in it may come from the file


def save_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    format: str,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
    **options: Any,
) -> list[str]:
    """Writes `path` in a format, its matrices as `dtype` (None: as they are), tensor by tensor.

    `options` go to the format's writer. Returns what fell back to another type or was lost, for
    people to read. Raises ValueError if the format cannot be written or `path` may not be.
    """
    row = FORMATS.get(_ALIASES.get(format, format))
    if row is None or row.write is None:
        known = ", ".join(other.name for other in FORMATS.values() if other.write)
        raise ValueError(f"cannot write the format '{format}'; give one of {known}")
    notes = [
        f"the {field.replace('_', ' ')} is lost: {row.name} has no place for it"
        for field in row.lacks
        if getattr(checkpoint, field)
    ]
    if checkpoint.vocabulary is None:
        notes.append("there is no tokenizer to write")
    if dtype is not None:
        tensors, fallbacks = _stored_as(checkpoint.tensors, dtype, row.float32_norms)
        checkpoint = replace(checkpoint, tensors=tensors)
        notes += fallbacks
    try:
        if overwrite:
            _check_replaceable(path)
        row.write(checkpoint, path, overwrite=overwrite, on_tensor=on_tensor, **options)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None
    return notes


def _check_replaceable(path: Path) -> None:
    """ValueError for a folder that holds something other than a checkpoint: it would be lost."""
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not any(row.detect(path) for row in FORMATS.values()):
        raise ValueError(f"{path} is a folder without a checkpoint; remove it yourself to reuse it")


def _stored_as(
    tensors: Mapping[str, LazyTensor], dtype: str, float32_norms: bool
) -> tuple[dict[str, LazyTensor], list[str]]:
    """The tensors as `dtype`, and a note for each row length that its blocks do not fill."""
    kind = storage_type(dtype)
    norm_dtype = "f32" if kind.block_size > 1 or float32_norms else dtype
    out: dict[str, LazyTensor] = {}
    fallbacks: dict[int, int] = {}
    for name, tensor in tensors.items():
        columns = tensor.shape[-1]
        if len(tensor.shape) == 1:
            out[name] = tensor.converted(norm_dtype)
        elif columns % kind.block_size:
            out[name] = tensor.converted(_FALLBACK)
            fallbacks[columns] = fallbacks.get(columns, 0) + 1
        else:
            out[name] = tensor.converted(dtype)
    return out, [
        f"{count} tensors have rows of {columns} numbers, which {dtype}'s blocks do not fill; "
        f"stored as {_FALLBACK}"
        for columns, count in fallbacks.items()
    ]
