"""Runs in two processes: the same as in one, stopped, resumed, and told what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from puna.commands.models import named_vocabulary
from puna.data.tokenize import write_shards
from puna.formats.manifest import read_manifest
from puna.tokenizer import Vocabulary
from puna.train.checkpoints import checkpoint_path, saved_tensors, steps_saved
from puna.train.log import read_log
from puna.train.pretrain import pretrain
from puna.train.pretrain import run_config as read_config
from tests.samples import story_lines
from tests.train.runs import MODEL, losses, new_run, run_config, weights

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, "-m", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip


def test_stopped_and_resumed_by_two_processes(tmp_path: Path, vocabulary: Vocabulary) -> None:
    settings = {"steps": 6, "checkpoint_every": 3}
    run = new_run(tmp_path, vocabulary, run_config(2, 1, parallel="fsdp=2", **settings))
    done = torchrun("tests.parallel.resumed", tmp_path)
    assert done.returncode == 0, done.stderr[-5000:]
    stopped, moved, piped = (tmp_path / name for name in ("stopped", "moved", "piped"))
    assert steps_saved(run) == [3, 6] and steps_saved(stopped) == [4, 6]
    assert losses(stopped) == losses(run)
    ends = [weights(checkpoint_path(path, 6)) for path in (run, stopped, moved)]
    assert ends[0] == ends[1] != ends[2]
    assert losses(moved) == pytest.approx(losses(run), abs=1e-5)
    assert losses(piped) == pytest.approx(losses(run), abs=1e-5)
    # All moments are in what is saved after an evaluation, which a pipeline gathers weights for.
    saved = [checkpoint_path(path, 6) for path in (run, moved, piped)]
    names = [set(saved_tensors(path, read_manifest(path))) for path in saved]
    assert names[0] == names[1] == names[2] and len(names[0]) == 4 * len(MODEL.tensor_shapes())
    # One process, from the same text, and it opens what several saved.
    single = new_run(tmp_path / "single", vocabulary, run_config(2, 1, **settings))
    assert pretrain(single)
    assert losses(single) == pytest.approx(losses(run), abs=1e-5)
    ends_of = [read_log(path / "log.jsonl")[-1] for path in (single, run)]
    for key in ("grad_norm", "held_out_loss", "tokens"):
        assert ends_of[0][key] == pytest.approx(ends_of[1][key], rel=1e-4)
    assert read_config(run).settings.parallel == "fsdp=2"


@pytest.mark.slow
def test_a_corrupt_shard_is_named_once(tmp_path: Path) -> None:
    vocabulary = named_vocabulary("cria")
    shards, out = tmp_path / "shards", tmp_path / "run"
    write_shards(
        story_lines(600), vocabulary, shards, source="stories", licence="CC0",
        max_tokens_per_shard=4000,
    )  # fmt: skip
    path = shards / "00001.tokens"  # of the second rank's share
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    options = ["--context-length", "16", "--steps", "2", "--batch-size", "4"]
    done = torchrun("puna", "pretrain", shards, "--out", out, "--parallel", "fsdp=2", *options)
    assert done.returncode != 0
    assert done.stderr.count(f"puna: error: {path} is corrupt: its SHA-256 is") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("processes", "arguments", "words"),
    [
        ("2", [], "there are 2 processes; say how they share the work"),
        ("2", ["--parallel", "fsdp=4"], "'fsdp=4' is for 4 processes, and there are 2"),
        ("2", ["--parallel", "fsdp=2", "--batch-size", "7"], "7 windows does not divide by 2"),
        ("2", ["--parallel", "pp=2"], "this model ties them"),
        ("1", ["--parallel", "tp=2"], "torchrun --nproc-per-node 2 -m"),
        ("1", ["--parallel", "tp:2"], "no kind 'tp:2'"),
        ("1", ["--float8", "--dtype", "fp32"], "float8 is for products that would be in bf16"),
        ("1", ["--float8"], "float8 needs an NVIDIA GPU .* not cpu"),
        ("1", ["--device", "gpu"], "no device 'gpu'; there are cpu and cuda"),
        ("2", ["--device", "cuda:9", "--parallel", "fsdp=2"], "finds no GPU|has no GPU"),
        ("1", ["--micro-batch-size", "0"], "no multiple of micro_batch_size 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: str,
    arguments: list[str],
    words: str,
) -> None:
    from puna.commands.pretrain import pretrain as command

    text = tmp_path / "text.txt"
    text.write_text("\n".join(story_lines(600)), encoding="utf-8")
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(ValueError, match=words):
        command.main([str(text), "--out", str(tmp_path / "run"), *arguments], standalone_mode=False)
    assert list(tmp_path.iterdir()) == [text]
