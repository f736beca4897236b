"""lm-evaluation-harness through the server finds what it finds in transformers.

The same float32 weights, as a Hugging Face folder and as GGUF, behind `puna serve`, asked by
`lm_eval --model local-completions`; beside it `lm_eval --model hf` on the folder. Prompts go as
token ids after BOS, as transformers reads them. `pip install lm_eval` for this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.serve.servers import puna_serve

pytestmark = [
    pytest.mark.peers,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed"),
]

QUESTIONS = 200  # of each task
CONTEXT = 512
TOLERANCE = 2e-4  # of a log-likelihood: float32 sums in two orders

_ARC = {
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{choices.label.index(answerKey)}}",
    "doc_to_choice": "{{choices.text}}",
}
_HELLASWAG = {
    "doc_to_text": "{{activity_label}}: {{ctx}}",
    "doc_to_target": "{{label | int}}",
    "doc_to_choice": "endings",
}
# Task -> where its questions are, where its examples, how many of these, what else defines it.
TASKS: dict[str, tuple[str, str, int, dict[str, str]]] = {
    "puna_arc_easy": ("arc_easy/test.jsonl", "arc_easy/train.jsonl", 0, _ARC),
    "puna_arc_challenge": ("arc_challenge/test.jsonl", "arc_challenge/train.jsonl", 1, _ARC),
    "puna_hellaswag": ("hellaswag/validation.jsonl", "hellaswag/validation.jsonl", 0, _HELLASWAG),
}


@dataclass(frozen=True)
class Found:
    """What the harness says: accuracies, and of each answer log-likelihood and greedy."""

    scores: dict[tuple[str, str], float]
    answers: dict[tuple[str, int, int], tuple[float, bool]]


def write_tasks(folder: Path, data: Path) -> None:
    """Task files for lm_eval over local questions; JSON is YAML."""
    folder.mkdir()
    for name, (questions, examples, shots, definition) in TASKS.items():
        files = {}
        for split, path in (("test", questions), ("train", examples)):
            target = folder / f"{name}-{split}.jsonl"
            with (data / path).open() as lines:
                target.write_text("".join(islice(lines, QUESTIONS)))
            files[split] = str(target)
        task: dict[str, Any] = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "output_type": "multiple_choice",
            "test_split": "test",
            "num_fewshot": shots,
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in ("acc", "acc_norm")
            ],
            **definition,
        }
        if shots:
            task["fewshot_split"] = "train"
        (folder / f"{name}.yaml").write_text(json.dumps(task))


def lm_eval(model: str, arguments: dict[str, Any], tasks: Path, output: Path) -> Found:
    """Runs the harness, as its users do."""
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args",
        ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--tasks", ",".join(TASKS), "--include_path", str(tasks), "--output_path", str(output),
        "--batch_size", "8", "--device", "cpu", "--log_samples",
    ]  # fmt: skip
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tasks / "home"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = output.rglob("results_*.json")
    scores = {
        (task, metric): values[f"{metric},none"]
        for task, values in json.loads(results.read_text())["results"].items()
        for metric in ("acc", "acc_norm")
    }
    answers: dict[tuple[str, int, int], tuple[float, bool]] = {}
    for task in TASKS:
        (samples,) = output.rglob(f"samples_{task}_*.jsonl")
        for line in samples.read_text().splitlines():
            sample = json.loads(line)
            for number, ((logprob, greedy),) in enumerate(sample["resps"]):
                key = (task, sample["doc_id"], number)
                answers[key] = (float(logprob), greedy in (True, "True"))
    return Found(scores, answers)


def convert(source: list[str], target: Path) -> Path:
    command = [sys.executable, "-m", "puna", "convert", *source, str(target), "--dtype", "f32"]
    if target.suffix != ".gguf":
        command += ["--format", "huggingface"]
    subprocess.run(command, check=True)
    return target


@pytest.mark.parametrize("name", ["cria", "stories260K"])
def test_the_harness_finds_the_same_through_http(
    name: str, shared: Path, tmp_path: Path, record_property: Any
) -> None:
    source = ["cria"]
    if name == "stories260K":
        weights = shared / "weights" / name
        source = [str(weights / f"{name}.bin"), "--tokenizer", str(weights / "tok512.bin")]
    folder = convert(source, tmp_path / "folder")
    file = convert(source, tmp_path / f"{name}.gguf")
    tasks = tmp_path / "tasks"
    write_tasks(tasks, shared / "eval")
    # Of a long question `hf` keeps max_length + 1 tokens, `local-completions` one less than
    # max_length, for the token that it has generated.
    arguments = {"pretrained": folder, "dtype": "float32", "max_length": CONTEXT - 2}
    expected = lm_eval("hf", arguments, tasks, tmp_path / "transformers")
    assert len(expected.answers) > 3 * QUESTIONS * 3
    for served in (file, folder):
        with puna_serve(str(served), log=tmp_path / "log") as server:
            arguments = {
                "base_url": f"{server.url}/v1/completions",
                "model": server.client().models.list().data[0].id,
                "tokenizer_backend": "huggingface",
                "tokenizer": folder,
                "add_bos_token": True,
                "max_length": CONTEXT,
                "num_concurrent": 4,
            }
            found = lm_eval("local-completions", arguments, tasks, tmp_path / f"{served.name}-out")
        assert found.answers.keys() == expected.answers.keys()
        differences = [
            abs(logprob - expected.answers[key][0]) for key, (logprob, _) in found.answers.items()
        ]
        print(f"{name} from {served.name}: {len(differences)} answers, scores {found.scores},")
        print(f"  transformers {expected.scores}, largest difference {max(differences):.2e}")
        assert max(differences) < TOLERANCE
        assert found.scores == expected.scores
        assert [greedy for _, greedy in found.answers.values()] == [
            expected.answers[key][1] for key in found.answers
        ]
