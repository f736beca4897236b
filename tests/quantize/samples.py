"""Blocks and weights that quantization is tested with."""

from __future__ import annotations

import numpy as np

from puna.quantize.block_type import BlockType
from puna.quantize.blocks import BLOCKS
from puna.quantize.k_quants import K_QUANTS

KINDS = {kind.name: kind for kind in (*BLOCKS, *K_QUANTS)}

# Where a block has its f16 numbers.
F16_AT = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0],
    "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208],
}  # fmt: skip

# Zeros, subnormals, ones, the largest, infinities, numbers that are none.
F16_EXTREMES = (
    *(0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00),
    *(0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFE01, 0xFFFF),
)


def random_blocks(kind: BlockType, count: int = 300) -> np.ndarray:
    """Blocks of any bytes, then such blocks with each pair of extreme f16 numbers."""
    rng = np.random.default_rng(7)
    extremes = len(F16_EXTREMES) ** len(F16_AT[kind.name])
    blocks = rng.integers(0, 256, (count + extremes, kind.num_bytes), dtype=np.uint8)
    for i in range(extremes):
        for field, at in enumerate(F16_AT[kind.name]):
            bits = F16_EXTREMES[i // len(F16_EXTREMES) ** field % len(F16_EXTREMES)]
            blocks[count + i, at : at + 2] = bits & 255, bits >> 8
    blocks[0], blocks[1] = 0, 255
    return blocks


def weights(kind: str, rows: int = 24, columns: int = 512) -> np.ndarray:
    """A matrix of one kind of `WEIGHTS`, without -0."""
    x = WEIGHTS[kind](np.random.default_rng(11), (rows, columns)).astype(np.float32)
    return x + np.float32(0)


def _outliers(rng, shape):
    x = rng.standard_normal(shape) * 0.02
    x[::7] *= 20
    x[:, ::61] *= 8
    return x


WEIGHTS = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape) * 0.02,
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape) * 0.02,
    "outlier rows and columns": _outliers,
    "halves": lambda rng, shape: rng.integers(-16, 17, shape) / 2,
    "halves of Q8_0": lambda rng, shape: np.where(
        np.arange(shape[1]) % 32, rng.integers(-253, 254, shape) / 2, 127
    ),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.05),
    "constant rows": lambda rng, shape: rng.standard_normal((shape[0], 1)) * np.ones(shape),
    "positive": lambda rng, shape: rng.random(shape) + 1,
    "negative": lambda rng, shape: -rng.random(shape) - 1,
    "zeros": lambda rng, shape: np.zeros(shape),
    "any magnitude": lambda rng, shape: (
        rng.standard_normal(shape) * 10.0 ** rng.integers(-45, 4, (shape[0], 1))
    ),
    "subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-41,
    "large": lambda rng, shape: rng.choice([-65504, 0, 65504], shape),
}


def importances(columns: int = 512) -> dict[str, np.ndarray]:
    """What columns count, from mild to extreme."""
    rng = np.random.default_rng(3)
    return {
        "squares": (rng.standard_normal(columns) ** 2 + 1e-3).astype(np.float32),
        "heavy": np.exp(2 * rng.standard_normal(columns)).astype(np.float32),
        "extreme": (10.0 ** rng.uniform(-8, 8, columns)).astype(np.float32),
        "few": (rng.random(columns) < 0.1).astype(np.float32),
    }
