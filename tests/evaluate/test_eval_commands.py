"""`puna eval report`, `compare` and `contamination`, as they are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from puna.commands.eval import eval_
from puna.commands.eval_safety import _shown
from puna.commands.models import named_vocabulary
from puna.data.shards import ShardWriter
from puna.evaluate.results import read_results
from puna.tokenizer import Tokenizer
from tests.evaluate.runs import sample, write_run

TEXT = "The quick brown fox jumps over the lazy dog while seven llamas watch from the high hill."


def call(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(eval_, [command, *map(str, arguments)])


@pytest.fixture
def a(tmp_path: Path) -> Path:
    samples = [sample(str(i), float(v), question=TEXT) for i, v in enumerate((1, 0, 0, 0, 0))]
    return write_run(tmp_path / "a", {"arc": samples})


@pytest.fixture
def b(tmp_path: Path) -> Path:
    samples = [sample(str(i), float(v), question=TEXT) for i, v in enumerate((0, 1, 1, 1, 0))]
    return write_run(tmp_path / "b", {"arc": samples}, model="[red]other[/red]")


def test_report(a: Path, b: Path, tmp_path: Path) -> None:
    done = call("report", a)
    assert done.exit_code == 0 and (a / "report.html").is_file()
    both = call("report", a, b, "--out", tmp_path / "both", "--json")
    assert [run["model"] for run in json.loads(both.stdout)["runs"]] == ["cria", "[red]other[/red]"]
    assert (tmp_path / "both" / "report.md").is_file() and not (b / "report.md").exists()
    assert "several runs need --out" in str(call("report", a, b).exception)


def test_compare(a: Path, b: Path) -> None:
    done = call("compare", a, b)
    assert done.exit_code == 0
    # 3 of 4 changes are for the better: p = 2 (1 + 4) / 16.
    assert "20.0" in done.stdout and "+40.0" in done.stdout and "3/1" in done.stdout
    assert "0.625" in done.stdout and "B: [red]other[/red]" in done.stdout
    assert "A (0): given 0.0" in done.stdout and "B (0): given 0.0" in done.stdout
    assert "question" not in call("compare", a, b, "--examples", 0).stdout
    (task,) = json.loads(call("compare", a, b, "--json").stdout)["tasks"]
    assert (task["result"]["up"], task["result"]["down"], task["result"]["p"]) == (3, 1, 0.625)


def test_nothing_hostile_reaches_the_terminal(tmp_path: Path) -> None:
    name = "\x1b[2J\r[red]evil\u202e"
    for folder, value in (("a", 0.0), ("b", 1.0)):
        samples = [sample(f"{name}/0", value, group=name), sample("1", 0.0, group="b")]
        write_run(tmp_path / folder, {"toxigen": samples}, model=name, toxigen={"title": name})
    done = call("compare", tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 0 and done.stdout.count("\\x1b[2J\\r[red]evil\\u202e") >= 5
    shown = _shown(read_results(tmp_path / "a"))
    assert "  \\x1b[2J\\r[red]evil\\u202e  " in shown
    for text in (done.output, shown):
        assert all(char.isprintable() or char == "\n" for char in text)


def test_contamination(a: Path, tmp_path: Path) -> None:
    vocabulary = named_vocabulary("cria")
    with ShardWriter(tmp_path / "corpus", vocabulary, source="web", licence="MIT") as writer:
        writer.add(Tokenizer(vocabulary).encode(TEXT))
    without = call("contamination", a, "--corpus", tmp_path / "corpus")
    assert "no tokenizer lies beside" in str(without.exception)
    options = ("--corpus", tmp_path / "corpus", "--tokenizer", "cria")
    done = call("contamination", a, *options)
    assert done.exit_code == 0 and "not dirty" in done.stdout and "10+" in done.stdout
    (task,) = json.loads(call("contamination", a, *options, "--json").stdout)["tasks"]
    assert 0.7 < task["lengths"][0]["share"] < 1 and not task["lengths"][0]["helped"]
    call("report", a)
    assert "Contamination of cria" in (a / "report.html").read_text()
