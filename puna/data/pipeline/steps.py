"""The table of steps, and the passes over the corpus that they make.

A step looks at one document, in a pass with its neighbours; some first need all documents, which
ends a pass. Adding one: its settings in `settings.py`, and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from puna.data.pipeline import cleaning, contamination, duplicates, personal
from puna.data.pipeline.documents import CountDocuments, ReadDocuments, WriteDocuments, read_count
from puna.data.pipeline.measured import MakeStep, Measured, ReadSources
from puna.data.pipeline.plan import Plan
from puna.data.pipeline.tokenizing import JoinTokens, WriteTokens


@dataclass(frozen=True)
class Phase:
    """Work that one executor does: the same steps in `tasks` tasks, side by side."""

    name: str
    pipeline: list[PipelineStep]
    tasks: int

    def logs(self, folder: Path) -> Path:
        """Where the executor keeps its logs, and which tasks are done."""
        return folder / "logs" / self.name

    def unfinished(self, folder: Path) -> int:
        """How many tasks are not done yet."""
        return self.tasks - len(list((self.logs(folder) / "completions").glob("*")))

    def documents_read(self, folder: Path) -> int:
        """How many documents its tasks have read so far."""
        return sum(map(read_count, (self.logs(folder) / "read").glob("*")))

    def counted(self, folder: Path) -> list[PipelineStep]:
        """The pipeline, its documents counted where they are read."""
        counting = CountDocuments(self.logs(folder) / "read")
        return [self.pipeline[0], counting, *self.pipeline[1:]]


@dataclass(frozen=True)
class Place:
    """What a step may need: the plan, a folder of its own, and where the last pass wrote."""

    plan: Plan
    own: Path
    documents: Path

    def reading(self, name: str, step: PipelineStep) -> Phase:
        """A phase in which `step` sees all documents that the last pass left."""
        return Phase(name, [ReadDocuments(self.documents), step], len(self.plan.pieces))

    def settings(self, step: str) -> Any:
        """Of a step that has the same ones for all sources."""
        return next(iter(self.plan.config.settings.values()))[step]


@dataclass(frozen=True)
class Step:
    """What it takes out; the step of a task; phases before it, and whether they need all."""

    summary: str
    make: Callable[[Place], MakeStep]
    prepare: Callable[[Place], list[Phase]] | None = None
    needs_all: bool = False


def _sites(place: Place) -> Path:
    return place.own.parent / "sites"


def _before_sites(place: Place) -> list[Phase]:
    return [Phase("sites-find", [personal.FindSites(place.plan, _sites(place))], 1)]


def _before_exact(place: Place) -> list[Phase]:
    return [
        place.reading("exact-signatures", duplicates.exact_signatures(place.plan, place.own)),
        Phase("exact-find", [duplicates.exact_find(place.plan, place.own)], 1),
    ]


def _before_minhash(place: Place) -> list[Phase]:
    settings = place.settings("minhash")
    buckets = duplicates.minhash_buckets(settings, place.own)
    return [
        place.reading("minhash-signatures", duplicates.minhash_signatures(settings, place.own)),
        Phase("minhash-buckets", [buckets], settings.buckets),
        Phase("minhash-clusters", [duplicates.minhash_clusters(settings, place.own)], 1),
    ]


def _before_decontaminate(place: Place) -> list[Phase]:
    root = place.plan.config.folder.resolve()
    index = contamination.IndexEvaluation(place.settings("decontaminate"), root, place.own)
    return [Phase("evaluation-index", [index], 1)]


# In the order in which they run.
STEPS: dict[str, Step] = {
    "boilerplate": Step(
        "what its kind of source puts around the text", lambda place: cleaning.boilerplate_step
    ),
    "language": Step("documents in other languages", lambda place: cleaning.language_step),
    "gopher": Step("low quality and repetition (Gopher)", lambda place: cleaning.gopher_step),
    "c4": Step("lines and documents that are no prose (C4)", lambda place: cleaning.c4_step),
    "personal": Step(
        "e-mails, phones, IPs; documents full of them",
        lambda place: partial(personal.personal_step, _sites(place)),
    ),
    "sites": Step(
        "sites full of personal information",
        lambda place: partial(personal.sites_step, _sites(place)),
        _before_sites,
        needs_all=True,
    ),
    "exact": Step(
        "documents that are there already",
        lambda place: partial(duplicates.exact_step, place.plan, place.own),
        _before_exact,
        needs_all=True,
    ),
    "minhash": Step(
        "near-duplicates",
        lambda place: partial(duplicates.minhash_step, place.own),
        _before_minhash,
        needs_all=True,
    ),
    "decontaminate": Step(
        "what evaluation sets hold",
        lambda place: partial(contamination.decontaminate_step, place.own),
        _before_decontaminate,
    ),
}


def phases(plan: Plan, folder: Path) -> list[Phase]:
    """Everything that a build in `folder` does, in order."""
    tallies, tasks = folder / "tallies", len(plan.pieces)
    done: list[Phase] = []
    current: list[PipelineStep] = [ReadSources(plan, tallies)]
    names = ["read"]
    documents = Path()  # none written yet
    for name, step in STEPS.items():
        if not plan.config.enabled(name):
            continue
        if step.needs_all:
            documents = folder / "work" / f"before-{name}"
            done.append(Phase("-".join(names), [*current, WriteDocuments(documents)], tasks))
            current, names = [ReadDocuments(documents)], []
        place = Place(plan, folder / "work" / name, documents)
        done += step.prepare(place) if step.prepare else []
        current.append(Measured(name, step.make(place), plan, tallies))
        names.append(name)
    documents = folder / "documents"
    done.append(Phase("-".join(names), [*current, WriteDocuments(documents)], tasks))
    if plan.config.tokenize.enabled:
        pipeline = [ReadDocuments(documents), WriteTokens(plan, folder)]
        done.append(Phase("tokenize", pipeline, tasks))
        done.append(Phase("join-shards", [JoinTokens(plan, folder)], 1))
    return done
