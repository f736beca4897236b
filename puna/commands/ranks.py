"""A command in the several processes that torchrun starts: each runs it, one speaks."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from puna.plan.layout import Layout, check_ranks, resolved

_JOB = "job.txt"


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """What all processes find wrong alike, the first says; the others end."""
    try:
        yield
    except ValueError:
        if is_first():
            raise
        end_after_the_first()


@contextlib.contextmanager
def said_by_one() -> Iterator[None]:
    """What one process finds wrong it says; what several do alike, the first of them."""
    from puna.parallel.place import first_to_say
    from puna.parallel.watchdog import LostError

    try:
        yield
    except ValueError as error:
        if first_to_say(str(error)):
            raise
        if isinstance(error, LostError):  # the first says it though torchrun ends it
            raise SystemExit(2) from None
        end_after_the_first()


def starred(parallel: str) -> str:
    """The layout with a number for its `*`; ValueError where nothing whole is left for that."""
    return resolved(parallel, _num_started())


def check_started(parallel: str) -> None:
    """ValueError where the layout, "" for one process, does not fit the number of processes."""
    num_ranks = _num_started()
    if parallel:
        check_ranks(Layout.parse(parallel), num_ranks)
    elif num_ranks > 1:
        raise ValueError(
            f"there are {num_ranks} processes; say how they share the work, such as --parallel "
            f"'fsdp={num_ranks}'"
        )


def _num_started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def mark_job(run: Path) -> None:
    """Writes down in a run's folder which of torchrun's jobs began it."""
    if job := _job():
        (run / _JOB).write_text(job + "\n")


def is_restarted(run: Path) -> bool:
    """Whether this job began the run: torchrun has started its processes anew since.

    Because one died, or with `--nnodes 1:4` because a machine came. The count of restarts would
    not tell: it also counts those of a job that was refused another's run.
    """
    mark = run / _JOB
    return bool(_job()) and mark.is_file() and mark.read_text().strip() == _job()


def _job() -> str:
    """What torchrun calls the job that started this process; "" if it did not."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    # Without a name it runs on known machines: the one that started the first process stays.
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def by_the_first(
    action: Callable[[], None], parallel: str, device: str, hang_timeout: float
) -> None:
    """Runs `action` in the first process of a layout while the others wait, which end if it fails;
    in the only one where there is no layout."""
    if not parallel:
        action()
        return
    from puna.parallel.place import first_alone, meet_to_train

    meet_to_train(device, hang_timeout)
    if not first_alone(action):
        end_after_the_first()


def end_after_the_first() -> NoReturn:
    """Ends a process whose failure the first tells; torchrun ends all as soon as one has ended."""
    time.sleep(5)
    raise SystemExit(2)
