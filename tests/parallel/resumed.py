"""What each process of the resume's test does: python -m torch.distributed.run ... FOLDER"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from puna.parallel.place import first_alone, meet_to_train
from puna.train.log import Record
from puna.train.pretrain import pretrain


def stop_at(step: int) -> Callable[[Record], None]:
    """SIGTERM to the first process alone, as it finishes a step."""

    def on_record(record: Record) -> None:
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_record


def main(folder: Path) -> None:
    """`run` is prepared; a copy of it is stopped and resumed, others go on otherwise cut."""
    torch.set_num_threads(1)
    meet_to_train("cpu")
    stopped, moved, piped = (folder / name for name in ("stopped", "moved", "piped"))

    def fail() -> None:
        raise ValueError("the disk is full")

    # What the first does alone fails in all.
    try:
        assert not first_alone(fail) and dist.get_rank() == 1
    except ValueError:
        assert dist.get_rank() == 0

    def copy() -> None:
        shutil.copytree(folder / "run", stopped)

    first_alone(copy)
    assert pretrain(folder / "run")
    assert not pretrain(stopped, on_record=stop_at(4))

    def copy_again() -> None:
        shutil.copytree(stopped, moved)
        shutil.copytree(stopped, piped)

    first_alone(copy_again)
    assert pretrain(stopped)
    assert pretrain(moved, parallel="tp=2")
    assert pretrain(piped, parallel="pp=2")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
