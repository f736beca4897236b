"""The leaderboard's tasks, asked of Puna and, by lm-eval alone, of transformers."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from puna import cli
from puna.engine.llm import LLM
from puna.evaluate.harness.answers import Answers
from puna.evaluate.harness.loading import load
from puna.evaluate.harness.model import BOS, EOS, PunaLM
from puna.evaluate.harness.running import Settings, run, spread
from puna.evaluate.harness.scoring import result_of
from puna.evaluate.results import Sample, Score, read_results, read_samples
from puna.evaluate.tasks.table import TASKS
from puna.hub.locate import shipped_path
from tests.evaluate.lm_eval_hf import (
    asked_of_transformers,
    differences,
    transformers_of,
    write_both,
)
from tests.evaluate.questions import write_benchmarks

LEADERBOARD = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in float32: `hf/`, `f32.gguf`; `data/` the benchmarks."""
    path = tmp_path_factory.mktemp("harness")
    write_both(shipped_path("cria"), path)
    write_benchmarks(path / "data")
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder / "f32.gguf")


@pytest.fixture(scope="module")
def transformers(folder: Path) -> HFLM:
    return transformers_of(folder)


def settings_of(folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {"model": "cria", "suite": "leaderboard", "tasks": LEADERBOARD}
    return Settings(**{**values, "data": str(folder / "data"), **changes})


def watch(title: str, count: int) -> Any:
    return nullcontext(lambda: None)


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("hf", {}),
        ("f32.gguf", {"chat": True, "questions": 2}),
        ("f32.gguf", {"shared_shots": True, "tasks": LEADERBOARD[:2]}),
    ],
    ids=["the folder", "dialogs and GGUF", "shared shots and GGUF"],
)
def test_likelihoods_and_accuracies_are_those_of_transformers(
    folder: Path, llm: LLM, transformers: HFLM, tmp_path: Path, source: str, changes: Any
) -> None:
    settings = settings_of(folder, **{"questions": 3, "shots": 3, **changes})
    model = llm if source == "f32.gguf" else LLM(folder / source)
    results = run(settings, model, tmp_path, watch)
    for name, result in zip(settings.tasks, results.tasks, strict=True):
        theirs = asked_of_transformers(transformers, name, settings)
        ours = list(read_samples(tmp_path, name))
        assert max(differences(ours, theirs, result.metric)) < 1e-4
        mean = np.mean([sample.metrics[result.metric] for sample in ours])
        assert result.score.value == pytest.approx(mean, rel=1e-12)
    assert read_results(tmp_path) == results


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]  # type: ignore[arg-type]


def test_rolling_likelihoods_and_texts_are_those_of_transformers(
    llm: LLM, transformers: HFLM
) -> None:
    ours = PunaLM(llm)
    story = "Once upon a time there was a llama. It lived on the high grassland, "
    texts = asked("loglikelihood_rolling", (story,), (story * 40,))
    expected = transformers.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-5)
    options = {"until": [".", "\n"], "max_gen_toks": 24, "do_sample": False}
    prompts = asked("generate_until", (story, options), ("One day", options | {"until": []}))
    written = ours.generate_until(prompts)
    assert written == transformers.generate_until(prompts, disable_tqdm=True)
    assert "." not in written[0] and len(written[1]) > 20
    alone = asked("loglikelihood", ("", "The llama"), ("The llama ", "sang"))
    for mine, theirs in zip(
        ours.loglikelihood(alone, disable_tqdm=True),
        transformers.loglikelihood(alone, disable_tqdm=True),
        strict=True,
    ):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_dialogs_are_rendered_as_transformers_renders_them(llm: LLM, transformers: HFLM) -> None:
    turns = [("system", "Be short. "), ("user", "Hello! "), ("assistant", " Hi."), ("user", "Bye")]
    dialog = [{"role": role, "content": content} for role, content in turns]
    ours = PunaLM(llm)
    for messages, waits in ((dialog, True), (dialog[:3], False)):
        mine = ours.apply_chat_template(messages, waits)
        theirs = transformers.apply_chat_template(messages, waits)
        assert mine.replace(BOS, "<s>").replace(EOS, "</s>") == theirs
        assert ours.tok_encode(mine) == transformers.tok_encode(theirs)
    assert llm.tokenizer.bos_id not in ours.tok_encode("a <s> b", add_special_tokens=False)


