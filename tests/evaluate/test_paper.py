"""The paper's benchmarks: a model that knows all answers scores 1, one that knows none 0."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lm_eval.api.model import LM

from puna.commands.eval import eval_
from puna.evaluate.harness import running
from puna.evaluate.harness.answers import Answers
from puna.evaluate.harness.model import _follows
from puna.evaluate.harness.running import Settings, load_task, quiet, run_task
from puna.evaluate.reference import BENCHMARKS, PAPER
from puna.evaluate.report.collect import cell_of
from puna.evaluate.results import Results, Score, TaskResult
from puna.evaluate.sandbox.limits import SandboxError
from puna.evaluate.suites import SUITES, present
from puna.evaluate.tasks.table import TASKS
from puna.evaluate.tasks.task import Splits, Task
from tests.evaluate.paper_questions import write_paper

PAPER_TASKS = SUITES["paper"].tasks
ASKED = [name for name in PAPER_TASKS if name != "mmlu"]  # which the leaderboard's tests ask
# What a model that knows the answer writes.
WRITTEN: dict[str, Callable[[Any], str]] = {
    "humaneval": lambda doc: doc["canonical_solution"],
    "mbpp": lambda doc: doc["code"],
    "nq_open": lambda doc: " " + doc["answer"][-1].lower(),
    "triviaqa": lambda doc: " The " + doc["answer"]["aliases"][-1].upper(),
    "squad": lambda doc: " " + (doc["answers"]["text"] or ["Unanswerable"])[0],
    "quac": lambda doc: " " + doc["answers"][-1],
    "gsm8k": lambda doc: f" The answer is {doc['answer'].split('#### ')[1]}.",
    "math": lambda doc: (
        f"Final Answer: The final answer is ${doc['answer']}$. I hope it is correct."
    ),
    "bbh": lambda doc: f"So the answer is {doc['target']}.",
    "agieval": lambda doc: doc["answer"],
}


class Knowing(LM):
    """Answers all questions of a task right, or all wrong."""

    max_length = 4096

    def __init__(self, task: Task, right: bool) -> None:
        super().__init__()
        self.task, self.right = task, right
        self.parts: dict[str, Any] = {}
        self.prompts: list[str] = []

    def is_cut(self, context: str, follows: str | dict[str, Any]) -> bool:
        return False

    def loglikelihood(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        self.prompts += [request.args[0] for request in requests]
        return [
            (-1.0 if (request.idx == self._gold(request)) == self.right else -1000.0, False)
            for request in requests
        ]

    def loglikelihood_rolling(self, requests: list[Any], **options: Any) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        known = WRITTEN[self.task.name]
        return [known(request.doc) if self.right else " (?)" for request in requests]

    def _gold(self, request: Any) -> int:
        part = self.parts[request.task_name]
        gold = (part.doc_to_text if part.multiple_input else part.doc_to_target)(request.doc)
        gold = gold[0] if isinstance(gold, list) else gold
        return gold if isinstance(gold, int) else part.doc_to_choice(request.doc).index(gold)


def watch(title: str, count: int) -> Any:
    return nullcontext(lambda: None)


@pytest.fixture
def asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., tuple[TaskResult, Knowing]]]:
    def ask(
        task: Task, data: Path, right: bool, watch: Any = watch, questions: int = 2
    ) -> tuple[TaskResult, Knowing]:
        try:
            task.check()
        except SandboxError as refusal:
            pytest.skip(str(refusal))
        model = Knowing(task, right)
        load = running.load

        def noted(*arguments: Any, **options: Any) -> Any:
            parts = load(*arguments, **options)
            model.parts = {part.task_name: part for part in parts.values()}
            return parts

        with monkeypatch.context() as patch, Answers(tmp_path / f"{right}.jsonl") as answers:
            patch.setattr(running, "load", noted)
            settings = Settings("", "paper", (task.name,), data=str(data), questions=questions)
            parts = load_task(task, settings)
            _, result = run_task(task, parts, settings, model, answers, watch)  # type: ignore[arg-type]
        return result, model

    with quiet():
        yield ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paper(tmp_path_factory.mktemp("paper"))


@pytest.mark.parametrize("name", ASKED)
def test_right_and_wrong_answers_to_own_questions(asked: Any, folder: Path, name: str) -> None:
    task = TASKS[name]
    for right in (True, False):
        result, _ = asked(task, folder, right)
        assert result.score.value == right, result
        assert result.score.questions == 2 and result.shots == task.shots


@pytest.mark.parametrize("name", [name for name in ASKED if name != "squad"])
def test_real_rows(asked: Any, shared: Path, name: str) -> None:
    """The first rows of each file; the question is not among its own shots."""
    task = TASKS[name]
    real = task.rows(shared / "eval" / task.folder)
    assert real.keys() == task.parts.keys()
    first = dataclasses.replace(task, rows=lambda folder: {k: _few(v) for k, v in real.items()})
    result, model = asked(first, shared / "eval", True)
    assert result.score.value == 1.0, result
    for prompt in model.prompts:
        end = prompt[-60:]
        assert prompt.count(end) == 1


def _few(splits: Splits) -> Splits:
    return {name: rows[:12] for name, rows in splits.items()}


def test_sizes_of_the_local_files(shared: Path) -> None:
    sizes = {"humaneval": 164, "mbpp": 500, "quac": 1000, "triviaqa": 3000, "math": 5000}
    sizes |= {"bbh": 6511, "agieval": 3852, "nq_open": 3610, "boolq": 3270, "gsm8k": 1319}
    for name, size in sizes.items():
        task = TASKS[name]
        parts = task.rows(shared / "eval" / task.folder).values()
        asked = [splits.get("test") or splits["validation"] for splits in parts]
        assert sum(map(len, asked)) == size


def test_columns_are_those_of_the_hub(folder: Path) -> None:
    def first(name: str) -> Any:
        task = TASKS[name]
        splits = next(iter(task.rows(folder / task.folder).values()))
        return (splits.get("test") or splits["validation"])[1]

    assert first("boolq")["label"] == 1
    assert first("triviaqa")["question"] == "What is painted in 1?"
    assert first("triviaqa")["answer"]["aliases"] == ["Onion", "Bulb onion", "BulbOnion"]
    assert first("quac")["answers"] == ["in a day"]
    assert first("math")["solution"] == "It is \\boxed{\\frac{1}{2}}."
    asked = TASKS["agieval"].rows(folder / "agieval")
    row = asked["sat-en"]["test"][2]
    assert row["gold"] == [2] and row["choices"][2] == "(C)blue"
    assert row["query"] == (
        "A text. Q: Which is 2? Answer Choices: (A)red (B)green (C)blue (D)black\n"
        "A: Among A through D, the answer is"
    )
    assert asked["math"]["test"][2] == {"query": "Q: Which is 2?\nA: The answer is", "answer": "2"}


def test_an_answer_after_a_line_break_keeps_its_spaces() -> None:
    assert not _follows("def f():\n", [1]).strip_space
    assert _follows("Answer:", [1]).strip_space


def test_groups_that_are_measured_otherwise(asked: Any, folder: Path) -> None:
    """AGIEval's mathematics is written, and has no `acc_norm`; its other tasks have."""
    result, _ = asked(TASKS["agieval"], folder, True, questions=10)
    assert len(result.groups) == 10 and result.score == Score(1.0, 0.0, 10)
    assert set(result.metrics) == {"acc", "acc_by_question"}


