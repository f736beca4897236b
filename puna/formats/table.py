"""The table of file formats: a new one is a file in this folder and a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.formats import (
    ggml,
    gguf,
    gptq,
    gptq_write,
    huggingface,
    llama2c,
    meta,
    run_folder,
    sharded,
)
from puna.formats.checkpoint import Checkpoint
from puna.quantize.mixes import FLOATS
from puna.quantize.storage import STORAGE


def _loses_nothing(checkpoint: Checkpoint, **options: Any) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Format:
    """A row of the table.

    `suffix` is that of its files, empty for folders; `holds` the storage types that it can write,
    `fallback` what other types become; `packs` whether it keeps groups of integers as they are;
    `float32_norms` whether it stores 1-D tensors as f32 whatever the rest is; `options` what its
    writer takes besides, `read_options` what its reader does; `lacks` the fields of Checkpoint
    that it has no place for, and `losses(checkpoint, **options)` what else gets lost.
    """

    name: str
    looks_like: str
    detect: Callable[[Path], bool]
    read: Callable[..., Checkpoint]
    write: Callable[..., None] | None
    suffix: str = ""
    holds: tuple[str, ...] = FLOATS
    fallback: str = "f16"
    packs: bool = False
    float32_norms: bool = False
    options: tuple[str, ...] = ()
    read_options: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    losses: Callable[..., list[str]] = _loses_nothing


# In order of detection: a format that is a special case of another stands before it.
FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            name=run_folder.NAME,
            looks_like="the folder of a training run",
            detect=run_folder.detect,
            read=run_folder.read,
            write=None,
        ),
        Format(
            name=gptq.NAME,
            looks_like="a folder with config.json that says quant_method gptq",
            detect=gptq.detect,
            read=gptq.read,
            write=gptq_write.write,
            packs=True,
            options=("bits", "group_size", "symmetric", "zero_points", "max_shard_bytes"),
            read_options=("zero_points",),
            losses=gptq_write.losses,
        ),
        Format(
            name=huggingface.NAME,
            looks_like="a folder with config.json",
            detect=huggingface.detect,
            read=huggingface.read,
            write=huggingface.write,
            options=("max_shard_bytes",),
        ),
        Format(
            name=sharded.NAME,
            looks_like="a checkpoint of several ranks, a folder with checkpoint.json",
            detect=sharded.detect,
            read=sharded.read,
            write=None,
        ),
        Format(
            name=meta.NAME,
            looks_like="a folder with params.json and consolidated.00.pth",
            detect=meta.detect,
            read=meta.read,
            write=meta.write,
            options=("num_shards",),
            lacks=("heads", "chat_template", "license"),
        ),
        Format(
            name=gguf.NAME,
            looks_like="a .gguf file",
            detect=gguf.detect,
            read=gguf.read,
            write=gguf.write,
            suffix=".gguf",
            holds=tuple(STORAGE),
            float32_norms=True,
            options=("file_type",),
            lacks=("heads",),
        ),
        Format(
            name=ggml.NAME,
            looks_like="a .bin file of llama.cpp from before GGUF",
            detect=ggml.detect,
            read=ggml.read,
            write=ggml.write,
            suffix=".bin",
            holds=ggml.HOLDS,
            float32_norms=True,
            options=("file_type",),
            lacks=("heads", "chat_template", "license", "name"),
            losses=ggml.losses,
        ),
        Format(
            name=llama2c.NAME,
            looks_like="a .bin file of llama2.c",
            detect=llama2c.detect,
            read=llama2c.read,
            write=llama2c.write,
            suffix=".bin",
            holds=("f32",),
            fallback="f32",
            lacks=("heads", "chat_template", "license", "name"),
            losses=llama2c.losses,
        ),
    )
}
_ALIASES = {"hf": huggingface.NAME}


def writable(name: str) -> Format:
    """The format called `name`; ValueError if it is unknown or cannot be written."""
    row = FORMATS.get(_ALIASES.get(name, name))
    if row is None or row.write is None:
        known = ", ".join(other.name for other in FORMATS.values() if other.write)
        raise ValueError(f"cannot write the format '{name}'; give one of {known}")
    return row
