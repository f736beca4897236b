"""`puna quantize` and `puna perplexity`, on the shipped model and a text of these tests' own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from puna.formats import open_checkpoint
from tests.samples import story_lines


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n".join(story_lines(300)))
    return path


def puna(*arguments: str | Path) -> tuple[str, str]:
    """(stdout, stderr) of a program of its own, which must succeed."""
    command = [sys.executable, "-m", "puna", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_block_types_with_calibration(tmp_path: Path, text: Path) -> None:
    out, err = puna(
        "quantize", "cria", tmp_path / "a.gguf", "--to", "q4_k_m", "--calibration", text,
        "--samples", "8", "--context", "64", "--save-imatrix", tmp_path / "i.gguf",
        "--compare", text, "--json",
    )  # fmt: skip
    assert f"wrote {tmp_path / 'a.gguf'}" in err
    original, smaller = json.loads(out)
    assert original["mean_kl"] is None
    assert 4.5 < smaller["bits_per_weight"] < 6 < 16 < original["bits_per_weight"] < 16.1
    assert smaller["bytes"] == open_checkpoint(tmp_path / "a.gguf").num_bytes
    assert 0 < smaller["mean_kl"] < 0.2
    assert 0.85 < smaller["same_top"] < 1
    assert smaller["ratio"] == pytest.approx(smaller["perplexity"] / original["perplexity"])
    # The matrix that was saved gives the same file.
    puna(
        "quantize", "cria", tmp_path / "b.gguf", "--to", "q4_k_m", "--imatrix", tmp_path / "i.gguf"
    )
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_gptq(tmp_path: Path, text: Path) -> None:
    settings = ("--calibration", text, "--samples", "8", "--context", "64")
    puna("quantize", "cria", tmp_path / "a", "--to", "gptq-4bit-64g-actorder", *settings)
    opened = open_checkpoint(tmp_path / "a")
    assert opened.format == "gptq"
    labels = {tensor.packed.label for tensor in opened.tensors.values() if tensor.packed}
    assert labels == {"gptq-4bit-64g-actorder"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # no work folder is left
    # To GGUF and back to floats, as any model.
    out, _ = puna("perplexity", tmp_path / "a", "--against", "cria", "--text", text, "--json",
                  "--context", "128", "--chunks", "8")  # fmt: skip
    assert 0 < json.loads(out)[1]["mean_kl"] < 0.5


def test_perplexity_is_a_table(text: Path) -> None:
    out, _ = puna("perplexity", "cria", "--text", text, "--context", "64", "--stride", "32",
                  "--chunks", "20")  # fmt: skip
    head, row = out.splitlines()
    assert head.split() == ["model", "size", "bits/weight", "perplexity"]
    assert row.split()[:3] == ["cria", "12.3", "MB"]
