"""Reference values: every row has its models, and known figures stand where they belong."""

from __future__ import annotations

import pytest

from puna.evaluate.reference import BENCHMARKS, LEADERBOARD, MODELS, PAPER, TRUTHFULQA, Model


def value(title: str, family: str, name: str) -> float | None:
    (benchmark,) = (each for each in BENCHMARKS if each.title == title)
    found = benchmark.value(Model(name, family))
    return None if found is None else round(100 * found, 2)


def test_every_row_is_whole() -> None:
    for benchmark in BENCHMARKS:
        assert len(benchmark.values) == len(MODELS)
        assert all(v is None or 0 <= v <= 100 for v in benchmark.values)
        assert benchmark.parts and benchmark.source in (LEADERBOARD, PAPER)


@pytest.mark.parametrize(
    ("title", "family", "name", "expected"),
    [
        ("ARC-Challenge (25 shots)", "Llama 2-Chat", "70B", 64.6),
        ("HellaSwag (10 shots)", "OpenAI", "GPT-3.5", 85.3),
        ("MMLU, mean of subjects (5 shots)", "Llama 1", "65B", 63.4),
        ("TruthfulQA, mc2", "OpenAI", "GPT-4", 59.0),
        ("TruthfulQA, judged", "Llama 2-Chat", "34B", 67.2),
        ("TruthfulQA, judged", "Llama 2", "7B", 33.29),
        ("MATH", "Llama 2", "34B", 6.24),
        ("ToxiGen", "Llama 2-Chat", "70B", 0.01),
        ("Code", "Llama 2", "70B", 37.5),
        ("Code", "Llama 2-Chat", "70B", None),
        ("ARC-Challenge (25 shots)", "Llama 2", "70B", None),
    ],
)
def test_values(title: str, family: str, name: str, expected: float | None) -> None:
    assert value(title, family, name) == expected


def test_truthfulqa_has_two_measures() -> None:
    assert [each.source for each in TRUTHFULQA] == [LEADERBOARD, PAPER]
