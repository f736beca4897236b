"""Opening a model costs no weight memory; loading and converting hold it once, or one tensor."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puna.config import ModelConfig
from puna.formats import save_checkpoint
from puna.formats.checkpoint import Checkpoint, LazyTensor

CONFIG = ModelConfig(512, 8, 8, 8, 2048, vocab_size=16384, context_length=64)  # 201 MB in f32

# Anonymous memory (RssAnon) and its peak are what a program holds itself; mapped files are not.
PROGRAM = """
import re, sys, threading, time
from pathlib import Path
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
import numpy, puna.formats
if sys.argv[2] == "load":
    import torch, puna.formats.network
    torch.set_num_threads(1)
    torch.ones(2, 2) @ torch.ones(2, 2)
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
checkpoint = puna.formats.open_checkpoint(Path(sys.argv[1]))
if sys.argv[2] == "load":
    model = puna.formats.network.load_model(checkpoint)
if sys.argv[2] == "convert":
    puna.formats.save_checkpoint(checkpoint, Path(sys.argv[3]), "gguf", dtype="bf16")
done = True
watcher.join()
print("peak", max(peak, anonymous()) - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    tensors = {
        name: LazyTensor(
            shape,
            "f32",
            lambda shape=shape: rng.standard_normal(shape, np.float32).view(np.uint8),
        )
        for name, shape in CONFIG.tensor_shapes().items()
    }
    checkpoint = Checkpoint("made", Path("made"), CONFIG, tensors)
    folder = tmp_path_factory.mktemp("large")
    for format_name in ("hf", "meta", "gguf"):
        save_checkpoint(replace(checkpoint), folder / format_name, format_name)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize("format_name", ["hf", "meta", "gguf"])
@pytest.mark.parametrize("what", ["open", "load", "convert"])
def test_peak_memory(large: dict[str, Path], tmp_path: Path, what: str, format_name: str) -> None:
    weights = 4 * CONFIG.num_parameters
    largest = 4 * CONFIG.vocab_size * CONFIG.dim
    allowed = {
        "open": 10_000_000,
        "load": weights + 2 * largest + 20_000_000,  # one copy, and a tensor on its way
        "convert": 5 * largest + 20_000_000,
    }
    command = [sys.executable, "-c", PROGRAM, str(large[format_name]), what, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(re.search(r"peak (\d+)", done.stdout)[1])  # type: ignore[index]
    assert peak < allowed[what]