def test_a_prompt_is_cut_where_it_does_not_fit_with_what_follows(llm: LLM) -> None:
    context, ending = "A llama lives in", " the high hills"
    whole, alone = (len(PunaLM(llm).tok_encode(text)) for text in (context + ending, context))
    assert alone < whole - 2
    # The last token of an ending is not run.
    for room, is_cut in ((whole - 1, False), (whole - 2, True), (alone, True), (alone - 1, True)):
        assert PunaLM(llm, max_length=room).is_cut(context, ending) is is_cut
    options = {"until": [], "max_gen_toks": 20}
    assert not PunaLM(llm, max_length=alone + 20).is_cut(context, options)
    assert PunaLM(llm, max_length=alone + 19).is_cut(context, options)


def test_the_note_counts_the_questions_that_are_cut(folder: Path, llm: LLM, tmp_path: Path) -> None:
    settings = settings_of(folder, tasks=("hellaswag",), shots=0)
    (part,) = load(
        TASKS["hellaswag"], folder / "data", shots=0, seed=1, shared_shots=False
    ).values()  # fmt: skip

    def count(text: str) -> int:
        return len(PunaLM(llm).tok_encode(text))

    docs = part.task_docs
    room = max(count(doc["query"]) for doc in docs)  # no context is too long, but with its ending
    longest = [max(count(f"{doc['query']} {ending}") for ending in doc["choices"]) for doc in docs]
    cut = sum(length > room + 1 for length in longest)
    assert 0 < cut < len(docs)
    (result,) = run(dataclasses.replace(settings, max_length=room), llm, tmp_path, watch).tasks
    assert any(f"The prompts of {cut} of 13 questions" in note for note in result.notes)


def test_an_ending_without_characters_is_not_chosen(
    folder: Path, llm: LLM, transformers: HFLM, tmp_path: Path
) -> None:
    data = tmp_path / "data/hellaswag"
    data.mkdir(parents=True)
    rows = (folder / "data/hellaswag/validation.jsonl").read_text().splitlines()[:3]
    endings = ["", "walks in the hills.", "walks by the river.", "sleeps."]
    rows[1:] = [json.dumps(json.loads(row) | {"endings": endings}) for row in rows[1:]]
    (data / "validation.jsonl").write_text("\n".join(rows))
    settings = settings_of(folder, data=str(data.parent), tasks=("hellaswag",), shots=1)
    run(settings, llm, tmp_path / "out", watch)
    ours = list(read_samples(tmp_path / "out", "hellaswag"))
    theirs = asked_of_transformers(transformers, "hellaswag", settings)
    assert max(differences(ours, theirs, "acc_norm")) < 1e-4
    for sample in ours:
        assert sample.given and (sample.given == sample.answer) == sample.metrics["acc_norm"]


def test_drawn_texts_follow_the_seed(llm: LLM) -> None:
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    prompts = asked("generate_until", ("One day", options), ("One day", options))
    first, second = (PunaLM(llm, seed=seed).generate_until(prompts) for seed in (1, 2))
    assert first[0] != first[1] and first != second
    assert PunaLM(llm, seed=1).generate_until(prompts) == first
    with pytest.raises(ValueError, match="does not generate with num_beams"):
        PunaLM(llm).generate_until(asked("generate_until", ("a", {"until": [], "num_beams": 2})))


class Interrupter:
    """Counts what is asked, and stops after so many answers."""

    def __init__(self, after: int = 10**9) -> None:
        self.left, self.asked = after, 0

    @contextmanager
    def __call__(self, title: str, count: int) -> Iterator[Callable[[], None]]:
        self.asked += count

        def answered() -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        yield answered


