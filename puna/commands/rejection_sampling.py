"""`puna rejection-sampling`: the best of K answers, by reward models, as data for fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from puna.commands.producers import (
    Asked,
    Generation,
    Judge,
    ask,
    begin,
    dialogs_digest,
    generation_options,
    judge,
    report,
    source_options,
    with_room,
    write_json,
)
from puna.commands.progress import bar
from puna.data.prompts import Prompt, read_prompts
from puna.train.producers.best_of import Curve, best_temperature
from puna.train.producers.rejection_sampling import (
    POOL_FROM,
    curve,
    sample,
    write_pool,
    write_winners,
)
from puna.train.sampling import Dialog, Scorer

# Ours: the paper drew 10 to 100, and found 1.2 to 1.3 best for its models.
_SAMPLES, _TEMPERATURE, _PILOT = 10, 1.0, 64
_WINNERS = "winners.jsonl"


@click.command()
@source_options(
    model="The newest model, or a larger one: it answers.",
    prompts="Prompts (JSONL: messages that end with the user; optional is_safety).",
)
@click.option("--reward", required=True, metavar="RM", help="Reward model that picks the best.")
@click.option(
    "--safety-reward",
    metavar="RM",
    help="Safety model, which decides for prompts with is_safety or a risk and for unsafe answers.",
)
@click.option("--samples", type=int, default=_SAMPLES, show_default=True, help="K, a prompt.")
@click.option("--temperature", type=float, help=f"0 is greedy.  [default: {_TEMPERATURE}]")
@click.option(
    "--temperatures",
    metavar="T,T,...",
    help="Try these on some prompts, and go on with the one whose best of K is worth most.",
)
@click.option(
    "--pilot",
    type=click.IntRange(min=1),
    default=_PILOT,
    show_default=True,
    help="Prompts on which --temperatures are tried.",
)
@click.option(
    "--pool",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FOLDER",
    help="An earlier version's folder, the oldest first; repeatable.",
)
@click.option(
    "--pool-from",
    type=click.IntRange(min=1),
    default=POOL_FROM,
    show_default=True,
    metavar="V",
    help="From this version on (one more than --pool are given) their winners are learned too.",
)
@generation_options
def rejection_sampling(
    model: str,
    reward: str,
    safety_reward: str | None,
    prompts: Path,
    out: Path,
    samples: int,
    temperature: float | None,
    temperatures: str | None,
    pilot: int,
    pool: tuple[Path, ...],
    pool_from: int,
    generation: Generation,
    as_json: bool,
) -> None:
    """Sample K answers to each prompt and keep the best of each, to fine-tune on (sft.jsonl).

    Also best_of.png and curves.json: the best and the median of K against K. A version is trained
    from the base model on sft.jsonl, the sampled model or a smaller one.
    """
    if samples < 1:
        raise ValueError(f"--samples must be 1 or more, not {samples}")
    if temperature is not None and temperatures is not None:
        raise ValueError("--temperature says what --temperatures is to find out; give one")
    tried = [] if temperatures is None else _temperatures(temperatures)
    versions = [folder / _WINNERS for folder in pool]
    for path in versions:
        if not path.is_file():
            raise ValueError(f"{path.parent} of --pool holds no {_WINNERS}")
    read = read_prompts(prompts)
    asked = ask(model, generation)
    judges = [judge(each, asked, generation) for each in (reward, safety_reward) if each]
    kept = with_room(read, asked, judges, generation.max_tokens)
    begin(out)
    job = _Job(kept, asked, judges, samples, generation.seed)
    curves: dict[float, Curve] = {}
    if tried:
        for each in tried:
            curves[each] = job.run(out / f"pilot-{each:g}.jsonl", each, pilot)
        temperature = best_temperature(curves)
    chosen = _TEMPERATURE if temperature is None else temperature
    final = job.run(out / "samples.jsonl", chosen)
    won, lost = write_winners(out / "samples.jsonl", out / _WINNERS)
    learned = write_pool([*versions, out / _WINNERS], out / "sft.jsonl", from_version=pool_from)
    _draw(out, curves or {chosen: final})
    values = {
        "version": len(versions) + 1,
        "prompts": len(read),
        "too_long": len(read) - len(kept),
        "no_whole_answer": lost,
        "winners": won,
        "examples": learned,
        "samples": samples,
        "temperature": chosen,
        "reward_of_one": final["max"][0],
        "reward_of_the_best": final["max"][-1],
    }
    report(out, values, as_json=as_json)


def _temperatures(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"--temperatures are numbers with commas between, not {text!r}") from None
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    prompts: Sequence[Prompt]
    asked: Asked
    judges: Sequence[Judge]
    count: int
    seed: int

    def run(self, path: Path, temperature: float, limit: int | None = None) -> Curve:
        """Samples to `path`, of `limit` prompts that are spread over all; their curve."""
        prompts = self.prompts
        if limit is not None and limit < len(prompts):
            prompts = [prompts[number * len(prompts) // limit] for number in range(limit)]
        settings = self.asked.identity | {
            "reward": [each.identity for each in self.judges],
            "prompts": dialogs_digest(prompts),
        }
        with bar(f"Sampling at {temperature:g}", total=len(prompts)) as advance:
            sample(
                path,
                [prompt.messages for prompt in prompts],
                self.asked.sampler,
                self._scorer(),
                settings,
                count=self.count,
                temperature=temperature,
                seed=self.seed,
                advance=advance,
            )
        return curve(path)

    def _scorer(self) -> Scorer:
        if len(self.judges) == 1:
            return self.judges[0].scorer
        from puna.train.producers.judging import switched_scorer

        risky = {prompt.messages for prompt in self.prompts if prompt.is_risky}

        def is_safety(dialog: Dialog) -> bool:
            return tuple(dialog) in risky

        helpfulness, safety = self.judges
        return switched_scorer(helpfulness.scorer, safety.scorer, is_safety)


def _draw(out: Path, curves: dict[float, Curve]) -> None:
    from puna.train.producers.plots import plot_best_of

    found: dict[str, Any] = {f"{temperature:g}": each for temperature, each in curves.items()}
    write_json(out / "curves.json", found)
    plot_best_of(curves, out / "best_of.png")
