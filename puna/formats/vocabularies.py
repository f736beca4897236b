"""Tokenizer files: which there are, found beside weights, read by any of their formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from puna.formats import ggml
from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.formats.gguf_file import MAGIC as GGUF_MAGIC
from puna.formats.gguf_file import read_header
from puna.tokenizer import Vocabulary
from puna.tokenizer.gguf import read_metadata
from puna.tokenizer.json_file import read_json, write_json
from puna.tokenizer.llama2c import read_bin
from puna.tokenizer.sentencepiece_model import read_model, write_model
from puna.tokenizer.vocabulary import VocabularyError

_MAX_BYTES = 64_000_000  # a tokenizer.json of 128k pieces is 9 MB


def load_vocabulary(path: Path) -> Vocabulary:
    """Reads a tokenizer file of any known kind, or the one in a folder.

    Raises FormatError if it is damaged or unknown, FileNotFoundError if it is not there.
    """
    if path.is_dir():
        vocabulary = beside(path)
        if vocabulary is None:
            problem = "the folder holds no tokenizer.model or tokenizer.json"
            raise FormatError(path, "tokenizer", 0, problem)
        return vocabulary
    file = DataFile(path)
    if file.read(0, min(4, file.size)).tobytes() == GGUF_MAGIC:
        header = read_header(path)
        try:
            return read_metadata(header.metadata)
        except VocabularyError as error:
            raise header.error(error.field, str(error)) from None
    if ggml.detect(path):
        return ggml.read_vocabulary(path)
    if file.size > _MAX_BYTES:
        raise FormatError(path, "tokenizer", 0, f"{file.size} bytes are not plausible for one")
    try:
        return _READERS.get(path.suffix, read_model)(file.read(0, file.size).tobytes())
    except VocabularyError as error:
        raise FormatError(path, error.field, error.offset, str(error)) from None


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
