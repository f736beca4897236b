"""Where phases run: local processes, a Slurm cluster or a Ray cluster, all by datatrove."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from loguru import logger

from puna.data.pipeline.config import Run
from puna.data.pipeline.steps import Phase


class Local(LocalPipelineExecutor):
    """datatrove's, that ends with the program that began it and leaves the terminal alone.

    What it logs of a task is in the phase's own `logs` folder.
    """

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        if (parent := multiprocess.parent_process()) is not None:
            # A killed build must not go on in its processes: the next one would write with them.
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        with _quiet():
            return super()._run_for_rank(rank, local_rank, node_rank)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger.remove()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
        logger.remove()


def run_locally(phase: Phase, run: Run, folder: Path) -> None:
    """Does the phase's tasks that are not done; what a task raises is raised here."""
    executor = Local(
        phase.counted(folder),
        tasks=phase.tasks,
        workers=min(run.workers, phase.tasks),
        logging_dir=str(phase.logs(folder)),
        **run.options,
    )
    with _quiet():
        executor.run()


def submit_to_slurm(phases: list[Phase], run: Run, folder: Path) -> None:
    """Submits all phases, each to begin when the one before has ended."""
    before: SlurmPipelineExecutor | None = None
    for phase in phases:
        before = SlurmPipelineExecutor(
            phase.pipeline,
            tasks=phase.tasks,
            workers=run.workers,
            logging_dir=str(phase.logs(folder)),
            slurm_logs_folder=str(phase.logs(folder) / "slurm"),
            job_name=f"puna-{phase.name}",
            depends=before,
            **run.options,
        )
    assert before is not None
    before.run()


def run_on_ray(phase: Phase, run: Run, folder: Path) -> None:
    """Does the phase on the Ray cluster that is there, or on one that it starts here."""
    import ray
    from datatrove.executor import RayPipelineExecutor

    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    executor = RayPipelineExecutor(
        phase.counted(folder),
        tasks=phase.tasks,
        workers=min(run.workers, phase.tasks),
        logging_dir=str(phase.logs(folder)),
        **run.options,
    )
    with _quiet():
        executor.run()
    if missing := executor.get_incomplete_ranks():
        raise ValueError(f"{phase.name}: tasks {missing} failed; see {phase.logs(folder)}")


# What runs a phase to its end here. Slurm takes all phases at once, and goes on without us.
RUNNERS: dict[str, Callable[[Phase, Run, Path], None]] = {
    "local": run_locally,
    "ray": run_on_ray,
}
EXECUTORS = (*RUNNERS, "slurm")
