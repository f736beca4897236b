"""Runs of real ranks that are killed, or whose disk fails: what a resume makes of them.

Each resumes from the last checkpoint that was committed, to the bits of the run that nothing
disturbed; with another number of ranks, to the same tokens.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.formats.run_folder import checkpoint_path, steps_saved
from puna.tokenizer import Vocabulary
from puna.train.log import read_log
from puna.train.pretrain import Pretrain, pretrain
from tests.samples import story_lines
from tests.train.runs import losses, new_run, newest, run_config, weights

ROOT = Path(__file__).parents[2]
STEPS = 9
MEASURED = {"tokens_per_second", "tflops", "mfu", "memory", "seconds"}  # not the same each time


def start(
    folder: Path, scenarios: list[dict[str, Any]], num_ranks: int = 2
) -> list[tuple[int, str]]:
    """Return code and stderr of each rank of `tests.train.survive`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks, launch = [], uuid.uuid4().hex
    for rank in range(num_ranks):
        world = {"RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
        world |= {"LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "LAUNCH": launch}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.train.survive", folder, json.dumps(scenarios)],
                env=os.environ | {name: str(value) for name, value in world.items()},
                cwd=ROOT, text=True, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    try:
        said = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


def well(ended: list[tuple[int, str]]) -> str:
    """What the first rank said, where all went well."""
    assert [code for code, _ in ended] == [0] * len(ended), ended
    return ended[0][1]


def prepared(folder: Path, vocabulary: Vocabulary, parallel: str) -> None:
    """FOLDER/fresh, a run that has not begun."""
    settings = {"steps": STEPS, "checkpoint_every": 3, "keep_checkpoints": 3}
    new_run(folder, vocabulary, run_config(4, 1, parallel=parallel, **settings)).rename(
        folder / "fresh"
    )


Tokens = dict[int, list[list[int]]]  # step -> the windows of all ranks, in order


def trained_on(folder: Path, name: str) -> list[Tokens]:
    """For each time that run NAME was trained, what its ranks together trained on."""
    times: dict[str, dict[int, list[list[Any]]]] = {}
    for path in (folder / "tokens").glob(f"{name}.*"):
        _, launch, number, rank = path.name.split(".")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [step for step, _ in lines] == sorted({step for step, _ in lines})
        times.setdefault(f"{launch}.{number}", {})[int(rank)] = lines
    together = []
    for ranks in times.values():
        tokens: Tokens = {}
        for rank in sorted(ranks):
            for step, windows in ranks[rank]:
                tokens.setdefault(step, []).extend(windows)
        together.append(tokens)
    return sorted(together, key=min)


def same_records(run: Path, other: Path) -> None:
    """The logs say the same, but for the speed."""
    records = []
    for path in (run, other):
        records.append([
            {key: value for key, value in record.items() if key not in MEASURED}
            for record in read_log(path / "log.jsonl")
        ])  # fmt: skip
    assert records[0] == records[1] and len(records[0]) == STEPS


def resumed_as_if_nothing_was(folder: Path, name: str) -> None:
    """A run that was broken off and resumed is bit for bit the undisturbed one, tokens too."""
    same_records(folder / name, folder / "whole")
    ends = [weights(checkpoint_path(folder / run, STEPS)) for run in (name, "whole")]
    assert ends[0] == ends[1]
    same_tokens(folder, name)


def same_tokens(folder: Path, name: str) -> None:
    (expected,) = trained_on(folder, "whole")
    assert list(expected) == list(range(STEPS))
    assert len({str(window) for step in expected.values() for window in step}) == STEPS * 4
    before, after = trained_on(folder, name)
    for tokens in (before, after):
        for step in tokens:
            whole = expected[step]
            assert tokens[step] == whole or (tokens is before and step == max(before)), step
    # Nothing was left out: what came after begins no later than what was saved ends.
    assert list(after) == list(range(min(after), STEPS)) and min(after) % 3 == 0
    assert min(before) == 0 and max(before) >= min(after) - 1


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """Two ranks: `whole`, undisturbed; `full`, whose disk filled up; `flipped`, damaged."""
    folder = tmp_path_factory.mktemp("broken")
    prepared(folder, vocabulary, "fsdp=2")
    said = well(
        start(
            folder,
            [
                {"run": "whole", "copy_of": "fresh", "wait_for": 4},
                {"run": "full", "copy_of": "fresh", "step": 6, "limited": 1, "fails": True},
                {"run": "full"},
                {"run": "flipped", "copy_of": "whole", "flip": 9},
            ],
        )
    )
    (folder / "said").write_text(said)
    return folder


def test_training_goes_on_while_a_checkpoint_is_written(broken: Path) -> None:
    """The save of step 3 waited for the fifth step to begin."""
    assert steps_saved(broken / "whole") == [3, 6, 9]
    for step in (3, 6, 9):
        folder = checkpoint_path(broken / "whole", step)
        assert {path.name for path in folder.iterdir()} == {
            "checkpoint.json", "tokenizer.model", "weights-00000.safetensors",
            "weights-00001.safetensors", "optimizer-00000.safetensors",
            "optimizer-00001.safetensors",
        }  # fmt: skip


def test_a_disk_that_takes_no_more(broken: Path) -> None:
    errors = [(broken / f"full.{rank}.error").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]  # all ranks agree
    assert str(checkpoint_path(broken / "full", 6)) in errors[0]
    assert "could not be written by rank 1: File too large; step-00000003 is whole" in errors[0]
    resumed_as_if_nothing_was(broken, "full")
    assert min(trained_on(broken, "full")[1]) == 3
    assert not list((broken / "full" / "checkpoints").glob(".*"))


def test_a_flipped_bit_in_a_shard(broken: Path) -> None:
    said = (broken / "said").read_text().splitlines()
    (line,) = [line for line in said if line.startswith("note:")]
    assert "step-00000009 is damaged and passed over" in line
    assert "optimizer-0000" in line and "checksum" in line
    same_records(broken / "flipped", broken / "whole")
    ends = [weights(checkpoint_path(broken / run, STEPS)) for run in ("flipped", "whole")]
    assert ends[0] == ends[1]
    (after,) = trained_on(broken, "flipped")
    assert list(after) == [6, 7, 8]


def test_killed_ranks(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank in the middle of a write; then all ranks while they train."""
    one = start(
        broken, [{"run": "one", "copy_of": "fresh", "kill": [1], "in_write": True, "step": 6}]
    )
    assert one[1][0] == -signal.SIGKILL and one[0][0] != 0
    assert steps_saved(broken / "one") == [3]
    assert "Connection closed by peer" in one[0][1] or "Connection reset" in one[0][1]
    ended = start(
        broken,
        [{"run": "one"}, {"run": "all", "copy_of": "fresh", "kill": [0, 1], "step": 7}],
    )
    assert [code for code, _ in ended] == [-signal.SIGKILL] * 2
    resumed_as_if_nothing_was(broken, "one")
    assert min(trained_on(broken, "one")[1]) == 3

    # By one process: the same tokens, and from where the two had been.
    run = broken / "all"
    state = newest(run)[1]
    real = Pretrain.micro_batches

    def noted(self: Pretrain, number: int) -> list[torch.Tensor]:
        batches = real(self, number)
        with open(broken / "tokens" / "all.9.9.0", "a") as file:
            file.write(json.dumps([number, torch.cat(batches).tolist()]) + "\n")
        return batches

    monkeypatch.setattr(Pretrain, "micro_batches", noted)
    assert pretrain(run, parallel="")
    same_tokens(broken, "all")
    assert min(trained_on(broken, "all")[1]) == state.step
    assert losses(run) == pytest.approx(losses(broken / "whole"), abs=1e-5)
    assert (checkpoint_path(run, STEPS) / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parallel", ["tp=2", "pp=2", "cp=2", "dp=2"])
@pytest.mark.parametrize("kill", [[0], [1], [0, 1]])
@pytest.mark.parametrize("in_write", [True, False])
def test_any_rank_of_any_layout_is_killed(
    tmp_path: Path, vocabulary: Vocabulary, parallel: str, kill: list[int], in_write: bool
) -> None:
    """python -m pytest -m slow tests/train/test_survival.py"""
    prepared(tmp_path, vocabulary, parallel)
    well(start(tmp_path, [{"run": "whole", "copy_of": "fresh"}]))
    scenario = {"run": "all", "copy_of": "fresh", "kill": kill, "in_write": in_write, "step": 6}
    ended = start(tmp_path, [scenario])
    assert all(ended[rank][0] == -signal.SIGKILL for rank in kill)
    well(start(tmp_path, [{"run": "all"}]))
    same_records(tmp_path / "all", tmp_path / "whole")
    ends = [weights(checkpoint_path(tmp_path / run, STEPS)) for run in ("all", "whole")]
    assert ends[0] == ends[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of two MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small filesystem can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full(broken: Path, small_disk: Path, tmp_path: Path) -> None:
    """A second checkpoint does not fit; once there is room, the run goes on from the first.

    As of files that may be no larger (`test_a_disk_that_takes_no_more`), but in earnest.
    """
    shutil.copytree(broken / "fresh", small_disk / "run")
    shutil.copytree(broken / "whole", tmp_path / "whole")
    (tmp_path / "small").symlink_to(small_disk / "run")
    filler = small_disk / "filler"
    used = sum(path.stat().st_size for path in checkpoint_path(broken / "whole", 3).iterdir())
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - used * 3 // 2))
    well(start(tmp_path, [{"run": "small", "fails": True}]))
    error = (tmp_path / "small.0.error").read_text()
    assert error == (tmp_path / "small.1.error").read_text()
    assert "step-00000006 could not be written by rank" in error
    assert "No space left on device; step-00000003 is whole" in error
    assert [path.name for path in (small_disk / "run/checkpoints").iterdir()] == ["step-00000003"]
    filler.unlink()
    well(start(tmp_path, [{"run": "small"}]))
    same_records(tmp_path / "small", tmp_path / "whole")


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.parametrize(
    "num_ranks", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_the_command_says_it_in_one_line(tmp_path: Path, num_ranks: int) -> None:
    """python -m pytest -m slow tests/train/test_survival.py"""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(story_lines(300)), encoding="utf-8")
    words = ["pretrain", text, "--out", tmp_path / "run", "--context-length", "16", "--steps", "1"]
    words += ["--batch-size", "2", "--held-out", "2"]
    program: list[object] = [sys.executable, "-m", "puna"]
    if num_ranks > 1:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        program += ["--nproc-per-node", num_ranks, "-m", "puna"]
        words += ["--parallel", "fsdp=2"]
    done = subprocess.run(
        [*map(str, program), *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=250, preexec_fn=limited,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if "puna: error" in line]
    assert len(lines) == 1, done.stderr
    assert f"{tmp_path / 'run/checkpoints/step-00000001'} could not be written" in lines[0]
    assert "there is no earlier one" in lines[0] and lines[0].endswith("go on with --resume")
    # A launcher ends with a trace of its own.
    assert done.stderr.count("Traceback") == (1 if num_ranks > 1 else 0)
    assert done.returncode == 2 if num_ranks == 1 else "exitcode  : 2" in done.stderr
    assert not list((tmp_path / "run/checkpoints").iterdir())
