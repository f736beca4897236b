"""`puna eval safety`: toxicity, sentiment by group, truth, and what a model declines."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.chat import Message
from puna.commands.models import resolve
from puna.commands.options import folder_option
from puna.commands.progress import bar
from puna.commands.writing import Writer, Writing, open_writer, writing_options
from puna.evaluate.means import interval
from puna.evaluate.results import (
    Results,
    Score,
    TaskResult,
    begin,
    clock,
    write_results,
    write_samples,
)
from puna.formats.errors import printable

if TYPE_CHECKING:
    from puna.evaluate.safety.tasks import Benchmark, Measure

_JUDGE_TOKENS = 3  # of "yes" or "no"


@dataclass(frozen=True, slots=True)
class Classifiers:
    """What measures, by name; None is our lexicon, or of a judge, no judging."""

    toxicity: str | None
    sentiment: str | None
    truth: str | None
    information: str | None


@click.command(name="safety")
@click.option("--model", "-m", required=True, metavar="MODEL", help="The model that is measured.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder with toxigen/, bold/ and truthfulqa/; without it only refusals are measured.",
)
@click.option(
    "--requests",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Requests to decline (is_safety true) and look-alikes, JSONL.  [default: Puna's own]",
)
@click.option(
    "--chat",
    is_flag=True,
    help="Give the prompts of all benchmarks as messages of a user, not as a text to go on with.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only N prompts, drawn, of each group of a benchmark.",
)
@click.option(
    "--toxicity-classifier",
    metavar="MODEL",
    help="A sequence classifier of transformers, here or on the hub (the paper's is "
    "tomh/toxigen_roberta).  [default: a lexicon]",
)
@click.option(
    "--sentiment-classifier",
    metavar="MODEL",
    help="vader, as the paper has it, or a classifier of transformers.  [default: a lexicon]",
)
@click.option(
    "--truth-judge",
    metavar="MODEL",
    help="A model that says whether an answer is true, with --information-judge "
    "(allenai/truthfulqa-truth-judge-llama2-7B).  [default: no judging]",
)
@click.option(
    "--information-judge",
    metavar="MODEL",
    help="A model that says whether it is informative (allenai/truthfulqa-info-judge-llama2-7B).",
)
@folder_option
@writing_options(temperature=0.1, top_p=0.9, max_tokens=64)
def safety_command(
    model: str,
    data: Path | None,
    requests: Path | None,
    chat: bool,
    limit: int | None,
    toxicity_classifier: str | None,
    sentiment_classifier: str | None,
    truth_judge: str | None,
    information_judge: str | None,
    out: Path,
    writing: Writing,
    as_json: bool,
) -> None:
    """Measure how safe what a model writes is.

    ToxiGen and BOLD, judged answers to TruthfulQA, and the rates at which it declines what it
    should and what only looks harmful. Where no classifier is named a small lexicon measures,
    which sees words and not what is meant; the results say so.
    """
    if (truth_judge is None) != (information_judge is None):
        raise click.UsageError("--truth-judge and --information-judge go together")
    if truth_judge is not None and data is None:
        raise click.UsageError("--truth-judge needs --data, where TruthfulQA's questions are")
    by = Classifiers(toxicity_classifier, sentiment_classifier, truth_judge, information_judge)
    settings: dict[str, Any] = {
        "model": model,
        "data": None if data is None else str(data),
        "requests": None if requests is None else str(requests),
        "chat": chat,
        "limit": limit,
        **dataclasses.asdict(by),
        "writing": writing.as_settings(),
    }
    # All that can be wrong is found before anything is written.
    jobs = _jobs(data, requests, by, limit, writing, chat)
    writer = open_writer(model, writing)
    jobs = [replace(job, benchmark=_fitting(job.benchmark, writer)) for job in jobs]
    mc2 = _mc2(writer, data, limit, chat) if data is not None and _has_harness() else None
    settings = begin(out, settings)
    with clock(out) as seconds:
        written = [_written(job, writer, out) for job in jobs]
        tasks = [] if mc2 is None else [mc2(out)]
        # Judges and classifiers need not lie in memory beside the model.
        identity = writer.identity
        del writer, mc2
        tasks += [_measured(each, identity, out) for each in written]
        results = Results(model, "safety", settings, tuple(tasks), seconds())
    write_results(out, results)
    click.echo(json.dumps(dataclasses.asdict(results)) if as_json else _shown(results))


@dataclass(frozen=True, slots=True)
class _Job:
    """A benchmark, how to load what measures it, and what ends what is written."""

    benchmark: Benchmark
    load: Callable[[], Measure]
    stop: tuple[str, ...] = ()


def _jobs(
    data: Path | None,
    requests: Path | None,
    by: Classifiers,
    limit: int | None,
    writing: Writing,
    chat: bool,
) -> list[_Job]:
    from puna.evaluate.safety.bold import bold, sentiment
    from puna.evaluate.safety.classifiers import sentiment_classifier
    from puna.evaluate.safety.classifiers import toxicity_classifier as toxicity_of
    from puna.evaluate.safety.refusals import REQUESTS, declining, refusal
    from puna.evaluate.safety.toxigen import toxicity, toxigen
    from puna.evaluate.safety.truthfulqa import truthfulqa

    jobs = [
        _Job(benchmark, partial(declining, benchmark.metric))
        for benchmark in refusal(requests or REQUESTS, limit, writing.seed)
    ]
    if data is None:
        return jobs
    ends = () if chat else ("\n",)
    hate, mood = toxigen(data, limit, writing.seed), bold(data, limit, writing.seed)
    # Classifiers are small beside a model that writes; judges are not, and wait.
    toxic = toxicity(toxicity_of(by.toxicity, writing.device))
    feeling = sentiment(sentiment_classifier(by.sentiment, writing.device))
    texts = [_Job(hate, lambda: toxic, ends), _Job(mood, lambda: feeling, ends)]
    if by.truth is not None:
        for judge in (by.truth, by.information):
            resolve(str(judge))
        judged = partial(_truth, by, writing)
        texts.append(_Job(truthfulqa(data, limit, writing.seed), judged, ends))
    if chat:
        texts = [replace(job, benchmark=_as_messages(job.benchmark)) for job in texts]
    return [*jobs, *texts]


def _as_messages(benchmark: Benchmark) -> Benchmark:
    items = [replace(item, prompt=(Message("user", item.question),)) for item in benchmark.items]
    return replace(benchmark, items=items, notes=(*benchmark.notes, "asked as a user's message"))


@dataclass(frozen=True, slots=True)
class _Written:
    """What the model wrote after the prompts of a benchmark."""

    job: _Job
    texts: list[str]


def _written(job: _Job, writer: Writer, out: Path) -> _Written:
    from puna.evaluate.safety.tasks import generate

    benchmark = job.benchmark
    settings = writer.identity | {"stop": job.stop}
    write = partial(writer.write, stop=job.stop)
    with bar(f"{benchmark.title}: writing", total=len(benchmark.items)) as advance:
        texts = generate(out, benchmark, write, settings, advance=advance)
    return _Written(job, texts)


def _measured(written: _Written, identity: dict[str, Any], out: Path) -> TaskResult:
    from puna.evaluate.safety.tasks import measure

    by, benchmark, texts = written.job.load(), written.job.benchmark, written.texts
    with bar(f"{benchmark.title}: measuring", total=len(texts)) as advance:
        return measure(out, benchmark, texts, by, identity, advance=advance)


def _has_harness() -> bool:
    if importlib.util.find_spec("lm_eval") is not None:
        return True
    click.echo("note: without TruthfulQA's mc2, which needs pip install 'puna[eval]'", err=True)
    return False


def _mc2(writer: Writer, data: Path, limit: int | None, chat: bool) -> Callable[[Path], TaskResult]:
    """TruthfulQA by the likelihoods of its endings, as `puna eval --task truthfulqa_mc2` has it:
    what runs it into the folder of the results, for the questions are loaded here."""
    from puna.evaluate.harness.answers import Answers
    from puna.evaluate.harness.model import PunaLM
    from puna.evaluate.harness.running import Settings, load_task, quiet, run_task
    from puna.evaluate.tasks.table import task_of

    name = "truthfulqa_mc2"
    task = task_of(name)
    settings = Settings(
        writer.identity["model"], "safety", (name,), data=str(data), questions=limit, chat=chat
    )
    with quiet():
        parts = load_task(task, settings)

    def run(out: Path) -> TaskResult:
        with Answers(out / "answers.jsonl") as answers, quiet():
            model = PunaLM(writer.llm)
            samples, result = run_task(task, parts, settings, model, answers, bar)
        write_samples(out, name, samples)
        return result

    return run


def _fitting(benchmark: Benchmark, writer: Writer) -> Benchmark:
    """The benchmark without what leaves no room for a reply; ValueError where nothing does."""
    items = [item for item in benchmark.items if writer.fits(item.prompt)]
    missing = len(benchmark.items) - len(items)
    if not items:
        raise ValueError(
            f"no prompt of {benchmark.name} leaves room for --max-tokens in the model's context"
        )
    if not missing:
        return benchmark
    note = f"{missing:,} of {len(benchmark.items):,} prompts do not fit the model's context"
    return replace(benchmark, items=items, notes=(*benchmark.notes, note))


def _truth(by: Classifiers, writing: Writing) -> Measure:
    from puna.evaluate.safety.truthfulqa import truth

    yes_or_no = replace(writing, tokenizer=None, temperature=0.0, max_tokens=_JUDGE_TOKENS)
    judges = [open_writer(str(name), yes_or_no).write for name in (by.truth, by.information)]
    return truth(f"{by.truth} and {by.information}", *judges)


def _shown(results: Results) -> str:
    """Each figure with its interval, groups below it, and what a reader must know."""
    lines: list[str] = []
    for task in results.tasks:
        lines += ["", printable(task.title)]
        lines += [_line(name, name, score) for name, score in task.metrics.items()]
        lines += [_line(f"  {name}", task.metric, score) for name, score in task.groups.items()]
        lines += [f"- {printable(note)}" for note in task.notes]
    return "\n".join(lines[1:])


def _line(label: str, metric: str, score: Score) -> str:
    form = "6.3f" if metric == "sentiment" else "6.1%"  # which may be negative
    low, high = interval(score, metric)
    return (
        f"{printable(label):<44} {score.value:{form}}  ({low:{form[1:]}} to {high:{form[1:]}})"
        f" of {score.questions:,}"
    )
