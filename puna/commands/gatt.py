"""`puna gatt`: Ghost Attention's data from a model, or how long models keep to an instruction."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from puna.commands.producers import (
    Generation,
    ask,
    begin,
    dialogs_digest,
    generation_options,
    report,
    source_options,
)
from puna.commands.progress import bar
from puna.data.prompts import read_user_turns
from puna.evaluate.wilson import wilson
from puna.recipes.tasks.persona import instructions as personas
from puna.train.producers.gatt import plan, synthesize, write_examples
from puna.train.producers.gatt_instructions import Instruction, draw_combined, read_instructions
from puna.train.producers.obedience import by_turn, measure
from puna.train.sampling import seed_of

# Ours: what is measured where nothing else is asked for; the paper looked at 20 turns.
_DIALOGS, _TURNS = 100, 20


@click.command()
@source_options(
    model="The newest model, which answers.",
    prompts="Dialogs, in any form that puna sft reads; what the user says is taken.",
)
@click.option(
    "--instructions",
    metavar="FILE",
    help="Instructions (JSONL: instruction, short, pattern, probe), or `personas`, those of puna "
    "tasks, in place of hobbies, languages, public figures, and their combinations.",
)
@click.option(
    "--dialogs",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"How many.  [default: as many as are in the file; measuring, {_DIALOGS}]",
)
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    metavar="N",
    help="Put dialogs of 2 to N turns together.  "
    f"[default: as they are in the file; measuring, {_TURNS} turns]",
)
@click.option("--temperature", type=float, default=0.9, show_default=True, help="0 is greedy.")
@click.option(
    "--only-obeying",
    is_flag=True,
    help="Leave out whose last answer fails its pattern (where that has no probe).",
)
@click.option(
    "--measure",
    "measuring",
    is_flag=True,
    help="Make no data: say the instruction once, and see which share obeys at each turn.",
)
@click.option("--against", metavar="MODEL", help="Measure this model too.")
@generation_options
def gatt(
    model: str,
    prompts: Path,
    out: Path,
    instructions: str | None,
    measuring: bool,
    against: str | None,
    only_obeying: bool,
    generation: Generation,
    as_json: bool,
    **scale: Any,
) -> None:
    """Make dialogs that keep to their first instruction (sft.jsonl), or measure how many do.

    The model answers with the instruction in front of every user turn; in the example it stands
    on the first turn alone, and only the last answer is learned.
    """
    if against is not None and not measuring:
        raise ValueError("--against is for --measure")
    if only_obeying and measuring:
        raise ValueError("--only-obeying is for making data; --measure counts who obeys")
    said = read_user_turns(prompts)
    own = None if instructions is None else _instructions(instructions)
    job = _Job(said, own, out, generation, **scale)
    if measuring:
        job.measure([model] if against is None else [model, against], as_json=as_json)
    else:
        job.synthesize(model, only_obeying=only_obeying, as_json=as_json)


def _instructions(source: str) -> list[Instruction]:
    if source == "personas" and not Path(source).exists():
        return personas()
    return read_instructions(Path(source))


@dataclass(frozen=True, slots=True)
class _Job:
    said: list[tuple[str, ...]]
    instructions: list[Instruction] | None  # None: drawn from Puna's own
    out: Path
    generation: Generation
    dialogs: int | None
    turns: int | None
    temperature: float

    @property
    def draw(self) -> Callable[[random.Random], Instruction]:
        own = self.instructions
        return draw_combined if own is None else lambda generator: generator.choice(own)

    def synthesize(self, model: str, *, only_obeying: bool, as_json: bool) -> None:
        count, seed = self.dialogs or len(self.said), self.generation.seed
        tasks = plan(self.said, self.draw, count=count, turns=self.turns, seed=seed)
        asked = ask(model, self.generation)
        begin(self.out)
        texts = [(task.user_turns, task.instruction.text) for task in tasks]
        with bar("Answering", total=count) as advance:
            synthesize(
                self.out / "dialogs.jsonl",
                tasks,
                asked.sampler,
                asked.identity | {"tasks": dialogs_digest(texts)},
                fits=asked.fits,
                temperature=self.temperature,
                seed=seed,
                advance=advance,
            )
        sampled, examples = self.out / "dialogs.jsonl", self.out / "sft.jsonl"
        counts = write_examples(sampled, tasks, examples, only_obeying=only_obeying)
        report(self.out, counts, as_json=as_json)

    def measure(self, models: list[str], *, as_json: bool) -> None:
        from puna.train.producers.plots import plot_obedience

        seed, count = self.generation.seed, self.dialogs or _DIALOGS
        generators = (random.Random(seed_of(seed, "instruction", n)) for n in range(count))
        instructions = [self.draw(generator) for generator in generators]
        questions = [turn for dialog in self.said for turn in dialog]
        texts = [*questions, *(instruction.text for instruction in instructions)]
        begin(self.out)
        found = {}
        for number, model in enumerate(models):
            asked = ask(model, self.generation)
            path = self.out / f"obedience-{number + 1}.jsonl"
            with bar(f"Asking {model}", total=count) as advance:
                measure(
                    path,
                    instructions,
                    questions,
                    asked.sampler,
                    asked.identity | {"questions": dialogs_digest(texts)},
                    turns=self.turns or _TURNS,
                    fits=asked.fits,
                    temperature=self.temperature,
                    seed=seed,
                    advance=advance,
                )
            found[model] = by_turn(path, wilson)
        if not any(found.values()):
            raise ValueError("no first turn fits the context; choose a smaller --max-tokens")
        plot_obedience(found, self.out / "obedience.png")
        report(self.out, {"obedience": found}, as_json=as_json, shown=_table(found))


def _table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for model, turns in found.items():
        lines.append(f"{model}: share that obeys at each turn, with its 95 % interval")
        lines += [
            f"{t['turn']:>4} {t['share']:>7.1%}  {t['low']:.1%} to {t['high']:.1%} "
            f"of {t['dialogs']}"
            for t in turns
        ]
    return "\n".join(lines)
