"""`puna data` as a person uses it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from puna.cli import puna
from puna.data.pipeline.config import config_from_dict, read_config
from puna.data.pipeline.plan import keep_plan, make_plan
from tests.data.corpus import prose

SOURCE = '[[source]]\nname = "a"\nlicence = "MIT"\npath = "a.txt"\nseparator = "<>"\n'


def run(*arguments: object) -> str:
    result = CliRunner().invoke(puna, ["data", *map(str, arguments)], catch_exceptions=False)
    return result.output


def test_build_and_report(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{prose(1)}\n<>\n{prose(2)}\n<>\n{prose(1)}\n")
    (tmp_path / "corpus.toml").write_text(SOURCE)
    out = tmp_path / "out"
    printed = run("build", tmp_path / "corpus.toml", "--out", out)
    assert "1 dropped: exact duplicate" in printed
    assert "tokenize: done" in printed  # no terminal: a line a phase
    report = json.loads(run("report", out, "--json").splitlines()[0])
    assert report["complete"] and report["found"]["exact_duplicates"] == 1
    assert report["sources"]["a"]["documents_out"] == 2
    assert (out / "report.md").exists() and (out / "report.html").exists()


def test_a_build_that_is_stopped_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(prose(1))
    (tmp_path / "corpus.toml").write_text(SOURCE)

    def stopped(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("puna.data.pipeline.build.build", stopped)
    printed = CliRunner().invoke(
        puna, ["data", "build", str(tmp_path / "corpus.toml"), "--out", str(tmp_path / "out")]
    )
    assert "stopped; the same command goes on" in printed.output and printed.exit_code != 0


def test_a_build_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Too few words.")
    (tmp_path / "corpus.toml").write_text(SOURCE)
    with pytest.raises(ValueError, match=r"no document is left; .*report\.html says why"):
        run("build", tmp_path / "corpus.toml", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_unfinished_build_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1))
    (tmp_path / "corpus.toml").write_text(SOURCE)
    keep_plan(make_plan(read_config(tmp_path / "corpus.toml")), tmp_path)
    assert "not finished; give the same puna data build again" in run("report", tmp_path)


def test_a_new_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    run("new", path)
    config = read_config(path)
    plain = {"name": "books", "licence": "x", "path": ["y"]}
    defaults = config_from_dict({"source": [plain]}).settings["books"]
    changed = {
        step for step, values in config.settings["books"].items() if values != defaults[step]
    }
    assert changed == {"c4", "gopher"}  # as its comment says
    assert config.run.workers == 2
    with pytest.raises(ValueError, match="exists already"):
        run("new", path)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="holds no build"):
        run("report", tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "datatrove" else found(name)
    )
    with pytest.raises(ValueError, match=r"puna data needs datatrove: pip install 'puna\[data\]'"):
        run("report", tmp_path)
