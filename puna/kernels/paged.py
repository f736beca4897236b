"""Attention over pages of keys and values: the plain definition of the GPU's kernel.

Rows, the new tokens of several sequences, are cut into tiles: neighbours of one sequence, in
order. The key of position p of a sequence lies in slot p % page_size of page
`table[p // page_size]`. Shapes: R rows, S tiles, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows(NamedTuple):
    """Where the rows of a step lie; int32, on the device of the pages.

    A row sees the positions of its sequence up to its own. A tile that is padding has no rows.
    """

    positions: Tensor  # (R,)
    slots: Tensor  # (R,) page * page_size + slot of each row's own key
    tables: Tensor  # (sequences, P)
    starts: Tensor  # (S,) first row of a tile
    counts: Tensor  # (S,) its rows
    owners: Tensor  # (S,) its sequence, a row of `tables`
    tile: int  # the most rows of a tile
    splits: int  # parts that the positions of a tile are cut into, at most


def store(k_RKD: Tensor, v_RKD: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Puts rows of keys and values into pages (pages, page_size, K, D)."""
    for rows, pages in ((k_RKD, keys), (v_RKD, values)):
        pages.flatten(0, 1)[slots.long()] = rows.to(pages.dtype)


def attend(q_RHD: Tensor, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
    """What each row sees (R, H, D), of pages (pages, page_size, K, D) that hold its own key."""
    out = torch.zeros_like(q_RHD)
    page_size = keys.shape[1]
    for start, count, owner in zip(*(t.tolist() for t in rows[3:6]), strict=True):
        if count == 0:
            continue
        part = slice(start, start + count)
        positions = rows.positions[part]
        length = int(positions[-1]) + 1
        pages = rows.tables[owner, : -(-length // page_size)].long()
        k, v = (p[pages].flatten(0, 1)[:length].transpose(0, 1) for p in (keys, values))
        seen = torch.arange(length, device=keys.device) <= positions[:, None]
        q = q_RHD[part].transpose(0, 1).to(k.dtype)
        gqa = q.shape[0] != k.shape[0]
        result = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen, enable_gqa=gqa
        )
        out[part] = result[0].transpose(0, 1).to(out.dtype)
    return out
