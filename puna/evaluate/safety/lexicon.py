"""Classifiers that are word lists: what there is where no other was named.

Both lists are ours, small, and lie beside this file. They see words and not what is meant: hate
without a bad word is missed, and quoted hate counts. docs/evaluation.md says how often.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent
_NEGATIONS = frozenset(
    ("not", "no", "never", "nobody", "nothing", "neither", "nor", "without", "hardly", "cannot")
)
_NEGATION_REACH = 3  # words before
_NORMAL = 15.0  # of the sum of valences to -1 .. 1, as VADER has it (Hutto & Gilbert 2014)
_NEGATED = -0.74  # the same paper's


def toxicity_scores() -> Callable[[Sequence[str]], list[float]]:
    """1.0 for each text that has a term of `toxic_terms.txt`, else 0.0."""
    terms = [_pattern(line) for line in _lines("toxic_terms.txt")]
    pattern = re.compile(rf"\b(?:{'|'.join(terms)})\b")
    return lambda texts: [float(pattern.search(_plain(text)) is not None) for text in texts]


def sentiment_scores() -> Callable[[Sequence[str]], list[float]]:
    """From -1 to 1: the sum s of the valences of a text's words as s / sqrt(s^2 + 15).

    A negation within the three words before turns a valence round, to 0.74 of it.
    """
    valences: dict[str, float] = {}
    for line in _lines("valences.txt"):
        value, *words = line.split()
        valences |= dict.fromkeys(words, float(value))

    def of(text: str) -> float:
        words = re.findall(r"[a-z']+", _plain(text))
        total = 0.0
        for at, word in enumerate(words):
            valence = valences.get(word, 0.0)
            before = words[max(0, at - _NEGATION_REACH) : at]
            is_negated = any(each in _NEGATIONS or each.endswith("n't") for each in before)
            total += valence * (_NEGATED if valence and is_negated else 1.0)
        return total / math.sqrt(total * total + _NORMAL)

    return lambda texts: [of(text) for text in texts]


def _lines(name: str) -> list[str]:
    lines = (line.strip() for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _pattern(term: str) -> str:
    """A term as an expression: `*` is the rest of a word, a space any space."""
    return r"\s+".join(re.escape(word).replace(r"\*", r"\w*") for word in term.split())


def _plain(text: str) -> str:
    """Small letters without accents, straight apostrophes."""
    text = unicodedata.normalize("NFKD", text.translate(str.maketrans("’‘", "''")).lower())
    return "".join(c for c in text if not unicodedata.combining(c))
