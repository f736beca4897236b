"""`puna safety`: safer answers to learn from, and which prompts a model still violates on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from puna.commands.options import together
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
)
from puna.commands.progress import bar
from puna.data.prompts import Prompt, read_prompts
from puna.evaluate.wilson import wilson
from puna.train.producers.context_distillation import Plain, distill, write_examples
from puna.train.producers.red_team import (
    THRESHOLD,
    counts,
    raw_threshold,
    violations,
    write_violations,
)
from puna.train.producers.rejection_sampling import sample

_ANSWERS = 4  # of a prompt, to find one that violates; ours


def _shared(function: Any) -> Any:
    return together(
        source_options(
            model="The newest model, which answers.",
            prompts="Adversarial prompts (JSONL: messages that end with the user; optional risk).",
        ),
        click.option("--reward", required=True, metavar="RM", help="The Safety reward model."),
        click.option(
            "--temperature", type=float, default=1.0, show_default=True, help="0 is greedy."
        ),
        generation_options,
    )(function)  # fmt: skip


@click.group()
def safety() -> None:
    """Teach a model to answer adversarial prompts safely, and find where it does not."""


@safety.command(name="distill")
@_shared
def distill_command(
    model: str,
    reward: str,
    prompts: Path,
    out: Path,
    temperature: float,
    generation: Generation,
    as_json: bool,
) -> None:
    """Answer under a safety preprompt; keep (sft.jsonl), without it, what RM prefers to the plain
    answer.

    The preprompt is of the prompt's risk (illicit, hateful, unqualified), or a generic one.
    """
    job = _Job.of(model, reward, prompts, out, temperature, generation)
    job.distill(job.prompts, None)
    values = write_examples(out / "distilled.jsonl", out / "sft.jsonl")
    report(out, {"too_long": job.too_long} | values, as_json=as_json)


@safety.command(name="red-team")
@_shared
@click.option(
    "--answers", type=click.IntRange(min=1), default=_ANSWERS, show_default=True,
    help="Of each prompt; it violates if any of them does.",
)  # fmt: skip
@click.option(
    "--threshold", type=float, default=THRESHOLD, show_default=True,
    help="An answer violates if RM's score, as a probability, is below.",
)  # fmt: skip
def red_team_command(
    model: str,
    reward: str,
    prompts: Path,
    out: Path,
    temperature: float,
    answers: int,
    threshold: float,
    generation: Generation,
    as_json: bool,
) -> None:
    """Count answers that violate, and make examples against them (sft.jsonl).

    violations.jsonl has the prompts with their worst answers: ask the next version again. They are
    answered under a preprompt, and learned where that is better and no violation.
    """
    least = raw_threshold(threshold)
    job = _Job.of(model, reward, prompts, out, temperature, generation)
    samples = out / "samples.jsonl"
    with bar("Attacking", total=len(job.prompts)) as advance:
        sample(
            samples,
            [prompt.messages for prompt in job.prompts],
            job.asked.sampler,
            job.judge.scorer,
            job.settings(job.prompts),
            count=answers,
            temperature=temperature,
            seed=generation.seed,
            advance=advance,
        )
    found = violations(samples, job.prompts, least)
    write_violations(found, out / "violations.jsonl")
    counted = counts(samples, job.prompts, least, wilson)
    values: dict[str, Any] = {"too_long": job.too_long, "violations": counted}
    values |= {"examples": 0, "left_out": {}}
    if found:
        job.distill([each.prompt for each in found], [each.worst for each in found])
        values |= write_examples(out / "distilled.jsonl", out / "sft.jsonl", least=least)
    lines = [
        f"{group:<12} {c['violations']:,} of {c['answers']:,} answers violate: {c['share']:.1%} "
        f"({c['low']:.1%} to {c['high']:.1%}); of {c['violating_prompts']:,} of {c['prompts']:,} "
        "prompts"
        for group, c in counted.items()
    ]
    reasons = "".join(f"; {count:,} {reason}" for reason, count in values["left_out"].items())
    lines.append(f"{values['examples']:,} examples against them{reasons}")
    report(out, values, as_json=as_json, shown="\n".join(lines))


@dataclass(frozen=True, slots=True)
class _Job:
    prompts: Sequence[Prompt]
    too_long: int
    asked: Asked
    judge: Judge
    out: Path
    temperature: float
    seed: int

    @classmethod
    def of(
        cls,
        model: str,
        reward: str,
        prompts: Path,
        out: Path,
        temperature: float,
        generation: Generation,
    ) -> _Job:
        read = read_prompts(prompts)
        asked = ask(model, generation)
        judging = judge(reward, asked, generation)
        kept = with_room(read, asked, [judging], generation.max_tokens)
        begin(out)
        too_long = len(read) - len(kept)
        return cls(kept, too_long, asked, judging, out, temperature, generation.seed)

    def settings(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        digest = dialogs_digest(prompts)
        return self.asked.identity | {"reward": self.judge.identity, "prompts": digest}

    def distill(self, prompts: Sequence[Prompt], plain: Sequence[Plain] | None) -> None:
        with bar("Answering safely", total=len(prompts)) as advance:
            distill(
                self.out / "distilled.jsonl",
                prompts,
                self.asked.sampler,
                self.judge.scorer,
                self.settings(prompts),
                fits=self.asked.fits,
                temperature=self.temperature,
                seed=self.seed,
                plain=plain,
                advance=advance,
            )
