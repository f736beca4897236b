"""What each process of the watchdog's test does: python -m tests.parallel.watching HOW TIMEOUT"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from puna.parallel.place import meet_to_train
from puna.parallel.watchdog import LostError, watched


def main(how: str, timeout: float) -> None:
    """Rank 1 comes to harm at its fourth step; the others wait for it."""
    meet_to_train("cpu")
    rank = dist.get_rank()
    with watched(rank, dist.get_world_size(), timeout=timeout) as watch:
        for step in range(1, 100):
            watch.enter(step, step, "data")
            if rank == 1 and step == 4:
                time.sleep(timeout / 4)  # it tells where it is
                if how == "sleep":
                    time.sleep(10_000)
                if how == "fail":
                    raise OSError(28, "No space left on device")
                os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            watch.enter(step, step, "gradients")
            if how == "kill" and rank == 2 and step == 4:
                time.sleep(10_000)  # it cannot see that rank 1 is gone
            dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(sys.argv[1], float(sys.argv[2]))
    except LostError as error:
        print(f"lost: {error}", file=sys.stderr)
        raise SystemExit(2) from None
