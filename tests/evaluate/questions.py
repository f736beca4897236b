"""Tiny files of the leaderboard's benchmarks, written for the tests."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from puna.evaluate.tasks.leaderboard import SUBJECTS

ANIMALS = ("llama", "puma", "condor", "vicuña", "fox", "toad", "hare", "crow")
PLACES = ("in the hills", "by the river", "on the plain", "under a rock")


def write_benchmarks(folder: Path) -> Path:
    """All four, of few questions each; the endings differ in length."""
    for split, count in (("train", 30), ("validation", 4), ("test", 6)):
        _write(folder / f"arc_challenge/{split}.jsonl", (_arc(split, i) for i in range(count)))
    _write(folder / "hellaswag/validation.jsonl", map(_hellaswag, range(13)))
    for split, count in (("dev", 5), ("test", 2)):
        rows = (_mmlu(name, split, i) for name in SUBJECTS for i in range(count))
        _write(folder / f"mmlu/{split}.jsonl", rows)
    table = folder / "truthfulqa/TruthfulQA.csv"
    table.parent.mkdir(parents=True)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(_truthfulqa(0)))
        writer.writeheader()
        writer.writerows(map(_truthfulqa, range(5)))
    return folder


def _write(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def _arc(split: str, i: int) -> Any:
    animal, other = ANIMALS[i % 8], ANIMALS[(i * 3 + 1) % 8]
    texts = [f"It lives {place}{' with its young' * (k % 2)}." for k, place in enumerate(PLACES)]
    return {
        "id": f"{split}-{i}",
        "question": f"{i}. Where does the {animal} live that the {other} fears?",
        "choices": {"text": texts, "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[i * 7 % 4],
    }


def _hellaswag(i: int) -> Any:
    animal = ANIMALS[i % 8]
    return {
        "ind": i,
        "activity_label": f"Walking {i}",
        "ctx": f"The {animal} looks at the road {PLACES[i % 4]}. the {animal}",
        "endings": [
            f"walks {place}{' once more' * ((k + i) % 3)}." for k, place in enumerate(PLACES)
        ],
        "label": str(i * 5 % 4),
    }


def _mmlu(subject: str, split: str, i: int) -> Any:
    words = subject.replace("_", " ")
    return {
        "subject": subject,
        "question": f" Of {words}, {split} {i}: which animal is the largest?",
        "choices": [ANIMALS[(i + k) % 8] for k in range(4)],
        "answer": (i * 3 + len(subject)) % 4,
    }


def _truthfulqa(i: int) -> dict[str, str]:
    animal = ANIMALS[i]
    return {
        "Type": "Adversarial",
        "Question": f"Can a {animal} read?",
        "Best Answer": f"No, a {animal} cannot read",
        "Correct Answers": f"No, a {animal} cannot read; It cannot read a book",
        "Incorrect Answers": "Yes; Only at night; It reads one book a year"[: 12 + 8 * i],
    }
