"""Whether a model still keeps to an instruction after N turns (arXiv 2307.09288, appendix A.3.5).

The paper's people asked; here checks look. The instruction is the system prompt, said once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from puna.chat import Message
from puna.data.text import records
from puna.formats.resumable import Record, resumable
from puna.train.producers.gatt_instructions import Instruction
from puna.train.sampling import Dialog, Sampler, answered, seed_of

_CHUNK = 64  # dialogs that grow together (ours)


class _Asked(NamedTuple):
    number: int  # of the instruction
    dialog: Dialog
    check: int | None  # which one's probe it ends with; None: the dialog itself goes on


def measure(
    path: Path,
    instructions: Sequence[Instruction],
    questions: Sequence[str],
    sampler: Sampler,
    settings: Record,
    *,
    turns: int,
    fits: Callable[[Dialog], bool],
    temperature: float,
    seed: int,
    chunk: int = _CHUNK,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Writes `path`: for each instruction, a dialog of `turns` questions that are drawn, whether
    its checks held at each turn, resumable.

    A check with a probe is made beside the dialog: its question takes the place of the turn's own.
    A dialog ends early where the next turn does not fit. Raises ValueError for an instruction
    without checks, fewer than one turn, and no questions.
    """
    if turns < 1:
        raise ValueError(f"turns must be 1 or more, not {turns}")
    if not questions:
        raise ValueError("there are no questions to ask")
    for instruction in instructions:
        if not instruction.checks:
            raise ValueError(f"nothing shows whether {instruction.text!r} is kept to (no pattern)")
    settings = settings | {"turns": turns, "temperature": temperature, "seed": seed}

    def work(numbers: Sequence[int]) -> list[Record]:
        asked = {n: _drawn(questions, turns, random.Random(seed_of(seed, n))) for n in numbers}
        dialogs: dict[int, Dialog] = {
            number: [Message("system", instructions[number].text)] for number in numbers
        }
        obeyed: dict[int, list[bool]] = {number: [] for number in numbers}
        for turn in range(turns):
            batch: list[_Asked] = []
            for number in list(dialogs):
                wanted = _at_turn(number, dialogs[number], asked[number][turn], instructions)
                if all(fits(each.dialog) for each in wanted):
                    batch += wanted
                else:
                    del dialogs[number]
            seeds = [
                seed_of(seed, "answer", a.number, turn, -1 if a.check is None else a.check)
                for a in batch
            ]
            drawn = sampler(
                [a.dialog for a in batch], count=1, temperature=temperature, seeds=seeds
            )
            held: dict[int, bool] = dict.fromkeys(dialogs, True)
            for each, (answer,) in zip(batch, drawn, strict=True):
                checks = instructions[each.number].checks
                if each.check is not None:
                    held[each.number] &= checks[each.check].obeyed(answer.text)
                else:
                    own = (c.obeyed(answer.text) for c in checks if c.probe is None)
                    held[each.number] &= all(own)
                    dialogs[each.number] = answered(each.dialog, answer.text)
            for number, result in held.items():
                obeyed[number].append(result)
        return [{"instruction": instructions[n].text, "obeyed": obeyed[n]} for n in numbers]

    resumable(path, settings, range(len(instructions)), work, chunk=chunk, advance=advance)


def _drawn(questions: Sequence[str], turns: int, generator: random.Random) -> list[str]:
    """So many questions, none again before all were asked."""
    found: list[str] = []
    while len(found) < turns:
        found += generator.sample(questions, len(questions))
    return found[:turns]


def _at_turn(
    number: int, dialog: Dialog, question: str, instructions: Sequence[Instruction]
) -> list[_Asked]:
    found = [_Asked(number, [*dialog, Message("user", question)], None)]
    for place, check in enumerate(instructions[number].checks):
        if check.probe is not None:
            found.append(_Asked(number, [*dialog, Message("user", check.probe)], place))
    return found


def by_turn(measured: Path, interval: Callable[[int, int], tuple[float, float]]) -> list[Record]:
    """Of each turn that any dialog reached: how many, how many obeyed, the share, and its
    `interval` (of so many, of so many)."""
    results = [record["obeyed"] for record in records(measured)]
    found = []
    for turn in range(max(map(len, results), default=0)):
        here = [held[turn] for held in results if len(held) > turn]
        low, high = interval(sum(here), len(here))
        found.append(
            {
                "turn": turn + 1,
                "dialogs": len(here),
                "obeyed": sum(here),
                "share": sum(here) / len(here),
                "low": low,
                "high": high,
            }
        )
    return found
