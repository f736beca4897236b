"""A corpus as ids on disk: one flat file, each document between its BOS and EOS."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.data.text import documents
from puna.tokenizer import Tokenizer

_BATCH = 64  # documents tokenized at once
_FILE, _MANIFEST = "tokens.bin", "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a token file holds and where it came from."""

    sources: tuple[str, ...]
    num_documents: int
    num_tokens: int
    vocab_size: int
    dtype: str
    sha256: str


@dataclass(frozen=True)
class TokenFile:
    """Tokens of a corpus, mapped from disk, with their manifest."""

    tokens: NDArray[np.unsignedinteger]
    manifest: Manifest


def write_tokens(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    separator: str | None = None,
    num_threads: int = 2,
    on_document: Callable[[], None] = lambda: None,
) -> TokenFile:
    """Tokenizes `paths` into the new files of `folder`; ValueError for unreadable or no text."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    num_documents = num_tokens = 0
    digest = hashlib.sha256()
    texts = itertools.chain.from_iterable(documents(p, separator=separator) for p in paths)
    with open(folder / _FILE, "wb") as file:
        for batch in _batched(texts, _BATCH):
            for ids in tokenizer.encode_batch(batch, bos=True, eos=True, num_threads=num_threads):
                raw = np.asarray(ids, dtype).tobytes()
                file.write(raw)
                digest.update(raw)
                num_tokens += len(ids)
                num_documents += 1
                on_document()
    if not num_documents:
        raise ValueError(f"no text in {', '.join(map(str, paths))}")
    sources = tuple(str(path) for path in paths)
    manifest = Manifest(
        sources, num_documents, num_tokens, tokenizer.vocab_size, dtype.str, digest.hexdigest()
    )
    (folder / _MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return open_tokens(folder)


def open_tokens(folder: Path) -> TokenFile:
    """Opens what `write_tokens` wrote; ValueError if the file does not fit its manifest."""
    values = json.loads((folder / _MANIFEST).read_text())
    manifest = Manifest(**values | {"sources": tuple(values["sources"])})
    expected = manifest.num_tokens * np.dtype(manifest.dtype).itemsize
    path = folder / _FILE
    if path.stat().st_size != expected:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, its manifest says {expected}")
    return TokenFile(np.memmap(path, manifest.dtype, mode="r"), manifest)


def _batched(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
