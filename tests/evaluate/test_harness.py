"""The leaderboard's tasks, asked of Puna and, by lm-eval alone, of transformers."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from puna.chat import LLAMA2_TEMPLATE
from puna.engine.llm import LLM
from puna.evaluate.harness.running import Settings, run
from puna.evaluate.results import read_results, read_samples
from puna.formats import open_checkpoint, save_checkpoint
from puna.hub.locate import shipped_path
from tests.evaluate.lm_eval_hf import asked_of_transformers, differences
from tests.evaluate.questions import write_benchmarks

LEADERBOARD = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in float32: `hf/`, `f32.gguf`; `data/` the benchmarks."""
    path = tmp_path_factory.mktemp("harness")
    checkpoint = dataclasses.replace(
        open_checkpoint(shipped_path("cria")), chat_template=LLAMA2_TEMPLATE
    )
    save_checkpoint(checkpoint, path / "hf", "hf", dtype="f32")
    save_checkpoint(checkpoint, path / "f32.gguf", "gguf", dtype="f32")
    write_benchmarks(path / "data")
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder / "f32.gguf")


@pytest.fixture(scope="module")
def transformers(folder: Path) -> HFLM:
    return HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(folder / "hf"),
        batch_size=8,
        device="cpu",
    )


def settings_of(folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {"model": "cria", "suite": "leaderboard", "tasks": LEADERBOARD}
    return Settings(**{**values, "data": str(folder / "data"), **changes})


def watch(title: str, count: int) -> Any:
    return nullcontext(lambda: None)


@pytest.mark.parametrize(
    ("source", "changes"),
    [("hf", {}), ("f32.gguf", {"chat": True}), ("f32.gguf", {"shared_shots": True})],
    ids=["the folder", "dialogs and GGUF", "shared shots and GGUF"],
)
def test_likelihoods_and_accuracies_are_those_of_transformers(
    folder: Path, llm: LLM, transformers: HFLM, tmp_path: Path, source: str, changes: Any
) -> None:
    settings = settings_of(folder, questions=3, shots=3, **changes)
    model = llm if source == "f32.gguf" else LLM(folder / source)
    results = run(settings, model, tmp_path, watch)
    for name, result in zip(LEADERBOARD, results.tasks, strict=True):
        theirs = asked_of_transformers(transformers, name, settings)
        ours = list(read_samples(tmp_path, name))
        assert max(differences(ours, theirs, result.metric)) < 1e-4
        mean = np.mean([sample.metrics[result.metric] for sample in ours])
        assert result.score.value == pytest.approx(mean, rel=1e-12)
    assert read_results(tmp_path) == results
