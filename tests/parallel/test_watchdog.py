"""The watchdog: whom it names, by made-up beats and in processes that stop, hang, fail and die."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from puna.parallel.beats import LEFT, PHASES, Beat, gone, standing
from puna.parallel.watchdog import HUNG, Watch

ROOT = Path(__file__).parents[2]
BEAT = Beat("box", 40, position=9, step=7, phase="gradients", waits=True, line="c10d.py:1 wait")


def test_who_is_said_to_stand_still() -> None:
    both = {0: BEAT, 1: dataclasses.replace(BEAT, pid=41)}
    assert standing(both, set()) == []
    # Silent ones come first, whatever else there is.
    assert standing(both | {2: None}, {1, 2}) == [
        "rank 1 (pid 41 on box) does not answer; it was last seen at step 7, gradients",
        "rank 2 has not begun",
    ]
    late = dataclasses.replace(BEAT, pid=41, phase="data", waits=False, line="loader.py:5 read")
    assert standing({0: BEAT, 1: late}, set()) == [
        "rank 1 (pid 41 on box) stands still at step 7, data, loader.py:5 read"
    ]
    # After a rollback steps are smaller; the position in the data is not.
    back = dataclasses.replace(BEAT, position=10, step=4, phase="data")
    assert standing({0: BEAT, 1: back}, set())[0].startswith("rank 0 (pid 40 on box) stands still")
    computes = dataclasses.replace(BEAT, pid=41, waits=False, line="model.py:9 forward")
    assert standing({0: BEAT, 1: computes}, set()) == [
        "rank 1 (pid 41 on box) stands still at step 7, gradients, model.py:9 forward"
    ]
    assert standing({0: computes, 1: computes}, set()) == []
    assert next(iter(PHASES)) == "start" and Beat("box", 1).where == "start"


def test_who_is_said_to_be_gone() -> None:
    other = dataclasses.replace(BEAT, pid=41)
    left = dataclasses.replace(BEAT, pid=42, end=LEFT)
    failed = dataclasses.replace(BEAT, pid=43, phase="checkpoint", end="OSError: disk full")
    all_there = {0: BEAT, 1: other, 2: left}
    assert gone(all_there, set(), set()) == []
    killed = ["rank 1 (pid 41 on box) was killed; it was last seen at step 7, gradients"]
    assert gone(all_there, {0}, {1, 2}) == killed  # rank 2 ended because of rank 1
    assert gone(all_there, {1, 2}, set()) == [killed[0].replace("was killed", "does not answer")]
    assert gone(all_there | {3: failed}, {0}, {1, 2, 3}) == [
        "rank 3 (pid 43 on box) failed at step 7, checkpoint: OSError: disk full"
    ]
    assert gone({0: BEAT, 1: None}, {1}, set()) == ["rank 1 has not begun"]


def test_long_phases_have_more_time() -> None:
    """Judged in one process: what takes long may, what hangs may not."""
    ended = threading.Event()
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        ended.set()

    store = dist.HashStore()
    watches = [
        Watch(dist.PrefixStore("x", store), rank, 2, timeout=0.4, leave=leave) for rank in (0, 1)
    ]
    watches[0].enter(0, 1, "data")  # the first step compiles: it counts as the start
    watches[1].enter(0, 1, "gradients")
    assert not ended.wait(1.2)
    watches[0].enter(1, 2, "gradients")
    watches[1].enter(1, 2, "evaluation")
    assert not ended.wait(1.2)  # rank 0 is to wait for rank 1's evaluation
    watches[1].enter(2, 3, "gradients")
    assert ended.wait(60) and statuses[0] == HUNG
    for watch in watches:
        watch.close()


@pytest.mark.parametrize("phase", ["data", "sampling", "gradients"])
def test_all_of_the_first_step_is_the_start(phase: str) -> None:
    """Else who is further in it would look as if behind those that sample."""
    store = dist.HashStore()
    watch = Watch(store, 0, 1, timeout=0)
    watch.enter(5, 6, phase)
    watch.close()
    assert json.loads(store.get("0"))["phase"] == "start"
    again = Watch(store, 0, 1, timeout=0)
    again.enter(5, 6, phase)
    again.enter(6, 7, phase)
    again.close()
    assert json.loads(store.get("0"))["phase"] == phase


def processes(number: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Processes as torchrun starts them, but that it ends none of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = []
    for rank in range(number):
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        where |= {"RANK": str(rank), "WORLD_SIZE": str(number)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.parallel.watching", *map(str, arguments)],
                cwd=ROOT, env=os.environ | where, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return started


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("stop", "does not answer; it was last seen at step 4, data"),
        ("kill", "was killed; it was last seen at step 4, data"),
        pytest.param("sleep", "stands still at step 4, data", marks=pytest.mark.slow),
        pytest.param("fail", "failed at step 4, data: OSError: [Errno 28]", marks=pytest.mark.slow),
    ],
)
def test_the_others_name_the_rank(how: str, words: str) -> None:
    """Slow ones: python -m pytest tests/parallel/test_watchdog.py -m slow"""
    timeout = 4.0
    started = processes(3, how, timeout)
    try:
        if how == "kill":  # as torchrun does as soon as one is gone, whatever the others are about
            started[1].wait(200)
            for rank in (0, 2):
                started[rank].terminate()
        for rank in (0, 2):
            _, said = started[rank].communicate(timeout=200)
            name = f"rank 1 (pid {started[1].pid} on {socket.gethostname()}) {words}"
            assert name in said, said
            hung = how in ("stop", "sleep")
            assert started[rank].returncode == (HUNG if hung else 2), said
            assert f"training hangs: {name}" in said if hung else said.startswith("lost: rank 1")
            assert "Traceback" not in said
        if how == "sleep":  # says itself what it was about
            _, said = started[1].communicate(timeout=200)
            assert started[1].returncode == HUNG and "time.sleep(10_000)" in said
        if how == "fail":
            assert "No space left" in started[1].communicate(timeout=200)[1]
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.communicate()
