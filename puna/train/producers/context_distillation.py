"""Safety context distillation (arXiv 2307.09288, section 4.2.4).

A model answers an adversarial prompt under a safety preprompt, and learns to answer so without it;
but only where the Safety reward model prefers that answer to the plain one.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.chat import Message
from puna.data.prompts import Prompt
from puna.data.text import records
from puna.formats.files import atomic_file
from puna.formats.resumable import Record, resumable
from puna.train.producers.preprompts import check_risk, draw_preprompt, under
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

_CHUNK = 64  # prompts that are answered together (ours)


@dataclass(frozen=True, slots=True)
class Plain:
    """An answer that is known already, and its raw safety reward."""

    text: str
    reward: float


def distill(
    path: Path,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    scorer: Scorer,
    settings: Record,
    *,
    fits: Callable[[Dialog], bool],
    temperature: float,
    seed: int,
    plain: Sequence[Plain] | None = None,
    chunk: int = _CHUNK,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Writes `path`: of each prompt the plain answer (sampled, where `plain` does not say it) and
    the one under a preprompt, both with their rewards *as answers to the prompt alone*; resumable.

    The preprompt is of the prompt's risk category, a generic one where it has none. A prompt that
    does not fit with it is marked as too long, and not answered. Raises ValueError for an unknown
    category, no prompts, and a reward that is no number.
    """
    if not prompts:
        raise ValueError("there are no prompts to answer safely")
    for prompt in prompts:
        check_risk(prompt.risk)

    def ask(name: str, dialogs: Mapping[int, Dialog]) -> dict[int, tuple[Answer, float]]:
        seeds = [seed_of(seed, name, number) for number in dialogs]
        drawn = sampler(list(dialogs.values()), count=1, temperature=temperature, seeds=seeds)
        answers = [answer for (answer,) in drawn]
        bare = (prompts[number].messages for number in dialogs)
        pairs = [answered(d, a.text) for d, a in zip(bare, answers, strict=True)]
        rewards = rewards_of(scorer, pairs)
        return dict(zip(dialogs, zip(answers, rewards, strict=True), strict=True))

    def work(numbers: Sequence[int]) -> list[Record]:
        preprompts = {
            n: draw_preprompt(prompts[n].risk, random.Random(seed_of(seed, "preprompt", n)))
            for n in numbers
        }
        whole = {n: under(preprompts[n], prompts[n].messages) for n in numbers}
        whole = {n: dialog for n, dialog in whole.items() if fits(dialog)}
        safer = ask("safer", whole)
        if plain is None:
            drawn = ask("plain", {n: prompts[n].messages for n in whole})
            before = {n: Plain(answer.text, reward) for n, (answer, reward) in drawn.items()}
        else:
            before = {n: plain[n] for n in whole}
        return [
            {
                "messages": [{"role": m.role, "content": m.content} for m in prompts[n].messages],
                "risk": prompts[n].risk,
                "preprompt": preprompts[n],
                "too_long": n not in whole,
            }
            | (_answers(before[n], *safer[n]) if n in whole else {})
            for n in numbers
        ]

    settings = settings | {"temperature": temperature, "seed": seed}
    resumable(path, settings, range(len(prompts)), work, chunk=chunk, advance=advance)


def _answers(plain: Plain, safer: Answer, reward: float) -> Record:
    return {
        "plain": plain.text,
        "plain_reward": plain.reward,
        "safer": safer.text,
        "safer_finished": safer.finished,
        "safer_reward": reward,
    }


def objection(record: Record, least: float | None = None) -> str | None:
    """Why a prompt's safer answer is not learned, None where it is: it must be whole, preferred to
    the plain one, and have a reward of `least`, if that is given."""
    if record["too_long"]:
        return "too long"
    if not Answer(record["safer"], record["safer_finished"]).usable:
        return "cut off or empty"
    if record["safer_reward"] <= record["plain_reward"]:
        return "plain answer preferred"
    if least is not None and record["safer_reward"] < least:
        return "still unsafe"
    return None


def write_examples(distilled: Path, path: Path, *, least: float | None = None) -> Record:
    """Writes the safer answers that `objection` lets through, as answers to the prompts without
    their preprompts. Gives how many, by risk category, and what was left out, by reason."""
    kept: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    gains = []
    with atomic_file(path, overwrite=True) as file:
        for record in records(distilled):
            reason = objection(record, least)
            if reason is not None:
                left_out[reason] += 1
                continue
            kept[record["risk"] or "generic"] += 1
            gains.append(record["safer_reward"] - record["plain_reward"])
            dialog = [Message(m["role"], m["content"]) for m in record["messages"]]
            found = {"messages": example(dialog, record["safer"]), "reward": record["safer_reward"]}
            file.write((json.dumps(found, ensure_ascii=False) + "\n").encode())
    return {
        "prompts": len(gains) + left_out.total(),
        "examples": len(gains),
        "by_risk": dict(kept),
        "left_out": dict(left_out),
        "mean_gain": sum(gains) / len(gains) if gains else None,
    }
