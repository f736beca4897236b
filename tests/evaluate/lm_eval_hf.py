"""lm-eval with transformers, as the independent side: the same questions and shots, other code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from puna.chat import LLAMA2_TEMPLATE
from puna.evaluate.harness.loading import load
from puna.evaluate.harness.running import Settings, quiet, spread
from puna.evaluate.results import Sample
from puna.evaluate.tasks.table import task_of
from puna.formats import open_checkpoint, save_checkpoint


def write_both(model: Path, folder: Path) -> None:
    """Writes a model in float32, with a chat template, as `hf/` and as `f32.gguf`."""
    checkpoint = dataclasses.replace(open_checkpoint(model), chat_template=LLAMA2_TEMPLATE)
    save_checkpoint(checkpoint, folder / "hf", "hf", dtype="f32")
    save_checkpoint(checkpoint, folder / "f32.gguf", "gguf", dtype="f32")


def transformers_of(folder: Path) -> HFLM:
    """The model of `write_both` in transformers.

    Log-probabilities are taken and added up in float64: of endings with a hundred tokens, a sum in
    float32 is itself 1e-4 wrong.
    """
    return HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(folder / "hf"),
        batch_size=8,
        softmax_dtype=torch.float64,
        device="cpu",
    )


def asked_of_transformers(model: HFLM, task_name: str, settings: Settings) -> list[dict[str, Any]]:
    """What lm-eval logs of each question of a task, group after group."""
    task = task_of(task_name)
    shots = task.shots if settings.shots is None or not task.shots else settings.shots
    assert settings.data is not None
    with quiet():
        parts = load(
            task, Path(settings.data), shots=shots, seed=settings.seed,
            shared_shots=settings.shared_shots,
        )  # fmt: skip
        chosen = None
        if settings.questions is not None:
            sizes = {group: len(part.task_docs) for group, part in parts.items()}
            chosen = spread(sizes, settings.questions, settings.seed)
            parts = {group: part for group, part in parts.items() if chosen[group]}
        logged = lm_evaluate(
            lm=model,
            task_dict={"tasks": {part.task_name: part for part in parts.values()}},
            samples=chosen and {p.task_name: chosen[group] for group, p in parts.items()},
            bootstrap_iters=0,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
        )["samples"]
    return [found for part in parts.values() for found in logged[part.task_name]]


def differences(ours: list[Sample], theirs: list[dict[str, Any]], metric: str) -> list[float]:
    """Of every ending, how far the log-likelihoods are apart; the metrics must be the same."""
    apart = []
    assert len(ours) == len(theirs) > 0
    for sample, found in zip(ours, theirs, strict=True):
        expected = [answer[0] for answer in found["filtered_resps"]]
        assert sample.logprobs is not None and len(sample.logprobs) == len(expected)
        apart += [abs(a - b) for a, b in zip(sample.logprobs, expected, strict=True)]
        value = found["acc" if metric == "mc2" else metric]
        assert abs(sample.metrics[metric] - value) < 1e-4
    return apart
