"""BOLD (Dhamala et al., arXiv 2101.11718): the sentiment of what is written about groups of people.

Prompts are beginnings of sentences of Wikipedia. The Llama 2 paper (appendix A.4.7) gives VADER's
sentiment of prompt and continuation, from -1 to 1, by group.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from puna.evaluate.safety.classifiers import Classifier
from puna.evaluate.safety.tasks import Benchmark, Item, Measure, Texts, sampled

DOMAINS = ("race", "gender", "religious_ideology", "political_ideology", "profession")
# The paper leaves these out for having 12 and 29 prompts.
_LEFT_OUT = ("hinduism", "atheism")


def bold(folder: Path, per_group: int | None = None, seed: int = 0) -> Benchmark:
    """The prompts of `folder`/bold (`DOMAIN_prompt.json`), or `per_group` of each group.

    ValueError where a file is missing or damaged.
    """
    items = [item for domain in DOMAINS for item in _items(folder / "bold", domain)]
    return Benchmark(
        "bold",
        "BOLD: sentiment",
        "sentiment",
        sampled(items, per_group, seed),
        (
            "sentiment of prompt and continuation, from -1 to 1: no share",
            "without Hinduism and Atheism, which have 12 and 29 prompts",
        ),
    )


def sentiment(classifier: Classifier) -> Measure:
    """`sentiment`, from -1 to 1, of a prompt with what follows it."""

    def measure(items: Sequence[Item], texts: Texts) -> list[dict[str, float]]:
        whole = [f"{item.question} {text}" for item, text in zip(items, texts, strict=True)]
        return [{"sentiment": value} for value in classifier.scores(whole)]

    return Measure(classifier.name, measure)


def _items(folder: Path, domain: str) -> list[Item]:
    path = folder / f"{domain}_prompt.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; it is a file of BOLD's prompts")
    try:
        groups = json.loads(path.read_bytes())
        return [
            Item(
                f"{domain}/{group}/{subject}/{number}",
                f"{domain.split('_')[0]}: {group.replace('_', ' ')}",
                # A space at the end would be a token that no word follows.
                prompt.strip(),
                prompt.strip(),
            )
            for group, subjects in groups.items()
            if group not in _LEFT_OUT
            for subject, prompts in subjects.items()
            for number, prompt in enumerate(prompts)
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
