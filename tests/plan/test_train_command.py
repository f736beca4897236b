"""`puna plan train` as a user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from puna.commands.plan import SUBCOMMANDS, plan

ROOT = Path(__file__).parents[2]
THE_PAPERS = ["train", "--model", "70b", "--tokens", "2T", "--gpus", "2000", "--gpu", "a100-80g"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(plan, list(arguments), env={"COLUMNS": "200"})


def test_the_run_of_the_paper_for_people() -> None:
    shown = run(*THE_PAPERS)
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    for part in (
        "68,976,648,192", "8.89e+23 = tokens x (6N + 12LdT)", "dp=8 fsdp=125 tp=2",
        "activations", "waiting for tensor parallel", "tokens/s/GPU, MFU", "GPU hours", "days",
        "tCO2eq at 0.385", "million dollars", "million yuan", "at 6.04 dollars an hour",
        "best to save every",
    ):  # fmt: skip
        assert part in words, part


def test_the_run_of_the_paper_for_programs() -> None:
    found: dict[str, Any] = json.loads(run(*THE_PAPERS, "--json").output)
    assert found["kind"] == "train" and found["parameters"] == 68_976_648_192
    assert found["gpu_hours"] == pytest.approx(1_720_320, rel=0.15)
    assert found["tokens_per_second"] == pytest.approx(323, rel=0.1)
    memory = dict(found["memory"])
    peak, usable = memory.pop("peak"), memory.pop("usable")
    assert sum(memory.values()) == pytest.approx(peak) and peak < usable
    step = dict(found["step"])
    assert step.pop("total") == pytest.approx(sum(step.values()))
    assert found["cost"]["dollars"] == pytest.approx(found["gpu_hours"] * 6.0393, rel=1e-3)
    assert found["days"] * 24 * 2000 == pytest.approx(found["gpu_hours"])


def test_options_are_kept() -> None:
    asked = ["--parallel", "fsdp=64", "--micro-batch-size", "2", "--recompute", "full"]
    found = json.loads(
        run("train", "--gpus", "64", "--gpu", "h100-80g", *asked, "--network", "100",
            "--power", "600", "--price", "2", "--context-length", "2048", "--json").output
    )  # fmt: skip
    assert found["layout"]["fsdp"] == 64 and found["micro_batch_size"] == 2
    assert found["recompute"] == "full" and found["model"]["context_length"] == 2048
    assert found["cluster"]["network"] == 12.5 and found["cluster"]["power"] == 600
    assert found["batch_size"] * 2048 == 2**22
    assert found["cost"]["dollars"] == pytest.approx(2 * found["gpu_hours"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "70b", "--gpus", "8"], "does not fit 8 x a100-80g: the least is"),
        (["--gpus", "1999"], "1998 devices would do, or another batch"),
        (["--gpu", "a100"], "did you mean a100-40g or a100-80g?"),
        (["--model", "8b"], "no preset and no file '8b'; presets are: tiny"),
        (["--parallel", "fsdp=8"], "layout 'fsdp=8' is for 8 devices, and there are 2000"),
        (["--parallel", "dpp=8"], "no kind 'dpp'"),
        (["--float8"], "a100-80g does not multiply in fp8"),
        (["--power", "500"], "a100-80g takes 400 W at most, not 500"),
        (["--power", "-1"], "--power must be more than 0"),
        (["--gpu", "epyc-9654"], "epyc-9654 does not multiply in bf16"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: list[str], said: str) -> None:
    failed = run("train", *arguments)
    assert isinstance(failed.exception, ValueError), failed.output
    assert said in str(failed.exception) and "\n" not in str(failed.exception)


def test_subcommands_are_there() -> None:
    shown = run("--help")
    for name in SUBCOMMANDS:
        assert name in shown.output
        assert run(name, "--help").exit_code == 0


def test_planning_needs_no_torch() -> None:
    program = f"""
import sys
from puna.cli import main
sys.argv = ["puna", "plan", *{THE_PAPERS!r}, "--json"]
main.__globals__["puna"].main(sys.argv[1:], standalone_mode=False)
for heavy in ("torch", "transformers", "matplotlib", "huggingface_hub"):
    assert heavy not in sys.modules, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
