"""A batch -> the numbers that a step on a GPU reads, padded to a shape it was compiled for.

Padding changes nothing: a row of padding writes its key to a scratch page beyond all real ones, and
belongs to a tile of that page alone or to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.engine.batch import Batch

Integers = NDArray[np.int32]
# The fields of a step's numbers, one after another; but for tables, one of each row or tile.
FIELDS = ("tokens", "positions", "slots", "starts", "counts", "owners")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that a step is compiled for: `rows` rows, as many tiles, `tile` rows in each.

    A table is `width` pages, there are as many as rows. `splits` as in `kernels/paged.py`.
    """

    rows: int
    tile: int
    width: int
    splits: int

    @property
    def stride(self) -> int:
        """Numbers from one field to the next, which begins at 16 bytes, as compiled code wants."""
        return -(-self.rows // 4) * 4

    @property
    def num_numbers(self) -> int:
        return self.stride * len(FIELDS) + self.rows * self.width


def is_decode(batch: Batch) -> bool:
    """Whether every sequence has one row: what is captured in graphs."""
    num_rows = len(batch.tokens)
    alone = num_rows == len(batch.tables)
    return alone and bool((batch.sequences == np.arange(num_rows)).all())


def bucket(num_rows: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that holds so many rows, or their next power of 2."""
    for size in buckets:
        if num_rows <= size:
            return size
    return 1 << (num_rows - 1).bit_length()


def splits_for(rows: int, num_kv_heads: int, programs: int, most: int) -> int:
    """Parts to cut contexts into, so that so many programs run."""
    return max(1, min(most, programs // (rows * num_kv_heads)))


def fill(out: Integers, batch: Batch, shape: Shape, page_size: int, scratch: int) -> None:
    """Writes a batch's numbers to `out` (shape.num_numbers,)."""
    fields, tables = split(out, shape)
    out[:] = 0
    num_rows = len(batch.tokens)
    used = batch.tables.shape[1]
    tables[: len(batch.tables), : min(used, shape.width)] = batch.tables[:, : shape.width]
    fields["tokens"][:num_rows] = batch.tokens
    fields["positions"][:num_rows] = batch.positions
    pages = batch.tables[batch.sequences, batch.positions // page_size]
    fields["slots"][:num_rows] = pages * page_size + batch.positions % page_size
    fields["slots"][num_rows:] = scratch * page_size
    tiles = _tiles(batch.sequences, shape.tile)
    for number, (start, count, owner) in enumerate(tiles):
        for name, value in (("starts", start), ("counts", count), ("owners", owner)):
            fields[name][number] = value


def split(out: Any, shape: Shape) -> tuple[dict[str, Any], Any]:
    """The fields (rows,) and tables (rows, width) of a step's numbers, as views of the flat
    array, or tensor, that holds them."""
    rows, stride = shape.rows, shape.stride
    fields = {name: out[i * stride : i * stride + rows] for i, name in enumerate(FIELDS)}
    return fields, out[len(FIELDS) * stride : shape.num_numbers].reshape(rows, shape.width)


def _tiles(sequences: Integers, size: int) -> list[tuple[int, int, int]]:
    """First row, number of rows and sequence of each tile."""
    edges = np.flatnonzero(np.diff(sequences)) + 1
    begins, ends = [0, *edges.tolist()], [*edges.tolist(), len(sequences)]
    return [
        (start, min(size, end - start), int(sequences[start]))
        for begin, end in zip(begins, ends, strict=True)
        for start in range(begin, end, size)
    ]
