"""Every layout of training against one process: losses, norms, gradients, in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.config import ModelConfig, preset
from puna.parallel.layout import (
    Layout,
    check_data,
    check_model,
    check_pieces,
    check_ranks,
    resolved,
    usual_micro_batch,
)
from tests.parallel.layouts import CLIP, alone

ROOT = Path(__file__).parents[2]

# What is quick enough for every day: each kind, and products in which it stands beside another.
QUICK: list[dict[str, Any]] = [
    {"layout": "dp=2 fsdp=2", "documents": True},
    {"layout": "fsdp=2 tp=2", "tied": True},
    {"layout": "cp=2 pp=2", "documents": True, "loss_chunk": 7},
    {"layout": "tp=2 pp=2", "loss_chunk": 5},
    {"layout": "fsdp=2 cp=2", "recompute": "selective"},
]
PAIRS = [f"{a}=2 {b}=2" for a, b in (
    ("dp", "fsdp"), ("dp", "tp"), ("dp", "cp"), ("dp", "pp"), ("fsdp", "tp"), ("fsdp", "cp"),
    ("fsdp", "pp"), ("tp", "cp"), ("tp", "pp"), ("cp", "pp"),
)]  # fmt: skip
ALL: list[dict[str, Any]] = [
    *({"layout": f"{kind}=4"} for kind in ("dp", "fsdp", "tp", "cp", "pp")),
    *({"layout": pair} for pair in PAIRS),
    *({"layout": pair, "documents": True, "loss_chunk": 5} for pair in PAIRS),
    *({"layout": pair, "recompute": "full"} for pair in PAIRS),
    *({"layout": pair, "recompute": "selective"} for pair in PAIRS),
    *({"layout": pair, "tied": True} for pair in PAIRS if "pp" not in pair),
]


def together(file: Path, cases: list[dict[str, Any]], timeout: int) -> Any:
    """What four processes found, by case and name."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4",
            "-m", "tests.parallel.layouts", str(file), json.dumps(cases),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return np.load(file)


def compare(file: Path, cases: list[dict[str, Any]], bound: float, timeout: int) -> float:
    """The largest difference from one process; every one is below `bound`."""
    cases = [case | {"name": str(number)} for number, case in enumerate(cases)]
    found = together(file, cases, timeout)
    expected: dict[str, dict[str, Any]] = {}
    largest = 0.0
    for case in cases:
        kind = json.dumps([case.get("tied"), case.get("documents"), case.get("float8")])
        if kind not in expected:
            expected[kind] = alone(case)
        names = {
            name.partition("/")[2] for name in found.files if name.startswith(case["name"] + "/")
        }
        assert names == set(expected[kind])
        for name, value in expected[kind].items():
            difference = np.abs(found[f"{case['name']}/{name}"] - value)
            # A held-out sum is over a hundred tokens.
            difference = np.max(difference) / (100 if name == "held_out" else 1)
            assert difference < bound, (case, name, difference)
            largest = max(largest, float(difference))
    losses = next(iter(expected.values()))["loss"]
    assert len(losses) == cases[0]["steps"] and losses[0] > 4.1
    norms = next(iter(expected.values()))["norm"]
    assert min(norms) < CLIP < max(norms)  # some gradients were clipped, some were not
    return largest


def test_layouts_give_the_losses_and_gradients_of_one_process(tmp_path: Path) -> None:
    cases = [case | {"dtype": "fp64", "steps": 4} for case in QUICK]
    compare(tmp_path / "found.npz", cases, 1e-9, timeout=250)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("dtype", "bound"), [("fp64", 1e-9), ("fp32", 1e-3)])
