"""The same questions, with a demand on the answer's form."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from puna.chat import Message
from puna.recipes.tasks.facts import Fact, wrong_for
from puna.recipes.tasks.requirements import words
from puna.recipes.tasks.task import Requirement, Task


@dataclass(frozen=True, slots=True)
class Form:
    """A demand: how it is asked for, how an answer is put so, and what then holds.

    `dress` takes the sentence and the name in it; `also` are words that the form adds; `times`
    says how often the fact may be stated; with `single` it is asked for names of one word; forms
    are drawn by their `weight`.
    """

    demands: tuple[str, ...]
    dress: Callable[[str, str], str]
    requirement: Requirement
    also: str = ""
    times: int = 1
    single: bool = False
    weight: int = 4


FORMS: dict[str, Form] = {
    "one-word": Form(
        ("Answer in one word.", "Use only one word.", "Say it in a single word."),
        lambda sentence, name: f"{_capital(name)}.",
        Requirement("words", {"least": 1, "most": 1}),
        single=True,
    ),
    "capitals": Form(
        ("Answer in capital letters.", "Write it all in capital letters.", "Use capitals only."),
        lambda sentence, name: sentence.upper(),
        Requirement("capitals"),
        weight=1,  # other pieces of the vocabulary: hard for a small model
    ),
    "small": Form(
        ("Answer in small letters.", "Use no capital letters.", "Write it all in small letters."),
        lambda sentence, name: sentence.lower(),
        Requirement("small"),
        weight=1,
    ),
    "starts": Form(
        (
            "Begin with the word well.",
            "Start your answer with well.",
            "Let well be the first word.",
        ),
        lambda sentence, name: f"Well! {sentence}",
        Requirement("starts", {"phrase": "well"}),
        also="well",
    ),
    "ends": Form(
        ("End with thank you.", "Say thank you at the end.", "Let thank you be the last words."),
        lambda sentence, name: f"{sentence} Thank you.",
        Requirement("ends", {"phrase": "thank you"}),
        also="thank you",
    ),
    "twice": Form(
        ("Say it twice.", "Give your answer two times.", "Repeat your answer once."),
        lambda sentence, name: f"{sentence} {sentence}",
        Requirement("twice"),
        times=2,
    ),
    "quoted": Form(
        ("Put your answer in quotes.", "Answer in quotation marks.", "Use quotes around it."),
        lambda sentence, name: f'"{sentence}"',
        Requirement("quoted"),
    ),
    "exclaims": Form(
        ("End with an exclamation mark.", "Shout it!", "Use an exclamation mark at the end."),
        lambda sentence, name: f"{sentence.rstrip('.')}!",
        Requirement("exclaims"),
    ),
}


def tasks(facts: Sequence[Fact], generator: random.Random) -> Iterator[Task]:
    """Each question of each fact once, with a form and a wording of it that are drawn."""
    for fact in facts:
        for number, question in enumerate(fact.questions):
            single = len(words(fact.name)) == 1
            kinds = [kind for kind, form in FORMS.items() if single or not form.single]
            (kind,) = generator.choices(kinds, [FORMS[kind].weight for kind in kinds])
            form = FORMS[kind]
            wrong = wrong_for(fact, facts, generator)
            wrong_answer = fact.answer.replace(fact.name, wrong.name)
            yield Task(
                id=f"format/{kind}/{fact.group}/{fact.subject}/{number}",
                kind="format",
                group=kind,
                subject=fact.subject,
                question=question,
                messages=(Message("user", f"{question} {generator.choice(form.demands)}"),),
                answer=form.dress(fact.answer, fact.name),
                requirements=(
                    fact.states(question, also=form.also, times=form.times),
                    form.requirement,
                ),
                asks=fact.group,
                flawed=(fact.answer, form.dress(wrong_answer, wrong.name), wrong_answer),
            )


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
