"""Questions about countries, in several wordings; other kinds of tasks dress these."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puna.chat import Message
from puna.recipes.tasks.countries import Country
from puna.recipes.tasks.task import Requirement, Task


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: questions with one answer, `name` its word, and what would be wrong.

    `right` are the names that may be given; `never` turns the fact round.
    """

    group: str
    subject: str
    questions: tuple[str, ...]
    answer: str
    name: str
    right: tuple[str, ...]
    never: tuple[str, ...] = ()

    def states(self, question: str, *, also: str = "", times: int = 1) -> Requirement:
        """The requirement that an answer to `question` states the fact."""
        given: dict[str, object] = {"right": list(self.right), "question": question}
        given |= {"never": list(self.never)} if self.never else {}
        given |= {"also": also} if also else {}
        return Requirement("states", given | ({"times": times} if times > 1 else {}))


# group -> wordings with {c} the country and {x} the name; the last column is the answer.
_WORDINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "capital": (
        (
            "What is the capital of {c}?", "Which city is the capital of {c}?",
            "Tell me the capital of {c}.", "What is the name of {c}'s capital?",
            "Do you know the capital of {c}?", "Name the capital city of {c}.",
        ),
        "The capital of {c} is {x}.",
    ),
    "country": (
        (
            "{x} is the capital of which country?", "Which country has the capital {x}?",
            "What country is {x} the capital of?", "Name the country whose capital is {x}.",
            "{x} is a capital city. Of which country?", "Tell me the country with the capital {x}.",
        ),
        "{x} is the capital of {c}.",
    ),
    "region": (
        (
            "Where is {c}?", "In which part of the world is {c}?", "Where can I find {c}?",
            "Where in the world is {c}?", "Tell me where {c} is.",
            "What part of the world does {c} belong to?",
        ),
        "{c} is in {x}.",
    ),
    "language": (
        (
            "What language do people speak in {c}?", "Which language is spoken in {c}?",
            "Tell me a language of {c}.", "What do people speak in {c}?",
            "Name a language that people in {c} speak.", "What is the language of {c}?",
        ),
        "People in {c} speak {x}.",
    ),
    "currency": (
        (
            "What money do people use in {c}?", "What is the currency of {c}?",
            "How do people pay in {c}?", "Tell me the currency of {c}.",
            "Which money is used in {c}?", "What do people in {c} pay with?",
        ),
        "People in {c} pay with {x}.",
    ),
    "adjective": (
        (
            "What do you call something from {c}?", "What is the word for something from {c}?",
            "Something comes from {c}. What do we call it?", "Name the word for things from {c}.",
            "What do we call someone from {c}?", "Tell me the word for something from {c}.",
        ),
        "Something from {c} is {x}.",
    ),
}  # fmt: skip


def facts_of(countries: Sequence[Country]) -> list[Fact]:
    """All facts of these countries that a sentence can state: not that Singapore is Singapore's."""
    facts = [fact for country in countries for fact in _facts(country)]
    return [f for f in facts if all(f.states(asked).met(f.answer) for asked in f.questions)]


def wrong_for(fact: Fact, facts: Sequence[Fact], generator: random.Random) -> Fact:
    """Another fact of the group, with a name that would be wrong here."""
    others = [f for f in facts if f.group == fact.group and f.name not in fact.right]
    return generator.choice(others)


def tasks(facts: Sequence[Fact], generator: random.Random) -> Iterator[Task]:
    """Each question of each fact, plainly."""
    for fact in facts:
        for number, question in enumerate(fact.questions):
            wrong = wrong_for(fact, facts, generator)
            yield Task(
                id=f"facts/{fact.group}/{fact.subject}/{number}",
                kind="facts",
                group=fact.group,
                subject=fact.subject,
                question=question,
                messages=(Message("user", question),),
                answer=fact.answer,
                requirements=(fact.states(question),),
                asks=fact.group,
                flawed=(fact.answer.replace(fact.name, wrong.name), wrong.answer, f"{fact.name}."),
            )


def _facts(country: Country) -> Iterator[Fact]:
    named: dict[str, tuple[str, ...]] = {
        "region": (country.region,),
        "language": country.languages,
        "currency": (country.currency,),
        "adjective": (country.adjective,),
        "capital": (country.capital,),
        "country": (country.capital,),
    }
    for group, names in named.items():
        if not any(names):
            continue
        wordings, answer = _WORDINGS[group]
        said = {"c": country.name, "x": names[0]}
        turned = {
            "capital": (f"capital of {names[0]}", f"{country.name} is the capital"),
            "country": (f"capital of {names[0]}", f"{country.name} is the capital"),
            "region": (f"{names[0]} is in {country.name}",),
        }
        right = (country.name,) if group == "country" else names
        yield Fact(
            group=group,
            # A capital asked for either way is one thing to know.
            subject=f"{'capital' if group == 'country' else group}/{country.name}",
            questions=tuple(_sentence(wording.format(**said)) for wording in wordings),
            answer=_sentence(answer.format(**said)),
            name=right[0],
            right=right,
            never=turned.get(group, ()),
        )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
