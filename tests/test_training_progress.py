"""What `puna pretrain` shows while it trains."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest
from rich.console import Console

from puna.commands.training import Training, arithmetic, training_bar
from tests.samples import story_lines


def record(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "loss": 3.0, "tokens_per_second": 12345.6, "tflops": 1.5, "memory": 2.5e9,
    } | more  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_figures() -> None:
    training = Training(100, Clock())
    assert training.figures() == "the first step" and training.time_left() == ""
    training.start(0)
    training.add(record(1))
    assert training.figures() == "loss 3.000  12,346 tokens/s  1.5 TFLOP/s  2.5 GB"
    training.add(record(2, loss=1.0, mfu=0.413, held_out_loss=2.5))
    # (0.95 x 3 + 1) / 1.95
    assert training.figures() == "loss 1.974  held out 2.500  12,346 tokens/s  MFU 41.3%  2.5 GB"
    training.add(record(3))
    assert "held out 2.500" in training.figures()
    assert arithmetic(0.25) == "0.25 TFLOP/s" and arithmetic(0.0125) == "12.5 GFLOP/s"


def test_time_left_is_of_the_last_steps() -> None:
    clock = Clock()
    training = Training(1000, clock)
    training.start(100)  # resumed
    for step in range(101, 201):
        clock.now += 60 if step < 150 else 2
        training.add(record(step))
    assert training.left == 800 * 2 and training.time_left() == "0:26:40 left"
    training.add(record(150))  # went back to a checkpoint
    assert training.left is None
    training.add(record(1000))
    assert training.time_left() == "done"


def test_what_comes_before_the_first_step_is_told() -> None:
    training = Training(100, Clock())
    training.check(3, 10)
    assert training.figures() == "checking the data: 3 of 10 shards"
    training.start(0)
    assert training.figures() == "the first step"


def test_plain_lines_come_in_time_and_with_news() -> None:
    clock = Clock()
    training = Training(100, clock)
    training.start(0)
    spoken = []
    for step in range(1, 101):
        clock.now += 1
        training.add(record(step, **({"held_out_loss": 2.0} if step == 15 else {})))
        if training.due():
            spoken.append(step)
    assert spoken == [1, 11, 15, 25, 35, 45, 55, 65, 75, 85, 95, 100]


def shown(width: int, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, legacy_windows=False)
    with training_bar(3, console=console) as (start, add, _):
        start(0)
        for step in (1, 2, 3):
            add(record(step, held_out_loss=2.5))
    return file.getvalue()


def test_lines_where_there_is_no_terminal() -> None:
    lines = shown(40, terminal=False).splitlines()
    assert lines[-1] == (
        "step 3/3  loss 3.000  held out 2.500  12,346 tokens/s  1.5 TFLOP/s  2.5 GB  done"
    )
    assert len(lines) == 3


@pytest.mark.parametrize("width", [60, 120])
def test_two_lines_in_a_terminal(width: int) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(width, terminal=True))
    last = [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()][-2:]
    assert last[0].startswith("step 3/3 ━") and last[0].endswith("100% done")
    assert last[1].startswith("loss 3.000  held out 2.500  12,346 tokens/s")
    assert max(map(len, last)) <= width
    assert last[1].endswith("2.5 GB") or (width == 60 and last[1].endswith("…"))


def test_only_one_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar(3, shown=False) as (start, add, _):
        start(0)
        add(record(1))
    assert capsys.readouterr() == ("", "")


def test_a_run_in_a_real_terminal(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(story_lines(200)), encoding="utf-8")
    arguments = ["--context-length", "16", "--steps", "3", "--batch-size", "2", "--held-out", "2"]
    more = ["--statistics-every", "2", "--profile", "2"]
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "puna", "pretrain", str(text), "--out", str(tmp_path / "run"), *arguments, *more],
        encoding="utf-8", timeout=200, dimensions=(24, 100),
    )  # fmt: skip
    terminal.expect_exact("step 3/3")
    terminal.expect("held out [0-9.]+  [0-9,]+ tokens/s  [0-9.]+ [GT]FLOP/s  [0-9.]+ GB")
    terminal.expect_exact("statistics of the layers:")
    terminal.expect_exact("profile:")
    terminal.expect_exact("try it: puna complete")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "tokenizer.model", "data", "log.jsonl", "loss.png", "statistics.png",
        "profile", "checkpoints",
    }  # fmt: skip
    assert {path.suffix for path in (tmp_path / "run" / "profile").iterdir()} == {".txt", ".gz"}
