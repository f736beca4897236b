"""`puna plan serve, simulate, align, fit, compare` as their users meet them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from puna.commands.plan import plan
from puna.config import preset
from puna.plan import machine
from puna.quantize import mixes
from puna.quantize.storage import STORAGE
from tests.plan.test_fit_align_compare import HERE

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`puna plan ARGS` with a calibrated machine: what it prints. ValueError as it raises it."""
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "140")
    machine.save(HERE, tmp_path / "cache")

    def call(*arguments: str | Path) -> str:
        result = CliRunner().invoke(plan, [str(a) for a in arguments])
        if isinstance(result.exception, ValueError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return call


def test_serving_70b(run: Run) -> None:
    asked = ("serve", "--model", "70b", "--gpus", "8", "--format", "int4", "--users", "100")
    said = run(*asked)
    for words in ("4.23 bits a weight", "167.8 MB of keys and values", "first token", "100 users"):
        assert words in said
    found = json.loads(run(*asked, "--json"))
    assert found["kind"] == "serve" and found["ways"] * found["replicas"] == 8
    assert found["wanted"]["each"] > 10


def test_formats_and_contexts_are_a_table(run: Run) -> None:
    asked = ("serve", "-m", "7b", "--gpu", "rtx-4090", "--format", "bf16", "--format", "q4_k_m",
             "--context", "1024", "--context", "4096")  # fmt: skip
    lines = run(*asked).splitlines()
    assert len(lines) == 5 and sum("q4_k_m" in line for line in lines) == 2
    found = json.loads(run(*asked, "--json"))
    assert [row["context"] for row in found["plans"]] == [1024, 4096] * 2
    refused = run("serve", "-m", "70b", "--format", "bf16", "--format", "int4")
    assert "62.0 GB more" in refused


def test_refusals(run: Run) -> None:
    with pytest.raises(ValueError, match="--format int8 fits"):
        run("serve", "-m", "70b")
    with pytest.raises(ValueError, match="no device 'abacus'"):
        run("serve", "--gpu", "abacus")
    with pytest.raises(ValueError, match="7b"):
        run("serve", "-m", "99b")
    with pytest.raises(ValueError, match="would do"):
        run("simulate", "--gpus", "2")
    with pytest.raises(ValueError, match="no folder"):
        run("simulate", "-m", "7b", "--gpus", "16", "--plot", "/nowhere/at/all.png")
    with pytest.raises(ValueError, match="a share"):
        run("simulate", "-m", "7b", "--gpus", "64", "--spread", "-1")
    with pytest.raises(ValueError, match="use 20 or more"):
        run("align", "--gpus", "16")
    with pytest.raises(ValueError, match="no preset '99b'"):
        run("fit", "-m", "99b")


def test_this_machine_serves_and_fits(run: Run) -> None:
    found = json.loads(run("serve", "-m", "1b", "--gpu", "this", "--format", "q4_0", "--json"))
    assert found["device"] == "this" and found["alone"]["each"] > 1
    rows = json.loads(run("fit", "-m", "tiny", "-m", "70b", "--json"))["devices"]
    here = next(row for row in rows if row["device"] == "this")
    fits = {(line["model"], line["format"]) for line in here["fits"]}
    assert ("tiny", "q8_0") in fits and ("70b", None) in fits
    assert "A CPU" in run("fit", "-m", "tiny")
    (named,) = json.loads(run("fit", "-m", "tiny", "-m", "70b", "--gpu", "this", "--json"))[
        "devices"
    ]
    assert named == here


def test_mixes_fit_as_quantize_stores_them(run: Run) -> None:
    asked = ("fit", "-m", "7b", "--gpu", "epyc-9654", "--format", "q4_k_m", "--format", "q8_0")
    (found,) = json.loads(run(*asked, "--json"))["devices"]
    config = preset("7b")
    for line in found["fits"]:
        types = mixes.storage_types(config, line["format"])[0]
        shapes = config.tensor_shapes().items()
        sizes = [STORAGE[types.get(name, "f32")].num_bytes(shape) for name, shape in shapes]
        assert line["weight_bytes"] == sum(sizes)
    assert "q4_k_m" in run(*asked)
    with pytest.raises(ValueError, match=r"no format .q4_k_xl.; there are: .*q4_k_m"):
        run("fit", "-m", "7b", "--gpu", "epyc-9654", "--format", "q4_k_xl")


def test_a_run_is_played_and_drawn(run: Run, tmp_path: Path) -> None:
    asked = ("simulate", "-m", "7b", "--gpus", "16", "--tokens", "100B", "--runs", "20")
    assert "goodput" in run(*asked)
    picture = tmp_path / "scaling.png"
    found = json.loads(run(*asked, "--plot", picture, "--json"))
    assert [point["devices"] for point in found["scaling"]] == [8, 16, 32, 64]
    assert picture.exists()
    assert found == json.loads(run(*asked, "--plot", picture, "--json"))


def test_a_narrow_terminal_shows_all_stages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = run("align", "--gpus", "64")
    assert "rejection-sampling" in said and "GPU-hours" in said and "…" not in said


def test_three_plans_fit_a_narrow_terminal(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for gpu in ("a100-80g", "h100-80g", "b200"):
        (tmp_path / gpu).write_text(run("serve", "-m", "7b", "--gpu", gpu, "--json"))
    files = [tmp_path / gpu for gpu in ("a100-80g", "h100-80g", "b200")]
    lines = run("compare", *files).splitlines()
    (free,) = (line for line in lines if line.startswith("free bytes"))
    assert " ".join(free.split()) == "free bytes 63.8 GB 63.8 GB (1.00x) 160.5 GB (2.51x)"


def test_alignment_and_plans_side_by_side(run: Run, tmp_path: Path) -> None:
    said = run("align", "-m", "7b", "--gpus", "8", "--stage", "ppo", "--stage", "sft")
    assert "ppo" in said and "reward" not in said
    for name, gpu in (("a", "a100-80g"), ("b", "h100-80g")):
        plan_text = run("align", "-m", "7b", "--gpus", "8", "--gpu", gpu, "--json")
        (tmp_path / f"{name}.json").write_text(plan_text)
    files = tmp_path / "a.json", tmp_path / "b.json"
    said = run("compare", *files)
    assert "stages ppo parts" in said and "generation" in said
    assert "b: AWS capacity blocks" in said  # words stand below the table
    lines = {line["field"]: line for line in json.loads(run("compare", *files, "--json"))["lines"]}
    assert lines["tokens_per_second"]["ratios"][1] > 1.5
    assert run("compare", files[0], files[0]) == "the plans are the same\n"
