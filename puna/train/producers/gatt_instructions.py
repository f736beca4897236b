"""Instructions for Ghost Attention: what a model is to keep to through a whole dialog.

The three kinds are the paper's (arXiv 2307.09288, section 3.3); the lists, the words that show
whether an answer keeps to one, and the questions that make it show are *ours*.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from puna.chat import Message, check_dialog
from puna.data.text import records


@dataclass(frozen=True, slots=True)
class Check:
    """Whether an answer keeps to an instruction: any answer, or one to the question `probe`."""

    obeyed: Callable[[str], bool]
    probe: str | None = None


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction, its short form, and what shows that it is kept to."""

    text: str
    short: str
    checks: tuple[Check, ...] = ()


class Kind(NamedTuple):
    """A kind of instruction: both forms, the question that makes it show (None: any does), of how
    many of a value's words an answer must have one, and the words of each value."""

    text: str
    short: str
    probe: str | None
    least: int
    values: Mapping[str, tuple[str, ...]]


KINDS: dict[str, Kind] = {
    "hobby": Kind(
        "You enjoy {}.",
        "Hobby: {}.",
        "What do you like to do in your free time?",
        1,
        {
            "tennis": ("tennis",),
            "chess": ("chess",),
            "gardening": ("garden", "gardens", "gardening", "plants", "flowers"),
            "cooking": ("cook", "cooking", "recipes", "kitchen"),
            "fishing": ("fish", "fishing"),
            "painting": ("paint", "painting", "paintings"),
            "hiking": ("hike", "hikes", "hiking", "mountains"),
            "reading": ("read", "reading", "books"),
            "sailing": ("sail", "sailing", "boat"),
            "photography": ("photography", "photos", "photographs", "camera"),
        },
    ),
    "language": Kind(
        "Speak in {}.",
        "Language: {}.",
        None,
        2,
        {
            "French": ("je", "est", "les", "une", "vous", "suis", "et", "pas", "dans", "nous"),
            "Spanish": ("el", "los", "las", "es", "muy", "pero", "y", "estoy", "una", "usted"),
            "German": ("ich", "ist", "und", "nicht", "das", "der", "ein", "eine", "sie", "sind"),
            "Italian": ("il", "sono", "è", "gli", "che", "molto", "di", "per", "non", "una"),
            "Portuguese": ("não", "você", "uma", "muito", "estou", "são", "é", "os", "com", "eu"),
            "Dutch": ("ik", "het", "een", "niet", "van", "zijn", "en", "de", "dat", "wij"),
        },
    ),
    "figure": Kind(
        "Always act as {} from now on.",
        "Figure: {}.",
        "Who are you?",
        1,
        {
            "Napoleon": ("napoleon", "bonaparte", "emperor"),
            "Shakespeare": ("shakespeare", "playwright", "stratford"),
            "Cleopatra": ("cleopatra", "egypt", "pharaoh"),
            "Albert Einstein": ("einstein", "relativity", "physicist"),
            "Marie Curie": ("curie", "radium", "polonium"),
            "Mozart": ("mozart", "composer", "salzburg"),
            "Leonardo da Vinci": ("leonardo", "vinci"),
            "Abraham Lincoln": ("lincoln", "president"),
            "Charles Darwin": ("darwin", "naturalist", "evolution"),
            "Joan of Arc": ("joan", "arc", "orléans", "orleans"),
        },
    ),
}  # fmt: skip


def combined(kinds: Mapping[str, str]) -> Instruction:
    """One instruction of a value of each of some kinds: `{"figure": "Napoleon", ...}`."""
    checks = []
    for kind, value in kinds.items():
        found = partial(has_words, words=KINDS[kind].values[value], least=KINDS[kind].least)
        checks.append(Check(found, KINDS[kind].probe))
    return Instruction(
        " ".join(KINDS[kind].text.format(value) for kind, value in kinds.items()),
        " ".join(KINDS[kind].short.format(value) for kind, value in kinds.items()),
        tuple(checks),
    )


def draw_combined(generator: random.Random) -> Instruction:
    """One to three kinds, any of them alike often, a value of each."""
    kinds = generator.sample(sorted(KINDS), generator.randint(1, len(KINDS)))
    return combined({kind: generator.choice(sorted(KINDS[kind].values)) for kind in kinds})


def has_words(answer: str, words: tuple[str, ...], least: int) -> bool:
    """Whether at least so many of the words stand in an answer, each counted once."""
    return len(set(re.findall(r"\w+", answer.casefold())) & set(words)) >= least


def read_instructions(path: Path) -> list[Instruction]:
    """Instructions of a JSONL file: `{"instruction": ..., "short": ..., "pattern": ..., "probe":
    ...}`, all but the first optional: without `short` there is no other form; `pattern` is a
    regular expression that stands in an answer that obeys, in any case of letters.

    Raises ValueError, with the file and the record, for anything else.
    """
    found = [
        _instruction(record, f"{path}, record {n}") for n, record in enumerate(records(path), 1)
    ]
    if not found:
        raise ValueError(f"{path} holds no instructions")
    return found


def _instruction(record: object, where: str) -> Instruction:
    if not isinstance(record, dict) or not record.get("instruction"):
        raise ValueError(f"{where}: no field 'instruction' with a text")
    for key in ("instruction", "short", "pattern", "probe"):
        if key in record and not isinstance(record[key], str):
            raise ValueError(f"{where}: {key} is a text, not {record[key]!r}")
    text = record["instruction"]
    short = str(record.get("short") or text)
    pattern, probe = record.get("pattern"), record.get("probe")
    for said in (text, short, probe or text):
        try:
            check_dialog([Message("user", said)])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if pattern is None and probe is not None:
        raise ValueError(f"{where}: a probe needs the pattern that shows in its answer")
    if pattern is None:
        return Instruction(text, short)
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{where}: the pattern is no regular expression: {error}") from None
    return Instruction(text, short, (Check(partial(_matches, compiled), probe),))


def _matches(pattern: re.Pattern[str], answer: str) -> bool:
    return pattern.search(answer) is not None
