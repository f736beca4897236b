"""Token shards: a corpus as ids on disk, each document between its BOS and EOS.

A shard is one file: the ids (`<u2` up to 65,536 pieces, else `<u4`), zeros up to a multiple of 8
bytes, then for each document where it ends among the ids (`<u8`). `manifest.json` beside the
shards says what is in each; it is written last, so a folder without one is no set of shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puna.data.manifest import (
    END_DTYPE,
    MANIFEST,
    Manifest,
    Shard,
    read_manifest,
    token_dtype,
    vocabulary_hash,
    write_manifest,
)
from puna.tokenizer import Vocabulary

TOKENS_PER_SHARD = 1 << 28  # half a gigabyte of `<u2`
_NAME = "{}.tokens"


class ShardWriter:
    """Writes the documents of one source into the shards of a folder; a context manager.

    Shards have `max_tokens_per_shard` tokens at most, but a document is never split: one that is
    longer has a shard of its own. Leaving the context writes the manifest; an exception removes
    what was written. Several writers, each with a folder of its own, are put together by
    `join_shards`. Raises ValueError where the folder holds shards already.
    """

    def __init__(
        self,
        folder: Path,
        vocabulary: Vocabulary,
        *,
        source: str,
        licence: str,
        max_tokens_per_shard: int = TOKENS_PER_SHARD,
    ) -> None:
        if max_tokens_per_shard < 1:
            raise ValueError(f"max_tokens_per_shard must be positive, not {max_tokens_per_shard}")
        if (folder / MANIFEST).exists():
            raise ValueError(f"{folder} holds shards already; remove it or choose another name")
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(_NAME.format("[0-9]" * 5)):
            unfinished.unlink()  # of a writer that was killed before its manifest
        self._folder, self._source, self._licence = folder, source, licence
        self._max_tokens = max_tokens_per_shard
        self._dtype = token_dtype(len(vocabulary))
        self._bos, self._eos = vocabulary.bos_id, vocabulary.eos_id
        self.manifest = Manifest(vocabulary_hash(vocabulary), len(vocabulary), ())
        self._shard: _OpenShard | None = None

    def add(self, ids: ArrayLike) -> None:
        """Appends one document, given without BOS and EOS, which are put around it.

        `ids` are integers, (T,). A document of none is left out and counted. ValueError for an id
        outside the vocabulary, and for BOS and EOS.
        """
        array = np.asarray(ids)
        if not array.size:
            count = self.manifest.num_empty_documents + 1
            self.manifest = replace(self.manifest, num_empty_documents=count)
            return
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise ValueError(f"a document is a row of ids, not {array.dtype} of {array.ndim} axes")
        if array.min() < 0 or array.max() >= self.manifest.vocab_size:
            raise ValueError(
                f"document {self.num_documents} of {self._source} has ids from {array.min()} to "
                f"{array.max()}; the vocabulary has {self.manifest.vocab_size} pieces"
            )
        if (array == self._bos).any() or (array == self._eos).any():
            raise ValueError(
                f"document {self.num_documents} of {self._source} holds BOS or EOS, which only "
                "part documents; give its text's ids alone"
            )
        document = np.empty(array.size + 2, self._dtype)
        document[0], document[-1] = self._bos, self._eos
        document[1:-1] = array
        if self._shard and self._shard.num_tokens + document.size > self._max_tokens:
            self._finish_shard()
        if self._shard is None:
            number = f"{len(self.manifest.shards):05}"
            self._shard = _OpenShard(self._folder / _NAME.format(number))
        self._shard.add(document)

    @property
    def num_documents(self) -> int:
        """Documents written until now."""
        return self.manifest.num_documents + (len(self._shard.ends) if self._shard else 0)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish_shard()
                write_manifest(self._folder, self.manifest)
                return
        except BaseException:
            self._remove()
            raise
        self._remove()

    def _finish_shard(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            values = shard.finish()
            added = Shard(shard.path.name, self._source, self._licence, *values)
            self.manifest = replace(self.manifest, shards=(*self.manifest.shards, added))

    def _remove(self) -> None:
        if self._shard is not None:
            self._shard.file.close()
            self._shard.path.unlink(missing_ok=True)
        for shard in self.manifest.shards:
            (self._folder / shard.file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not ours alone
            self._folder.rmdir()


class _OpenShard:
    """A shard that is being written."""

    def __init__(self, path: Path) -> None:
        self.path, self.num_tokens, self.ends = path, 0, list[int]()
        self.file, self._digest = open(path, "wb"), hashlib.sha256()  # noqa: SIM115

    def add(self, document: NDArray[np.unsignedinteger]) -> None:
        self._write(document.tobytes())
        self.num_tokens += document.size
        self.ends.append(self.num_tokens)

    def finish(self) -> tuple[int, int, int, str]:
        """Tokens, documents, bytes and checksum of the whole file, which is on the disk now."""
        self._write(bytes(-self.file.tell() % END_DTYPE.itemsize))
        self._write(np.asarray(self.ends, END_DTYPE).tobytes())
        size = self.file.tell()
        with self.file:
            self.file.flush()
            os.fsync(self.file.fileno())
        return self.num_tokens, len(self.ends), size, self._digest.hexdigest()

    def _write(self, raw: bytes) -> None:
        self.file.write(raw)
        self._digest.update(raw)


def join_shards(folder: Path, parts: Sequence[str]) -> Manifest:
    """Writes the manifest of `folder` over the shards of its subfolders `parts`, in their order.

    Raises ValueError if there are none or they differ in their vocabulary.
    """
    manifests = [read_manifest(folder / part) for part in parts]
    if not manifests:
        raise ValueError(f"no shards to join in {folder}")
    for part, manifest in zip(parts, manifests, strict=True):
        if manifest.vocabulary != manifests[0].vocabulary:
            raise ValueError(
                f"{folder / part} was tokenized with another vocabulary than {folder / parts[0]}"
            )
    shards = tuple(
        replace(shard, file=str(PurePosixPath(part) / shard.file))
        for part, manifest in zip(parts, manifests, strict=True)
        for shard in manifest.shards
    )
    num_empty = sum(manifest.num_empty_documents for manifest in manifests)
    joined = replace(manifests[0], shards=shards, num_empty_documents=num_empty)
    write_manifest(folder, joined)
    return joined


@dataclass(frozen=True)
class ShardSet:
    """The shards of a folder, whose sizes fit their manifest. Files are mapped when asked for."""

    folder: Path
    manifest: Manifest

    def verify(self, shard: Shard) -> None:
        """Reads a shard whole; ValueError with its name if its checksum is another."""
        path = self.folder / shard.file
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise ValueError(
                f"{path} is corrupt: its SHA-256 is {found}, its manifest says {shard.sha256}; "
                "build the corpus again"
            )

    def verify_all(
        self,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        on_shard: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Verifies every shard; of several processes each takes its share, and all have to pass.

        `on_shard` hears how many are verified, and of how many.
        """
        share = self.manifest.shards[rank::num_ranks]
        for done, shard in enumerate(share):
            on_shard(done, len(share))
            self.verify(shard)

    def tokens(self, shard: Shard) -> NDArray[np.unsignedinteger]:
        """The ids of a shard, (num_tokens,), mapped."""
        dtype = token_dtype(self.manifest.vocab_size)
        return self._map(shard, dtype, 0, shard.num_tokens)

    def ends(self, shard: Shard) -> NDArray[np.unsignedinteger]:
        """Where each document of a shard ends among its ids, (num_documents,), mapped."""
        return self._map(
            shard,
            END_DTYPE,
            shard.num_bytes - END_DTYPE.itemsize * shard.num_documents,
            shard.num_documents,
        )

    def _map(self, shard: Shard, dtype: np.dtype[Any], offset: int, count: int) -> NDArray[Any]:
        path = self.folder / shard.file
        _check_size(path, shard)
        return np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))


def open_shards(folder: Path, vocabulary: Vocabulary | None = None) -> ShardSet:
    """Opens what writers wrote.

    Raises ValueError, which names the file, for a missing shard, one that does not fit its
    manifest, and shards of another vocabulary than `vocabulary`.
    """
    manifest = read_manifest(folder)
    if vocabulary is not None and manifest.vocabulary != vocabulary_hash(vocabulary):
        raise ValueError(
            f"{folder} was tokenized with another vocabulary (of {manifest.vocab_size} pieces) "
            f"than the one given (of {len(vocabulary)}); tokenize the texts again"
        )
    for shard in manifest.shards:
        _check_size(folder / shard.file, shard)
    return ShardSet(folder, manifest)


def _check_size(path: Path, shard: Shard) -> None:
    if not path.is_file():
        raise ValueError(f"the shard {path} is missing; build the corpus again")
    if path.stat().st_size != shard.num_bytes:
        raise ValueError(
            f"the shard {path} has {path.stat().st_size} bytes, its manifest says "
            f"{shard.num_bytes}; build the corpus again"
        )
