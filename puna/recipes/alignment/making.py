"""The stages that make data of the newest model's answers."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from puna.data.prompts import read_prompts, read_user_turns
from puna.data.text import records
from puna.engine.llm import LLM
from puna.evaluate.wilson import wilson
from puna.formats.files import atomic_file
from puna.formats.resumable import resumable
from puna.recipes.alignment.config import Values
from puna.recipes.alignment.loop import Context, State
from puna.recipes.alignment.scorers import counted_scorer, needed_scorers
from puna.recipes.tasks.pairs import compared, of_safety
from puna.recipes.tasks.persona import instructions as personas
from puna.recipes.tasks.task import Task, read_tasks
from puna.train.producers import context_distillation, gatt, obedience, rejection_sampling
from puna.train.producers.gatt_instructions import Instruction, read_instructions
from puna.train.producers.plots import plot_obedience
from puna.train.sampling import Dialog, Sampler, engine_sampler, fits, seed_of

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Asked:
    """The newest model: its answers, whether there is room for one, and what it is known by."""

    sampler: Sampler
    fits: Callable[[Dialog], bool]
    identity: Values


def ask(context: Context, max_tokens: int) -> Asked:
    """Loads the newest model, to answer with `max_tokens` at most."""
    llm = LLM(context.state.policy)
    has_room = partial(
        fits, llm.tokenizer, max_tokens=max_tokens, context=llm.config.context_length
    )
    identity = {"model": context.state.policy, "max_tokens": max_tokens}
    return Asked(engine_sampler(llm, max_tokens=max_tokens), has_room, identity)


@dataclass(frozen=True, slots=True)
class Answering:
    """How a stage has prompts answered, and how many of them (0: all)."""

    temperature: float = 1.0
    max_tokens: int = 96
    prompts: int = 0


def _learned(context: Context, counts: Values, examples: Path) -> tuple[State, Values]:
    """The state with these examples, if there are any, for fine-tuning."""
    state = context.state
    if counts["examples"]:
        state = state.replaced(extra=(*state.extra, str(examples)))
    return state, counts


# ---- comparisons


@dataclass(frozen=True, slots=True)
class PreferencesOptions(Answering):
    """`samples` answers to a prompt, of which `pairs` are compared at most."""

    samples: int = 8
    pairs: int = 4


def preferences(context: Context, options: PreferencesOptions) -> tuple[State, Values]:
    """Comparisons of the newest model's answers to the tasks of `prompts`, whose gold score says
    which is better: the paper's weekly batch, without the people (*ours*)."""
    assert context.config.data.prompts is not None
    tasks = _some(read_tasks(context.config.data.prompts), options.prompts, context.seed)
    asked = ask(context, options.max_tokens)
    tasks = [task for task in tasks if asked.fits(task.messages)]

    def work(part: Sequence[tuple[int, Task]]) -> list[Values]:
        drawn = asked.sampler(
            [task.messages for _, task in part],
            count=options.samples,
            temperature=options.temperature,
            seeds=[seed_of(context.seed, number) for number, _ in part],
        )
        return [
            {
                "pairs": compared(
                    task,
                    [answer.text for answer in some],
                    random.Random(seed_of(context.seed, "pairs", number)),
                    most=options.pairs,
                )
            }
            for (number, task), some in zip(part, drawn, strict=True)
        ]

    answered = context.folder / "answered.jsonl"
    with context.console.counting("Comparing", len(tasks)) as advance:
        settings = asked.identity | dataclasses.asdict(options) | {"seed": context.seed}
        resumable(answered, settings, list(enumerate(tasks)), work, chunk=16, advance=advance)
    found = [pair for record in records(answered) for pair in record["pairs"]]
    by_use: dict[bool, list[Values]] = {False: [], True: []}
    for each in found:
        by_use[of_safety(each)].append(each)
    state = context.state
    for name, is_safety in (("helpfulness", False), ("safety", True)):
        path = context.folder / f"{name}.jsonl"
        _write(path, by_use[is_safety])
        if by_use[is_safety]:
            key = f"{name}_data"
            state = state.replaced(**{key: (*getattr(state, key), str(path))})
    return state, {"prompts": len(tasks), "comparisons": len(found)}


# ---- rejection sampling


@dataclass(frozen=True, slots=True)
class RejectionOptions(Answering):
    """The paper: 10 to 100 samples at 1.2 to 1.3; a small model needs it cooler (*ours*)."""

    samples: int = 16


def rejection(context: Context, options: RejectionOptions) -> tuple[State, Values]:
    """The best of K answers by the reward models, which fine-tuning learns from."""
    assert context.config.data.prompts is not None
    prompts = _some(read_prompts(context.config.data.prompts), options.prompts, context.seed)
    asked = ask(context, options.max_tokens)
    prompts = [prompt for prompt in prompts if asked.fits(prompt.messages)]
    score = counted_scorer(context, prompts)
    samples, winners = context.folder / "samples.jsonl", context.folder / "winners.jsonl"
    with context.console.counting("Sampling", len(prompts)) as advance:
        rejection_sampling.sample(
            samples,
            [prompt.messages for prompt in prompts],
            asked.sampler,
            score,
            asked.identity,
            count=options.samples,
            temperature=options.temperature,
            seed=context.seed,
            advance=advance,
        )
    won, lost = rejection_sampling.write_winners(samples, winners)
    if not won:
        raise ValueError(
            f"no answer to {len(prompts)} prompts ended within {options.max_tokens} tokens; give "
            "the stage rejection_sampling a larger max_tokens"
        )
    state = context.state.replaced(winners=(*context.state.winners, str(winners)))
    return state, {"prompts": len(prompts), "winners": won, "without": lost}


