"""Which benchmarks are run together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Suite:
    """Benchmarks by name; of each, `questions` (None: all), spread evenly over its groups."""

    title: str
    tasks: tuple[str, ...]
    questions: int | None = None


_LEADERBOARD = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2")

SUITES: dict[str, Suite] = {
    "leaderboard": Suite("Open LLM Leaderboard", _LEADERBOARD),
    "quick": Suite("A sample of the leaderboard", _LEADERBOARD, questions=228),
}
