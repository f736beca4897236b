"""A build: all phases of a plan, each begun only where it is not done."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from puna.data.corpus import TOKENIZER
from puna.data.pipeline.config import PipelineConfig
from puna.data.pipeline.contamination import evaluation_files
from puna.data.pipeline.executors import RUNNERS, check_run, submit_to_slurm
from puna.data.pipeline.plan import Plan, keep_plan, make_plan
from puna.data.pipeline.settings import Decontaminate
from puna.data.pipeline.steps import Phase, phases

# Called around each phase, with its number of so many: a progress bar.
Watch = Callable[[Phase, int, int], contextlib.AbstractContextManager[None]]


def _unwatched(phase: Phase, number: int, count: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def build(
    config: PipelineConfig, folder: Path, tokenizer: bytes | None, watch: Watch = _unwatched
) -> bool:
    """Builds the corpus in `folder`, or goes on with it. False: submitted, to be waited for.

    `tokenizer` is a SentencePiece model's bytes, where ids are wanted. ValueError for whatever in
    the configuration, its sources or the folder does not fit, before any work where that can be.
    """
    check_run(config.run)
    plan = make_plan(config)
    if config.enabled("decontaminate"):
        settings = next(iter(config.settings.values()))["decontaminate"]
        assert isinstance(settings, Decontaminate)
        evaluation_files(settings, config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        keep_plan(plan, folder)
        if tokenizer is not None:
            _keep_tokenizer(folder, tokenizer)
        return _run(plan, folder, watch)


def _run(plan: Plan, folder: Path, watch: Watch) -> bool:
    run, folder = plan.config.run, folder.resolve()
    todo = phases(plan, folder)
    if run.executor == "slurm":
        submit_to_slurm(todo, run, folder)
        return False
    for number, phase in enumerate(todo, start=1):
        if phase.unfinished(folder):
            with watch(phase, number, len(todo)):
                RUNNERS[run.executor](phase, run, folder)
    return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second build out of the folder; the lock is this process's and goes with it."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another build is at work in {folder}; wait for it") from None
        yield


def _keep_tokenizer(folder: Path, tokenizer: bytes) -> None:
    path = folder / TOKENIZER
    if path.exists() and path.read_bytes() != tokenizer:
        raise ValueError(f"{folder} was begun with another tokenizer; choose another folder")
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_bytes(tokenizer)
        partial.replace(path)
