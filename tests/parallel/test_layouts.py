"""Every layout of training against one process: losses, norms, gradients, in real processes."""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from puna.config import ModelConfig, preset
from puna.parallel.place import first_to_say
from puna.plan.layout import (
    Layout,
    check_data,
    check_model,
    check_pieces,
    check_ranks,
    resolved,
    usual_micro_batch,
)
from tests.parallel.conftest import Report
from tests.parallel.layouts import CLIP, Case, alone, as_one_rank, together
from tests.parallel.pool import Pool

KINDS = ("dp", "fsdp", "tp", "cp", "pp")
FOURS = [f"{kind}=4" for kind in KINDS]
PAIRS = [" ".join(f"{kind}=2" for kind in pair) for pair in itertools.combinations(KINDS, 2)]
TRIPLES = [" ".join(f"{kind}=2" for kind in three) for three in itertools.combinations(KINDS, 3)]

# What is quick enough for every day: each kind, and products in which it stands beside another.
QUICK: list[Case] = [
    {"layout": "dp=2 fsdp=2", "documents": True, "uneven": True},
    {"layout": "fsdp=2 tp=2", "tied": True},
    {"layout": "fsdp=2 cp=2", "recompute": "selective", "documents": True},
    {"layout": "cp=2 pp=2", "documents": True, "loss_chunk": 7, "schedule": "gpipe"},
    {"layout": "tp=2 pp=2", "loss_chunk": 5},
    {"layout": "dp=2 pp=2", "schedule": "interleaved", "uneven": True, "recompute": "full"},
]
ALL: list[Case] = [
    *(Case(layout=line) for line in FOURS + PAIRS),
    *(Case(layout=pair, documents=True, loss_chunk=5, recompute="full") for pair in PAIRS),
    *(Case(layout=pair, uneven=True, recompute="selective") for pair in PAIRS),
    *(Case(layout=line, tied=True) for line in FOURS + PAIRS if "pp" not in line),
    *(
        Case(layout=line, schedule=schedule, documents=True)
        for schedule in ("gpipe", "interleaved")
        for line in ["pp=4", *PAIRS]
        if line != "pp=4" or schedule == "gpipe"  # 8 stages of 4 layers there are not
        if "pp" in line
    ),
]
COMPILED: list[Case] = [
    {"layout": "fsdp=2 tp=2"},
    {"layout": "tp=2 pp=2"},
    {"layout": "fsdp=2 cp=2", "recompute": "selective"},
    {"layout": "dp=2 cp=2", "recompute": "full", "documents": True},
    {"layout": "fsdp=2 cp=2", "float8": "emulated"},
]
PLAIN: list[Case] = [Case(layout=line) for line in FOURS + PAIRS]


@functools.cache
def expected(case: str) -> dict[str, Any]:
    known: Case = json.loads(case)
    return as_one_rank(known) if known["dtype"] == "bf16" else alone(known)


def differences(pool: Pool, case: Case, timeout: float) -> Counter[str]:
    """The largest difference from one process: of losses, norms, gradients, the held-out loss."""
    found = pool.run(together, case, timeout=timeout)[0]
    kinds = ("tied", "documents", "uneven", "float8", "dtype", "steps")
    known: Any = case
    one = expected(json.dumps({key: known[key] for key in kinds if key in case}))
    assert set(found) == set(one)
    assert len(one["loss"]) == case["steps"] and one["loss"][0] > 4.1
    # Some gradients were clipped, some were not; over fewer tokens they are all larger.
    assert min(one["norm"]) < CLIP * (2 if case.get("uneven") else 1)
    assert max(one["norm"]) > CLIP
    largest: Counter[str] = Counter()
    for name, value in one.items():
        difference = float(np.max(np.abs(np.subtract(found[name], value))))
        assert np.isfinite(difference), (case, name)
        kind = name if name in ("loss", "norm", "held_out") else "gradient"
        largest[kind] = max(largest[kind], difference)
    return largest


def name_of(case: Case) -> str:
    known: Any = case
    return "-".join(str(known[key]) if key == "layout" else key for key in case)


