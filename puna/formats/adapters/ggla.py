"""`ggla` adapters (`ggml-adapter-model.bin`), which llama.cpp took until 2024.

"algg", u32 version 1, i32 r, i32 alpha, then tensor records as in `ggml_file.py`, named
`….weight.loraA` (in, rank) and `….weight.loraB` (out, rank), f32 or f16.
"""

from __future__ import annotations

import re
from pathlib import Path

from puna.formats import names
from puna.formats.adapters.adapter import Adapter, Half, paired, transposed
from puna.formats.checkpoint import LazyTensor, derived
from puna.formats.files import DataFile
from puna.formats.ggml_file import Cursor, lazy, read_records

NAME = "ggla"

_MAGIC = b"algg"
_NAME = re.compile(r"(.+)\.lora([AB])")
_DTYPES = ("f32", "f16")


def detect(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read(path: Path) -> Adapter:
    """Opens a file; FormatError if it is damaged."""
    cursor = Cursor(DataFile(path))
    if cursor.take(len(_MAGIC), "magic") != _MAGIC:
        raise cursor.error("magic", "is no ggla file's", 0)
    (version,) = cursor.numbers("I", "version")
    if version != 1:
        raise cursor.error("version", f"{version} is not known; known is 1", 4)
    rank, alpha = cursor.numbers("2i", "header")
    if rank < 1:
        raise cursor.error("r", f"a rank of {rank} is impossible", 8)
    halves: dict[tuple[str, str], Half] = {}
    for name, record in read_records(cursor):
        match = _NAME.fullmatch(name)
        if match is None:
            raise cursor.error(name, "is neither a .loraA nor a .loraB", record.at)
        if record.dtype not in _DTYPES:
            raise cursor.error(name, f"is {record.dtype}; adapters are f32 or f16", record.at)
        tensor = lazy(cursor.file, name, record)
        # Files have Meta's names until August 2023, GGUF's after.
        key = names.GGUF.canonical(match[1]) or match[1], match[2].lower()
        if key in halves:
            raise cursor.error(name, "is in the file twice", record.at)
        tensor = transposed(tensor) if match[2] == "A" else _as_matrix(tensor)
        halves[key] = Half(tensor, name)
    # The file's own rank only scales: tensors may have others, as rank patterns and finetune give.
    parts = paired(path, halves, lambda name, _: alpha / rank)
    # llama.cpp's finetune trains the embedding too, and rows as GGUF orders them. What
    # convert-lora-to-ggml.py made of PEFT's files kept Hugging Face's order.
    finetuned = "tok_embeddings.weight" in parts
    rotated = any(name.endswith(("wq.weight", "wk.weight")) for name in parts)
    note = (
        "the adapter's rows for wq and wk are read in Hugging Face's order, as "
        "convert-lora-to-ggml.py left them; llama.cpp misread them"
    )
    return Adapter(
        NAME, path, parts, interleaved=finetuned, notes=(note,) if rotated and not finetuned else ()
    )


def _as_matrix(tensor: LazyTensor) -> LazyTensor:
    """One row of (rank,), what finetune writes for the norms, as (1, rank)."""
    if len(tensor.shape) == 2:
        return tensor
    return LazyTensor(
        (1, *tensor.shape),
        tensor.dtype,
        lambda: tensor.read().reshape(1, -1),
        place=tensor.place,
        origin=derived("one row", tensor.origin),
    )
