"""Processes that stay: torch is imported once, and one start serves many cases."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from torch.distributed import TCPStore

_HOST = "127.0.0.1"


class Pool:
    """`size` ranks of one gloo group, forked from a server that has imported what they need.

    A context manager. `torchrun` is not in it: `tests/train/test_several.py` starts by that.
    """

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.parallel.layouts"])
        # Here, so that it has a free port and lives as long as they do.
        self._store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        self._ranks, self._ends = [], []
        for rank in range(size):
            end, other = context.Pipe()
            place = (rank, size, self._store.port)
            process = context.Process(target=_serve, args=(other, *place), daemon=True)
            process.start()
            other.close()
            self._ranks.append(process)
            self._ends.append(end)

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._ranks)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> list[Any]:
        """What `function(*arguments)` gives in each rank. AssertionError with what a rank raised,
        or where it takes too long; the ranks are gone then."""
        for end in self._ends:
            end.send((function, arguments))
        until = time.monotonic() + timeout
        results: dict[int, Any] = {}
        while len(results) < len(self._ends):
            waiting = [end for rank, end in enumerate(self._ends) if rank not in results]
            ready = multiprocessing.connection.wait(waiting, max(0, until - time.monotonic()))
            if not ready:
                self.close()
                late = sorted(set(range(len(self._ends))) - set(results))
                raise AssertionError(f"ranks {late} took more than {timeout} s")
            for end in ready:
                rank = self._ends.index(end)
                try:
                    failure, results[rank] = end.recv()
                except EOFError:
                    failure = "ended without a word"
                if failure:
                    self.close()
                    raise AssertionError(f"rank {rank} {failure}")
        return [results[rank] for rank in range(len(self._ends))]

    def close(self) -> None:
        for process in self._ranks:
            process.kill()
            process.join()
        for end in self._ends:
            end.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _serve(connection: Connection, rank: int, size: int, port: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": _HOST, "MASTER_PORT": str(port)}  # as torchrun says it
    store = TCPStore(_HOST, port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    while True:
        function, arguments = connection.recv()
        try:
            connection.send(("", function(*arguments)))
        except Exception:
            connection.send((f"raised\n{traceback.format_exc()}", None))
