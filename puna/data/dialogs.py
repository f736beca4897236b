"""Dialogs -> token ids and which of them are learned; what cannot be learned from is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.chat import TAGS, EncodedDialog, Message, encode_dialog, fit
from puna.data.instructions import Dialog
from puna.data.text import is_broken
from puna.tokenizer import Tokenizer

TOO_LONG = ("skip", "drop-turns")  # what happens to a dialog that is too long
_FILES = ("ids", "learned", "ends")


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many dialogs were left out, or shortened, by reason, and where the first of each is."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str, count: int = 1) -> None:
        self.counts[reason] += count
        self.first.setdefault(reason, place)

    def and_also(self, other: Skipped) -> Skipped:
        """Both together."""
        return Skipped(self.counts + other.counts, other.first | self.first)

    def lines(self) -> list[str]:
        """One a reason, for people."""
        return [
            f"{count:,} dialogs {reason} (first: {self.first[reason] or 'unknown'})"
            for reason, count in self.counts.most_common()
        ]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDialogs:
    """Dialogs end to end: `ids` int32, `learned` bool, and where each ends (int64)."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Ids and which of them are learned, both (tokens,)."""
        begin = self.ends[index - 1] if index else 0
        span = slice(begin, self.ends[index])
        return self.ids[span], self.learned[span]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each dialog."""
        return np.diff(self.ends, prepend=0)

    def subset(self, indices: Sequence[int]) -> EncodedDialogs:
        """Some of the dialogs, in this order."""
        parts = [self[index] for index in indices]
        return _end_to_end([ids for ids, _ in parts], [learned for _, learned in parts])

    def save(self, folder: Path) -> None:
        """Writes a new folder."""
        folder.mkdir()
        for name in _FILES:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> EncodedDialogs:
        """Maps what `save` wrote; ValueError where it is damaged."""
        try:
            ids, learned, ends = (
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in _FILES
            )
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{folder} holds no readable dialogs: {error}") from None
        types = [(array.dtype, array.ndim) for array in (ids, learned, ends)]
        sound = types == [(np.int32, 1), (np.bool_, 1), (np.int64, 1)] and (
            len(ids) == len(learned) == (ends[-1] if len(ends) else 0)
        )
        # Each has at least a token that is given and one to learn.
        if not sound or (np.diff(ends, prepend=0) < 2).any():
            raise ValueError(f"{folder} is damaged: its dialogs' ends do not fit their tokens")
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise ValueError(f"{folder} has ids that are none of {vocab_size}: other tokenizer?")
        return cls(ids, learned, ends)


def encode(
    dialogs: Iterable[Dialog],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    too_long: str = "skip",
    on_dialog: Callable[[], None] = lambda: None,
) -> tuple[EncodedDialogs, Skipped]:
    """Encodes dialogs by `chat.encode_dialog`: learned are answers of weight 1, EOS included.

    One of more than `max_tokens` is skipped, or with `too_long` "drop-turns" loses its oldest
    turns, as few as must be. All that is left out or shortened is counted.
    """
    if too_long not in TOO_LONG:
        raise ValueError(f"too_long is {' or '.join(TOO_LONG)}, not {too_long!r}")
    skipped = Skipped()
    ids: list[NDArray[np.int32]] = []
    learned: list[NDArray[np.bool_]] = []
    for dialog in dialogs:
        on_dialog()
        dialog = _until_last_answer(dialog, skipped)
        if reason := _objection(dialog):
            skipped.add(reason, dialog.place)
            continue
        messages, encoded = dialog.messages, encode_dialog(tokenizer, dialog.messages)
        if len(encoded.ids) > max_tokens:
            short = _shortened(tokenizer, messages, max_tokens) if too_long != "skip" else None
            if short is None:
                skipped.add(f"skipped: longer than {max_tokens} tokens", dialog.place)
                continue
            messages, encoded = short
            skipped.add(f"shortened to {max_tokens} tokens: oldest turns dropped", dialog.place)
        # Turns go from the beginning: what is said of those that stay is at the end. Answers are
        # every second message from there.
        answers = dialog.learned[::-2][: len(messages) // 2]
        mask = learned_mask(encoded, answers[::-1])
        if not mask.any():
            skipped.add("skipped: no answer is to be learned", dialog.place)
            continue
        ids.append(np.array(encoded.ids, np.int32))
        learned.append(mask)
    return _end_to_end(ids, learned), skipped


def learned_mask(encoded: EncodedDialog, learned: Sequence[bool]) -> NDArray[np.bool_]:
    """Which tokens are learned (tokens,), where `learned` says it of each answer."""
    mask = np.array(encoded.loss_mask)
    # Each answer follows a prompt, which is not learned: so it is one run of the mask.
    begins = mask & ~np.concatenate(([False], mask[:-1]))
    number = np.cumsum(begins) - 1
    return mask & np.array([*learned, False])[number]


def _until_last_answer(dialog: Dialog, skipped: Skipped) -> Dialog:
    """The dialog without a question at its end that nobody answered."""
    if len(dialog.messages) < 2 or dialog.messages[-1].role != "user":
        return dialog
    skipped.add("shortened: the last question has no answer", dialog.place)
    return replace(dialog, messages=dialog.messages[:-1], learned=dialog.learned[:-1])


def _objection(dialog: Dialog) -> str | None:
    """Why nothing can be learned from a dialog; None if something can."""
    turns = dialog.messages
    if turns and turns[0].role == "system":
        turns = turns[1:]
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or [message.role for message in turns] != expected:
        return "skipped: user and assistant do not take turns, or nobody answers"
    if not all(message.content.strip() for message in turns):
        return "skipped: a message is empty"
    texts = [message.content for message in dialog.messages]
    if any(tag in text for tag in TAGS for text in texts):
        return "skipped: a message forges a tag of the chat format"
    if any(is_broken(text) for text in texts):
        return "skipped: a message is no Unicode text"
    return None


def _shortened(
    tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int
) -> tuple[tuple[Message, ...], EncodedDialog] | None:
    """The dialog without its oldest turns; None where the last one is too long by itself."""
    try:
        kept, encoded = fit(tokenizer, messages, max_tokens)
    except ValueError:
        return None
    return tuple(kept), encoded


def _end_to_end(ids: list[NDArray[np.int32]], learned: list[NDArray[np.bool_]]) -> EncodedDialogs:
    ends = np.cumsum([len(each) for each in ids], dtype=np.int64)
    return EncodedDialogs(
        np.concatenate([np.empty(0, np.int32), *ids]),
        np.concatenate([np.empty(0, np.bool_), *learned]),
        ends,
    )
