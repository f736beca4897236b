"""The manifest of a folder of token shards: what each holds, of which source, by which checksum."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import write_model

MANIFEST = "manifest.json"
END_DTYPE = np.dtype("<u8")  # of where documents end
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard holds; `file` is relative to the manifest's folder."""

    file: str
    source: str
    licence: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder of shards holds; `vocabulary` is the SHA-256 of its `tokenizer.model`."""

    vocabulary: str
    vocab_size: int
    shards: tuple[Shard, ...]
    num_empty_documents: int = 0  # left out, having no ids

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources, each once, in the order of their first shards."""
        return tuple(dict.fromkeys(shard.source for shard in self.shards))

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)


def vocabulary_hash(vocabulary: Vocabulary) -> str:
    """SHA-256 of the vocabulary's `tokenizer.model`, in hexadecimal."""
    return hashlib.sha256(write_model(vocabulary)).hexdigest()


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; ValueError if there is none or it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} holds no shards: there is no {MANIFEST}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("version") != _VERSION:
            raise ValueError("it is of another version")
        manifest = Manifest(**values | {"shards": tuple(Shard(**s) for s in values["shards"])})
        _check_manifest(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes it into `folder`, whose shards are on the disk by now; it appears only whole."""
    temporary = folder / f".{MANIFEST}.partial"
    with open(temporary, "wb") as file:
        values = {"version": _VERSION, **asdict(manifest)}
        file.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def _check_manifest(manifest: Manifest) -> None:
    numbers = [manifest.vocab_size, manifest.num_empty_documents]
    for shard in manifest.shards:
        numbers += [shard.num_tokens, shard.num_documents, shard.num_bytes]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a count is no number")
    itemsize = token_dtype(manifest.vocab_size).itemsize
    for shard in manifest.shards:
        path = PurePosixPath(shard.file)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"shard {shard.file!r} is outside the folder")
        if not 0 < shard.num_documents <= shard.num_tokens:
            raise ValueError(f"shard {shard.file!r} cannot hold {shard.num_documents} documents")
        num_bytes = -(-itemsize * shard.num_tokens // END_DTYPE.itemsize) * END_DTYPE.itemsize
        if shard.num_bytes != num_bytes + END_DTYPE.itemsize * shard.num_documents:
            raise ValueError(f"shard {shard.file!r} cannot have {shard.num_bytes} bytes")
