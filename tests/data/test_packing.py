"""Packed windows: all of them, in an order that depends on the step alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from puna.data.packing import PackedBatches

NUM_WINDOWS, CONTEXT = 10, 7
TOKENS = np.arange(NUM_WINDOWS * CONTEXT + 4, dtype=np.uint16)  # 3 at the end are left over


def batches(**changes: Any) -> PackedBatches:
    options = {"context_length": CONTEXT, "batch_size": 4, "seed": 5, "num_held_out": 2}
    return PackedBatches(TOKENS, **options | changes)


def window(index: int) -> list[int]:
    return list(range(index * CONTEXT, (index + 1) * CONTEXT + 1))


def test_each_epoch_is_a_new_permutation_of_all_windows() -> None:
    packed = batches()
    rows = [row.tolist() for step in range(6) for row in packed.batch(step)]
    assert all(row == window(row[0] // CONTEXT) for row in rows)
    starts = [row[0] // CONTEXT for row in rows]
    epochs = [starts[i : i + 8] for i in range(0, 24, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(8))]}) == 4


def test_an_epoch_may_end_inside_a_batch() -> None:
    packed = batches(batch_size=3)
    rows = [int(row[0]) // CONTEXT for step in range(8) for row in packed.batch(step)]
    assert Counter(rows) == dict.fromkeys(range(8), 3)
    assert sorted(rows[:8]) == list(range(8))


def test_a_batch_depends_on_the_seed_and_the_step_alone() -> None:
    forwards = [batches().batch(step) for step in range(9)]
    packed = batches()
    for step in (8, 0, 3, 3, 7, 1):
        assert np.array_equal(packed.batch(step), forwards[step])
    others = [batches(seed=6).batch(step) for step in range(9)]
    assert not np.array_equal(np.stack(forwards), np.stack(others))
    assert forwards[0].shape == (4, CONTEXT + 1) and forwards[0].dtype == np.int64


@pytest.mark.parametrize("num_held_out", [0, 1, 5])
def test_held_out_windows_are_never_trained_on(num_held_out: int) -> None:
    packed = batches(num_held_out=num_held_out)
    held_out = [row.tolist() for batch in packed.held_out() for row in batch]
    assert held_out == [window(i) for i in range(NUM_WINDOWS - num_held_out, NUM_WINDOWS)]
    assert all(len(batch) <= 4 for batch in packed.held_out())
    trained = {row[0] // CONTEXT for step in range(20) for row in packed.batch(step).tolist()}
    assert trained == set(range(NUM_WINDOWS - num_held_out))


@pytest.mark.parametrize(
    "changes", [{"batch_size": 9}, {"num_held_out": 7}, {"num_held_out": 50}], ids=str
)
def test_too_little_text(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"74 tokens give .* windows of 7"):
        batches(**changes)
    batches(batch_size=8)
    batches(num_held_out=6)