def test_an_interrupted_run_goes_on(folder: Path, llm: LLM, tmp_path: Path) -> None:
    settings = settings_of(folder, tasks=("truthfulqa_mc2", "hellaswag"), shots=1)
    whole = Interrupter()
    expected = run(settings, llm, tmp_path / "whole", whole)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(settings, llm, out, Interrupter(after=5))
    with (out / "answers.jsonl").open("a") as file:
        file.write('["0123456789", [-1.')  # killed while it wrote
    rest = Interrupter()
    results = run(settings, llm, out, rest)
    assert rest.asked == whole.asked - 5
    assert results.tasks == expected.tasks
    for name in settings.tasks:
        assert list(read_samples(out, name)) == list(read_samples(tmp_path / "whole", name))
    again = Interrupter()
    assert run(settings, llm, out, again).tasks == expected.tasks and again.asked == 0
    with pytest.raises(ValueError, match=r"other settings \(shots\); choose another --out"):
        run(dataclasses.replace(settings, shots=2), llm, out, watch)
    with Answers(out / "answers.jsonl"), pytest.raises(ValueError, match="another process"):
        run(settings, llm, out, watch)


def test_what_is_asked_several_times_has_several_answers(tmp_path: Path) -> None:
    with Answers(tmp_path / "answers.jsonl") as answers:
        answers.add_partial("generate_until", ("a", {}), "first")
        answers.add_partial("generate_until", ("a", {}), "second")
    with Answers(tmp_path / "answers.jsonl") as answers:
        many = [("a", {}), ("b", {}), ("a", {}), ("a", {})]
        assert answers.find("generate_until", many) == ["first", None, "second", None]
        assert len(answers) == 2
    (tmp_path / "answers.jsonl").write_text("[1, 2]\n{\n")
    with pytest.raises(ValueError, match="line 2 is damaged"), Answers(answers.path):
        pass


def test_the_questions_own_shots_leave_it_out(folder: Path) -> None:
    (part,) = load(
        TASKS["hellaswag"], folder / "data", shots=12, seed=1, shared_shots=False
    ).values()  # fmt: skip
    for doc in part.task_docs:  # 13 questions: all others are its shots
        context = part.fewshot_context(doc, 12)
        assert context.count("Walking") == 13
        assert context.count(f"Walking {doc['ind']}:") == 1
        assert context.endswith(doc["query"])
        assert re.search(r"\. The (\w+)$", doc["query"])  # with a capital


def test_missing_rows_are_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no"):
        load(TASKS["mmlu"], tmp_path, shots=5, seed=1, shared_shots=False)
    with pytest.raises(ValueError, match=r"did not come from the hub .*; give --data DIR"):
        load(TASKS["arc_challenge"], None, shots=5, seed=1, shared_shots=False)
    for name in ("dev", "test"):
        (tmp_path / "mmlu").mkdir(exist_ok=True)
        lines = (folder / f"data/mmlu/{name}.jsonl").read_text().splitlines(keepends=True)
        kept = lines if name == "dev" else [x for x in lines if '"virology"' not in x]
        (tmp_path / f"mmlu/{name}.jsonl").write_text("".join(kept))
    with pytest.raises(ValueError, match="the files of mmlu_virology have no rows of its split"):
        load(TASKS["mmlu"], tmp_path, shots=5, seed=1, shared_shots=False)


def test_a_sample_is_spread_evenly() -> None:
    sizes = {"a": 2, "b": 50, "c": 50}
    chosen = spread(sizes, 13, seed=1)
    assert {group: len(each) for group, each in chosen.items()} == {"a": 2, "b": 6, "c": 5}
    assert all(each == sorted(set(each)) for each in chosen.values())
    assert spread(sizes, 13, seed=1) == chosen != spread(sizes, 13, seed=2)
    assert {len(each) for each in spread(sizes, 1000, seed=1).values()} == {2, 50}