def test_the_scoring_of_written_answers_is_told(asked: Any, folder: Path) -> None:
    """GSM8K's answers are each read in two ways."""
    told: list[str] = []

    @contextmanager
    def watch(title: str, count: int) -> Iterator[Callable[[], None]]:
        told.append(f"{title} {count}")
        yield lambda: told.append("one")
        told.append("end")

    asked(TASKS["gsm8k"], folder, True, watch)
    assert told == ["GSM8K 2", "end", "GSM8K, scored 4", *["one"] * 4, "end"]


def test_shots_of_mbpp_are_its_second_to_fourth(folder: Path) -> None:
    rows = TASKS["mbpp"].rows(folder / "mbpp")["puna_mbpp"]
    assert [row["task_id"] for row in rows["prompt"]] == [2, 3, 4]
    assert [row["task_id"] for row in rows["test"]] == [11, 12]


def test_many_tries_count_by_the_estimator() -> None:
    """Of three tries two are right: one of two draws misses in none of the three pairs."""
    from puna.evaluate.tasks.code import mbpp_program, scored

    doc = {"test_setup_code": "two = 2", "test_list": ["assert f(two) == 4"]}
    right, wrong = "def f(x): return 2 * x", "def f(x): return x"
    try:
        found = [scored(mbpp_program, k)(doc, [[right, wrong, right]]) for k in (1, 2)]
    except SandboxError as refusal:
        pytest.skip(str(refusal))
    assert found == [{"pass@1": pytest.approx(2 / 3)}, {"pass@2": 1.0}]
    assert TASKS["humaneval_100"].changes["repeats"] == 100


