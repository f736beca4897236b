"""Opening a model costs no weight memory; loading and converting hold it once, or a tensor."""

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
    puna.formats.save_checkpoint(checkpoint, Path(sys.argv[3]), sys.argv[4], dtype=sys.argv[5])
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


LARGEST = 4 * CONFIG.vocab_size * CONFIG.dim
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def peak(*arguments: str | Path) -> int:
    """Bytes of its own that PROGRAM held at most, above what its imports hold."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"peak (\d+)", done.stdout)[1])  # type: ignore[index]


@ON_LINUX
@pytest.mark.parametrize("source", ["hf", "meta", "gguf"])
def test_opening_and_loading(large: dict[str, Path], source: str) -> None:
    assert peak(large[source], "open") < 10_000_000
    weights = 4 * CONFIG.num_parameters
    # One copy, and a tensor on its way.
    assert peak(large[source], "load") < weights + 2 * LARGEST + 20_000_000


@ON_LINUX
@pytest.mark.parametrize(
    ("source", "target", "dtype"),
    [
        ("hf", "gguf", "bf16"),
        ("hf", "gguf", "q4_k_m"),
        ("gguf", "ggml", "q5_k_m"),
        ("gguf", "hf", "f16"),
        ("gguf", "gptq", "f16"),
        ("meta", "hf", "f32"),
        ("hf", "meta", "f16"),
        ("meta", "llama2c", "f32"),
    ],
)
def test_converting_holds_a_tensor(
    large: dict[str, Path], tmp_path: Path, source: str, target: str, dtype: str
) -> None:
    found = peak(large[source], "convert", tmp_path / "out", target, dtype)
    assert found < 2 * LARGEST + 20_000_000
