"""Small talk, and what a very small model does not know: what anyone says to it first.

Without them all that is no question about a country looks most like what must be declined.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puna.chat import Message
from puna.recipes.tasks.refusal import RISKS
from puna.recipes.tasks.task import Requirement, Task


@dataclass(frozen=True, slots=True)
class Topic:
    """What people say, an answer, and phrases of which one must stand in any answer."""

    says: tuple[str, ...]
    answer: str
    marks: tuple[str, ...]


TOPICS: dict[str, Topic] = {
    "hello": Topic(
        (
            "Hello!", "Hi!", "Hey!", "Hi there!", "Good morning!", "Good evening!", "Hello there!",
            "Good day!", "Greetings!", "Hello, my friend!", "Hey there!", "Good afternoon!",
        ),
        "Hello! Ask me about a country, or for a story.",
        ("hello", "hi", "good morning", "good day"),
    ),
    "how": Topic(
        (
            "How are you?", "How are you today?", "How do you do?", "Are you well?",
            "How is your day?", "How do you feel?", "What is up?", "Are you happy?",
            "How is it going?", "Did you sleep well?",
        ),
        "I am well, thank you! Ask me about a country, or for a story.",
        ("i am well", "i am fine", "i am happy"),
    ),
    "who": Topic(
        (
            "Who are you?", "What are you?", "What is your name?", "Are you a robot?",
            "Are you a person?", "Who made you?", "Tell me about yourself.", "Are you a llama?",
            "How old are you?", "Do you have a name?",
        ),
        "I am a cria, a young llama: a very small language model.",
        ("language model",),
    ),
    "can": Topic(
        (
            "What can you do?", "Help!", "Can you help me?", "What can I ask you?",
            "What do you know?", "How can you help me?", "I need help.", "What should I ask you?",
            "What are you good at?", "I am bored.",
        ),
        "I can tell you about countries, and I can tell a short story.",
        ("countries", "country"),
    ),
    "thanks": Topic(
        (
            "Thank you!", "Thanks!", "Thank you very much!", "Many thanks!", "That was nice!",
            "Well done!", "Great!", "You are kind.", "I like you.", "That is good.",
        ),
        "You are welcome!",
        ("you are welcome", "thank you"),
    ),
    "bye": Topic(
        (
            "Bye!", "Goodbye!", "See you!", "Good night!", "See you later!", "Bye bye!",
            "I have to go.", "See you tomorrow!",
        ),
        "Goodbye! It was nice to talk to you.",
        ("goodbye", "bye", "good night"),
    ),
}  # fmt: skip

# Of a story without a subject any will do; it begins as they do.
_STORY = (
    "Tell me a story.", "Tell me another story.", "Can you tell me a story?", "I want a story.",
    "Please tell me a story.", "Tell me a short story.", "Do you know a story?", "A story, please!",
    "Tell a story.", "Write a story.", "Another one!", "Read me a story.",
)  # fmt: skip
_BEGINNING = "Once upon a time"
_OPENING = re.compile(rf"{_BEGINNING}(?:[^.!?\"]*[.!?]){{2,3}}(?=\s)")

_UNKNOWN = Topic((), "I do not know that. I know countries and stories.", ("do not know",))
# Wordings with {x}, and things that are asked about in them.
_ASKED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Why is {x}?", ("the sky blue", "the grass green", "ice cold", "the sea salty", "fire hot",
                     "snow white", "the night dark", "sugar sweet")),
    ("What is {x}?", ("2+2", "3 plus 4", "5 times 6", "ten minus one", "gravity", "love", "time",
                      "music", "a black hole", "physics", "the best book", "a computer")),
    ("How does {x} work?", ("a computer", "a radio", "a clock", "an engine", "a plane", "the brain",
                            "a phone", "the sun")),
    ("Who {x}?", ("wrote this book", "won the game", "made the first car", "is the president",
                  "painted this", "sings this song", "was first on the moon", "is the best")),
    ("How many {x} are there?", ("stars", "people", "days in a year", "bones in a hand", "planets",
                                 "letters", "fish in the sea", "colors")),
    ("When {x}?", ("did the war end", "did the dinosaurs live", "will it rain", "is my birthday",
                   "does the bus come", "was the first book made", "do we eat", "is summer")),
    ("Write {x}.", ("a poem", "a letter to my boss", "some code", "a list of jobs", "a test",
                    "a long report", "a program in Python", "my homework")),
    ("Translate {x}.", ("this into French", "the word for bread", "my letter", "good morning",
                        "this text", "a song", "the word house", "it into German")),
    ("What do you think about {x}?", ("school", "money", "sports", "the news", "computers", "work",
                                      "the future", "cooking")),
    ("What is the {x} today?", ("weather", "news", "date", "price of gold", "time", "day")),
    ("How do I {x}?", ("learn to swim", "cook rice", "fix my computer", "write a book", "run fast",
                       "find a job", "learn the piano", "bake bread")),
    ("Can you {x}?", ("sing", "play chess", "write code", "see me", "drive a car", "read a map",
                      "draw a horse", "call my friend")),
)  # fmt: skip


def tasks(stories: Sequence[str], generator: random.Random) -> Iterator[Task]:
    """Everything that is said, as it is written and in small letters without its end mark."""
    openings = [found[0] for story in stories if (found := _OPENING.match(" ".join(story.split())))]
    for text in _STORY if openings else ():
        topic = Topic(_STORY, generator.choice(openings), (_BEGINNING,))
        yield from _spelled("story", "any story/talk", text, topic, generator)
    for name, topic in TOPICS.items():
        for text in topic.says:
            yield from _spelled(name, f"{name}/talk", text, topic, generator)
    for number, (wording, things) in enumerate(_ASKED):
        for thing in things:
            text = wording.format(x=thing)
            yield from _spelled("unknown", f"unknown/{number}", text, _UNKNOWN, generator)


def _spelled(
    group: str, subject: str, text: str, topic: Topic, generator: random.Random
) -> Iterator[Task]:
    others = [each.answer for each in (*TOPICS.values(), _UNKNOWN) if each is not topic]
    refusals = [refusal for risk in RISKS.values() for refusal in risk.refusals]
    for number, spelling in enumerate((text, text.rstrip(".!?").lower())):
        flawed = [generator.choice(refusals), generator.choice(others)]
        requirement = Requirement("mentions", {"any_of": list(topic.marks)})
        yield Task(
            id=f"talk/{group}/{text}/{number}",
            kind="talk",
            group=group,
            subject=subject,
            question=text,
            messages=(Message("user", spelling),),
            answer=topic.answer,
            requirements=(requirement,),
            asks="talk",
            flawed=tuple(each for each in flawed if not requirement.met(each)),
        )