def test_rows_of_the_table() -> None:
    tasks = (result("humaneval", 0.1, 0.03, 0), result("mbpp", 0.2, 0.04, 3))
    results = Results("", "paper", {}, (*tasks, result("boolq", 0.5, 0.1, 0)), 1.0)
    rows = {each.title: cell_of(results, each) for each in BENCHMARKS}
    code, reading = rows["Code"], rows["Reading"]
    assert code is not None and reading is not None and rows["World knowledge"] is None
    assert code.missing == () and reading.missing == ("squad", "quac")
    assert code.score.value == pytest.approx(0.15)
    assert code.score.stderr == pytest.approx(0.025)  # sqrt(0.03 ** 2 + 0.04 ** 2) / 2


def result(task: str, value: float, stderr: float, shots: int) -> TaskResult:
    return TaskResult(task, task, shots, "acc", {"acc": Score(value, stderr, 10)})


def test_the_suite_is_what_the_table_has() -> None:
    """Each task with the shots of its row; what is left is asked by `puna eval safety`."""
    parts = [part for each in BENCHMARKS if each.source == PAPER for part in each.parts]
    assert {part.task for part in parts} - set(PAPER_TASKS) == {"truthfulqa_judged", "toxigen"}
    assert len(PAPER_TASKS) == 20
    for part in parts:
        if part.task in TASKS and part.shots is not None:
            assert TASKS[part.task].shots == part.shots


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "mmlu").mkdir()
    there, left_out = present(SUITES["paper"], tmp_path)
    assert there == ("mmlu",) and len(left_out) == len(PAPER_TASKS) - 1
    assert present(SUITES["paper"], None)[1] == ("quac",)
    with pytest.raises(ValueError, match="no folder of any benchmark"):
        present(SUITES["paper"], tmp_path / "other")


def test_the_shipped_model_is_asked(folder: Path, tmp_path: Path) -> None:
    try:
        TASKS["mbpp"].check()
    except SandboxError as refusal:
        pytest.skip(str(refusal))
    names = ("mbpp", "boolq", "nq_open")
    chosen = [word for name in names for word in ("--task", name)]
    done = CliRunner().invoke(
        eval_,
        ["--model", "cria-chat", "--data", str(folder), "--limit", "2", "--json", *chosen,
         "--out", str(tmp_path / "out")],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [task["task"] for task in found["tasks"]] == list(names)
    assert found["table"] == {}


def test_code_is_not_asked_without_a_sandbox(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    out = tmp_path / "out"
    arguments = ["--task", "humaneval", "--data", str(folder), "--out", str(out)]
    done = CliRunner().invoke(eval_, arguments)
    assert isinstance(done.exception, SandboxError) and "darwin" in str(done.exception)
    assert not out.exists()