@pytest.mark.parametrize("case", QUICK, ids=name_of)
def test_layouts_give_the_losses_and_gradients_of_one_process(four: Pool, case: Case) -> None:
    found = differences(four, case | Case(dtype="fp64", steps=4), timeout=120)
    assert max(found.values()) < 1e-9, found


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_all_layouts_for_20_steps(four: Pool, case: Case, report: Report) -> None:
    found = differences(four, case | Case(dtype="fp64", steps=20), timeout=250)
    report("20 steps, fp64", found)
    assert max(found.values()) < 1e-9, found


# How far rounding takes a run of 20 steps from one process's, whose sums have another order.
ROUNDED: list[tuple[str, Case, float]] = [
    ("fp32", Case(dtype="fp32"), 1e-3),
    ("bf16", Case(dtype="bf16"), 0.5),
    ("float8, emulated, else fp32", Case(dtype="fp32", float8="emulated"), 0.1),
]


@pytest.mark.slow
@pytest.mark.timeout(900)  # float8 is emulated, with tp by many small collectives
@pytest.mark.parametrize(("kind", "options", "bound"), ROUNDED, ids=[row[0] for row in ROUNDED])
@pytest.mark.parametrize("case", PLAIN, ids=name_of)
def test_rounding_stays_small(
    four: Pool, case: Case, kind: str, options: Case, bound: float, report: Report
) -> None:
    if "float8" in options:
        pytest.importorskip("torchao", reason="float8 is torchao's")
    found = differences(four, case | options | Case(steps=20), timeout=800)
    report(f"20 steps, {kind}", found)
    assert max(found.values()) < bound, found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", COMPILED, ids=name_of)
def test_compiled_blocks_in_layouts(four: Pool, case: Case, report: Report) -> None:
    if "float8" in case:
        pytest.importorskip("torchao", reason="float8 is torchao's")
    found = differences(four, case | Case(dtype="fp32", steps=4, compile=True), timeout=800)
    report("4 steps, fp32, compiled" + ", float8 emulated" * ("float8" in case), found)
    assert max(found.values()) < (0.1 if "float8" in case else 1e-3), found


@pytest.mark.slow
@pytest.mark.parametrize("line", TRIPLES)
def test_products_of_three_on_8_ranks(eight: Pool, line: str, report: Report) -> None:
    case = Case(layout=line, dtype="fp64", steps=4, documents=True, loss_chunk=5)
    found = differences(eight, case, timeout=250)
    report("4 steps, fp64, 8 ranks", found)
    assert max(found.values()) < 1e-9, found


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


def test_an_interleaved_pipeline_has_two_stages_a_rank() -> None:
    config = ModelConfig(32, 4, 8, 4, 48, vocab_size=64, context_length=32)
    check_model(Layout.parse("pp=2"), config, "interleaved")
    check_model(Layout.parse("fsdp=8"), config, "interleaved")  # of no pipeline it says nothing
    with pytest.raises(ValueError, match="4 layers do not divide by the 8 stages of an interlea"):
        check_model(Layout.parse("pp=4"), config, "interleaved")
    with pytest.raises(ValueError, match="6 pieces of a batch do not divide by pp=4"):
        check_pieces(Layout.parse("pp=4"), 12, 2, "interleaved")
    assert usual_micro_batch(Layout.parse("pp=4"), 24) == 6
    assert usual_micro_batch(Layout.parse("pp=4"), 12, "interleaved") == 3
    assert usual_micro_batch(Layout.parse("pp=4"), 14, "interleaved") == 1  # and is refused


def test_several_ranks_say_the_same_once(four: Pool) -> None:
    assert sum(four.run(first_to_say, "the disk is full", timeout=60)) == 1
    assert sum(four.run(first_to_say, "the disk is small", timeout=60)) == 1


def test_a_rank_that_fails_or_hangs_ends_the_others() -> None:
    for function, arguments, words in (
        (math.sqrt, (-1,), "rank . raised"),
        (time.sleep, (600,), r"ranks \[0, 1\] took more than 0.1 s"),
    ):
        with Pool(2) as pool, pytest.raises(AssertionError, match=words):
            pool.run(function, *arguments, timeout=60 if function is math.sqrt else 0.1)
        assert not pool.alive


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
