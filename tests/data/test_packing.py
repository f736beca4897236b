"""Windows packed with dialogs: none is split, each is there once, padding teaches nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from puna.data.dialogs import EncodedDialogs
from puna.data.packing import Packs, pack


def made(lengths: list[int]) -> EncodedDialogs:
    """Dialog n has ids 100 n, 100 n + 1, ...; every second token is learned, but for the first."""
    ids = np.concatenate([100 * n + np.arange(size) for n, size in enumerate(lengths, start=1)])
    return EncodedDialogs(ids.astype(np.int32), (ids % 2 == 1), np.cumsum(lengths, dtype=np.int64))


def test_a_window_by_hand() -> None:
    (window,) = Packs(made([4, 3]), context_length=7, batch_size=1, seed=0).all()
    assert window.tolist() == [
        [100, 101, 102, 200, 201, 0, 0],
        [101, -1, 103, 201, -1, -1, -1],
        [1, 1, 1, 2, 2, 0, 0],
    ]


@pytest.mark.parametrize("seed", range(4))
def test_packing_properties(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.choice((1, 3, draw.randint(1, 40))) for _ in range(200)]
    groups = pack(lengths, 40)
    assert sorted(index for group in groups for index in group) == list(range(200))
    sums = [sum(lengths[index] for index in group) for group in groups]
    assert max(sums) <= 40
    # No dialog that another window had room for began one of its own: two are more than full.
    assert all(a + b > 40 for a, b in zip(sorted(sums), sorted(sums)[1:], strict=False))
    assert groups == pack(lengths, 40)


@pytest.mark.parametrize("lengths", [[3, 41], [0]])
def test_what_fits_no_window(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit into a window of 40"):
        pack(lengths, 40)


def test_each_dialog_once_an_epoch_in_a_new_order() -> None:
    dialogs = made([5, 9, 12, 3, 7, 16, 4, 4])
    packs = Packs(dialogs, context_length=16, batch_size=2, seed=7)
    assert len(packs) == 4
    epochs = []
    for epoch in range(3):
        batches = np.concatenate([packs.batch(2 * epoch), packs.batch(2 * epoch + 1)])
        # Every learned token of every dialog is a target once.
        targets = batches[:, 1][batches[:, 1] >= 0]
        assert sorted(targets) == sorted(dialogs.ids[dialogs.learned])
        epochs.append(batches.tobytes())
    assert len(set(epochs)) == 3
    again = Packs(dialogs, context_length=16, batch_size=2, seed=7)
    assert np.array_equal(again.batch(5), packs.batch(5))
    other = Packs(dialogs, context_length=16, batch_size=2, seed=8)
    assert any(not np.array_equal(other.batch(n), packs.batch(n)) for n in range(2))


def test_ranks_share_a_batch() -> None:
    dialogs = made([9] * 8)
    whole = Packs(dialogs, context_length=8, batch_size=4, seed=0)
    ranks = [
        Packs(dialogs, context_length=8, batch_size=4, seed=0, rank=rank, num_ranks=2)
        for rank in range(2)
    ]
    for step in range(3):
        shares = np.concatenate([rank.batch(step) for rank in ranks])
        assert np.array_equal(shares, whole.batch(step))
