"""The formulas of memory against counting it by the code that trains."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path

import pytest

from puna.config import ModelConfig
from puna.plan.layout import Layout
from puna.plan.memory import RECOMPUTE, activation_bytes, layer_parameters, rank_memory
from tests.parallel.test_memory import count

SHAPES = {
    "wide": ModelConfig(512, 2, 8, 8, 1408, vocab_size=2048, context_length=256),
    "grouped": ModelConfig(256, 2, 8, 2, 768, vocab_size=4096, context_length=512),
    "tied": ModelConfig(256, 2, 8, 8, 768, vocab_size=2048, context_length=256, tied=True),
}
LAYOUTS = ("fsdp=4", "dp=2 fsdp=2 tp=2", "cp=2 fsdp=2")


def check(shape: str, line: str, recompute: str) -> None:
    counted = count(SHAPES[shape], line, recompute, windows=2)
    found = rank_memory(
        SHAPES[shape], Layout.parse(line), micro_batch_size=2, num_pieces=2, recompute=recompute,
        loss_chunk=64,
    )  # fmt: skip
    print(f"{shape}, {line}, {recompute}: {found.peak / counted.peak - 1:+.1%}")
    assert found.peak == pytest.approx(counted.peak, rel=0.05)
    assert found.weights == pytest.approx(counted.weights, rel=0.01)
    assert found.optimizer == pytest.approx(counted.optimizer, rel=0.01)
    assert min(found.gathered, found.activations, found.working) >= 0


@pytest.mark.parametrize(
    ("shape", "line", "recompute"),
    [
        # Each shape in each layout, what is computed anew in turn; `slow` has all of it.
        (shape, line, RECOMPUTE[(row + column) % 3])
        for row, shape in enumerate(SHAPES)
        for column, line in enumerate(LAYOUTS)
    ],
)
def test_the_peak_is_what_training_takes(shape: str, line: str, recompute: str) -> None:
    check(shape, line, recompute)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "line", "recompute"), list(itertools.product(SHAPES, LAYOUTS, RECOMPUTE))
)
def test_the_peak_in_all_combinations(shape: str, line: str, recompute: str) -> None:
    check(shape, line, recompute)


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("line", ["fsdp=4", "fsdp=2 tp=2", "pp=2 fsdp=2"])
def test_the_peak_is_what_processes_log(line: str) -> None:
    """One shape of the benchmark, whose other shapes docs/planning.md has."""
    (row,) = runpy.run_path(str(BENCHMARK))["compare"](["deep"], [line], ["none"])
    print(
        f"{line}: {row.predicted / 1e6:.0f} MB, logged {row.logged / 1e6:.0f} MB, {row.error:+.1%}"
    )
    assert abs(row.error) < 0.05


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_one_more_layer_keeps_what_is_said(recompute: str) -> None:
    """By what the peak grows from 3 to 4 layers: shards of fp32 states, and activations."""
    shapes = [
        ModelConfig(64, layers, 4, 2, 192, vocab_size=128, context_length=256) for layers in (3, 4)
    ]
    few, more = (count(shape, "fsdp=2", recompute, windows=4).peak for shape in shapes)
    states = 16 * layer_parameters(shapes[0]) / 2
    activations = 4 * 256 * activation_bytes(shapes[0], recompute)
    assert more - few == pytest.approx(states + activations, rel=0.002)


@pytest.mark.parametrize("pieces", [4, 2])
def test_the_peak_of_a_pipeline(pieces: int) -> None:
    """That of its first stage, which has most pieces under way; of as many pieces as stages there
    are no whole gradients yet while all of them are."""
    config = ModelConfig(256, 4, 8, 4, 768, vocab_size=1024, context_length=256)
    counted = count(config, "pp=2 fsdp=2", windows=2, pieces=pieces)
    found = rank_memory(
        config, Layout(pp=2, fsdp=2), micro_batch_size=2, num_pieces=pieces, recompute="none",
        loss_chunk=64,
    )  # fmt: skip
    print(f"{pieces} pieces: {found.peak / counted.peak - 1:+.1%}")
    assert found.peak == pytest.approx(counted.peak, rel=0.03)
