"""Real weights that nobody here trained say the same from every format that can hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from puna import LLM, SamplingParams
from puna.engine.loading import load_network
from puna.formats import open_checkpoint, save_checkpoint


def greedy(path: Path) -> str:
    params = SamplingParams(temperature=0, max_tokens=200)
    return LLM(path, dtype="fp32").generate("", params)[0].outputs[0].text


@pytest.fixture(scope="module")
def expected(shared: Path) -> str:
    return (shared / "weights/stories260K/expected-greedy-200-steps.txt").read_text()


@pytest.fixture(scope="module")
def original(shared: Path) -> Path:
    return shared / "weights/stories260K/stories260K.bin"


def test_the_original(original: Path, expected: str) -> None:
    assert greedy(original) == expected


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(
    ("format_name", "options"),
    [("hf", {}), ("hf", {"max_shard_bytes": 100_000}), ("gguf", {})]
    + [("meta", {"num_shards": count}) for count in (1, 2, 4)],
    ids=str,
)
def test_converted(
    original: Path,
    expected: str,
    tmp_path: Path,
    format_name: str,
    options: dict[str, int],
    dtype: str,
) -> None:
    path = tmp_path / "copy"
    save_checkpoint(open_checkpoint(original), path, format_name, dtype=dtype, **options)
    assert greedy(path) == expected


def test_q8_0_differs_only_as_its_weights_do(original: Path, tmp_path: Path) -> None:
    """Eight bits change the text, so the reference is the network with the same rounded weights."""
    notes = save_checkpoint(open_checkpoint(original), tmp_path / "q8", "gguf", dtype="q8_0")
    assert any("rows of 172" in note for note in notes)
    rounded = open_checkpoint(tmp_path / "q8")
    save_checkpoint(rounded, tmp_path / "f32", "hf", dtype="f32")
    assert greedy(tmp_path / "q8") == greedy(tmp_path / "f32")
    exact = load_network(open_checkpoint(original), "cpu", "fp32").state_dict()
    for name, weight in load_network(rounded, "cpu", "fp32").state_dict().items():
        assert torch.dist(weight, exact[name]) < 0.01 * exact[name].norm()
