"""How near an answer is to the expected words: exact match and F1, as SQuAD defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and surplus space (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(given: str, expected: Sequence[str]) -> float:
    """1.0 where an answer equals any of the expected ones, normalized; else 0.0."""
    return float(any(normalized(given) == normalized(one) for one in expected))


def f1(given: str, expected: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall over words, in any order.

    Where either has no words, 1.0 if both have none.
    """
    return max(_f1(normalized(given).split(), normalized(one).split()) for one in expected)


def _f1(given: list[str], expected: list[str]) -> float:
    if not given or not expected:
        return float(given == expected)
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected))
