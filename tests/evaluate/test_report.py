"""The report: its figures are those of the runs, and no text of a data set or model is markup."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from puna.commands.eval_safety import _shown
from puna.evaluate.contamination.check import AtLength, Contamination, TaskContamination
from puna.evaluate.contamination.subsets import Subset
from puna.evaluate.means import interval, mean_of_groups, mean_of_questions
from puna.evaluate.report.collect import as_json, collect
from puna.evaluate.report.files import write_report
from puna.evaluate.report.page import page
from puna.evaluate.report.wording import points, split_samples
from puna.evaluate.results import Score
from puna.evaluate.wilson import wilson
from puna.report.markdown import plain
from tests.data.test_report_page import ALLOWED, HOSTILE, Read
from tests.evaluate.runs import sample, write_run

MMLU = {"title": "MMLU", "shots": 5}
ARC = {"title": "ARC-Challenge", "shots": 25, "metric": "acc_norm", "notes": ("A note.",)}


def run(folder: Path, model: str = "cria", text: str = "Why?", **arc: object) -> Path:
    """ARC of 4 questions, 3 right; MMLU of 2 subjects, 1 of 1 and 1 of 3; TruthfulQA."""
    tasks = {
        "arc_challenge": [
            sample(str(i), value, metric="acc_norm", question=text, given=text, logprobs=[-1] * 4)
            for i, value in enumerate((1.0, 0.0, 1.0, 1.0))
        ],
        "mmlu": [
            sample("0", 1.0, group=f"{text} anatomy"),
            *(sample(str(i), float(i == 0), group="virology") for i in range(3)),
        ],
        "truthfulqa_mc2": [sample(str(i), v, metric="mc2") for i, v in enumerate((0.2, 0.4, 0.9))],
    }
    settings = {"arc_challenge": ARC | arc, "mmlu": MMLU, "truthfulqa_mc2": {"metric": "mc2"}}
    return write_run(folder, tasks, model=model, **settings)


def test_means_by_hand() -> None:
    scores = [Score(1.0, 0.3, 1), Score(0.5, 0.4, 3)]
    assert mean_of_groups(scores) == Score(0.75, pytest.approx(0.25), 4)
    # (1 + 1.5) / 4; errors 0.3 and 1.2 of the sums, 3 * 0.4.
    error = (0.3**2 + 1.2**2) ** 0.5 / 4
    assert mean_of_questions(scores) == Score(0.625, pytest.approx(error), 4)
    none = Score(0.0, 0.0, 0)  # a group of which nothing could be measured
    assert mean_of_groups([*scores, none]) == mean_of_groups(scores)
    assert mean_of_groups([none]) == mean_of_questions([none]) == none
    assert interval(Score(0.5, 0.1, 10)) == pytest.approx((0.304, 0.696), abs=1e-4)
    assert interval(Score(0.01, 0.1, 10))[0] == 0.0


def test_rows(tmp_path: Path) -> None:
    report = collect([run(tmp_path / "a"), run(tmp_path / "b", "cria-chat", shots=0)])
    reading = write_run(tmp_path / "c", {"quac": [sample("0", 0.5)], "boolq": [sample("0", 1.0)]})
    found = {row.benchmark.title: row.cells for row in report.rows}
    first, second = found["ARC-Challenge (25 shots)"]
    assert first is not None and first.score.value == 0.75 and second is None  # of other shots
    assert found["MMLU, mean of subjects (5 shots)"][0].score.value == pytest.approx(2 / 3)
    assert found["MMLU, mean by questions (5 shots)"][0].score.value == 0.5
    assert "Commonsense" not in found  # ARC without shots is a task of its own there
    (row,) = collect([reading]).rows
    assert row.cells[0].score.value == 0.75 and row.cells[0].missing == ("squad",)
    assert [run.name for run in report.runs] == ["cria", "cria-chat"]
    assert report.runs[0].chance == {"arc_challenge": 0.25}
    assert not {"GSM8K", "ToxiGen"} & set(found)


def test_two_runs_of_one_model_are_told_apart(tmp_path: Path) -> None:
    report = collect([run(tmp_path / "a"), run(tmp_path / "b")])
    assert [run.name for run in report.runs] == ["cria (a)", "cria (b)"]


def test_the_page(tmp_path: Path) -> None:
    read = Read(page(collect([run(tmp_path / "a")])))
    cells = read.texts["td"]
    assert "75.0 ± 25.0" in cells and "57.6" in cells and "96.3" in cells
    assert "68.9" in cells and "33.29" in cells  # the paper's, beside none of ours
    assert "26.0 to 100.0" in cells and "25.0" in cells
    assert "66.7 ± 16.7" in cells and "50.0 ± 25.0" in cells
    text = "".join(read.texts["body"])
    assert "mean by questions" in text and "without" not in text and "A note." in text
    assert '"limit": null' in "".join(read.texts["code"])


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_hostile_is_markup(tmp_path: Path, hostile: str) -> None:
    folder = run(tmp_path / "a", hostile, hostile, title=hostile, notes=(hostile,))
    subset = Subset("clean", 1, 0.5, None)
    at = AtLength(10, 0.5, (subset,) * 4, helped=False)
    found = Contamination(
        ("x",), (hostile,), 1, 2, (TaskContamination("a", hostile, "b", 1, (at,)),)
    )
    (folder / "contamination.json").write_text(json.dumps(dataclasses.asdict(found)))
    write_report([folder], folder)
    read = Read((folder / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in read.tags} <= ALLOWED | {"pre"}
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert "src" not in attributes
    text, configuration = (folder / "report.md").read_text(encoding="utf-8").split("```json")
    assert not re.search(r"(?<!\\)<", text)
    assert configuration.count("\n```\n") == 1  # where the block ends
    assert json.loads((folder / "report.json").read_text())["runs"][0]["model"] == hostile


def test_files(tmp_path: Path) -> None:
    folders = [run(tmp_path / "a"), run(tmp_path / "b", "cria-chat")]
    write_report(folders, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "benchmarks.png", "mmlu.png", "report.html", "report.json", "report.md",
    ]  # fmt: skip
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    (arc,) = (b for b in values["benchmarks"] if b["title"] == "ARC-Challenge (25 shots)")
    assert [cell["score"]["value"] for cell in arc["scores"]] == [0.75, 0.75]
    assert arc["reference"]["OpenAI GPT-4"] == pytest.approx(0.963)
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| ARC-Challenge (25 shots) | 75.0 ± 25.0 | 75.0 ± 25.0 | 57.6 |" in text
    assert "![benchmarks](benchmarks.png)" in text and "![mmlu](mmlu.png)" in text


def test_no_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no results\.json"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_samples_right_and_wrong(tmp_path: Path) -> None:
    boolq = [sample(str(i), float(i % 2)) for i in range(20)]
    toxigen = [sample("0", 1.0, metric="toxic"), sample("1", 0.0, metric="toxic")]
    toxigen.append(dataclasses.replace(toxigen[0], id="2", metrics={}))  # not measured
    tasks = {"boolq": boolq, "toxigen": toxigen}
    folder = write_run(tmp_path / "a", tasks, toxigen={"metric": "toxic"})
    (shown,) = collect([folder]).runs
    right, wrong = split_samples(shown, shown.results.tasks[0])
    assert [s.id for s in right] == ["1", "7", "13"] and [s.id for s in wrong] == ["0", "6", "12"]
    right, wrong = split_samples(shown, shown.results.tasks[1])
    assert ([s.id for s in right], [s.id for s in wrong]) == (
        ["1"],
        ["0"],
    )  # of what is toxic, less is right


def test_what_is_no_share(tmp_path: Path) -> None:
    """Sentiment goes from -1 to 1: bars begin there, and figures are not in per cent."""
    samples = [sample(str(i), v, metric="sentiment", group=f"g{i}", question="Once", answer="")
               for i, v in enumerate((-0.5, 0.0))]  # fmt: skip
    folder = write_run(tmp_path / "a", {"bold": samples}, bold={"metric": "sentiment"})
    read = Read(page(collect([folder])))
    assert "-0.25 ± 0.25" in read.texts["td"] and "-0.74 to 0.24" in read.texts["td"]
    widths = [a["width"] for tag, a in read.tags if tag == "rect" and "c0" in (a["class"] or "")]
    assert widths == ["25.000", "50.000"]
    write_report([folder], folder)


def test_what_is_counted_has_wilsons_interval(tmp_path: Path) -> None:
    """The same in the report as in what `puna eval safety` prints."""
    samples = [sample(str(i), 0.0, metric="toxic", group="women") for i in range(4)]
    folder = write_run(tmp_path / "a", {"toxigen": samples}, toxigen={"metric": "toxic"})
    report = collect([folder])
    assert wilson(0, 4) == pytest.approx((0, 0.48989), abs=1e-5)
    assert "0.0 to 49.0" in Read(page(report)).texts["td"]
    ((cell,),) = (row["scores"] for row in as_json(report)["benchmarks"])
    assert cell["interval"] == wilson(0, 4)
    assert _shown(report.runs[0].results).count("0.0%  (0.0% to 49.0%)") == 2
    write_report([folder], folder)


def test_figures_as_printed() -> None:
    assert [points(x / 100) for x in (57.6, 43.0, 6.24, 0.01, 0.0)] == [
        "57.6", "43.0", "6.24", "0.01", "0.0",
    ]  # fmt: skip
    assert plain("a | <b>\n`c` \u202e") == "a \\| \\<b\\> \\`c\\` \ufffd"
