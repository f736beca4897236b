"""A checkpoint's weights as the native step reads them: packed at the first start, then mapped."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.engine.cpu.grouped_tiles import pack_grouped_tensors
from puna.engine.cpu.tile_cache import TileCache
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.kernels.step import Embeddings, physical_cores
from puna.kernels.tiles import Array, Tiles, huge, kind_of, pack, packed_bytes
from puna.quantize.block_type import Floats
from puna.quantize.storage import STORAGE

_ALIGNMENT = 4096
EMBEDDINGS, HEAD = "tok_embeddings.weight", "output.weight"
_WORTH_THREADS = 32 << 20  # packed bytes; less is done before the threads are awake
_AS_STORED = -1  # in place of a kind of tiles: the embedding, of which rows are looked up


@dataclass(frozen=True, slots=True)
class Part:
    """Where a matrix stands in the memory of all: bytes [begin, end), from the tensor `source`."""

    name: str
    source: str
    dtype: str
    rows: int
    columns: int
    kind: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Weights:
    """`tiles` and `norms` by the canonical names, those of a tied head as "output.weight";
    `orders` as `kernels.step.Forward` has them.
    """

    tiles: dict[str, Tiles]
    norms: dict[str, Floats]
    embeddings: Embeddings
    orders: dict[str, NDArray[np.int32]]


def load_weights(
    library: ctypes.CDLL,
    checkpoint: Checkpoint,
    dtype: str | None = None,
    cache: TileCache | None = None,
) -> Weights:
    """All weights, matrices converted to `dtype` first (None: as they are).

    A large model's are kept in `cache`, and the next time taken from there, if it is known what
    they are made of; but integers in groups are packed each time. ValueError, before any is read,
    for types of which there are no tiles.
    """
    tensors = {
        name: tensor if len(tensor.shape) == 1 or dtype is None else tensor.converted(dtype)
        for name, tensor in checkpoint.tensors.items()
    }
    # A quantized head runs as f32: nothing gives its input another order.
    integers = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.packed is not None and name.startswith("layers.")
    }
    tensors = {name: tensor for name, tensor in tensors.items() if name not in integers}
    parts = _plan(library, tensors, checkpoint.config.tied)
    grouped = pack_grouped_tensors(library, checkpoint.config, integers)
    data = None
    if cache is not None and parts[-1].end >= cache.least:
        key = _key(library, checkpoint, tensors, parts)
        if key is not None:
            spans = [(part.begin, part.end) for part in parts]
            data = cache.get(library, key, spans)
            if data is None:
                made = _each_packed(library, tensors, parts, _scratch(parts))
                data = cache.put(library, key, spans, made)
    if data is None:
        whole = data = huge(parts[-1].end)
        for _ in _each_packed(library, tensors, parts, lambda part: whole[part.begin : part.end]):
            pass
    tiles = {
        part.name: Tiles(part.kind, part.rows, part.columns, data[part.begin : part.end])
        for part in parts[1:]
    }
    norms = {
        name: np.ascontiguousarray(tensor.read_float32())
        for name, tensor in tensors.items()
        if len(tensor.shape) == 1
    }
    first = parts[0]
    rows = data[first.begin : first.end].reshape(first.rows, -1)
    embeddings = _embeddings(rows, first.dtype)
    return Weights(tiles | grouped.tiles, norms, embeddings, grouped.orders)


def tiles_of(library: ctypes.CDLL, tensor: LazyTensor, dtype: str | None) -> Tiles | Floats:
    """One weight as `load_weights` has it, in memory of its own."""
    if len(tensor.shape) == 1:
        return np.ascontiguousarray(tensor.read_float32())
    if dtype is not None:
        tensor = tensor.converted(dtype)
    return pack(library, tensor.dtype, tensor.read(), tensor.shape[1])


def embeddings_of(tensor: LazyTensor, dtype: str | None) -> Embeddings:
    """Rows to look up, in memory of their own, converted to `dtype` first (None: as they are)."""
    if dtype is not None:
        tensor = tensor.converted(dtype)
    return _embeddings(tensor.read(), tensor.dtype)


def _embeddings(rows: Array, dtype: str) -> Embeddings:
    return Embeddings(rows, dtype, STORAGE[dtype].block_bytes)


def _plan(library: ctypes.CDLL, tensors: dict[str, LazyTensor], tied: bool) -> list[Part]:
    """The matrices one after another, the embedding first, and its copy as a head if it is tied."""
    names = [name for name, tensor in tensors.items() if len(tensor.shape) == 2]
    names.sort(key=lambda name: name != EMBEDDINGS)
    wanted = [(EMBEDDINGS, EMBEDDINGS), *([(HEAD, EMBEDDINGS)] if tied else [])]
    wanted += [(name, name) for name in names[1:]]
    parts: list[Part] = []
    for number, (name, source) in enumerate(wanted):
        tensor = tensors[source]
        rows, columns = tensor.shape
        begin = -(-(parts[-1].end if parts else 0) // _ALIGNMENT) * _ALIGNMENT
        if number == 0:
            kind, size = _AS_STORED, tensor.num_bytes
        else:
            kind = kind_of(tensor.dtype)
            size = packed_bytes(library, tensor.dtype, (rows, columns))
        parts.append(Part(name, source, tensor.dtype, rows, columns, kind, begin, begin + size))
    return parts


def _each_packed(
    library: ctypes.CDLL,
    tensors: dict[str, LazyTensor],
    parts: list[Part],
    room: Callable[[Part], Array],
) -> Iterator[Array]:
    """Packs each part into the memory that `room` has for it."""
    reads = [tensors[part.source].read for part in parts]
    with ThreadPoolExecutor(physical_cores() + 1) as pool:
        threads = parts[-1].end >= _WORTH_THREADS
        share = pool.map if threads else map
        each = _ahead(pool, reads) if threads else (read() for read in reads)
        for part, stored in zip(parts, each, strict=True):
            out = room(part)
            if part.kind == _AS_STORED:
                out[:] = stored.reshape(-1)
            else:
                pack(library, part.dtype, stored, part.columns, out, share)
            yield out


def _ahead(pool: ThreadPoolExecutor, reads: list[Callable[[], Array]]) -> Iterator[Array]:
    """What each of `reads` gives; one is read while the one before is used."""
    ahead = pool.submit(reads[0])
    for following in reads[1:]:
        stored = ahead.result()
        ahead = pool.submit(following)
        yield stored
    yield ahead.result()


def _scratch(parts: list[Part]) -> Callable[[Part], Array]:
    """Memory for one part at a time."""
    memory = huge(max(part.end - part.begin for part in parts))
    return lambda part: memory[: part.end - part.begin]


def _key(
    library: ctypes.CDLL,
    checkpoint: Checkpoint,
    tensors: dict[str, LazyTensor],
    parts: list[Part],
) -> dict[str, Any] | None:
    """All that the packed bytes are a function of; None where that is not known."""
    origins = {part.source: tensors[part.source].origin for part in parts}
    if None in origins.values():
        return None
    return {
        "version": _version(library),
        "model": str(checkpoint.path.absolute()),
        "parts": [list(asdict(part).values()) for part in parts],
        "origins": {name: list(origin or ()) for name, origin in origins.items()},
    }


def _version(library: ctypes.CDLL) -> str:
    """A digest of the code that stands between the files and the tiles."""
    found = hashlib.sha256(library.puna_digest())
    package = Path(__file__).parents[2]
    for room in ("formats", "quantize", "kernels", "engine/cpu"):
        for source in sorted((package / room).rglob("*.py")):
            found.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return found.hexdigest()
