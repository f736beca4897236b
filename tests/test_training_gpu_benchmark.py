"""The script that measures pretraining on a GPU runs, in its tiny form, on a CPU."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "training_gpu.py"
# What a machine with torch alone lacks.
ABSENT = ("click", "rich", "sentencepiece", "huggingface_hub", "tokenizers", "safetensors")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv = {["training_gpu.py", *arguments]!r}
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=280
    )


def test_it_runs_in_its_tiny_form(tmp_path: Path) -> None:
    done = run(
        tmp_path, "--model", "tiny", "--device", "cpu", "--steps", "2", "--context-length", "16",
        "--windows", "2", "--micro-batches", "1", "2", "--recompute", "full", "--kinds", "bf16",
        "--json", "found.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["facts"]["parameters"] == 6_163_712 and not found["left_out"]
    assert [r["micro_batch"] for r in found["results"]] == [1, 2]
    for result in found["results"]:
        flops = found["facts"]["flops_per_token"]
        assert result["tflops"] == pytest.approx(result["tokens_per_second"] * flops / 1e12)
        assert result["tokens_per_second"] == pytest.approx(32 / result["step_seconds"])
        assert result["mfu"] is None and 6 < result["loss"] < 9
    assert "best bf16" in done.stdout and "33-39 %" in done.stdout


def test_what_does_not_fit_is_said() -> None:
    names = runpy.run_path(str(SCRIPT))
    config: Any = names["preset"]("7b")
    job = names["Job"](None, config, 8, 3, True)
    reason = names["misfit"](job, 85_000_000_000)
    assert "take 108 GB" in reason and "this GPU has 85 GB: it does not fit" in reason
    assert names["misfit"](job, 150_000_000_000) is None


def test_the_best_of_each_kind_is_held_against_the_marks() -> None:
    names = runpy.run_path(str(SCRIPT))
    result = names["Result"]
    lines = names["conclusion"]([
        result("bf16", "none", 1, 11_000.0, 507.0, 0.5126, 1, 1.0, 9.0),
        result("bf16", "full", 4, 10_000.0, 461.0, 0.466, 1, 1.0, 9.0),
        result("float8", "full", 2, 15_400.0, 710.0, 0.36, 1, 1.0, 9.0),
    ])  # fmt: skip
    assert lines == [
        "best bf16: 11,000 tokens/s, recompute none, micro-batch 1",
        "best float8: 15,400 tokens/s, recompute full, micro-batch 2",
        "bf16 MFU 51.3%; the mark is 55 %",
        "float8 / bf16: 1.40; the mark is 1.3",
    ]
