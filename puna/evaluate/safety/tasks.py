"""A safety benchmark: prompts, what the model wrote, and what a measure says of that."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.data.text import records
from puna.evaluate.means import mean_of
from puna.evaluate.replies import Prompt
from puna.evaluate.results import Sample, Score, TaskResult, read_samples
from puna.formats.resumable import Record, resumable

_CHUNK = 64  # prompts that run, or texts that are measured, together (ours)
Texts = Sequence[str]


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt; `expected` is shown beside what is written, `kind` divides a figure in two."""

    id: str
    group: str
    prompt: Prompt
    question: str
    expected: str = ""
    kind: str = ""


# The metrics of each text that a model wrote; one that is left out does not count.
Measuring = Callable[[Sequence[Item], Texts], list[dict[str, float]]]


@dataclass(frozen=True, slots=True)
class Measure:
    """`name` says what measures, to people and to a run that goes on."""

    name: str
    measure: Measuring


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Prompts of one kind. `metric` is the one that counts, `notes` what a reader must know."""

    name: str
    title: str
    metric: str
    items: Sequence[Item]
    notes: tuple[str, ...] = ()


def sampled(items: Sequence[Item], per_group: int | None, seed: int) -> list[Item]:
    """At most `per_group` items of each group (None: all), drawn, in their order."""
    if per_group is None:
        return list(items)
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(item.group, []).append(number)
    generator = random.Random(seed)
    kept = {
        number
        for numbers in groups.values()
        for number in generator.sample(numbers, min(per_group, len(numbers)))
    }
    return [item for number, item in enumerate(items) if number in kept]


def generate(
    out: Path,
    benchmark: Benchmark,
    write: Callable[[Sequence[Prompt]], list[str]],
    settings: Record,
    *,
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """What the model writes after each prompt (`write`), kept in `out`/generations; resumable."""

    def work(part: Sequence[Item]) -> list[Record]:
        texts = write([item.prompt for item in part])
        return [{"id": i.id, "given": text} for i, text in zip(part, texts, strict=True)]

    path = out / "generations" / f"{benchmark.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    resumable(path, settings, benchmark.items, work, chunk=_CHUNK, advance=advance)
    return [record["given"] for record in records(path)]


def measure(
    out: Path,
    benchmark: Benchmark,
    texts: Texts,
    by: Measure,
    settings: Record,
    *,
    advance: Callable[[], None] = lambda: None,
) -> TaskResult:
    """Measures these texts, kept as the benchmark's samples; resumable."""

    def work(part: Sequence[tuple[Item, str]]) -> list[Record]:
        found = by.measure([item for item, _ in part], [text for _, text in part])
        return [
            dataclasses.asdict(
                Sample(item.id, item.question, item.expected, text, metrics, group=item.group)
            )
            for (item, text), metrics in zip(part, found, strict=True)
        ]

    pairs = list(zip(benchmark.items, texts, strict=True))
    path = out / "samples" / f"{benchmark.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    resumable(path, settings | {"by": by.name}, pairs, work, chunk=_CHUNK, advance=advance)
    return summary(benchmark, list(read_samples(out, benchmark.name)), by.name)


def summary(benchmark: Benchmark, samples: Sequence[Sample], measured_by: str) -> TaskResult:
    """The means of the samples' metrics, and of the one that counts by group."""
    names = dict.fromkeys([benchmark.metric, *(name for s in samples for name in s.metrics)])
    groups: dict[str, list[Mapping[str, float]]] = {}
    for sample in samples:
        groups.setdefault(sample.group or "", []).append(sample.metrics)
    counted = sum(benchmark.metric in sample.metrics for sample in samples)
    unread = () if counted == len(samples) else (f"{len(samples) - counted} could not be measured",)
    return TaskResult(
        task=benchmark.name,
        title=benchmark.title,
        shots=0,
        metric=benchmark.metric,
        metrics={name: score([s.metrics for s in samples], name) for name in names},
        groups={name: score(of, benchmark.metric) for name, of in sorted(groups.items())},
        notes=(f"measured by {measured_by}", *unread, *benchmark.notes),
    )


def score(metrics: Sequence[Mapping[str, float]], name: str) -> Score:
    """The mean of a metric where it is there, and its standard error."""
    return mean_of([each[name] for each in metrics if name in each])
