"""How fast two processes of this machine add up numbers, by torch and gloo."""

from __future__ import annotations

import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.queues import SimpleQueue

_SIZE = 4 << 20  # numbers of 4 bytes
_SECONDS = 120  # after which processes that should have met have not


def all_reduce_rate(rounds: int = 5) -> float | None:
    """Bytes/s of an all-reduce between two processes; None without torch, or where they could not
    meet."""
    if importlib.util.find_spec("torch") is None:
        return None
    context = multiprocessing.get_context("spawn")
    found: SimpleQueue[float] = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, f"file://{folder}/meet", rounds, found))
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(_SECONDS)
            if process.is_alive():
                process.kill()
    return None if found.empty() else found.get()


def _rank(rank: int, meeting: str, rounds: int, found: SimpleQueue[float]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    numbers, seconds = torch.ones(_SIZE), []
    for _ in range(rounds + 1):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(numbers)
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        found.put(4 * _SIZE / statistics.median(seconds[1:]))
    dist.destroy_process_group()
