"""How keys and values are kept in pages (`src/kv_types.h` has the same types)."""

from __future__ import annotations

from dataclasses import dataclass

from puna.config import ModelConfig
from puna.kernels.tiles import ROWS

PAGE_SIZE = ROWS  # positions of a page


@dataclass(frozen=True, slots=True)
class KvType:
    """Bytes of a number, and of the scale that the numbers of a head share at a position."""

    number: int  # in `src/kv_types.h`
    size: int
    scale: int = 0

    def page_bytes(self, config: ModelConfig) -> tuple[int, int]:
        """Bytes of the keys and of the values of a page, a layer and a KV head."""
        widths = config.head_dim, -(-config.head_dim // ROWS) * ROWS
        keys, values = (PAGE_SIZE * (width * self.size + self.scale) for width in widths)
        return keys, values


KV_TYPES = {"f32": KvType(0, 4), "f16": KvType(1, 2), "int8": KvType(2, 1, 2)}
