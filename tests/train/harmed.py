"""The program, one process of which comes to harm: torchrun ... -m tests.train.harmed HOW RANK STEP

In its first life, as it begins the given step of those that it does. What follows are the
arguments of `puna`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import torch

from puna.cli import main
from puna.train.several import Several


def fail() -> None:
    raise OSError(28, "No space left on device")


HARM: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(10_000),
    "fail": fail,
    "slow": lambda: time.sleep(1),  # from that step on
    "none": lambda: None,
}


def harm(how: str, rank: str, step: int) -> None:
    """Has `HARM[how]` come to a rank as it begins its `step`th step."""
    if os.environ["RANK"] != rank or os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        return
    accumulate, steps = Several.accumulate, 0

    def counted(self: Several, batches: list[torch.Tensor], num_tokens: int) -> float:
        nonlocal steps
        steps += 1
        if steps == step or (how == "slow" and steps > step):
            HARM[how]()
        return accumulate(self, batches, num_tokens)

    Several.accumulate = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    harm(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    del sys.argv[1:4]
    main()
