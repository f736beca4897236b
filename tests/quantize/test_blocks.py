"""Blocks of 32 against gguf's: the same bytes from weights, the same bits from bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from puna.quantize.blocks import BLOCKS
from tests.quantize.samples import KINDS, WEIGHTS, random_blocks, weights

BLOCK_NAMES = [kind.name for kind in BLOCKS]


def gguf_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal bits; but NaNs only have to be in the same places."""
    numbers = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), ~numbers)
    np.testing.assert_array_equal(ours[numbers].view(np.uint32), theirs[numbers].view(np.uint32))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", KINDS)
def test_any_bytes_stand_for_what_gguf_says(name: str) -> None:
    blocks = random_blocks(KINDS[name])
    assert_same_bits(
        KINDS[name].dequantize(blocks), gguf.quants.dequantize(blocks, gguf_type(name))
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("sort", WEIGHTS)
@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_weights_become_the_bytes_that_gguf_chooses(name: str, sort: str) -> None:
    x = weights(sort).reshape(-1, 32)
    x = x[np.abs(x).max(axis=1) <= KINDS[name].limit / 2]
    theirs = gguf.quants.quantize(x, gguf_type(name))
    np.testing.assert_array_equal(KINDS[name].quantize(x, None), theirs)


@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_of_zeros_with_signs_the_first_is_the_minimum(name: str) -> None:
    # As in GGML; what gguf takes depends on the order in which numpy compares.
    x = np.ones((2, 32), np.float32)
    x[0, 3:5] = -0.0, 0.0
    x[1, 3:5] = 0.0, -0.0
    minimums = KINDS[name].quantize(x, None)[:, 2:4].copy().view(np.uint16)[:, 0]
    assert minimums.tolist() == [0x8000, 0]
