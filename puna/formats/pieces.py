"""Tensors that lie in pieces in several safetensors files, as the ranks of a run wrote them.

A file's metadata says where in its tensor each piece begins, by the key and in the form of
`torch.distributed.checkpoint`'s own safetensors files; where it is silent, each is a whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from puna.formats.checkpoint import derived
from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.formats.json_text import JsonObject, parse_object
from puna.formats.safetensors_file import ITEM_BYTES, Entry, read_entries
from puna.formats.stored import Stored
from puna.quantize.block_type import Bytes

OFFSETS_KEY, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_MAX_DIMS = 2  # of a Llama's tensors

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor: its data is at byte `entry.begin` of a file, row by row.

    The file is opened for each reading: there may be thousands of them.
    """

    offsets: Shape
    path: Path
    entry: Entry
    identity: str

    @property
    def ends(self) -> Shape:
        return tuple(o + n for o, n in zip(self.offsets, self.entry.shape, strict=True))

    def read(self, begin: Shape, shape: Shape) -> Bytes:
        """Of the box at `begin` within this piece its bytes, (*shape[:-1], bytes of a row)."""
        file, size = DataFile(self.path), ITEM_BYTES[self.entry.dtype]
        row_bytes = shape[-1] * size
        out = np.empty((*shape[:-1], row_bytes), np.uint8)
        rows = out.reshape(-1, row_bytes)
        first = begin[0] if len(begin) > 1 else 0
        width = self.entry.shape[-1] * size
        start = self.entry.begin + first * width + begin[-1] * size
        if row_bytes == width:
            whole = file.read(start, start + rows.nbytes)
            return whole.reshape(out.shape)
        for number, row in enumerate(rows):
            row[:] = file.read(start + number * width, start + number * width + row_bytes)
        return out


@dataclass(frozen=True, slots=True)
class Pieced:
    """A tensor and its pieces, which fill it as a grid. `dtype` is safetensors' name of it."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]

    @property
    def dtype(self) -> str:
        return self.pieces[0].entry.dtype

    def read(self, begin: Shape, shape: Shape) -> Bytes:
        """The box at `begin`, of bytes as in `Piece.read`; nothing beside it is read from disk."""
        size = ITEM_BYTES[self.dtype]
        ends = tuple(b + n for b, n in zip(begin, shape, strict=True))
        out: Bytes | None = None
        for piece in self.pieces:
            low = tuple(map(max, begin, piece.offsets))
            high = tuple(map(min, ends, piece.ends))
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            extent = tuple(b - a for a, b in zip(low, high, strict=True))
            part = piece.read(tuple(a - o for a, o in zip(low, piece.offsets, strict=True)), extent)
            if extent == shape:
                return part
            if out is None:
                out = np.empty((*shape[:-1], shape[-1] * size), np.uint8)
            scale = (*(1,) * (len(shape) - 1), size)
            where = tuple(
                slice((a - b) * s, (a - b + n) * s)
                for a, b, n, s in zip(low, begin, extent, scale, strict=True)
            )
            out[where] = part
        return np.empty((*shape[:-1], shape[-1] * size), np.uint8) if out is None else out

    def stored(self) -> Stored:
        """All of it, as a container's tensor."""
        first = self.pieces[0]
        origin = derived("pieces", *((piece.identity,) for piece in self.pieces))
        read = partial(self.read, (0,) * len(self.shape), self.shape)
        place = (first.path, first.entry.place)
        return Stored(self.name, self.dtype, self.shape, place, lambda: read().reshape(-1), origin)


Found = dict[str, dict[Shape, Piece]]  # of a tensor the pieces, by where they begin


def find_pieces(paths: Iterable[Path], rename: Callable[[str], str] = lambda name: name) -> Found:
    """What pieces there are in files, of which only headers are read; `rename` makes the names of
    tensors of the files' own. FormatError for what is damaged.
    """
    found: Found = {}
    for path in paths:
        file, entries, metadata = read_entries(path)
        offsets = _offsets(path, metadata)
        for foreign, entry in entries.items():
            begin = _begin(offsets, foreign, entry, path)
            pieces = found.setdefault(rename(foreign), {})
            if begin in pieces:
                raise FormatError(path, foreign, entry.place, "the same piece is there twice")
            identity = file.identity(entry.begin, entry.end)
            pieces[begin] = Piece(begin, path, entry, identity)
    return found


def put_together(found: Found, shapes: Mapping[str, Shape], folder: Path) -> dict[str, Pieced]:
    """The tensors of these shapes. FormatError where pieces are missing, are no tensor's, or lie
    over another.
    """
    for name in found:
        if name not in shapes:
            first = next(iter(found[name].values()))
            raise FormatError(first.path, name, first.entry.place, "no tensor has this name")
    tensors = {}
    for name, shape in shapes.items():
        if name not in found:
            raise FormatError(folder, name, 0, "no file holds it")
        pieces = found[name]
        _check_grid(name, shape, pieces)
        tensors[name] = Pieced(name, shape, tuple(pieces[key] for key in sorted(pieces)))
    return tensors


def _offsets(path: Path, metadata: Mapping[str, str]) -> JsonObject | None:
    if OFFSETS_KEY not in metadata:
        return None
    return parse_object(path, metadata[OFFSETS_KEY].encode(), OFFSETS_KEY)


def _begin(offsets: JsonObject | None, name: str, entry: Entry, path: Path) -> Shape:
    """Where in its tensor an entry begins."""
    num_dims = len(entry.shape)
    if num_dims > _MAX_DIMS:
        raise FormatError(path, name, entry.place, f"it has {num_dims} dimensions")
    if offsets is None:
        return (0,) * num_dims
    value = offsets.get(name)
    begin = value.get(OFFSETS) if isinstance(value, dict) else None
    if (
        not isinstance(begin, list)
        or len(begin) != num_dims
        or not all(type(n) is int and n >= 0 for n in begin)
    ):
        raise FormatError(path, name, entry.place, f"its piece cannot begin at {begin!r}")
    return tuple(begin)


def _check_grid(name: str, shape: Shape, pieces: Mapping[Shape, Piece]) -> None:
    """FormatError unless the pieces are all cells of a grid over the whole tensor, of one type."""
    first = next(iter(pieces.values()))
    if any(len(begin) != len(shape) for begin in pieces):
        raise FormatError(first.path, name, first.entry.place, f"it is no part of {shape}")
    starts = [sorted({begin[dim] for begin in pieces}) for dim in range(len(shape))]
    follows = [
        dict(zip(at, [*at[1:], whole], strict=True))
        for at, whole in zip(starts, shape, strict=True)
    ]
    if math.prod(map(len, starts)) != len(pieces) or any(at[0] for at in starts):
        raise FormatError(
            first.path, name, first.entry.place, f"its pieces do not make up the whole {shape}"
        )
    for piece in pieces.values():
        if piece.entry.dtype != first.entry.dtype:
            raise FormatError(piece.path, name, piece.entry.place, "its pieces are of two types")
        expected = tuple(after[at] for after, at in zip(follows, piece.offsets, strict=True))
        if piece.ends != expected:
            raise FormatError(
                piece.path, name, piece.entry.place,
                f"its piece ends at {piece.ends}, where {expected} is expected",
            )  # fmt: skip
