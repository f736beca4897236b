"""Shots from the questions themselves, where a benchmark has no others."""

from __future__ import annotations

from typing import Any

NOTE = "There is no train split in the local files: shots come from the questions, each left out."


def own_shots(split: str) -> dict[str, Any]:
    """lm-eval's configuration; it leaves a question out of its own shots in a test split only."""
    return {"training_split": None, "fewshot_split": split, "test_split": split}
