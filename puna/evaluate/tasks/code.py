"""Code, as in the paper's table: programs that must pass their tests, each run in the sandbox.

lm-eval's own metric runs them unprotected, so its two tasks are not taken; prompts and stops are
theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.evaluate.pass_at_k import pass_at_k
from puna.evaluate.sandbox.limits import Limits
from puna.evaluate.sandbox.run import require, run_all
from puna.evaluate.tasks.files import jsonl, splits_of
from puna.evaluate.tasks.task import Row, Splits, Task, one

MBPP_PROMPTS, MBPP_TEST = range(2, 5), range(11, 511)  # by task_id (Austin et al. 2021)


def humaneval_program(doc: Row, answer: str) -> str:
    """The function that a prompt began, then its tests."""
    return f"{doc['prompt']}{answer}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def mbpp_program(doc: Row, answer: str) -> str:
    """An answer, then the tests that its prompt shows."""
    return "\n".join([answer, doc["test_setup_code"], *doc["test_list"], ""])


def scored(program: Callable[[Row, str], str], k: int) -> Callable[[Row, Sequence[Any]], Row]:
    """lm-eval's `process_results`: how likely k of the answers to a problem have a right one."""

    def score(doc: Row, results: Sequence[Any]) -> Row:
        answers = results[0] if isinstance(results[0], list) else results
        programs = [program(doc, answer) for answer in answers]
        outcomes = run_all(programs, Limits(), workers=os.cpu_count() or 1)
        right = sum(outcome.passed for outcome in outcomes)
        return {f"pass@{k}": pass_at_k(len(answers), right, k)}

    return score


def _mbpp(folder: Path) -> Mapping[str, Splits]:
    rows = {row["task_id"]: row for row in jsonl(folder / "mbpp.jsonl")}
    return {
        "puna_mbpp": {
            "prompt": [rows[number] for number in MBPP_PROMPTS],
            "test": [rows[number] for number in MBPP_TEST if number in rows],
        }
    }


def _prompts_of_paper(rows: Any) -> Any:
    """Of the hub's ten rows for prompts, those that are taken; all of the test split."""
    return rows.filter(lambda row: row["task_id"] in MBPP_PROMPTS or row["task_id"] in MBPP_TEST)


def _all_tries(answers: Sequence[Sequence[str]], docs: object) -> list[list[str]]:
    """lm-eval's filter that leaves all answers to a problem, not the first alone."""
    return [list(each) for each in answers]


def _defined(k: int, program: Callable[[Row, str], str], **changes: Any) -> dict[str, Any]:
    """One greedy answer to each problem; for a `k` above 1 as many as that, drawn at random."""
    options: dict[str, Any] = changes.pop("generation_kwargs")
    if k > 1:
        tries = {"name": "tries", "filter": [{"function": "custom", "filter_fn": _all_tries}]}
        changes |= {"repeats": k, "filter_list": [tries]}
        options = options | {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
    return {
        "output_type": "generate_until",
        "test_split": "test",
        "target_delimiter": "",
        "process_results": scored(program, k),
        "metric_list": [{"metric": f"pass@{k}", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": options,
        **changes,
    }


def _humaneval_task(name: str, title: str, k: int) -> Task:
    return Task(
        name=name,
        title=title,
        definitions=None,
        parts=one("puna_humaneval"),
        shots=0,
        metric=f"pass@{k}",
        folder="humaneval",
        rows=splits_of("puna_humaneval", "test"),
        check=require,
        changes=_defined(
            k,
            humaneval_program,
            dataset_path="openai/openai_humaneval",
            doc_to_text="{{prompt}}",
            doc_to_target="{{canonical_solution}}",
            generation_kwargs={
                "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
                "max_gen_toks": 1024,
                "do_sample": False,
            },
        ),
    )


def _mbpp_task(name: str, title: str, k: int) -> Task:
    return Task(
        name=name,
        title=title,
        definitions=None,
        parts=one("puna_mbpp"),
        shots=3,
        metric=f"pass@{k}",
        folder="mbpp",
        rows=_mbpp,
        check=require,
        changes=_defined(
            k,
            mbpp_program,
            dataset_path="google-research-datasets/mbpp",
            dataset_name="full",
            fewshot_split="prompt",
            fewshot_config={"sampler": "first_n"},
            process_docs=_prompts_of_paper,
            doc_to_text="You are an expert Python programmer, and here is your task: {{text}} Your "
            "code should pass these tests:\n\n{{test_list[0]}}\n{{test_list[1]}}\n{{test_list[2]}}"
            "\n[BEGIN]\n",
            doc_to_target="{{code}}\n[DONE]",
            generation_kwargs={"until": ["[DONE]"], "max_gen_toks": 512, "do_sample": False},
        ),
    )


# Those of many tries are of the paper's table 21; they are in no suite.
CODE = (
    _humaneval_task("humaneval", "HumanEval", 1),
    _mbpp_task("mbpp", "MBPP", 1),
    _humaneval_task("humaneval_100", "HumanEval (100 tries)", 100),
    _mbpp_task("mbpp_80", "MBPP (80 tries)", 80),
)