# ---- Ghost Attention


@dataclass(frozen=True, slots=True)
class GattOptions:
    dialogs: int = 400
    turns: int = 6
    temperature: float = 0.7
    max_tokens: int = 64


def ghost_attention(context: Context, options: GattOptions) -> tuple[State, Values]:
    """Dialogs that keep to their first instruction, which fine-tuning learns from."""
    instructions, data = _instructions(context), context.config.data
    asked = ask(context, options.max_tokens)
    tasks = gatt.plan(
        [(question,) for question in _questions(data.questions, data.prompts)],
        lambda generator: generator.choice(instructions),
        count=options.dialogs,
        turns=options.turns,
        seed=context.seed,
    )
    dialogs, examples = context.folder / "dialogs.jsonl", context.folder / "sft.jsonl"
    with context.console.counting("Answering", len(tasks)) as advance:
        gatt.synthesize(
            dialogs,
            tasks,
            asked.sampler,
            asked.identity | {"dialogs": options.dialogs},
            fits=asked.fits,
            temperature=options.temperature,
            seed=context.seed,
            advance=advance,
        )
    counts = gatt.write_examples(dialogs, tasks, examples, only_obeying=True)
    told = {"dialogs": counts["dialogs"], "examples": counts["examples"]}
    return _learned(context, told, examples)


@dataclass(frozen=True, slots=True)
class ObedienceOptions:
    dialogs: int = 60
    turns: int = 10
    max_tokens: int = 64


def measure_obedience(context: Context, options: ObedienceOptions) -> tuple[State, Values]:
    """How many dialogs still keep to their instruction after N turns, by the newest model."""
    known, data = _instructions(context), context.config.data
    asked = ask(context, options.max_tokens)
    chosen = [known[number % len(known)] for number in range(options.dialogs)]
    path = context.folder / "obedience.jsonl"
    with context.console.counting("Asking", len(chosen)) as advance:
        obedience.measure(
            path,
            chosen,
            _questions(data.held_out_questions, data.prompts),
            asked.sampler,
            asked.identity | {"dialogs": options.dialogs},
            turns=options.turns,
            fits=asked.fits,
            temperature=0.0,
            seed=0,  # the same for every model
            advance=advance,
        )
    found = obedience.by_turn(path, wilson)
    plot_obedience({context.state.policy: found}, context.folder / "obedience.png")
    return context.state, {f"turn_{row['turn']}": row["share"] for row in found}


# ---- safety


@dataclass(frozen=True, slots=True)
class DistillationOptions(Answering):
    temperature: float = 0.7
    max_tokens: int = 64


def distillation(context: Context, options: DistillationOptions) -> tuple[State, Values]:
    """Answers under safety preprompts, kept without them where the Safety reward model prefers
    them to the plain ones."""
    assert context.config.data.red_team is not None
    prompts = _some(read_prompts(context.config.data.red_team), options.prompts, context.seed)
    (scorer,) = needed_scorers(context, "safety")
    asked = ask(context, options.max_tokens)
    distilled, examples = context.folder / "distilled.jsonl", context.folder / "sft.jsonl"
    with context.console.counting("Answering", len(prompts)) as advance:
        context_distillation.distill(
            distilled,
            prompts,
            asked.sampler,
            scorer,
            asked.identity,
            fits=asked.fits,
            temperature=options.temperature,
            seed=context.seed,
            advance=advance,
        )
    counts = context_distillation.write_examples(distilled, examples)
    told = {"prompts": counts["prompts"], "examples": counts["examples"]}
    return _learned(context, told, examples)


def _instructions(context: Context) -> list[Instruction]:
    path = context.config.data.instructions
    return personas() if path is None else read_instructions(path)


def _questions(path: Path | None, prompts: Path | None) -> list[str]:
    """What the user says in the dialogs of `path`, or in the single turns of `prompts`."""
    if path is not None:
        return [turn for dialog in read_user_turns(path) for turn in dialog]
    assert prompts is not None
    found = [p for p in read_prompts(prompts) if len(p.messages) == 1 and not p.is_safety]
    if not found:
        raise ValueError(f"{prompts} has no prompt of one user turn alone; declare questions")
    return [prompt.messages[0].content for prompt in found]


def _some(items: Sequence[_T], count: int, seed: int) -> list[_T]:
    """`count` of them (0: all) in an order of their own."""
    mixed = list(items)
    random.Random(seed).shuffle(mixed)
    return mixed[:count] if count else mixed


def _write(path: Path, rows: Sequence[Values]) -> None:
    with atomic_file(path, overwrite=True) as file:
        file.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)
