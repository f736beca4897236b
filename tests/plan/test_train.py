"""Plans of training runs, against what Llama 2's took; refusals."""

from __future__ import annotations

import dataclasses

import pytest

from puna import catalog
from puna.config import preset
from puna.plan.compute import Kernels
from puna.plan.hardware import Cluster, DoesNotFitError, device
from puna.plan.layout import Layout
from puna.plan.search import Found, Run
from puna.plan.train import TrainPlan, plan_train


def a_run(name: str, gpu: str, count: int, batch_size: int = 1024, power: float = 0.0) -> Run:
    cluster = Cluster(device(gpu), count, power=power)
    return Run(preset(name), Kernels(cluster), batch_size)


def of_the_paper(size: str) -> tuple[TrainPlan, Found]:
    """2T tokens on 2000 A100s, at the power of the paper's table. The number of GPUs is the
    document's for 70B, and *ours* for the others: the paper gives none."""
    known = catalog.find(f"llama-2-{size}")
    assert known is not None and known.power_watts is not None
    return plan_train(a_run(size, "a100-80g", 2000, power=known.power_watts), known.tokens)


def test_hours_days_and_power_of_the_paper() -> None:
    """1,720,320 GPU-hours for 2T tokens through 70B are 323 tokens/s of a GPU, 36 days of 2000."""
    plan = TrainPlan(preset("70b"), 2e12, Cluster(device("a100-80g"), 2000), 322.94)
    assert plan.gpu_hours == pytest.approx(1_720_320, rel=1e-4)
    assert plan.days == pytest.approx(35.84, rel=1e-3)
    assert plan.mfu == pytest.approx(0.46, abs=0.001)
    assert plan.power == 800_000


@pytest.mark.parametrize("size", ["7b", "13b", "34b", "70b"])
def test_gpu_hours_of_llama_2(size: str) -> None:
    known = catalog.find(f"llama-2-{size}")
    assert known is not None
    plan, _ = of_the_paper(size)
    assert plan.gpu_hours == pytest.approx(known.gpu_hours, rel=0.15)


def test_speed_of_70b_on_2000_gpus() -> None:
    plan, found = of_the_paper("70b")
    assert plan.tokens_per_second == pytest.approx(323, rel=0.1)
    assert found.choice.batch_size == 1000  # as the recipe: 1024 do not divide


def test_what_does_not_fit_says_by_how_much_and_what_would() -> None:
    said = (
        r"does not fit 8 x a100-40g: the least is 1\d\d\.\d GB a device \(tp=8, .*\), "
        r"\d+\.\d GB more than the 39\.5 GB .*; 32 of them or 8 x b200 would do"
    )
    with pytest.raises(DoesNotFitError, match=said):
        plan_train(a_run("70b", "a100-40g", 8), 1e9)
    # And they would.
    plan_train(a_run("70b", "a100-40g", 32), 1e9)
    plan_train(a_run("70b", "b200", 8), 1e9)
    with pytest.raises(DoesNotFitError):
        plan_train(a_run("70b", "a100-40g", 16), 1e9)


def test_devices_that_do_not_divide() -> None:
    with pytest.raises(DoesNotFitError, match=r"no layout .* 1,999 x a100-80g.*; 1998 devices"):
        plan_train(a_run("7b", "a100-80g", 1999), 1e9)
    plan_train(a_run("7b", "a100-80g", 1998), 1e9)


def test_a_layout_that_is_asked_for() -> None:
    run = a_run("7b", "a100-80g", 16)
    _, found = plan_train(dataclasses.replace(run, layout=Layout(pp=2, fsdp=8)), 1e9)
    assert found.choice.layout == Layout(pp=2, fsdp=8)
    for layout, said in (
        (Layout(fsdp=8), "layout 'fsdp=8' is for 8 devices, and there are 16"),
        (Layout(pp=16), "32 layers do not divide"),
        (Layout(tp=16), "does not divide|do not divide"),
    ):
        wrong = dataclasses.replace(a_run("34b", "a100-80g", 16), layout=layout)
        with pytest.raises(ValueError, match=said.replace("32 layers", "60 layers")):
            plan_train(wrong, 1e9)


def test_slower_where_less_is_there() -> None:
    """Power, network, compiling: less of each gives fewer tokens."""
    run = a_run("13b", "a100-80g", 256)
    _, best = plan_train(run, 1e9)
    for kernels in (
        Kernels(Cluster(device("a100-80g"), 256, power=250)),
        Kernels(Cluster(device("a100-80g"), 256, network=5)),
        Kernels(Cluster(device("a100-80g"), 256, topology="4:1")),
        Kernels(Cluster(device("a800-80g"), 256)),
        Kernels(Cluster(device("a100-80g"), 256), compiled=False),
    ):
        _, found = plan_train(dataclasses.replace(run, kernels=kernels), 1e9)
        assert found.tokens_per_second < best.tokens_per_second
    with pytest.raises(ValueError, match="does not multiply in fp8"):
        float8 = dataclasses.replace(run.kernels, dtype="fp8")
        plan_train(dataclasses.replace(run, kernels=float8), 1e9)


def test_float8_is_held_against_its_own_peak() -> None:
    run = a_run("7b", "h100-80g", 64)
    kernels = dataclasses.replace(run.kernels, dtype="fp8")
    plain, _ = plan_train(run, 1e9)
    float8, _ = plan_train(dataclasses.replace(run, kernels=kernels), 1e9)
    assert float8.tokens_per_second > 1.2 * plain.tokens_per_second
    assert float8.mfu == pytest.approx(float8.tokens_per_second * 46_086_512_640 / 1979e12)
    assert float8.mfu < plain.mfu
