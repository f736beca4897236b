"""Comparisons -> token ids of both dialogs, and batches of them; what does not fit is counted."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.chat import Message, encode_dialog, fit
from puna.data.loader import batch_history, batch_span
from puna.data.permutation import Permutation
from puna.data.preferences import RATINGS, Comparison
from puna.tokenizer import Tokenizer

TOO_LONG, SHORTENED = "longer than the context", "shortened: oldest turns dropped"
# What a row of a batch begins with, before its ids.
LENGTH, ANSWER, RATING, SAFE, REFERENCE, HEADER = range(6)
_FILES = {
    "ids": np.int32, "ends": np.int64, "answers": np.int64, "facts": np.int8, "prompts": np.int64
}  # fmt: skip
_REFERENCE = "reference.npy"


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """N pairs of dialogs, chosen and rejected in turn, end to end.

    `ids` int32; `ends` where each of the 2N dialogs ends, `answers` where its last answer begins
    (within the dialog); `facts` (N, 3) int8: rating, a place in `RATINGS`, and whether the chosen
    and the rejected answer are safe, all -1 where nobody said; `prompts` (N,) numbers prompts, of
    which one's pairs stand together. `reference` (N, 2) float64 are the
    answers' log-probabilities by a model that stays as it is, for DPO.
    """

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    answers: NDArray[np.int64]
    facts: NDArray[np.int8]
    prompts: NDArray[np.int64]
    reference: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.facts)

    def dialog(self, number: int) -> NDArray[np.int32]:
        """The ids of one of the 2N dialogs."""
        return self.ids[(self.ends[number - 1] if number else 0) : self.ends[number]]

    def rows(self, pairs: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Some pairs as a batch (pairs, 2, HEADER + longest): a row is the dialog's length, where
        its answer begins, rating, safety, the reference's log-probability (a float64 as its bits,
        0 without one), ids, and zeros.
        """
        dialogs = [[self.dialog(2 * pair + side) for side in (0, 1)] for pair in pairs]
        longest = max((len(ids) for pair in dialogs for ids in pair), default=0)
        rows = np.zeros((len(dialogs), 2, HEADER + longest), np.int64)
        for number, pair in enumerate(pairs):
            for side in (0, 1):
                row, ids = rows[number, side], dialogs[number][side]
                row[LENGTH], row[ANSWER] = len(ids), self.answers[2 * pair + side]
                row[RATING], row[SAFE] = self.facts[pair, 0], self.facts[pair, 1 + side]
                if self.reference is not None:
                    row[REFERENCE] = self.reference[pair, side : side + 1].view(np.int64)[0]
                row[HEADER : HEADER + len(ids)] = ids
        return rows

    def pieces(self, size: int) -> list[NDArray[np.int64]]:
        """All pairs as batches of `size`, in the order of `by_length`."""
        order = self.by_length(np.arange(len(self)))
        return [self.rows(order[at : at + size]) for at in range(0, len(self), size)]

    def by_length(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Some pairs in order of their length, so that a piece has little padding; those of one
        prompt stay together, since their dialogs are often the same."""
        lengths = np.diff(self.ends, prepend=0).reshape(-1, 2).max(1)[pairs]
        prompts, group = np.unique(self.prompts[pairs], return_inverse=True)
        longest = np.zeros(len(prompts), np.int64)
        np.maximum.at(longest, group, lengths)
        return pairs[np.lexsort((np.arange(len(pairs)), group, longest[group]))]

    @functools.cached_property
    def groups(self) -> list[NDArray[np.int64]]:
        """The pairs of each prompt."""
        begins = np.flatnonzero(np.diff(self.prompts, prepend=-1))
        return np.split(np.arange(len(self)), begins[1:]) if len(self) else []

    def with_reference(self, reference: NDArray[np.float64]) -> EncodedPairs:
        """The same with log-probabilities (N, 2) by a reference."""
        return dataclasses.replace(self, reference=reference)

    def save(self, folder: Path) -> None:
        """Writes a new folder."""
        folder.mkdir()
        for name in _FILES:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        if self.reference is not None:
            np.save(folder / _REFERENCE, self.reference, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> EncodedPairs:
        """Maps what `save` wrote; ValueError where it is damaged."""
        try:
            arrays = [_mapped(folder / f"{name}.npy") for name in _FILES]
            has_reference = (folder / _REFERENCE).is_file()
            reference = _mapped(folder / _REFERENCE) if has_reference else None
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{folder} holds no readable pairs: {error}") from None
        ids, ends, answers, facts, prompts = arrays
        typed = [array.dtype for array in arrays] == list(_FILES.values())
        shaped = (
            facts.shape[1:] == (3,)
            and prompts.shape == facts.shape[:1]
            and ends.shape == answers.shape == (2 * len(facts),)
        )
        if not (typed and shaped and len(ids) == (ends[-1] if len(ends) else 0)):
            raise ValueError(f"{folder} is damaged: its files do not fit each other")
        lengths = np.diff(ends, prepend=0)
        if (
            (np.diff(prompts, prepend=0) < 0).any()
            or not ((answers > 0) & (answers < lengths)).all()
            or (reference is not None and reference.shape != (len(facts), 2))
        ):
            raise ValueError(f"{folder} is damaged: its dialogs' ends do not fit their answers")
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise ValueError(f"{folder} has ids that are none of {vocab_size}: other tokenizer?")
        return cls(ids, ends, answers, facts, prompts, reference)


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def encode_pairs(
    comparisons: Iterable[Comparison],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    on_pair: Callable[[], None] = lambda: None,
) -> tuple[EncodedPairs, Counter[str]]:
    """Encodes pairs by `chat.encode_dialog`, EOS at the end; and counts what did not fit.

    Where a dialog takes more than `max_tokens`, both lose their oldest turns, as few as must be;
    pairs whose last turn alone is longer are left out.
    """
    counts: Counter[str] = Counter()
    ids: list[NDArray[np.int32]] = []
    answers: list[int] = []
    facts: list[tuple[int, ...]] = []
    prompts: list[int] = []
    numbers: dict[tuple[Message, ...], int] = {}
    for comparison in sorted(comparisons, key=lambda each: _number(numbers, each)):
        on_pair()
        dialogs = comparison.dialogs()
        encoded = [encode_dialog(tokenizer, dialog) for dialog in dialogs]
        if max(len(each.ids) for each in encoded) > max_tokens:
            longer = max((0, 1), key=lambda side: len(encoded[side].ids))
            try:
                short, _ = fit(tokenizer, dialogs[longer], max_tokens)
            except ValueError:
                counts[TOO_LONG] += 1
                continue
            counts[SHORTENED] += 1
            encoded = [encode_dialog(tokenizer, [*short[:-1], dialog[-1]]) for dialog in dialogs]
        for each in encoded:
            mask = np.array(each.loss_mask)
            ids.append(np.array(each.ids, np.int32))
            answers.append(len(mask) - int(np.argmin(mask[::-1])))  # the last run of it
        rating = -1 if comparison.rating is None else RATINGS.index(comparison.rating)
        safe = (comparison.chosen_safe, comparison.rejected_safe)
        prompts.append(numbers[comparison.prompt])
        facts.append((rating, *(-1 if flag is None else int(flag) for flag in safe)))
    ends = np.cumsum([len(each) for each in ids], dtype=np.int64)
    together = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    pairs = EncodedPairs(
        together,
        ends,
        np.array(answers, np.int64),
        np.array(facts, np.int8).reshape(-1, 3),
        np.array(prompts, np.int64),
    )
    return pairs, counts


def _number(numbers: dict[tuple[Message, ...], int], comparison: Comparison) -> int:
    """Of its prompt, in the order in which prompts first came."""
    return numbers.setdefault(comparison.prompt, len(numbers))


class PairBatches:
    """Batches of pairs in the order of `seed`, each once an epoch; a function of the step alone.

    Prompts are shuffled, not pairs: a model that meets an answer again and again within an epoch
    learns it by heart (arXiv 2203.02155, section 3.5).
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        *,
        batch_size: int | Sequence[tuple[int, int]],
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._pairs, self._rank, self._num_ranks = pairs, rank, num_ranks
        self._history, self._seed = batch_history(batch_size), seed
        self._order = functools.lru_cache(maxsize=4)(self._new_order)

    def batch(self, step: int) -> NDArray[np.int64]:
        """This rank's rows of the batch of `step` (0, 1, ...), as `EncodedPairs.rows`, in order of
        their lengths. The ranks' together are those that a single one would get.
        """
        first, size = batch_span(self._history, step, self._num_ranks)
        share = size // self._num_ranks
        begin = first + self._rank * share
        chosen = [self._place(number) for number in range(begin, begin + share)]
        return self._pairs.rows(self._pairs.by_length(np.array(chosen)))

    def _place(self, number: int) -> int:
        epoch, index = divmod(number, len(self._pairs))
        return int(self._order(epoch)[index])

    def _new_order(self, epoch: int) -> NDArray[np.int64]:
        groups = self._pairs.groups
        order = Permutation(len(groups), f"{self._seed} {epoch} prompts")
        return np.concatenate([groups[order(number)] for number in range(len(groups))])


def trimmed(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """A batch in pieces of `size` pairs, without the padding that a piece does not need."""
    pieces = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [piece[:, :, : HEADER + piece[:, :, LENGTH].max()] for piece in pieces]
