"""Who runs in the next step: continuous batching over pages."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from puna.engine.batch import Batch, Draw
from puna.engine.pages import Pages
from puna.engine.sequence import Part, Sequence


@dataclass(frozen=True, slots=True)
class Plan:
    """A step: the batch, and whose rows are in it, in order."""

    batch: Batch
    parts: tuple[Part, ...]


class Scheduler:
    """Gives every sequence its rows and pages.

    - Each step first has one row (and its proposals) of every sequence that is past its prompt;
      prompts share what is left of `max_rows` evenly, in chunks, so that neither a long prompt nor
      many short ones hold anybody up.
    - Sequences are let in by arrival, at most `max_sequences` at once, when their pages are there.
      One whose beginning is just being run for another waits for that, and is given its pages.
    - Where pages run out, the sequence that came last gives back its own and waits; it is computed
      again later, from what the prefix cache still has of it. No token is lost.

    Who adds sequences sees to it that each fits the pages alone (`fits`).
    """

    def __init__(self, pages: Pages, *, max_rows: int, max_sequences: int) -> None:
        if not 1 <= max_sequences < max_rows:
            raise ValueError(f"max_rows ({max_rows}) must be above max_sequences ({max_sequences})")
        self.pages = pages
        self.max_rows, self.max_sequences = max_rows, max_sequences
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def fits(self, num_tokens: int) -> bool:
        """Whether a sequence of so many tokens can run, if need be alone."""
        return self._pages_of(num_tokens) <= self.pages.num_pages

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait for its turn."""
        bisect.insort(self.waiting, sequence, key=_order)

    def fork(self, sequence: Sequence, number: int, ending: Many[int] = ()) -> Sequence:
        """Another output of a sequence whose prompt has been run: it shares the prompt's pages.

        Or an ending of it, all of whose rows are wanted. Where too many run already, it waits, and
        finds the pages by their keys.
        """
        other = sequence.forked(number, ending)
        if len(self.running) >= self.max_sequences:
            self.add(other)
            return other
        other.pages, other.length = list(sequence.pages), sequence.prompt_length
        for page in other.pages:
            self.pages.share(page)
        bisect.insort(self.running, other, key=_order)
        return other

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence; its pages are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def restart(self, sequences: Iterable[Sequence]) -> None:
        """Forgets all pages, for new weights or after a step that was broken off.

        `sequences`, which are all there are, run anew.
        """
        self.waiting, self.running = sorted(sequences, key=_order), []
        self.pages.clear()
        for sequence in self.waiting:
            sequence.pages, sequence.length, sequence.proposals = [], 0, []

    def plan(self) -> Plan | None:
        """The next step, None where there is nothing to do."""
        if self.waiting:
            self._admit()
        parts: list[Part] = []
        copies: list[tuple[int, int]] = []
        for sequence, count in self._rows().items():
            if sequence.order > self.running[-1].order:  # it gave back its pages, as all after it
                break
            copied = self._reserve(sequence, sequence.length + count)
            if copied is None:
                break
            parts.append(self._part(sequence, count))
            copies += copied
        return Plan(_batch(parts, copies), tuple(parts)) if parts else None

    def advance(self, part: Part) -> None:
        """A part has been run, and what follows was added to its sequence's ids.

        What holds of its proposals is now among these. Full pages can be found by others.
        """
        sequence, size = part.sequence, self.pages.page_size
        before = sequence.length // size
        # The last id is always still to be run.
        sequence.length, sequence.proposals = min(part.end, len(sequence.ids) - 1), []
        for page in range(before, sequence.length // size):
            self.pages.keep(sequence.pages[page], sequence.key(page, size))

    def _pages_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pages.page_size)

    def _admit(self) -> None:
        # What those that run still need for tokens they have, and a page to go on with each.
        promised = sum(max(0, self._pages_of(len(s.ids)) - len(s.pages)) + 1 for s in self.running)
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            found = self._cached(sequence)
            if self._is_coming(sequence, len(found)):
                return
            for page in found:
                self.pages.share(page)
            needed = self._pages_of(len(sequence.ids)) - len(found)
            if self.running and promised + needed > self.pages.num_available:
                self.pages.release(found)
                return
            promised += needed + 1
            sequence.pages, sequence.length = found, len(found) * self.pages.page_size
            if sequence.cached is None:
                sequence.cached = sequence.length
            bisect.insort(self.running, self.waiting.pop(0), key=_order)

    def _cached(self, sequence: Sequence) -> list[int]:
        """Pages that hold how it begins; what it wants of its rows stays to be run."""
        found: list[int] = []
        for number in range(self._useful(sequence)):
            page = self.pages.find(sequence.key(number, self.pages.page_size))
            if page is None:
                break
            found.append(page)
        return found

    def _useful(self, sequence: Sequence) -> int:
        """How many pages of others can be of use to it; its last token is run for its logits."""
        last = len(sequence.ids) - 1
        end = last if sequence.wanted_from is None else min(last, sequence.wanted_from)
        return end // self.pages.page_size

    def _is_coming(self, sequence: Sequence, number: int) -> bool:
        """Whether one that runs will fill a page that is of use to it as page `number`."""
        size = self.pages.page_size
        if number >= self._useful(sequence):
            return False
        key, end = sequence.key(number, size), (number + 1) * size
        return any(
            other.length < end <= len(other.ids) - 1 and other.key(number, size) == key
            for other in self.running
        )

    def _rows(self) -> dict[Sequence, int]:
        """How many rows each sequence gets."""
        rows = {s: 1 for s in self.running if s.remaining == 1}
        left = self.max_rows - len(rows)
        for sequence in rows:
            extra = min(len(sequence.proposals), left)
            rows[sequence] += extra
            left -= extra
        prompts = sorted((s for s in self.running if s.remaining > 1), key=lambda s: s.remaining)
        if not prompts:
            return rows
        for number, sequence in enumerate(prompts):
            count = min(sequence.remaining, -(-left // (len(prompts) - number)))
            left -= count
            if count:
                rows[sequence] = count
        return dict(sorted(rows.items(), key=lambda item: item[0].order))

    def _reserve(self, sequence: Sequence, end: int) -> list[tuple[int, int]] | None:
        """Pages of its own for the positions up to `end`, and which to copy for that.

        Takes them from those that came later; None where it came last itself, and has to wait.
        """
        copies: list[tuple[int, int]] = []
        first = sequence.length // self.pages.page_size
        for number in range(first, self._pages_of(end)):
            old = sequence.pages[number] if number < len(sequence.pages) else None
            if old is not None and not self.pages.is_shared(old):
                continue
            while (page := self.pages.take()) is None:
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    return None
            if old is None:
                sequence.pages.append(page)
            else:
                sequence.pages[number] = page
                self.pages.release([old])
                copies.append((old, page))
        return copies

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self._release(sequence)
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pages.release(sequence.pages)
        sequence.pages, sequence.length, sequence.proposals = [], 0, []

    def _part(self, sequence: Sequence, count: int) -> Part:
        begin, end = sequence.length, sequence.length + count
        wanted = max(0, end - len(sequence.ids) + 1)
        if sequence.wants_hidden:
            wanted = 0
        elif sequence.wanted_from is not None and begin < sequence.prompt_length:
            wanted = max(0, end - max(begin, sequence.wanted_from))
        return Part(sequence, begin, end, wanted)


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order


def _batch(parts: Many[Part], copies: Many[tuple[int, int]]) -> Batch:
    width = max(len(part.sequence.pages) for part in parts)
    tables = np.zeros((len(parts), width), np.int32)
    adapters = np.array([part.sequence.adapter for part in parts], np.int32)
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    outputs: list[int] = []
    hidden: list[int] = []
    draws: list[Draw | None] = []
    for number, part in enumerate(parts):
        tables[number, : len(part.sequence.pages)] = part.sequence.pages
        tokens += part.tokens
        positions += range(part.begin, part.end)
        sequences += [number] * (part.end - part.begin)
        outputs += range(len(tokens) - part.num_outputs, len(tokens))
        hidden += range(len(tokens) - part.num_hidden, len(tokens))
        draws += part.draws
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        sequences=np.array(sequences, np.int32),
        tables=tables,
        outputs=np.array(outputs, np.int32),
        copies=tuple(copies),
        adapters=adapters if (adapters >= 0).any() else None,
        draws=tuple(draws),
        hidden=np.array(hidden, np.int32),
    )
