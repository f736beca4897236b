"""The search for codes in blocks of 256: how near it comes, what it weighs, what it survives."""

from __future__ import annotations

import numpy as np
import pytest

from puna.quantize import k_layout
from puna.quantize.k_quants import K_QUANTS
from puna.quantize.storage import STORAGE, convert
from tests.quantize.samples import KINDS, WEIGHTS, importances, weights

NAMES = [kind.name for kind in K_QUANTS]

# Root mean squared errors of ggml 0.25's quantizer (no importance) on these very weights, relative
# to the weights' own root mean square: tests/peers compares with it directly.
GGML_ERRORS = {
    "gaussian": {
        "q2_k": 0.29303, "q3_k": 0.15143, "q4_k": 0.07162, "q5_k": 0.03629, "q6_k": 0.01784,
    },
    "heavy tails": {
        "q2_k": 0.36276, "q3_k": 0.19197, "q4_k": 0.09461, "q5_k": 0.04763, "q6_k": 0.02586,
    },
    "outlier rows and columns": {
        "q2_k": 0.38802, "q3_k": 0.21762, "q4_k": 0.09532, "q5_k": 0.04852, "q6_k": 0.02790,
    },
}  # fmt: skip

# Bits of a code, and whether sub-blocks have a minimum.
SHAPES = {
    "q2_k": (2, True),
    "q3_k": (3, False),
    "q4_k": (4, True),
    "q5_k": (5, True),
    "q6_k": (6, False),
}


def relative_error(name: str, x: np.ndarray, importance: np.ndarray | None = None) -> float:
    y = STORAGE[name].dequantize(STORAGE[name].quantize(x, importance))
    return float(np.sqrt(((y - x) ** 2).mean() / (x**2).mean()))


def weighted_error(name, x, given, counted):
    y = STORAGE[name].dequantize(STORAGE[name].quantize(x, given)).astype(np.float64)
    return float((counted * (y - x) ** 2).mean())


@pytest.mark.parametrize("sort", GGML_ERRORS)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_below_ggmls(name: str, sort: str) -> None:
    assert relative_error(name, weights(sort)) <= GGML_ERRORS[sort][name]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_type_can_hold_is_held(name: str) -> None:
    """Blocks made from codes and scales come back: nothing is lost where nothing needs to be."""
    rng = np.random.default_rng(0)
    bits, ranged = SHAPES[name]
    codes = rng.integers(0, 1 << bits, (40, 256), dtype=np.uint8)
    codes[:, ::16], codes[:, 1::16] = 0, (1 << bits) - 1  # each sub-block uses the whole range
    d = np.full((40, 1), 0.01, np.float16).view(np.uint8)
    count = 256 // (32 if name in ("q4_k", "q5_k") else 16)
    top = 15 if name == "q2_k" else 63
    if ranged:
        scales = np.full((40, count), top, np.uint8)
        fields = (d, d, scales, rng.integers(top // 2, top + 1, scales.shape, dtype=np.uint8))
    else:
        fields = (d, np.full((40, count), -32 if name == "q3_k" else -128, np.int8))
    x = KINDS[name].dequantize(getattr(k_layout, f"pack_{name}")(*fields, codes))
    assert relative_error(name, x) < 0.02 / (1 << bits)


@pytest.mark.parametrize("sort", ["squares", "heavy", "extreme", "few"])
@pytest.mark.parametrize("name", NAMES)
def test_important_columns_come_out_nearer(name: str, sort: str) -> None:
    x, importance = weights("gaussian"), importances()[sort]
    counted = importance / importance.mean()
    assert weighted_error(name, x, importance, counted) < 0.99 * weighted_error(
        name, x, None, counted
    )


@pytest.mark.parametrize("name", NAMES)
def test_importance_is_relative(name: str) -> None:
    x, importance = weights("heavy tails"), importances()["squares"]
    plain = STORAGE[name].quantize(x, importance)
    np.testing.assert_array_equal(STORAGE[name].quantize(x, importance * 1024), plain)
    ones = np.full(512, 3, np.float32)
    np.testing.assert_array_equal(STORAGE[name].quantize(x, ones), STORAGE[name].quantize(x, None))
    zeros = np.zeros(512, np.float32)
    np.testing.assert_array_equal(STORAGE[name].quantize(x, zeros), STORAGE[name].quantize(x, None))


@pytest.mark.parametrize("sort", WEIGHTS)
@pytest.mark.parametrize("name", NAMES)
def test_no_weight_is_far_off(name: str, sort: str) -> None:
    """Every sort of weights comes back as numbers, none three steps of its block off."""
    x = weights(sort)
    for importance in (None, *importances().values()):
        y = STORAGE[name].dequantize(STORAGE[name].quantize(x, importance))
        assert np.isfinite(y).all()
        if importance is None:
            largest = np.abs(x).reshape(-1, 256).max(axis=1)
            off = np.abs(y - x).reshape(-1, 256).max(axis=1)
            steps = 2 ** SHAPES[name][0] - 1
            assert (off <= 2 * largest * 1.5 / steps + 2**-23).all()


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_constants(name: str) -> None:
    zeros = np.zeros((1, 256), np.float32)
    assert not KINDS[name].dequantize(STORAGE[name].quantize(zeros, None)).any()
    for value in (1.0, -1.0, 0.7, -300.0):
        x = np.full((1, 256), value, np.float32)
        assert relative_error(name, x) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_block_does_not_depend_on_its_neighbours(name: str) -> None:
    x = weights("outlier rows and columns", 5)
    together = STORAGE[name].quantize(x, None)
    alone = [STORAGE[name].quantize(row[None, at : at + 256], None) for row in x for at in (0, 256)]
    np.testing.assert_array_equal(together.reshape(10, -1), np.concatenate(alone))
    again = STORAGE[name].quantize(x.copy(), None)
    np.testing.assert_array_equal(together, again)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_do_not_fit(name: str) -> None:
    x = np.zeros((1, 256), np.float32)
    x[0, 9] = 70000
    with pytest.raises(ValueError, match=f"a weight of 70000 does not fit {name}"):
        STORAGE[name].quantize(x, None)
    for bad in (np.nan, np.inf, -np.inf):
        x[0, 9] = bad
        with pytest.raises(ValueError, match=f"not a finite number, which {name}"):
            STORAGE[name].quantize(x, None)


@pytest.mark.parametrize(("bits", "stride"), [(1, 32), (2, 32), (4, 32), (4, 64), (2, 4), (4, 8)])
def test_planes_are_packed_and_unpacked(bits: int, stride: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 1 << bits, (3, 256), dtype=np.uint8)
    plane = k_layout.pack(numbers, bits, stride)
    assert plane.shape == (3, 32 * bits)
    np.testing.assert_array_equal(k_layout.unpack(plane, bits, stride), numbers)


def test_convert_reads_its_own_bytes() -> None:
    x = weights("gaussian")
    for name in NAMES:
        q = convert(x.view(np.uint8), "f32", name)
        y = convert(q, name, "f32").view(np.float32)
        np.testing.assert_array_equal(y, STORAGE[name].dequantize(q))
