"""torchrun starts the processes anew after one is gone: the run goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puna.commands.pretrain import pretrain as pretrain_command
from puna.commands.ranks import is_restarted, mark_job
from puna.train.checkpoints import checkpoint_path, steps_saved
from puna.train.log import read_log
from tests.samples import story_lines
from tests.train.runs import losses, weights
from tests.train.test_several import ROOT

OPTIONS = (
    "--context-length", "16", "--steps", "9", "--batch-size", "4", "--checkpoint-every", "4",
    "--dtype", "fp32", "--learning-rate", "1e-2",
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(story_lines(600)), encoding="utf-8")
    return path


def command(
    text: Path, out: Path, harm: str, *options: str, start: tuple[str, ...] = ("--standalone",)
) -> list[str]:
    """torchrun's line; `harm` is how, whom and when (`tests.train.harmed`)."""
    return [
        sys.executable, "-m", "torch.distributed.run", *start, "--nproc-per-node", "2",
        "--max-restarts", "2", "-m", "tests.train.harmed", *harm.split(), "pretrain", str(text),
        "--out", str(out), "--parallel", "fsdp=*", *OPTIONS, *options,
    ]  # fmt: skip


def run(line: list[str], timeout: int = 280) -> str:
    """What it said on standard error; it must end well."""
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(command(text, out, "none 1 1"))
    assert steps_saved(out) == [8, 9]
    return out


def check(out: Path, undisturbed: Path) -> None:
    assert losses(out) == losses(undisturbed)
    assert weights(checkpoint_path(out, 9)) == weights(checkpoint_path(undisturbed, 9))


def test_a_killed_rank(text: Path, tmp_path: Path) -> None:
    """And the command in two processes. That a resume is exact is in `test_several.py`."""
    out, single = tmp_path / "run", tmp_path / "single"
    said = run(command(text, out, "kill 1 7", "--loss-chunk", "9"))
    assert re.search(
        r"puna: error: rank 1 \(pid \d+ on \S+\) was killed; it was last seen at", said
    )
    assert said.count(f"started again: going on with {out}") == 1
    share = "2 processes: fsdp=2; each batch's share is 2 of 4, 2 at once"
    assert said.count(share) == 2 and said.count("try it: puna complete") == 1
    assert "Traceback" not in said
    arguments = [str(text), "--out", str(single), *OPTIONS]
    pretrain_command.main(arguments, standalone_mode=False)
    assert losses(out) == pytest.approx(losses(single), rel=1e-4)
    records = read_log(out / "log.jsonl")
    assert [record["tokens"] for record in records] == [64 * step for step in range(1, 10)]
    assert steps_saved(out) == [8, 9] and (out / "loss.png").is_file()
    assert json.loads((out / "config.json").read_text())["micro_batch_size"] == 2
    assert (out / "job.txt").read_text().strip()


def test_which_job_may_go_on_unasked(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that began the run; another is refused, however often torchrun starts it."""
    out = tmp_path / "run"
    out.mkdir()
    for name in ("a", "none"):  # a job without a name is known by its agent
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        mark_job(out)
        assert is_restarted(out)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
        assert not is_restarted(out)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        assert is_restarted(out)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ValueError, match="exists already; give --resume"):
        pretrain_command.main([str(text), "--out", str(out)], standalone_mode=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not is_restarted(out)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("harm", "options", "words"),
    [
        ("kill 0 2", (), "rank 0 .* was killed"),  # before the first checkpoint
        ("fail 1 6", (), r"rank 1 .* failed at step \d, .*: OSError: \[Errno 28\] No space left"),
        ("stop 1 6", ("--hang-timeout", "10"), "training hangs: rank 1 .* does not answer"),
        ("hang 1 6", ("--hang-timeout", "10"), r"training hangs: rank 1 .* harmed\.py:\d+"),
    ],
    ids=str,
)
def test_other_harm(
    text: Path, tmp_path: Path, undisturbed: Path, harm: str, options: tuple[str, ...], words: str
) -> None:
    """Two minutes: python -m pytest tests/train/test_restart.py -m slow"""
    said = run(command(text, tmp_path / "run", harm, *options), 800)
    assert re.search(words, said), said
    assert said.count("started again") == 1
    check(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_machine(text: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Of two agents the one that came second is killed with its processes; the other goes on alone.

    Two minutes: python -m pytest tests/train/test_restart.py -m slow
    """
    out = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = (
        "--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
        "--rdzv-id", "tale",
    )  # fmt: skip
    agents = []
    for _ in range(2):
        agents.append(
            subprocess.Popen(
                command(text, out, "slow 0 1", start=start),
                cwd=ROOT, text=True, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        listening(port)  # the first has the store
    try:
        until = time.monotonic() + 400
        while len(read_log(out / "log.jsonl")) < 5 and time.monotonic() < until:
            time.sleep(0.2)
        for pid in [*children(agents[1].pid), agents[1].pid]:
            os.kill(pid, signal.SIGKILL)
        _, said = agents[0].communicate(timeout=400)
        assert agents[0].returncode == 0, said[-5000:]
        assert "4 processes: fsdp=4" in said and "2 processes: fsdp=2" in said
    finally:
        for agent in agents:
            for pid in [*children(agent.pid), agent.pid] if agent.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            agent.communicate()
    assert losses(out) == pytest.approx(losses(undisturbed), abs=1e-5)


def listening(port: int) -> None:
    """Waits until somebody does."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.2)
    raise TimeoutError(f"nobody listens at {port}")


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []
