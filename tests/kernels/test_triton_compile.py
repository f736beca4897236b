"""What Triton's interpreter does not see: that the kernels compile for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parents[2]


def test_kernels_compile_for_hopper(tmp_path: Path) -> None:
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("Triton came without ptxas")
    settings = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    halves = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.aot", first, "2"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | settings,
        )
        for first in ("0", "1")
    ]  # fmt: skip
    for half in halves:
        out, said = half.communicate(timeout=280)
        assert half.returncode == 0, said[-3000:]
        assert out.endswith("all compiled\n")
