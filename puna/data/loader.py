"""The loader: batches of packed windows, of which the batch of a step is a function of the step.

The windows of a run are numbered. Window n comes from the source that the mixture says, and is the
next of that source in a permutation of its own, which changes with each epoch of the source. A step
takes the next windows in their number, and a rank its share of these: so the number of steps done
is all there is to save, and a run goes on with another number of ranks as if nothing had changed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from puna.data.mixture import Mixture, whole_weights
from puna.data.permutation import Permutation
from puna.data.shards import ShardSet
from puna.data.windows import Windows


class Loader:
    """Batches of windows of `context_length` + 1 tokens: inputs, and targets one token later.

    - `batch_size`: windows a step over all ranks; or the run's history of it, pairs of the first
      step and the size from there on, beginning with step 0.
    - `mix`: the weight of each source in windows (0: left out); by default the number of its
      windows, so that all sources end their epochs together.
    - `num_held_out`: the last windows of each source, never trained on: what `held_out()` gives.

    Raises ValueError for a mix that does not fit the sources, too little text, and a last batch
    size that does not divide over the ranks.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        context_length: int,
        batch_size: int | Sequence[tuple[int, int]],
        seed: int,
        mix: Mapping[str, float] | None = None,
        num_held_out: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank {rank} is not one of {num_ranks}")
        self._history = batch_history(batch_size)
        # Steps that were taken on other ranks need not divide over these.
        _check_divides(*self._history[-1], num_ranks)
        self._rank, self._num_ranks = rank, num_ranks
        self._seed, self.num_held_out = seed, num_held_out
        windows = {
            source: Windows(shards, source, context_length) for source in shards.manifest.sources
        }
        trained = {source: len(w) - num_held_out for source, w in windows.items()}
        weights = _weights(mix, trained)
        self._windows = {source: windows[source] for source in weights}
        self._num_windows = {source: trained[source] for source in weights}
        largest = max(size for _, size in self._history)
        total = sum(max(count, 0) for count in self._num_windows.values())
        if total < largest:
            raise ValueError(
                f"{shards.manifest.num_tokens} tokens give {total} windows of {context_length} to "
                f"train on; a batch needs {largest}"
            )
        for source, count in self._num_windows.items():
            if count < 1:
                raise ValueError(
                    f"source {source} has {len(windows[source])} windows of {context_length}, and "
                    f"{num_held_out} are held out: none is left to train on"
                )
        self._sources = list(weights)
        self._mixture = Mixture(list(weights.values()))
        self._order = functools.lru_cache(maxsize=4 * len(weights))(self._new_order)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that are trained on."""
        return tuple(self._sources)

    def batch(self, step: int) -> NDArray[np.int64]:
        """This rank's rows of the batch of `step` (0, 1, ...): ids (B, context_length + 1).

        The rows of rank 0, 1, ... one after another are those that a single rank would get.
        """
        first, size = batch_span(self._history, step, self._num_ranks)
        share = size // self._num_ranks
        begin = first + self._rank * share
        places = [self.place(number) for number in range(begin, begin + share)]
        return np.stack([self._windows[source][index] for source, index in places])

    def place(self, number: int) -> tuple[str, int]:
        """Source and index there of window `number` of the run."""
        which, before = self._mixture.draw(number)
        source = self._sources[which]
        epoch, index = divmod(before, self._num_windows[source])
        return source, self._order(source, epoch)(index)

    def counts(self, step: int) -> dict[str, int]:
        """How many windows of each source the steps before `step` take, over all ranks."""
        counts = self._mixture.counts(batch_span(self._history, step)[0])
        return dict(zip(self._sources, counts, strict=True))

    def held_out(self) -> dict[str, NDArray[np.int64]]:
        """The held-out windows of each source: ids (num_held_out, context_length + 1)."""
        held_out = {}
        for source, windows in self._windows.items():
            begin = self._num_windows[source]
            rows = [windows[begin + number] for number in range(self.num_held_out)]
            held_out[source] = np.array(rows, np.int64).reshape(-1, windows.context_length + 1)
        return held_out

    def _new_order(self, source: str, epoch: int) -> Permutation:
        return Permutation(self._num_windows[source], f"{self._seed} {epoch} {source}")


def batch_history(batch_size: int | Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Batch sizes as pairs of the first step and the size from there on; ValueError if wrong."""
    pairs = ((0, batch_size),) if isinstance(batch_size, int) else tuple(batch_size)
    steps = [step for step, _ in pairs]
    if not pairs or steps[0] != 0 or sorted(set(steps)) != steps:
        raise ValueError(f"batch sizes are told from step 0 on, in order, not {pairs}")
    if any(size < 1 for _, size in pairs):
        raise ValueError(f"batch_size must be positive, not {batch_size}")
    return pairs


def batch_span(
    history: Sequence[tuple[int, int]], step: int, num_ranks: int = 1
) -> tuple[int, int]:
    """The first window of `step` and how many it takes, by a run's history of batch sizes.

    ValueError where they do not divide over the ranks.
    """
    first, size, begin = 0, 0, 0
    for since, new_size in history:
        if since > step:
            break
        first += (since - begin) * size
        begin, size = since, new_size
    _check_divides(step, size, num_ranks)
    return first + (step - begin) * size, size


def _check_divides(step: int, size: int, num_ranks: int) -> None:
    if size % num_ranks:
        raise ValueError(
            f"a batch of {size} windows (from step {step} on) does not divide over {num_ranks} "
            "ranks"
        )


def _weights(mix: Mapping[str, float] | None, trained: Mapping[str, int]) -> dict[str, int]:
    """Whole weights of the sources that are trained on, in the order of the shards."""
    if not trained:
        raise ValueError("the shards hold no documents: there is nothing to train on")
    if mix is None:
        return {source: max(count, 1) for source, count in trained.items()}
    known = ", ".join(trained)
    if unknown := sorted(set(mix) - set(trained)):
        raise ValueError(f"the mix has no such source as {', '.join(unknown)}; there are {known}")
    if missing := [source for source in trained if source not in mix]:
        raise ValueError(
            f"the mix says nothing of {', '.join(missing)}; give a weight, or 0 to leave it out"
        )
    whole = whole_weights(mix)
    weights = {source: whole[source] for source in trained if whole[source]}
    if not weights:
        raise ValueError("the mix leaves out every source")
    return weights