def test_means_by_group_and_by_question() -> None:
    task = dataclasses.replace(TASKS["mmlu"], parts={"a": "x", "b": "y"})
    samples = [
        Sample(f"{group}/{index}", "", "", "", {"acc": value}, group=group)
        for group, values in (("a", (1.0, 0.0, 0.0, 0.0)), ("b", (1.0, 1.0)))
        for index, value in enumerate(values)
    ]
    result = result_of(task, samples, shots=5, notes=())
    # Variances of the sample: 1/4 in a, 0 in b; of all six 3/10.
    assert result.score == Score(0.625, pytest.approx(0.25 / 2), 6)
    assert result.metrics["acc_by_question"] == Score(0.5, pytest.approx((0.3 / 6) ** 0.5), 6)
    assert result.groups == {"a": Score(0.25, pytest.approx(0.25), 4), "b": Score(1.0, 0.0, 2)}
    assert "unweighted mean of 2 groups" in result.notes[0]
    whole = dataclasses.replace(task, mean_of_groups=False)
    other = result_of(whole, samples, shots=5, notes=())
    assert other.score == result.metrics["acc_by_question"]
    assert other.metrics["acc_by_group"] == result.score


def test_a_group_of_one_question_is_not_certain() -> None:
    task = dataclasses.replace(TASKS["mmlu"], parts={"a": "x", "b": "y"})
    samples = [Sample(g, "", "", "", {"acc": v}, group=g) for g, v in (("a", 1.0), ("b", 0.0))]
    result = result_of(task, samples, shots=5, notes=())
    # The deviation of both is sqrt(1/2), of each group too; of their mean 1/2.
    assert result.groups["a"] == Score(1.0, pytest.approx(0.5**0.5), 1)
    assert result.score == Score(0.5, pytest.approx(0.5), 2)


def test_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def puna(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["puna", "eval", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capsys.readouterr()

    given = ("--model", "cria", "--data", str(folder / "data"), "--out", str(tmp_path / "out"))
    code, out, err = puna(*given, "--task", "arc_challenge", "--limit", "3", "--shots", "1")
    assert code == 0, err
    assert re.fullmatch(r"ARC-Challenge +acc_norm +[\d.]+ ± [\d.]+ +\(1-shot, 3 questions\)\n", out)
    assert "A sample of 3 questions" in err
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["tasks"][0]["task"] == "arc_challenge" and found["suite"] == ""
    code, out, _ = puna(*given, "--task", "arc_challenge", "--limit", "3", "--shots", "1", "--json")
    assert code == 0 and json.loads(out)["tasks"] == found["tasks"]
    for arguments, words in (
        (("--task", "arc"), "no task 'arc'"),
        (("--task", "mmlu", "--suite", "quick"), "exclude each other"),
        (("--task", "arc_challenge"), "other settings"),
    ):
        code, out, err = puna(*given, *arguments)
        assert code == 2 and not out and words in err and len(err.splitlines()) == 1
    nowhere = ("--data", str(tmp_path), "--task", "arc_challenge", "--out", str(tmp_path / "new"))
    code, _, err = puna(*nowhere)
    assert code == 2 and "there is no" in err and not (tmp_path / "new").exists()
    code, _, err = puna("--limit", "3", "compare", "a", "b")
    assert code == 2 and "--limit stands before compare" in err
    with monkeypatch.context() as patch:  # another model lies at the same place
        patch.setattr("puna.commands.producers.weights_fingerprint", lambda checkpoint: "")
        code, _, err = puna(*given, "--task", "arc_challenge", "--limit", "3", "--shots", "1")
    assert code == 2 and "other settings (weights)" in err
    code, out, _ = puna("--task", "list")
    assert code == 0 and re.search(r"^mmlu +5-shot  acc ", out, re.MULTILINE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = puna(*given)
    assert code == 2 and "pip install 'puna[eval]'" in err
