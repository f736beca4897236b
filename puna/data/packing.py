"""Dialogs packed into windows: none is split, and each is in one window.

Windows of a run are numbered as those of `data.loader`: a step takes the next ones, a rank its
share of them, and each epoch has an order of its own.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from puna.data.dialogs import EncodedDialogs
from puna.data.loader import batch_history, batch_span
from puna.data.permutation import Permutation

NOT_LEARNED = -1  # a target that the loss leaves out


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in groups whose sum is `capacity` at most: best fit, the longest first.

    Each into the fullest group that has room for it. ValueError for one that is too long.
    """
    groups: list[list[int]] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)  # room -> groups
    rooms = 0  # bit r is set where a group has room r
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(f"{length} tokens do not fit into a window of {capacity}")
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            group = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, group = capacity, len(groups)
            groups.append([])
        groups[group].append(index)
        with_room[room - length].append(group)
        rooms |= 1 << (room - length)
    return groups


class Packs:
    """Windows of `context_length` positions over dialogs, in the order of `seed`.

    A dialog of n tokens takes n - 1 positions: its first is no target and its last no input. A
    window is rows of ids, targets (the id after, `NOT_LEARNED` where it is not learned) and the
    dialog's number in the window from 1 on; padding has id 0, number 0 and nothing to learn.
    """

    def __init__(
        self,
        dialogs: EncodedDialogs,
        *,
        context_length: int,
        batch_size: int | Sequence[tuple[int, int]],
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._dialogs, self.context_length = dialogs, context_length
        self._seed, self._rank, self._num_ranks = seed, rank, num_ranks
        self._groups = pack((dialogs.lengths - 1).tolist(), context_length)
        self._history = batch_history(batch_size)
        self._order = functools.lru_cache(maxsize=4)(self._new_order)

    def __len__(self) -> int:
        return len(self._groups)

    def batch(self, step: int) -> NDArray[np.int64]:
        """This rank's rows of the batch of `step` (0, 1, ...): (B, 3, context_length).

        The rows of rank 0, 1, ... one after another are those that a single rank would get.
        """
        first, size = batch_span(self._history, step, self._num_ranks)
        share = size // self._num_ranks
        begin = first + self._rank * share
        return np.stack([self[self.place(number)] for number in range(begin, begin + share)])

    def all(self) -> NDArray[np.int64]:
        """All windows, (N, 3, context_length)."""
        windows = [self[index] for index in range(len(self))]
        return np.array(windows, np.int64).reshape(-1, 3, self.context_length)

    def place(self, number: int) -> int:
        """Which window is number `number` of the run: each once an epoch."""
        epoch, index = divmod(number, len(self))
        return self._order(epoch)(index)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """Window `index`, (3, context_length); its dialogs in the order that they were read."""
        window = np.zeros((3, self.context_length), np.int64)
        window[1] = NOT_LEARNED
        at = 0
        for number, dialog in enumerate(sorted(self._groups[index]), start=1):
            ids, learned = self._dialogs[dialog]
            span = slice(at, at + len(ids) - 1)
            window[0, span] = ids[:-1]
            window[1, span] = np.where(learned[1:], ids[1:], NOT_LEARNED)
            window[2, span] = number
            at = span.stop
        return window

    def _new_order(self, epoch: int) -> Permutation:
        return Permutation(len(self), f"{self._seed} {epoch} dialogs")
