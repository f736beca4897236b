"""The chosen layout against all there are, and random requests."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from puna.config import PRESETS, ModelConfig, preset
from puna.plan.compute import Kernels, head_seconds, layer_seconds, product_seconds
from puna.plan.hardware import DEVICES, Cluster, device
from puna.plan.layout import Layout, check_data, check_model, check_pieces
from puna.plan.memory import RECOMPUTE
from puna.plan.search import Choice, Found, Run, evaluate, least_memory, needed, search
from puna.plan.step import drag, talk_seconds
from puna.plan.train import plan_train

SMALL = ModelConfig(512, 8, 8, 4, 1536, vocab_size=8192, context_length=1024)


def exhaustive(run: Run) -> Found | None:
    """The fastest of all numbers there are, that training's own checks let through."""
    count, best = run.kernels.cluster.count, None
    for pp, dp, fsdp, cp, tp in itertools.product(range(1, count + 1), repeat=5):
        layout = Layout(pp=pp, dp=dp, fsdp=fsdp, cp=cp, tp=tp)
        if layout.num_ranks != count:
            continue
        for micro, recompute in itertools.product(range(1, run.batch_size + 1), RECOMPUTE):
            try:
                check_model(layout, run.model)
                check_data(layout, run.batch_size)
                check_pieces(layout, run.batch_size, micro)
            except ValueError:
                continue
            choice = Choice(layout, run.batch_size, micro, recompute)
            memory = needed(run, choice)
            if memory.peak <= run.usable_memory:
                found = evaluate(run, choice, memory)
                if best is None or found.tokens_per_second > best.tokens_per_second:
                    best = found
    return best


@pytest.mark.parametrize(
    ("model", "name", "count", "batch_size"),
    [
        (SMALL, "a100-80g", 1, 8),
        (SMALL, "h100-80g", 8, 16),
        (preset("7b"), "a100-40g", 8, 16),  # memory decides
        (preset("7b"), "rtx-4090", 8, 8),
        (preset("34b"), "h200", 8, 8),
        (preset("70b"), "a100-40g", 8, 8),  # nothing fits
    ],
    ids=lambda value: str(value) if isinstance(value, str | int) else "",
)
def test_the_search_finds_the_fastest_there_is(
    model: ModelConfig, name: str, count: int, batch_size: int
) -> None:
    run = Run(model, Kernels(Cluster(device(name), count)), batch_size)
    best, found = exhaustive(run), search(run)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.tokens_per_second == best.tokens_per_second
    assert found.memory.peak <= run.usable_memory


def test_what_needs_least_needs_least() -> None:
    run = Run(preset("7b"), Kernels(Cluster(device("a100-80g"), 16)), 32)
    least = least_memory(run)
    assert least is not None
    for layout in (Layout(fsdp=16), Layout(tp=8, fsdp=2), Layout(pp=4, fsdp=4), Layout(cp=16)):
        for micro, recompute in ((1, "full"), (2, "none")):
            assert needed(run, Choice(layout, 32, micro, recompute)).peak >= least[1].peak


def rarely(asked: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Else nothing: what is asked for leaves little to choose from, and often nothing fits."""
    return st.integers(0, 4).flatmap(lambda n: asked if n == 4 else st.none())


REQUESTS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(sorted(PRESETS)),
        "context": rarely(st.sampled_from([1000, 32_768])),
        "gpu": st.sampled_from(sorted(DEVICES)),
        "count": st.one_of(st.integers(1, 3000), st.sampled_from([2000, 4096, 16384, 100_000])),
        "batch_size": st.one_of(st.integers(1, 4096), st.sampled_from([1000, 1024, 16384])),
        "tokens": st.floats(1, 1e14),
        "power": rarely(st.sampled_from([50.0, 300.0])),
        "dtype": st.sampled_from(["bf16", "bf16", "bf16", "fp8"]),
        "recompute": rarely(st.sampled_from(RECOMPUTE)),
        "micro": rarely(st.integers(1, 64)),
        "layout": rarely(st.builds(Layout, *[st.sampled_from([1, 2, 3, 8])] * 5)),
    }
)


def a_plan_or_a_refusal(request: dict[str, Any]) -> None:
    """ValueErrors in one line; plans with figures that can be."""
    try:
        model, layout = preset(request["model"]), request["layout"]
        if request["context"]:
            model = dataclasses.replace(model, context_length=request["context"])
        count = layout.num_ranks if layout else request["count"]
        cluster = Cluster(device(request["gpu"]), count, power=request["power"] or 0.0)
        kernels = Kernels(cluster, request["dtype"])
        run = Run(
            model, kernels, request["batch_size"], recompute=request["recompute"], layout=layout,
            micro_batch_size=request["micro"],
        )  # fmt: skip
        plan, found = plan_train(run, request["tokens"])
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) > 20
        return
    assert 0 < plan.mfu < 1 and 0 < plan.gpu_hours < 1e12
    assert found.memory.peak <= run.usable_memory
    check_model(found.choice.layout, run.model)
    check_data(found.choice.layout, found.choice.batch_size)
    check_pieces(found.choice.layout, found.choice.batch_size, found.choice.micro_batch_size)
    assert found.choice.layout.num_ranks == cluster.count


@settings(max_examples=100, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
@given(REQUESTS)
def test_any_request_gives_a_plan_or_a_refusal(request: dict[str, Any]) -> None:
    a_plan_or_a_refusal(request)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_requests() -> None:
    """Prints how long they take of a processor, each with nothing known from those before it."""
    seconds: list[tuple[float, str]] = []

    @settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(REQUESTS)
    def ask(request: dict[str, Any]) -> None:
        for cached in (product_seconds, layer_seconds, head_seconds, talk_seconds, drag):
            cached.cache_clear()
        begun = time.process_time()
        a_plan_or_a_refusal(request)
        seconds.append((time.process_time() - begun, str(request)))

    ask()
    ordered = sorted(seconds)
    for share in (0.5, 0.9, 0.99):
        print(f"{share:.0%} of {len(ordered):,} in {ordered[int(share * len(ordered))][0]:.3f} s")
    print(
        "the longest:", *(f"{spent:.3f} s {request}" for spent, request in ordered[-5:]), sep="\n"
    )
