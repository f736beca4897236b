"""The script that measures GPUs runs, in its tiny form, on a machine that has only torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TYPES = ("bf16", "int8", "int4", "q4_0", "q4_k")
DECODE = [f"decode-{name}" for name in TYPES]
PARTS = ("check", *DECODE, "bf16", "gptq", "fp8", "gpt-fast")
# What a machine with torch alone lacks.
ABSENT = ("click", "rich", "sentencepiece", "huggingface_hub", "tokenizers", "safetensors")


def test_it_runs_in_its_tiny_form(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    out = tmp_path / "gpu.json"
    arguments = ["gpu.py", "--shape", "tiny", "--device", "cpu", "--json", str(out)]
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv = {[*arguments, "--only", *PARTS]!r}
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert not found["failed"]
    lines = {(line["part"], line["name"]): line["value"] for line in found["lines"]}
    errors = [value for (part, _), value in lines.items() if part == "check"]
    assert len(errors) == 16 and max(errors) < 1e-5
    for name in TYPES:
        assert lines["decode", f"{name}, batch 1"] > 0 and lines["decode", f"{name}, batch 3"] > 0
    for kind, most in (("float32", 1e-5), ("bfloat16", 0.05)):
        for rows in ("prompt", "token"):
            assert 0 < lines["bf16", f"network in {kind}, a {rows}"] < most


def test_a_part_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    program = f"""
import runpy, sys
sys.argv = ["gpu.py", "--shape", "tiny", "--device", "cpu", "--json", {str(out)!r}, "--only", "bf16", "gptq"]
import puna.engine.gpu.runner
def broken(*arguments, **options): raise RuntimeError("broken on purpose")
puna.engine.gpu.runner.GPURunner.__init__ = broken
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 1 and "broken on purpose" in done.stderr
    found = json.loads(out.read_text())
    assert [line["part"] for line in found["lines"]] == ["copy", "gptq"]
    assert found["failed"] == ["bf16: RuntimeError: broken on purpose"]


@pytest.mark.parametrize("factor", ["1.5", "float('nan')"])
def test_wrong_numbers_fail(factor: str, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    out = tmp_path / "gpu.json"
    program = f"""
import os, runpy, sys
os.environ["TRITON_INTERPRET"] = "1"
sys.argv = ["gpu.py", "--shape", "tiny", "--device", "cpu", "--json", {str(out)!r}, "--only", "check"]
import puna.kernels.triton.dense_linear as kernels
right = kernels.dense_linear
kernels.dense_linear = lambda *arguments: right(*arguments) * {factor}
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 1 and "1 parts failed" in done.stderr
    found = json.loads(out.read_text())
    assert [line["name"] for line in found["lines"] if line["unit"] == "failed"] == [
        "one row, floats"
    ]
    assert len(found["lines"]) == 17