def test_all_layouts_for_20_steps(tmp_path: Path, dtype: str, bound: float) -> None:
    cases = [case | {"dtype": dtype, "steps": 20} for case in ALL]
    largest = compare(tmp_path / "found.npz", cases, bound, timeout=2300)
    print(f"\n{len(cases)} layouts, {dtype}: largest difference {largest:.2g}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_blocks_in_layouts(tmp_path: Path) -> None:
    kinds = [{"layout": pair} for pair in ("fsdp=2 tp=2", "tp=2 pp=2", "fsdp=2 cp=2")]
    cases = [case | {"dtype": "fp32", "steps": 4, "compile": True} for case in kinds]
    compare(tmp_path / "found.npz", cases, 1e-3, timeout=1100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_float8_in_layouts(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="float8 is torchao's")
    cases: list[dict[str, Any]] = [
        {"layout": pair, "dtype": "fp32", "steps": 4, "float8": "emulated"}
        for pair in ("dp=2 fsdp=2", "fsdp=2 pp=2")
    ]
    compare(tmp_path / "found.npz", cases, 1e-3, timeout=500)


def test_a_line_is_a_layout() -> None:
    assert Layout.parse("dp=2 fsdp=4, tp=2 pp=2 cp=3") == Layout(2, 2, 4, 3, 2)
    assert Layout.parse("").num_ranks == 1
    layout = Layout.parse("fsdp=2 tp=2 dp=3")
    assert (layout.num_ranks, layout.num_data_ranks) == (12, 6)
    assert Layout.parse(str(layout)) == layout
    for line, message in (
        ("ddp=2", "no kind 'ddp'; there are dp, fsdp, tp, cp and pp"),
        ("tp", "tp must be a number of ranks, not ''"),
        ("tp=0", "not '0'"),
        ("tp=-2", "not '-2'"),
        ("tp=two", "not 'two'"),
        ("tp=2 tp=2", "tp is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            Layout.parse(line)


def test_what_does_not_divide_is_refused_with_its_reason() -> None:
    config = ModelConfig(32, 4, 8, 4, 48, vocab_size=64, context_length=32)
    check_model(Layout.parse("pp=4 cp=4 tp=4"), config)
    other = ModelConfig(48, 4, 8, 8, 44, vocab_size=60, context_length=24)
    for shape, line, message in (
        (config, "tp=8", "4 key/value heads do not divide by tp=8"),
        (config, "tp=3", "8 heads do not divide by tp=3"),
        (other, "tp=8", "44 feed-forward columns do not divide by tp=8"),
        (config, "pp=3", "4 layers do not divide by pp=3"),
        (config, "cp=3", "32 positions of a window do not divide by cp=3"),
        (config, "cp=16 tp=4", "the 2 positions of a context rank do not divide by tp=4"),
        (preset("tiny"), "pp=2", "this model ties them: leave out pp"),
    ):
        with pytest.raises(ValueError, match=message):
            check_model(Layout.parse(line), shape)
    with pytest.raises(ValueError, match="'tp=2' is for 2 processes, and there are 3"):
        check_ranks(Layout.parse("tp=2"), 3)
    with pytest.raises(ValueError, match="8 windows are no multiple of micro_batch_size 3"):
        check_pieces(Layout.parse("fsdp=2"), 16, 3)
    with pytest.raises(
        ValueError, match=r"pp=4 stages needs as many pieces .* in pieces of 4 are only 2"
    ):
        check_pieces(Layout.parse("pp=4 fsdp=2"), 16, 4)


def test_the_70b_batch_divides_over_2000_ranks_only_as_1000_windows() -> None:
    layout = Layout.parse("dp=2 fsdp=125 tp=8")
    assert layout.num_ranks == 2000
    check_model(layout, preset("70b"))
    check_data(layout, 1000)
    check_pieces(layout, 1000, usual_micro_batch(layout, 1000))
    with pytest.raises(
        ValueError, match=r"1024 windows .* 250 .*\(dp=2 x fsdp=125\); 1000 or 1250"
    ):
        check_data(layout, 1024)
    assert usual_micro_batch(Layout.parse("pp=4"), 14) == 2  # 3 would not divide


def test_a_star_takes_the_ranks_that_are_left() -> None:
    assert resolved("fsdp=* tp=2", 8) == "fsdp=4 tp=2"
    assert resolved("tp=2, dp=*", 2) == "tp=2 dp=1"
    assert resolved("fsdp=2 tp=2", 8) == "fsdp=2 tp=2"  # as it is: `check_ranks` is to refuse it
    for line, num_ranks, message in (
        ("fsdp=* tp=2", 5, r"'fsdp=\* tp=2' is for a multiple of 2 processes, and there are 5"),
        ("fsdp=* tp=4", 2, "multiple of 4 processes, and there are 2"),
        ("fsdp=* dp=*", 4, r"only one kind can be \*, not fsdp=\* and dp=\*"),
        ("fsdp=* tp=two", 4, "tp must be a number"),
        ("ddp=*", 4, "no kind 'ddp'"),
        ("tp=* tp=2", 4, "tp is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            check_ranks(Layout.parse(resolved(line, num_ranks)), num_ranks)
    # A run that is cut otherwise has smaller pieces, where a rank's share of a batch is smaller.
    assert usual_micro_batch(Layout.parse("fsdp=4"), 16, at_most=8) == 4
    assert usual_micro_batch(Layout.parse("fsdp=2"), 16, at_most=3) == 2
