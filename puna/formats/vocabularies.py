"""Tokenizer files: which there are, found beside weights, read by any of their formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from puna.formats.gguf_file import MAGIC as GGUF_MAGIC
from puna.formats.gguf_file import read_header
from puna.tokenizer import Vocabulary
from puna.tokenizer.gguf import read_metadata
from puna.tokenizer.json_file import read_json, write_json
from puna.tokenizer.llama2c import read_bin
from puna.tokenizer.sentencepiece_model import read_model, write_model


def load_vocabulary(path: Path) -> Vocabulary:
    """Reads a tokenizer file of any known kind, or the one in a folder.

    Raises ValueError if it is damaged or unknown, FileNotFoundError if it is not there.
    """
    if path.is_dir():
        vocabulary = beside(path)
        if vocabulary is None:
            raise ValueError(f"{path} holds no tokenizer.model or tokenizer.json")
        return vocabulary
    with open(path, "rb") as file:
        start = file.read(4)
    try:
        if start == GGUF_MAGIC:
            return read_metadata(read_header(path).metadata)
        return _READERS.get(path.suffix, read_model)(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def beside(folder: Path) -> Vocabulary | None:
    """The vocabulary that lies in a folder of weights, None if there is none."""
    for name in ("tokenizer.model", "tokenizer.json"):
        if (folder / name).is_file():
            return load_vocabulary(folder / name)
    return None


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> bool:
    """Writes `tokenizer.model` and, where it can say the same (then True), `tokenizer.json`."""
    (folder / "tokenizer.model").write_bytes(write_model(vocabulary))
    if vocabulary.charsmap or vocabulary.remove_extra_spaces:
        return False
    (folder / "tokenizer.json").write_bytes(write_json(vocabulary))
    return True


_READERS: dict[str, Callable[[bytes], Vocabulary]] = {
    ".model": read_model,
    ".json": read_json,
    ".bin": read_bin,
}
