"""`puna eval judge`: whose answers to dialogs are better, or how good one model's are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.models import locate, resolve
from puna.commands.options import folder_option
from puna.commands.producers import dialogs_digest, weights_fingerprint
from puna.commands.progress import bar
from puna.commands.writing import Writing, open_writer, writing_options
from puna.evaluate.results import Results, begin, clock, write_results, write_samples
from puna.formats.errors import printable

if TYPE_CHECKING:
    from puna.evaluate.judging.dialogs import Script
    from puna.evaluate.judging.judgements import Turn
    from puna.evaluate.judging.outcomes import Interval, Outcome

_KEY = "PUNA_JUDGE_KEY"


@dataclass(frozen=True, slots=True)
class _Judge:
    """Where the judge is: an endpoint with a model's name, or a reward model."""

    source: str
    model: str | None
    key: str | None
    max_tokens: int
    timeout: float
    concurrency: int

    @property
    def is_endpoint(self) -> bool:
        return "://" in self.source

    @property
    def name(self) -> str:
        return f"{self.model} at {self.source}" if self.is_endpoint else self.source


@click.command(name="judge")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Dialogs (JSONL: messages, or MT-Bench's turns; optional id, category).",
)
@click.option("--model", "-m", metavar="MODEL", help="The model that is judged.")
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its answers, instead: dialogs with the assistant's messages.",
)
@click.option("--against", metavar="MODEL", help="Its opponent; without one, answers are rated.")
@click.option(
    "--against-answers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The opponent's answers, instead.",
)
@click.option(
    "--judge",
    "source",
    required=True,
    metavar="URL|RM",
    help="An OpenAI-compatible endpoint, up to /v1; or a reward model.",
)
@click.option("--judge-model", metavar="NAME", help="The judge's name at the endpoint.")
@click.option(
    "--judge-key",
    envvar=_KEY,
    show_envvar=True,
    metavar="KEY",
    help="The endpoint's key; safer in the environment.",
)
@click.option(
    "--judge-max-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Of a judgement.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds that a judgement may take.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Judgements that are asked for at once.",
)
@folder_option
@writing_options(temperature=0.0, top_p=1.0, max_tokens=256)
def judge_command(
    prompts: Path,
    model: str | None,
    answers: Path | None,
    against: str | None,
    against_answers: Path | None,
    source: str,
    judge_model: str | None,
    judge_key: str | None,
    judge_max_tokens: int,
    timeout: float,
    concurrency: int,
    out: Path,
    writing: Writing,
    as_json: bool,
) -> None:
    """Have a judge compare the answers of two models to dialogs, or rate those of one.

    Each turn is judged in both orders, and a verdict that flips with the order is a tie; a reward
    model sees each answer alone. judgements.jsonl has what the judge said.
    """
    from puna.evaluate.judging.dialogs import read_scripts
    from puna.evaluate.judging.judgements import turns

    if (model is None) == (answers is None):
        raise click.UsageError("give --model or --answers: who is judged")
    if against is not None and against_answers is not None:
        raise click.UsageError("give --against or --against-answers, not both")
    judge = _Judge(source, judge_model, judge_key, judge_max_tokens, timeout, concurrency)
    if judge.is_endpoint != (judge_model is not None):
        raise click.UsageError("--judge-model names the model of an endpoint, which needs it")
    is_rated = against is None and against_answers is None
    if is_rated and not judge.is_endpoint:
        raise click.UsageError("a reward model compares: give --against or --against-answers")
    scripts = read_scripts(prompts)
    stored = [_stored(path, scripts) for path in (answers, against_answers)]
    name, opponent = str(model or answers), None if is_rated else str(against or against_answers)
    settings: dict[str, Any] = {
        "prompts": str(prompts),
        "model": name,
        "against": opponent,
        "judge": judge.name,
        "judge_max_tokens": judge_max_tokens,
        "writing": writing.as_settings(),
    }
    # All that can be wrong is found before anything is written.
    if not judge.is_endpoint:
        from puna.train.scoring import check_scorer

        check_scorer(resolve(source), None)
    for each in (model, against):
        if each is not None:
            resolve(each, writing.tokenizer)
    settings = begin(out, settings)
    with clock(out) as seconds:
        ours = stored[0] or _answered(str(model), "model", scripts, out, writing)
        theirs = None
        if not is_rated:
            theirs = stored[1] or _answered(str(against), "opponent", scripts, out, writing)
        asked = turns(scripts, ours, theirs)
        outcome = _judged(judge, asked, out, name, opponent)
        write_samples(out, "judge", outcome.samples)
        results = Results(name, "judge", settings, (outcome.result,), seconds())
    write_results(out, results)
    if as_json:
        intervals = {n: dataclasses.asdict(each) for n, each in outcome.intervals.items()}
        values = dataclasses.asdict(results)
        click.echo(json.dumps(values | {"counts": outcome.counts, "intervals": intervals}))
    else:
        click.echo(_shown(outcome))


