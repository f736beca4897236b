"""Tiny files of the paper's benchmarks, written for the tests, in the forms of local files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from puna.evaluate.tasks.maths import KINDS
from puna.evaluate.tasks.reasoning import AGIEVAL, BBH
from tests.evaluate.questions import write_benchmarks

COLOURS = ("red", "green", "blue", "black", "white")
_COUNT = 9


def write_paper(folder: Path) -> Path:
    """All but MMLU's and HellaSwag's, which `write_benchmarks` adds; SQuAD too."""
    write_benchmarks(folder)
    for path, rows in _FILES.items():
        _write(folder / path, rows)
    for split in ("train", "validation", "test"):
        rows = [
            {
                "question": f"Which colour is {i}?",
                "choices": _choices(4),
                "answerKey": "ABCD"[i % 4],
            }
            for i in range(3)
        ]
        _write(folder / f"arc_easy/{split}.jsonl", rows)
    for name in BBH:
        examples = [{"input": f"{i} is {i} of {name}", "target": "True"} for i in range(2)]
        path = folder / f"bbh/tasks/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"canary": "", "examples": examples}))
    for name in AGIEVAL:
        _write(folder / f"agieval/{name}.jsonl", [_agieval(name, i) for i in range(5)])
    return folder


def _choices(count: int) -> dict[str, list[str]]:
    return {"text": list(COLOURS[:count]), "label": list("ABCDE"[:count])}


def _agieval(name: str, i: int) -> dict[str, Any]:
    row: dict[str, Any] = {"passage": "A text. " if "en" in name else None}
    row |= {"question": f"Which is {i}?", "options": None, "label": None, "answer": None}
    if name == "math":
        return row | {"answer": f"{i}"}
    options = [f"({letter}){word}" for letter, word in zip("ABCD", COLOURS, strict=False)]
    return row | {"options": options, "label": "ABCD"[i % 4]}


def _humaneval(i: int) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{i}",
        "prompt": f'def add(x):\n    """Adds {i}."""\n',
        "entry_point": "add",
        "canonical_solution": f"    return x + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n",
    }


def _mbpp(number: int) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": f"Write a function that adds {number}.",
        "code": f"def add(x):\r\n  return x + {number}",
        "test_setup_code": "",
        "test_list": [f"assert add({i}) == {number + i}" for i in range(3)],
        "challenge_test_list": [],
    }


def _math(kind: str) -> dict[str, Any]:
    half = "\\frac{1}{2}"
    return {
        "context": f"What is half of one, in {kind}?",
        "answer": half,
        "chain_of_thought": f"It is \\boxed{{{half}}}.",
        "category": kind,
    }


_FILES: dict[str, Iterable[Any]] = {
    "humaneval/test.jsonl": [_humaneval(i) for i in range(2)],
    "mbpp/mbpp.jsonl": [_mbpp(number) for number in (1, 2, 3, 4, 10, 11, 12, 511)],
    "piqa/validation.jsonl": [
        {"goal": f"To paint {i}", "sol1": "use paint", "sol2": "use a long spoon", "label": i % 2}
        for i in range(_COUNT)
    ],
    "social_i_qa/validation.jsonl": [
        {
            "context": f"Kim painted {i} walls.",
            "question": "How does Kim feel?",
            **dict(zip(("answerA", "answerB", "answerC"), ("sad", "glad", "joyful"), strict=True)),
            "label": str(i % 3 + 1),
        }
        for i in range(_COUNT)
    ],
    "winogrande/validation.jsonl": [
        {
            "sentence": f"Kim gave Lee {i} pots because _ had many.",
            "option1": "Kim",
            "option2": "Lee",
            "answer": str(i % 2 + 1),
        }
        for i in range(_COUNT)
    ],
    "openbookqa/validation.jsonl": [
        {"question_stem": f"Wall {i} is", "choices": _choices(4), "answerKey": "ABCD"[i % 4]}
        for i in range(_COUNT)
    ],
    "commonsense_qa/validation.jsonl": [
        {"question": f"Which is {i}?", "choices": _choices(5), "answerKey": "ABCDE"[i % 5]}
        for i in range(_COUNT)
    ],
    "nq_open/validation.jsonl": [
        {"question": f"when was {i} painted", "answer": ["14 December 1972 UTC", "December 1972"]}
        for i in range(_COUNT)
    ],
    "triviaqa/triviaqa_sm_sub.jsonl": [
        {
            "context": f"Question: What is painted in {i}?\nAnswer:",
            "answer": "Onion",
            "aliases": ["Bulb onion", "Onion", "BulbOnion"],
        }
        for i in range(_COUNT)
    ],
    "squad/validation.jsonl": [
        {
            "title": "Paint",
            "context": "Paint dries in a day.",
            "question": f"When does {i} dry?",
            "answers": {"text": ["in a day"] * (i % 2), "answer_start": [11] * (i % 2)},
        }
        for i in range(4)
    ],
    "quac/quac_rag.jsonl": [
        {
            "query": f"Title: Paint\n\nContext: It dries in a day.\n\nQuestion: When does {i}?",
            "answer": "in a day",
            "aliases": [],
        }
        for i in range(4)
    ],
    "boolq/validation.jsonl": [
        {"question": f"is {i} dry", "passage": "Paint dries.", "answer": bool(i % 2)}
        for i in range(4)
    ],
    **{
        f"gsm8k/{split}.jsonl": [
            {"question": f"What is {i} + 18 - {i}?", "answer": "It is <<18=18>>18.\n#### 18"}
            for i in range(4)
        ]
        for split in ("train", "test")
    },
    "math/math.jsonl": [_math(kind) for kind in KINDS for _ in range(2)],
}


def _write(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
