"""Where phases run: local processes, a Slurm cluster or a Ray cluster, all by datatrove."""

from __future__ import annotations

import contextlib
import copy
import inspect
import multiprocessing
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import datatrove.executor
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from loguru import logger

from puna.data.pipeline.config import Run
from puna.data.pipeline.steps import Phase


class Local(LocalPipelineExecutor):
    """datatrove's, in processes that end with the program that began them.

    datatrove's own pool waits for ever for a process that was killed, and leaves one behind when
    it is killed itself. What a task logs is in its phase's `logs` folder, not on the terminal.
    """

    def run(self) -> None:
        """Does the tasks that are not done; what a task raises is raised here."""
        self.save_executor_as_json()
        todo = self.get_incomplete_ranks(range(self.tasks))
        if self.workers == 1:
            for rank in todo:
                copy.deepcopy(self).run_task(rank)
            return
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(self.workers, context, _end_with_parent) as pool:
            tasks = [pool.submit(self.run_task, rank) for rank in todo]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BrokenProcessPool:
                raise ValueError(
                    "a process was killed, perhaps for lack of memory; try fewer workers"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)

    def run_task(self, rank: int) -> None:
        with _quiet():
            self._run_for_rank(rank)


def _end_with_parent() -> None:
    """A killed build must not go on in its processes: the next one would write beside them."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """datatrove's log goes to its files alone."""
    logger.remove()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
        logger.remove()


def run_locally(phase: Phase, run: Run, folder: Path) -> None:
    """Does the phase's tasks in this process, or in `workers` of them."""
    workers = min(run.workers, phase.tasks)
    logs = str(phase.logs(folder))
    Local(phase.counted(folder), phase.tasks, workers, logs, **run.options).run()


def check_run(run: Run) -> None:
    """ValueError for an executor that is not known or not here, or that does not take its options.

    What they may be is asked of datatrove: an option that it does not know, or lacks, would
    otherwise end a build that has begun.
    """
    if run.executor not in _DATATROVE:
        raise ValueError(f"unknown executor {run.executor!r}; known are {', '.join(_DATATROVE)}")
    taken = inspect.signature(getattr(datatrove.executor, _DATATROVE[run.executor])).parameters
    known = {name: taken[name] for name in taken if name not in _OURS}
    if unknown := sorted(run.options.keys() - known):
        raise ValueError(
            f"run.options: {run.executor} has no option {unknown[0]!r}; known are "
            f"{', '.join(known)}"
        )
    needed = [name for name, option in known.items() if option.default is option.empty]
    if missing := [name for name in needed if name not in run.options]:
        raise ValueError(f"run.options: {run.executor} needs {' and '.join(missing)}")
    if run.executor == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("there is no sbatch on this machine; submit where Slurm's commands are")


def submit_to_slurm(phases: list[Phase], run: Run, folder: Path) -> None:
    """Submits all phases, each to begin when the one before has ended."""
    before: SlurmPipelineExecutor | None = None
    options = dict(run.options)
    if not options.keys() & {"env_command", "condaenv", "venv_path"}:
        # Jobs call datatrove's commands by name, which lie beside this Python.
        options["env_command"] = (
            f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        )
    for phase in phases:
        before = SlurmPipelineExecutor(
            phase.pipeline,
            tasks=phase.tasks,
            workers=run.workers,
            logging_dir=str(phase.logs(folder)),
            slurm_logs_folder=str(phase.logs(folder) / "slurm"),
            job_name=f"puna-{phase.name}",
            depends=before,
            **options,
        )
    assert before is not None
    before.run()


def run_on_ray(phase: Phase, run: Run, folder: Path) -> None:
    """Does the phase on the Ray cluster that is there, or on one that it starts here."""
    try:
        import ray
    except ImportError:
        raise ValueError("the executor ray needs Ray: pip install 'puna[ray]'") from None
    from datatrove.executor import RayPipelineExecutor

    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    with _quiet():
        executor = RayPipelineExecutor(
            phase.counted(folder),
            tasks=phase.tasks,
            workers=min(run.workers, phase.tasks),
            logging_dir=str(phase.logs(folder)),
            **run.options,
        )
        executor.run()
    if missing := executor.get_incomplete_ranks():
        raise ValueError(f"{phase.name}: tasks {missing} failed; see {phase.logs(folder)}")


# What runs a phase to its end here. Slurm takes all phases at once, and goes on without us.
RUNNERS: dict[str, Callable[[Phase, Run, Path], None]] = {
    "local": run_locally,
    "ray": run_on_ray,
}
_DATATROVE = {
    "local": "LocalPipelineExecutor",
    "ray": "RayPipelineExecutor",
    "slurm": "SlurmPipelineExecutor",
}
# What a phase or the configuration says already.
_OURS = ("pipeline", "tasks", "workers", "logging_dir", "job_name", "depends", "slurm_logs_folder")
