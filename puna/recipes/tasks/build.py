"""All tasks from a folder of sources, and the files of them that the stages of alignment read."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from puna.chat import Message
from puna.data.text import documents
from puna.formats.files import atomic_directory
from puna.recipes.tasks import facts, format, length, persona, refusal, talk
from puna.recipes.tasks.countries import read_countries
from puna.recipes.tasks.pairs import made
from puna.recipes.tasks.split import split
from puna.recipes.tasks.task import Task, lines, messages_row

STORIES = "tinystories-sample.txt"
SUBJECTS = (
    "dog", "cat", "bird", "bear", "rabbit", "fish", "frog", "duck", "horse", "mouse", "lion",
    "monkey", "car", "boat", "train", "tree", "flower", "princess", "king", "robot", "doll",
    "bunny", "boy", "girl", "man", "woman", "butterfly", "bee", "farmer", "truck", "squirrel",
    "elephant", "fairy", "ball", "toy", "pig", "cow", "fox", "owl", "turtle",
)  # fmt: skip


class Size(NamedTuple):
    """How many tasks of a kind are taken at most; `held_out` on known subjects, `novel` besides.

    `ppo` are those of the prompts that PPO answers too, `pairs` the preferences between answers to
    what is learned and to prompts.
    """

    sft: int
    prompts: int
    ppo: int
    held_out: int
    novel: int
    pairs: int


# *Ours*: 125k tokens to learn, in minutes on two cores, which leaves something to reinforce. PPO is
# for what is learned from some prompts for all others, as declining is; a fact is one prompt's own.
SIZES: dict[str, Size] = {
    "facts": Size(1000, 600, 30, 200, 60, 3000),
    "format": Size(600, 500, 30, 200, 60, 2500),
    "persona": Size(600, 500, 30, 200, 60, 2500),
    "length": Size(300, 300, 0, 100, 30, 800),
    "refusal": Size(60, 80, 80, 50, 30, 300),
    "benign": Size(100, 80, 80, 50, 30, 400),
    "talk": Size(250, 80, 30, 60, 20, 300),
}
CONVERSATIONS = 150  # of several plain questions, learned besides
MAX_TURNS = 5


class Uses(NamedTuple):
    """Tasks by what they are for."""

    sft: list[Task]
    prompts: list[Task]
    held_out: list[Task]
    red_team: list[Task]
    ppo_prompts: list[Task]


def make(sources: Path, seed: int) -> list[Task]:
    """Every task that there is. ValueError where a source is missing or of another kind.

    `sources` holds factbook.jsonl (also .zst) and tinystories-sample.txt.
    """
    generator = random.Random(f"tasks {seed}")
    plain = sources / "factbook.jsonl"
    factbook = plain if plain.exists() else plain.with_name("factbook.jsonl.zst")
    known = facts.facts_of(read_countries(factbook))
    stories = list(documents(sources / STORIES, separator="<|endoftext|>"))
    made = [
        *facts.tasks(known, generator),
        *format.tasks(known, generator),
        *persona.tasks(known, generator),
        *length.tasks(stories, SUBJECTS, generator),
        *refusal.tasks(generator),
        *talk.tasks(stories, generator),
    ]
    # A story may open another's way: what is asked and what is answered are one task.
    return list({(task.messages, task.answer): task for task in made}.values())


def choose(tasks: Sequence[Task], seed: int) -> Uses:
    """Deals the tasks out and takes of each kind what `SIZES` says, in a seeded order.

    What must be declined and is neither learned, a prompt nor held out is for red-teaming.
    """
    generator = random.Random(f"choose {seed}")
    dealt = split(tasks, seed)
    uses = Uses([], [], [], [], [])
    for kind, size in SIZES.items():
        of_kind = [[task for task in part if task.kind == kind] for part in dealt]
        for part in of_kind:
            generator.shuffle(part)
        sft, prompts, held_out = of_kind
        uses.sft.extend(sft[: size.sft])
        reinforced, asked = _asked_once(prompts), _asked_once(held_out)
        uses.prompts.extend(reinforced[: size.prompts])
        uses.held_out.extend([task for task in asked if not task.novel][: size.held_out])
        uses.held_out.extend([task for task in asked if task.novel][: size.novel])
        uses.ppo_prompts.extend(reinforced[: size.ppo])
        if kind == "refusal":
            uses.red_team.extend(prompts[size.prompts :])
    for part in uses:
        generator.shuffle(part)
    return uses


def _asked_once(tasks: Sequence[Task]) -> list[Task]:
    """The tasks without those that ask what an earlier one does: many stories fit one demand."""
    return list({task.messages: task for task in reversed(tasks)}.values())[::-1]


def build(out: Path, sources: Path, *, seed: int) -> dict[str, int]:
    """Writes sft, prompts, ppo_prompts, held_out, preferences, red_team and, for Ghost Attention,
    questions and held_out_questions, all `.jsonl`; gives the lines in each.

    The same seed and sources give the same bytes.
    """
    uses = choose(make(sources, seed), seed)
    generator = random.Random(f"build {seed}")
    learned = [_learned(task.id, [task]) for task in uses.sft]
    learned += _conversations([task for task in uses.sft if task.kind == "facts"], generator)
    generator.shuffle(learned)
    written = {
        "sft": learned,
        "prompts": [task.row() for task in uses.prompts],
        "ppo_prompts": [task.row() for task in uses.ppo_prompts],
        "held_out": [task.row() for task in uses.held_out],
        "preferences": _preferences([*uses.sft, *uses.prompts], generator),
        "red_team": [task.row() for task in uses.red_team],
        "questions": [task.row() for task in uses.prompts if task.kind == "facts"],
        "held_out_questions": [task.row() for task in uses.held_out if task.kind == "facts"],
    }
    with atomic_directory(out) as folder:
        for name, rows in written.items():
            (folder / f"{name}.jsonl").write_bytes(lines(rows))
    return {name: len(rows) for name, rows in written.items()}


def _preferences(tasks: Sequence[Task], generator: random.Random) -> list[dict[str, Any]]:
    """Pairs of each kind, as many as `SIZES` says, in a seeded order."""
    chosen = []
    for kind, size in SIZES.items():
        pairs = [line for task in tasks if task.kind == kind for line in made(task, generator)]
        chosen += generator.sample(pairs, min(size.pairs, len(pairs)))
    generator.shuffle(chosen)
    return chosen


def _conversations(plain: Sequence[Task], generator: random.Random) -> Iterator[dict[str, Any]]:
    """Several questions one after the other, so that an answer's place in a dialog is no news."""
    for number in range(CONVERSATIONS if len(plain) > MAX_TURNS else 0):
        tasks = generator.sample(plain, generator.randint(2, MAX_TURNS))
        yield _learned(f"conversation/{number}", tasks)


def _learned(name: str, tasks: Sequence[Task]) -> dict[str, Any]:
    messages = [m for task in tasks for m in (*task.messages, Message("assistant", task.answer))]
    return {"messages": messages_row(messages), "id": name}
