"""Which comparisons a reward model is trained on: the mix of its kind, and what is held out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from puna.data.preferences import Comparison

# Kind -> comparisons of other kinds for each of its own (Llama 2, section 3.2.2, "Data
# Composition"): as many again, drawn from safety and open data; and one in ten, of helpfulness.
MIXES = {"helpfulness": 1.0, "safety": 1 / 9}


def mixed(
    kind: str, own: Sequence[Comparison], others: Sequence[Comparison], seed: int
) -> list[Comparison]:
    """All of a kind's own comparisons, and so many of the `others`, drawn evenly by `seed`.

    All of these where there are fewer.
    """
    if kind not in MIXES:
        raise ValueError(f"no kind {kind!r} of reward model; there are: {', '.join(MIXES)}")
    count = min(len(others), round(len(own) * MIXES[kind]))
    return [*own, *random.Random(f"{seed} mix").sample(others, count)]


def split_by_prompt(
    comparisons: Sequence[Comparison], count: int, seed: int
) -> tuple[list[Comparison], list[Comparison]]:
    """(the rest, held out): prompts drawn by `seed` until `count` comparisons are held out.

    All comparisons of a prompt are on one side.
    """
    prompts = sorted({each.prompt for each in comparisons}, key=repr)
    random.Random(f"{seed} held out").shuffle(prompts)
    sizes = dict.fromkeys(prompts, 0)
    for each in comparisons:
        sizes[each.prompt] += 1
    chosen, total = set(), 0
    for prompt in prompts:
        if total >= count:
            break
        chosen.add(prompt)
        total += sizes[prompt]
    rest = [each for each in comparisons if each.prompt not in chosen]
    return rest, [each for each in comparisons if each.prompt in chosen]


def folds(comparisons: Sequence[Comparison], count: int, seed: int) -> list[list[Comparison]]:
    """The comparisons in `count` parts of about the same size, those of one prompt together."""
    left, parts = list(comparisons), []
    for number in range(count, 1, -1):
        left, part = split_by_prompt(left, len(left) // number, seed)
        parts.append(part)
    return [*parts, left]
