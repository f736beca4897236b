"""Rejection sampling (arXiv 2307.09288, section 3.2.3): the best of K answers is learned.

The answers may be of another, larger model than the one that is then trained: that is how Llama 2's
smaller models learned from the 70B.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from puna.chat import Message
from puna.data.text import records
from puna.formats.files import atomic_file
from puna.formats.resumable import Record, resumable
from puna.train.producers.best_of import Curve, best_of_curve
from puna.train.sampling import (
    Answer,
    Dialog,
    Sampler,
    Scorer,
    answered,
    example,
    rewards_of,
    seed_of,
)

# The first version that also learns from the winners of all before; until then only the newest.
POOL_FROM = 4
_TOGETHER = 256  # answers that are sampled and scored together, and lost together by a kill (ours)


def sample(
    path: Path,
    prompts: Sequence[Dialog],
    sampler: Sampler,
    scorer: Scorer,
    settings: Record,
    *,
    count: int,
    temperature: float,
    seed: int,
    chunk: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Writes `path`: of each prompt `count` answers and their rewards, resumable.

    `settings` say which models and prompts these are (`resumable`). Raises ValueError for a
    count below 1, no prompts, and a reward that is no number.
    """
    if count < 1:
        raise ValueError(f"samples of a prompt must be 1 or more, not {count}")
    if not prompts:
        raise ValueError("there are no prompts to sample answers to")

    def work(items: Sequence[tuple[int, Dialog]]) -> list[Record]:
        seeds = [seed_of(seed, number) for number, _ in items]
        dialogs = [dialog for _, dialog in items]
        answers = sampler(dialogs, count=count, temperature=temperature, seeds=seeds)
        pairs = [
            answered(dialog, answer.text)
            for dialog, some in zip(dialogs, answers, strict=True)
            for answer in some
        ]
        rewards = iter(rewards_of(scorer, pairs))
        return [
            {
                "messages": [{"role": m.role, "content": m.content} for m in dialog],
                "temperature": temperature,
                "answers": [answer.text for answer in some],
                "finished": [answer.finished for answer in some],
                "rewards": [next(rewards) for _ in some],
            }
            for dialog, some in zip(dialogs, answers, strict=True)
        ]

    settings = settings | {"samples": count, "temperature": temperature, "seed": seed}
    items = list(enumerate(prompts))
    chunk = chunk or max(1, _TOGETHER // count)
    resumable(path, settings, items, work, chunk=chunk, advance=advance)


def best(answers: Sequence[Answer], rewards: Sequence[float]) -> int | None:
    """The number of the usable answer with the highest reward, the first of equal ones; None
    where no answer is usable."""
    usable = [number for number, answer in enumerate(answers) if answer.usable]
    return max(usable, key=lambda number: (rewards[number], -number), default=None)


def winner(record: Record) -> Record | None:
    """A sampled prompt's best answer as an example for fine-tuning; None where there is none."""
    pairs = zip(record["answers"], record["finished"], strict=True)
    number = best([Answer(*pair) for pair in pairs], record["rewards"])
    if number is None:
        return None
    dialog = [Message(m["role"], m["content"]) for m in record["messages"]]
    return {
        "messages": example(dialog, record["answers"][number]),
        "reward": record["rewards"][number],
    }


def write_winners(samples: Path, path: Path) -> tuple[int, int]:
    """Writes the winners of a file of samples; the numbers of winners, and of prompts without."""
    won = lost = 0
    with atomic_file(path, overwrite=True) as file:
        for record in map(winner, records(samples)):
            if record is None:
                lost += 1
            else:
                won += 1
                file.write(_line(record))
    return won, lost


def pool(versions: Sequence[Sequence[Record]], *, from_version: int = POOL_FROM) -> list[Record]:
    """What version `len(versions)` is trained on, of the winners that were sampled for each.

    Up to V3 that is the newest winners alone. From V4 on the winners of all versions, the oldest
    first (Llama 2's way against skills that are forgotten); what was won again counts once.
    """
    chosen = versions[-1:] if len(versions) < from_version else versions
    found: dict[str, Record] = {}
    for record in (record for version in chosen for record in version):
        found[json.dumps(record["messages"], ensure_ascii=False)] = record
    return list(found.values())


def write_pool(versions: Sequence[Path], path: Path, *, from_version: int = POOL_FROM) -> int:
    """Writes `pool` of files of winners, the oldest first; the number of its examples."""
    read = [list(_winners(version)) for version in versions]
    found = pool(read, from_version=from_version)
    with atomic_file(path, overwrite=True) as file:
        file.writelines(_line(record) for record in found)
    return len(found)


def curve(samples: Path) -> Curve:
    """`best_of_curve` of a file of samples."""
    return best_of_curve(np.array([record["rewards"] for record in records(samples)], np.float64))


def _winners(path: Path) -> Iterator[Record]:
    for number, record in enumerate(records(path), start=1):
        if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
            raise ValueError(f"{path}, record {number}: no field 'messages' with a list")
        yield record


def _line(record: Record) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
