"""How long a device computes, by the shapes of what it multiplies and the bytes that it moves.

A matrix product takes what a best-shaped one was measured to reach, lessened by how its tiles fill
the device's units in waves, or the time that its operands take to be read. Everything else is as
long as its bytes are. Rates are of a device at a power, which clocks follow.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from puna.config import ModelConfig
from puna.plan.hardware import Cluster

# Of a peak, what a best-shaped product reaches where nobody measured it: *ours*, H100's.
_REACHED = 0.80
# Tiles of a product, and how fast each is beside the largest: as operands are read more often.
_TILES = ((256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.8))
# Of a product's rate, what causal attention reaches: FlashAttention-2 (arXiv 2307.08691, figures
# 4-6) has 170 TFLOP/s forward and backward at 4k and width 128, an A100's products 271.
_ATTENTION = 0.62
# Of memory's bandwidth, what copying reaches: 85 % is usual of HBM (STREAM-like kernels).
_COPIES = 0.85
# Of a device's power, what does not follow its clock; rate ~ sqrt(power), for voltage falls too.
_STANDING = 0.25
_LAUNCH = 4e-6  # s, until a product starts; *ours*


@dataclass(frozen=True, slots=True)
class Kernels:
    """How training computes on a cluster's devices: `dtype` of the blocks' products, bf16 or fp8;
    `compiled` whether what lies between products is fused.

    ValueError where the cluster's power leaves nothing for a clock.
    """

    cluster: Cluster
    dtype: str = "bf16"
    compiled: bool = True

    def __post_init__(self) -> None:
        device, least = self.cluster.device, _STANDING * self.cluster.device.power
        if self.cluster.power <= least:
            raise ValueError(
                f"{device.name} does not compute at {self.cluster.power:g} W; give it more than "
                f"{least:g}"
            )

    @property
    def clock(self) -> float:
        """What share of its rate a device keeps under the cluster's power."""
        full = self.cluster.device.power
        moving = (self.cluster.power - _STANDING * full) / (full - _STANDING * full)
        return float(moving**0.5)

    def rate(self, dtype: str) -> float:
        """FLOP/s that a best-shaped product reaches."""
        device = self.cluster.device
        reached = device.matmul / device.bf16 if device.matmul else _REACHED
        return device.peak(dtype) * reached * self.clock

    @property
    def copy_rate(self) -> float:
        """Bytes/s that are read and written."""
        return self.cluster.device.bandwidth * 1e9 * _COPIES


@functools.lru_cache(maxsize=65536)
def product_seconds(kernels: Kernels, dtype: str, m: int, n: int, k: int) -> float:
    """A product (m, k) x (k, n)."""
    units = kernels.cluster.device.units
    share = 1.0
    if units:
        share = max(_filled(m, n, units, *tile) for tile in _TILES)
    arithmetic = 2.0 * m * n * k / (kernels.rate(dtype) * share)
    size = 1 if dtype == "fp8" else 2
    moved = (size * (m * k + k * n) + 2 * m * n) / kernels.copy_rate
    return max(arithmetic, moved) + _LAUNCH


def _filled(m: int, n: int, units: int, rows: int, columns: int, speed: float) -> float:
    """What share of the units' time is spent on what is wanted, the last wave being part empty."""
    tiles = -(-m // rows) * -(-n // columns)
    wanted = m * n / (rows * columns)
    return speed * wanted / (-(-tiles // units) * units)


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Seconds of one layer and one piece of a batch; `again` is what is computed anew."""

    forward: float
    backward: float
    again: float


@functools.lru_cache(maxsize=65536)
def layer_seconds(
    kernels: Kernels, config: ModelConfig, windows: int, tp: int, cp: int, recompute: str
) -> LayerTime:
    """What a rank of `tp` and `cp` computes of a block for `windows` windows."""
    n = windows * config.context_length // cp
    dim, kv, ffn = config.dim, config.kv_dim, config.ffn_dim
    shapes = [(dim // tp, dim, 1), (kv // tp, dim, 2), (dim, dim // tp, 1), (ffn // tp, dim, 2),
              (dim, ffn // tp, 1)]  # fmt: skip
    forward = backward = 0.0
    for out, into, number in shapes:
        forward += number * product_seconds(kernels, kernels.dtype, n, out, into)
        backward += number * product_seconds(kernels, kernels.dtype, n, into, out)
        backward += number * product_seconds(kernels, kernels.dtype, out, into, n)
    # A mask hides half; with parts of the positions its blocks are computed all the same.
    seen = config.context_length / (2 if cp == 1 else 1)
    attention = 4.0 * n * seen * dim / tp / (kernels.rate("bf16") * _ATTENTION)
    between = n * between_bytes(config, kernels) / tp / kernels.copy_rate
    forward += attention + between
    # Scores are computed anew: 5 products for forward's 2.
    backward += 2.5 * attention + 2 * between
    again = {"none": 0.0, "selective": between, "full": forward}[recompute]
    return LayerTime(forward, backward, again)


def between_bytes(config: ModelConfig, kernels: Kernels) -> float:
    """What a layer's forward pass reads and writes of a position between its products.

    Compiled, each norm takes the sum before it along, the rotation and the gate are one kernel
    each. Else every operation of the network as it is written, in fp32 where that is.
    """
    dim, kv, ffn = config.dim, config.kv_dim, config.ffn_dim
    fused = 2 * 8 * dim + 4 * (dim + kv) + 6 * ffn
    single = 2 * (8 + 6) * dim + 44 * (dim + kv) + 10 * ffn
    # What is multiplied in fp8 is read for its largest value, read again, and written.
    quantized = 5 * (3 * dim + ffn) if kernels.dtype == "fp8" else 0
    return (fused if kernels.compiled else single) + quantized


@functools.lru_cache(maxsize=65536)
def head_seconds(kernels: Kernels, config: ModelConfig, windows: int, tp: int, cp: int) -> float:
    """The head's products forward and backward, and what the loss does with logits in fp32."""
    n = windows * config.context_length // cp
    share = config.vocab_size // tp
    products = (
        product_seconds(kernels, "bf16", n, share, config.dim)
        + product_seconds(kernels, "bf16", n, config.dim, share)
        + product_seconds(kernels, "bf16", share, config.dim, n)
    )
    return products + 50.0 * n * share / kernels.copy_rate


def update_seconds(kernels: Kernels, parameters: float) -> float:
    """AdamW's update of a rank's fp32 shards: 28 bytes each, and 12 for the norm and its clip."""
    return 40.0 * parameters / kernels.copy_rate
