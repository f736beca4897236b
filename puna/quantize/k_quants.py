"""GGML's blocks of 256 weights, Q2_K to Q6_K: layout and search put together.

The bytes mean what GGML means by them; which bytes are chosen is ours (`k_search.py`): least
squared error, weighted by importance where it is given.
"""

from __future__ import annotations

from puna.quantize import k_layout
from puna.quantize.block_type import F16_MAX, BlockType, Bytes, Floats, to_f16
from puna.quantize.k_search import Ranged, Signed, search_ranged, search_signed

# The grids were chosen on Gaussian weights, some with outliers; a finer one gains less than 0.5 %.
Q2_K = Ranged(16, 3, 15, (0, 0.1, 0.2, 0.3))
Q3_K = Signed(16, 4, 32, (3.2, 3.6, 4, 4.4, 4.8, 5.4, 6, 7))
Q4_K = Ranged(32, 15, 63, (-0.02, 0.01, 0.04, 0.07, 0.11))
Q5_K = Ranged(32, 31, 63, (-0.012, 0, 0.012, 0.03, 0.06))
Q6_K = Signed(16, 32, 128, tuple(28 + step / 2 for step in range(13)))


def quantize_q2_k(x: Floats, weights: Floats | None = None) -> Bytes:
    d, dmin, scales, minimums, codes = search_ranged(x, weights, Q2_K)
    return k_layout.pack_q2_k(to_f16(d), to_f16(dmin), scales, minimums, codes)


def quantize_q3_k(x: Floats, weights: Floats | None = None) -> Bytes:
    d, scales, codes = search_signed(x, weights, Q3_K)
    return k_layout.pack_q3_k(to_f16(d), scales, codes)


def quantize_q4_k(x: Floats, weights: Floats | None = None) -> Bytes:
    d, dmin, scales, minimums, codes = search_ranged(x, weights, Q4_K)
    return k_layout.pack_q4_k(to_f16(d), to_f16(dmin), scales, minimums, codes)


def quantize_q5_k(x: Floats, weights: Floats | None = None) -> Bytes:
    d, dmin, scales, minimums, codes = search_ranged(x, weights, Q5_K)
    return k_layout.pack_q5_k(to_f16(d), to_f16(dmin), scales, minimums, codes)


def quantize_q6_k(x: Floats, weights: Floats | None = None) -> Bytes:
    d, scales, codes = search_signed(x, weights, Q6_K)
    return k_layout.pack_q6_k(to_f16(d), scales, codes)


# No weight above f16's largest: no fit to such weights leaves the range of d and dmin.
K_QUANTS = (
    BlockType("q2_k", 256, 84, F16_MAX, k_layout.dequantize_q2_k, quantize_q2_k),
    BlockType("q3_k", 256, 110, F16_MAX, k_layout.dequantize_q3_k, quantize_q3_k),
    BlockType("q4_k", 256, 144, F16_MAX, k_layout.dequantize_q4_k, quantize_q4_k),
    BlockType("q5_k", 256, 176, F16_MAX, k_layout.dequantize_q5_k, quantize_q5_k),
    BlockType("q6_k", 256, 210, F16_MAX, k_layout.dequantize_q6_k, quantize_q6_k),
)
