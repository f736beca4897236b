"""What each rank of the survival tests does: python -m tests.train.survive FOLDER SCENARIOS

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say which rank this is, LAUNCH of which start. A
scenario trains the run FOLDER/NAME and meets a disaster; what tokens this rank trained on is noted
in FOLDER/tokens.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from puna.parallel.place import meet_to_train
from puna.train import sharded_saves
from puna.train.checkpoints import checkpoint_path
from puna.train.commit import CheckpointError
from puna.train.pretrain import Pretrain, pretrain


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def disaster(scenario: dict[str, Any], notes: Path) -> Iterator[None]:
    """`kill` ranks as they train or `in_write` of `step`; let rank `limited` write no more than
    4096 bytes a file from the save of `step` on; have a save `wait_for` a later step. Notes tokens
    all the while.
    """
    rank, step = int(os.environ["RANK"]), scenario.get("step", -1)
    doomed = rank in scenario.get("kill", ())
    real_batches, real_write = Pretrain.micro_batches, sharded_saves._write_file
    reached = threading.Event()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def micro_batches(self: Pretrain, number: int) -> list[Tensor]:
        if number == step and doomed and not scenario.get("in_write"):
            die()
        if number == scenario.get("wait_for"):
            reached.set()
        batches = real_batches(self, number)
        with open(notes, "a") as file:
            file.write(json.dumps([number, torch.cat(batches).tolist()]) + "\n")
        return batches

    def write_file(path: Path, *arguments: Any) -> Any:
        if "wait_for" in scenario:
            assert reached.wait(60), "training stood still"
        is_of_step = f"step-{step:08}" in str(path)
        # Not before: what is saved in the background of training may take as long as it likes.
        if is_of_step and scenario.get("limited") == rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        facts = real_write(path, *arguments)
        if is_of_step and doomed and scenario.get("in_write"):
            os.truncate(path, path.stat().st_size // 2)
            die()
        return facts

    Pretrain.micro_batches = micro_batches  # type: ignore[method-assign]
    sharded_saves._write_file = write_file  # type: ignore[assignment]
    try:
        yield
    finally:
        Pretrain.micro_batches = real_batches  # type: ignore[method-assign]
        sharded_saves._write_file = real_write
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def flip(run: Path, step: int) -> None:
    """Changes one bit in the data of a shard."""
    path = next(checkpoint_path(run, step).glob("optimizer-*"))
    data = bytearray(path.read_bytes())
    data[-100] ^= 16
    path.write_bytes(data)


def main(folder: Path, scenarios: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    meet_to_train("cpu")
    for number, scenario in enumerate(scenarios):
        name, rank = scenario["run"], dist.get_rank()
        if rank == 0:
            if "copy_of" in scenario:
                shutil.copytree(folder / scenario["copy_of"], folder / name)
            if "flip" in scenario:
                flip(folder / name, scenario["flip"])
        dist.barrier()
        notes = folder / "tokens" / f"{name}.{os.environ['LAUNCH']}.{number}.{rank}"
        notes.parent.mkdir(exist_ok=True)
        with disaster(scenario, notes):
            try:
                pretrain(folder / name, parallel=scenario.get("parallel"))
                assert not scenario.get("fails")
            except CheckpointError as error:
                assert scenario.get("fails"), error
                (folder / f"{name}.{rank}.error").write_text(str(error))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
