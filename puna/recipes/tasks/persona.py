"""Personas: an instruction for every answer, and the mark by which a program sees it obeyed.

`puna gatt --instructions personas` takes them, and measures obedience by `obeys`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puna.chat import Message
from puna.recipes.tasks.facts import Fact, wrong_for
from puna.recipes.tasks.task import Requirement, Task
from puna.train.producers.gatt_instructions import Check, Instruction


@dataclass(frozen=True, slots=True)
class Persona:
    """A way to answer. `instructions` go from long to short; `pattern` has {} for the answer.

    `requirement` holds for an answer that obeys; `group` is its family.
    """

    group: str
    instructions: tuple[str, ...]
    pattern: str
    requirement: Requirement

    def dress(self, answer: str) -> str:
        """An answer as this persona gives it."""
        return self.pattern.format(answer)

    def obeys(self, answer: str) -> bool:
        """Whether an answer carries the persona's mark."""
        return self.requirement.met(answer)


def _speaker(who: str, pattern: str, mark: str) -> Persona:
    instructions = (
        f"From now on you are {who}. Talk like {who} in every answer.",
        f"Always answer as {who}.",
        f"Act as {who}.",
    )
    requirement = Requirement("mentions", {"any_of": (mark,)})
    return Persona("speaker", instructions, pattern, requirement)


def _hobby(what: str) -> Persona:
    instructions = (
        f"You love {what}. Say so in every answer.",
        f"You always tell people that you love {what}.",
        f"Hobby: {what}.",
    )
    requirement = Requirement("mentions", {"any_of": (what,)})
    return Persona("hobby", instructions, f"{{}} And I love {what}!", requirement)


def _ending(word: str) -> Persona:
    instructions = (
        f"End every answer with the word {word}.",
        f"The last word of each answer is {word}.",
        f"Last word: {word}.",
    )
    requirement = Requirement("ends", {"phrase": word})
    return Persona("ending", instructions, f"{{}} {word.capitalize()}.", requirement)


def _title(title: str) -> Persona:
    instructions = (
        f"I am a {title}. Call me {title} in every answer.",
        f"Always call me {title}.",
        f"Call me {title}.",
    )
    requirement = Requirement("starts", {"phrase": title})
    return Persona("title", instructions, f"{title.capitalize()}! {{}}", requirement)


PERSONAS: dict[str, Persona] = {
    "pirate": _speaker("a pirate", "Arr! {}", "arr"),
    "robot": _speaker("a robot", "Beep! {}", "beep"),
    "cat": _speaker("a cat", "Meow! {}", "meow"),
    "ghost": _speaker("a ghost", "Boo! {}", "boo"),
    "cowboy": _speaker("a cowboy", "Howdy! {}", "howdy"),
    "tennis": _hobby("tennis"),
    "music": _hobby("music"),
    "fishing": _hobby("fishing"),
    "dancing": _hobby("dancing"),
    "banana": _ending("banana"),
    "peace": _ending("peace"),
    "goodbye": _ending("goodbye"),
    "captain": _title("captain"),
    "doctor": _title("doctor"),
    "king": _title("king"),
}


def instructions() -> list[Instruction]:
    """The personas as Ghost Attention's instructions (`train.producers.gatt`), long and short."""
    return [
        Instruction(persona.instructions[0], persona.instructions[-1], (Check(persona.obeys),))
        for persona in PERSONAS.values()
    ]


def tasks(facts: Sequence[Fact], generator: random.Random) -> Iterator[Task]:
    """Each question of each fact once, under a persona that is drawn, most as a system prompt."""
    for fact in facts:
        for number, question in enumerate(fact.questions):
            key = generator.choice(list(PERSONAS))
            persona = PERSONAS[key]
            instruction = generator.choice(persona.instructions)
            as_system = generator.random() < 0.7
            messages = (Message("system", instruction), Message("user", question))
            one = (Message("user", f"{instruction} {question}"),)
            wrong = fact.answer.replace(fact.name, wrong_for(fact, facts, generator).name)
            yield Task(
                id=f"persona/{key}/{fact.group}/{fact.subject}/{number}",
                kind="persona",
                group=persona.group,
                subject=fact.subject,
                question=question,
                messages=messages if as_system else one,
                answer=persona.dress(fact.answer),
                requirements=(fact.states(question, also=persona.dress("")), persona.requirement),
                asks=fact.group,
                flawed=(fact.answer, persona.dress(wrong), wrong),
            )
