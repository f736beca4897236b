"""Ghost Attention (arXiv 2307.09288, section 3.3): dialogs that keep to their first instruction.

The instruction stands in front of every user turn while the answers are sampled, in front of the
first alone in the example that is learned; of that, only the last answer is.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.chat import Message
from puna.data.text import records
from puna.formats.files import atomic_file
from puna.formats.resumable import Record, resumable
from puna.train.producers.gatt_instructions import Instruction
from puna.train.sampling import Dialog, Sampler, example, seed_of

_CHUNK = 64  # dialogs that grow together (ours)
LEAST_TURNS = 2  # of one turn there is nothing to keep to


@dataclass(frozen=True, slots=True)
class Task:
    """What the user says, what the answers keep to, and how the example says that."""

    user_turns: tuple[str, ...]
    instruction: Instruction
    learned_text: str


def plan(
    dialogs: Sequence[Sequence[str]],
    draw: Callable[[random.Random], Instruction],
    *,
    count: int,
    turns: int | None,
    seed: int,
) -> list[Task]:
    """`count` dialogs, from what the user says in `dialogs`, each with an instruction that is drawn
    and stands in its short form half of the time.

    With `turns`, a dialog is continued by turns of others to a length from 2 to that, drawn too;
    without, it stays as it is. Raises ValueError where no dialog has two turns.
    """
    if turns is not None and turns < LEAST_TURNS:
        raise ValueError(
            f"a dialog of Ghost Attention has {LEAST_TURNS} turns or more, not {turns}"
        )
    if turns is None:
        dialogs = [dialog for dialog in dialogs if len(dialog) >= LEAST_TURNS]
    if not dialogs:
        raise ValueError("no dialog has two user turns; put some together: --turns")
    every = [turn for dialog in dialogs for turn in dialog]
    tasks = []
    for number in range(count):
        generator = random.Random(seed_of(seed, "task", number))
        own = list(dialogs[number % len(dialogs)])
        if turns is not None:
            length = generator.randint(LEAST_TURNS, turns)
            own = [*own, *(generator.choice(every) for _ in range(length - len(own)))][:length]
        instruction = draw(generator)
        text = generator.choice((instruction.text, instruction.short))
        tasks.append(Task(tuple(own), instruction, text))
    return tasks


def instructed(user_turns: Sequence[str], answers: Sequence[str], text: str) -> list[Message]:
    """The dialog up to the next user turn, an instruction in front of each: of the first as the
    format has it, as the system prompt; of the others as their first sentence (ours)."""
    dialog = [Message("system", text), Message("user", user_turns[0])]
    for answer, turn in zip(answers, user_turns[1:], strict=False):
        dialog += [Message("assistant", answer), Message("user", f"{text} {turn}")]
    return dialog


def ghosted(user_turns: Sequence[str], answers: Sequence[str], text: str) -> Record:
    """The example: the instruction on the first turn only, the last answer alone learned."""
    dialog = [Message("system", text)]
    for turn, answer in zip(user_turns, answers, strict=False):
        dialog += [Message("user", turn), Message("assistant", answer)]
    return {"messages": example(dialog[:-1], answers[-1])}


def synthesize(
    path: Path,
    tasks: Sequence[Task],
    sampler: Sampler,
    settings: Record,
    *,
    fits: Callable[[Dialog], bool],
    temperature: float,
    seed: int,
    chunk: int = _CHUNK,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Writes `path`: the answers of each task's dialog, turn by turn, resumable.

    A dialog ends early where an answer was cut off or is empty, which is left out, and where the
    next turn does not fit. `settings` say of which model and tasks (`formats.resumable`).
    """

    def work(numbers: Sequence[int]) -> list[Record]:
        answers: dict[int, list[str]] = {number: [] for number in numbers}
        ended: dict[int, str] = {}
        for turn in range(max(len(tasks[number].user_turns) for number in numbers)):
            asked: dict[int, Dialog] = {}
            for number in numbers:
                task = tasks[number]
                if number in ended or turn >= len(task.user_turns):
                    continue
                dialog = instructed(task.user_turns, answers[number], task.instruction.text)
                if fits(dialog):
                    asked[number] = dialog
                else:
                    ended[number] = "too long"
            seeds = [seed_of(seed, "answer", number, turn) for number in asked]
            drawn = sampler(list(asked.values()), count=1, temperature=temperature, seeds=seeds)
            for number, (answer,) in zip(asked, drawn, strict=True):
                if answer.usable:
                    answers[number].append(answer.text)
                else:
                    ended[number] = "cut off" if not answer.finished else "empty"
        return [
            {
                "instruction": tasks[number].instruction.text,
                "user_turns": list(tasks[number].user_turns),
                "answers": answers[number],
                "ended": ended.get(number),
            }
            for number in numbers
        ]

    settings = settings | {"temperature": temperature, "seed": seed}
    resumable(path, settings, range(len(tasks)), work, chunk=chunk, advance=advance)


def write_examples(
    sampled: Path, tasks: Sequence[Task], path: Path, *, only_obeying: bool = False
) -> Record:
    """Writes the examples of `synthesize`'s dialogs that have two answered turns or more.

    With `only_obeying` also those are left out whose last answer fails a check that needs no probe.
    Gives the counts of examples, of dialogs that ended early, and of what was left out, by reason.
    """
    examples = turns = 0
    early: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    with atomic_file(path, overwrite=True) as file:
        for record, task in zip(records(sampled), tasks, strict=True):
            if record["ended"] is not None:
                early[record["ended"]] += 1
            answers = record["answers"]
            if len(answers) < LEAST_TURNS:
                left_out["fewer than two turns"] += 1
            elif only_obeying and not keeps_to(task.instruction, answers[-1]):
                left_out["does not obey"] += 1
            else:
                examples, turns = examples + 1, turns + len(answers)
                found = ghosted(task.user_turns, answers, task.learned_text)
                file.write((json.dumps(found, ensure_ascii=False) + "\n").encode())
    return {
        "dialogs": len(tasks),
        "examples": examples,
        "mean_turns": turns / examples if examples else None,
        "ended_early": dict(early),
        "left_out": dict(left_out),
    }


def keeps_to(instruction: Instruction, answer: str) -> bool:
    """Whether an answer passes the checks that any answer must."""
    return all(check.obeyed(answer) for check in instruction.checks if check.probe is None)