def _stored(path: Path | None, scripts: Sequence[Script]) -> list[tuple[str, ...]] | None:
    from puna.evaluate.judging.dialogs import stored_answers

    return None if path is None else stored_answers(path, scripts)


def _answered(
    model: str, role: str, scripts: Sequence[Script], out: Path, writing: Writing
) -> list[tuple[str, ...]]:
    """A model's answers, kept in `out`/answers."""
    from puna.evaluate.judging.answering import answer

    writer = open_writer(model, writing)
    settings = writer.identity | {"prompts": dialogs_digest(scripts)}
    path = out / "answers" / f"{role}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with bar(f"{model} answers", total=len(scripts)) as advance:
        return answer(path, scripts, writer.write, settings, fits=writer.fits, advance=advance)


def _judged(
    judge: _Judge, turns: Sequence[Turn], out: Path, model: str, opponent: str | None
) -> Outcome:
    from puna.evaluate.judging.endpoint import Endpoint
    from puna.evaluate.judging.judgements import judge_pairs, rate, score_pairs
    from puna.evaluate.judging.outcomes import compared, rated

    path = out / "judgements.jsonl"
    settings: dict[str, Any] = {"judge": judge.name, "turns": dialogs_digest(turns)}
    title = f"{model} against {opponent}" if opponent else f"Rating of {model}"
    title += f", judged by {judge.model or judge.source}"
    if not judge.is_endpoint:
        from puna.train.scoring import open_scorer

        settings["weights"] = weights_fingerprint(resolve(judge.source))
        scorer = open_scorer(locate(judge.source))
        with bar("Judging", total=len(turns)) as advance:
            records = score_pairs(path, turns, scorer, scorer.fits, settings, advance=advance)
        return compared(turns, records, title=title)
    assert judge.model is not None
    endpoint = Endpoint(
        judge.source,
        judge.model,
        judge.key,
        max_tokens=judge.max_tokens,
        timeout=judge.timeout,
    )
    settings["max_tokens"] = judge.max_tokens
    options: dict[str, Any] = {"concurrency": judge.concurrency}
    if opponent is None:
        with bar("Rating", total=len(turns)) as advance:
            records = rate(path, turns, endpoint.answer, settings, advance=advance, **options)
        return rated(turns, records, title=title)
    with bar("Judging", total=2 * len(turns)) as advance:
        records = judge_pairs(path, turns, endpoint.answer, settings, advance=advance, **options)
    return compared(turns, records, title=title)


def _shown(outcome: Outcome) -> str:
    """A line for each category and all, and what a reader must know."""
    result = outcome.result
    lines = [printable(result.title)]
    for name, interval in outcome.intervals.items():
        score = result.score if name == "all" else result.groups.get(name)
        if score is not None and score.questions:
            lines.append(_line(name, score.value, score.questions, interval))
    return "\n".join([*lines, *(f"- {note}" for note in result.notes)])


def _line(name: str, value: float, turns: int, interval: Interval) -> str:
    text = f"{printable(name):<16} {value:6.1%}  "
    if interval.bootstrap is None:
        text += "one dialog: no interval over dialogs"
    else:
        text += f"over dialogs {interval.bootstrap[0]:.1%} to {interval.bootstrap[1]:.1%}"
    if interval.wilson is not None:
        text += f", Wilson {interval.wilson[0]:.1%} to {interval.wilson[1]:.1%}"
    return f"{text}, {turns:,} turns"
