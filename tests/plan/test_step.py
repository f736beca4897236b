"""Collectives, products and a step's parts, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from puna.config import preset
from puna.plan.compute import Kernels, layer_seconds, product_seconds
from puna.plan.hardware import Cluster, device
from puna.plan.layout import Layout
from puna.plan.network import Group
from puna.plan.step import StepTime, exchange, step_time

A100 = Cluster(device("a100-80g"), 64)
KERNELS = Kernels(A100)


def test_rings() -> None:
    # In a node: 7 of 8 parts over 300 GB/s at 77 %, and 7 hops of 2 us.
    inside = Group(A100, 8, 1)
    assert inside.gather(8e9) == pytest.approx(7e9 / 231e9 + 14e-6)
    # Over nodes: the 8 networks of a node together, 25 GB/s each at 90 %.
    whole = Group(A100, 64, 1)
    assert whole.gather(64e9) == pytest.approx(63e9 / 180e9 + 63 * 6e-6)
    # Members 8 apart have their own network alone.
    apart = Group(A100, 8, 8)
    assert apart.gather(8e9) == pytest.approx(7e9 / 22.5e9 + 42e-6)
    assert apart.sum(8e9) == 2 * apart.gather(8e9)
    assert Group(A100, 1, 8).gather(8e9) == Group(A100, 1, 1).pass_on(1e9) == 0


def test_products() -> None:
    # 8192 x 8192: 2048 tiles of 256 x 128 are 19 waves of 108 units, 18.96 of them full.
    arithmetic = 2 * 8192 * 8192 * 4096 / (271.2e12 * 2048 / (19 * 108))
    assert product_seconds(KERNELS, "bf16", 8192, 8192, 4096) == pytest.approx(arithmetic + 4e-6)
    # A thin one is as long as its result takes to be written, at 85 % of 2039 GB/s.
    written = 2 * (8192 * 8192 + 2 * 8192 * 16) / (2039e9 * 0.85)
    assert product_seconds(KERNELS, "bf16", 8192, 8192, 16) == pytest.approx(written + 4e-6)


def test_clocks_follow_power() -> None:
    capped = Kernels(Cluster(device("a100-80g"), 64, power=350))
    with pytest.raises(ValueError, match="does not compute at 100 W"):
        Kernels(Cluster(device("a100-80g"), 64, power=100))
    assert KERNELS.clock == 1 and capped.clock == pytest.approx((250 / 300) ** 0.5)


def test_what_is_computed_anew() -> None:
    none, selective, full = (
        layer_seconds(KERNELS, preset("7b"), 1, 1, 1, kind)
        for kind in ("none", "selective", "full")
    )
    assert none.again == 0 < selective.again < full.again == full.forward
    assert none.forward == selective.forward and none.backward == full.backward
    assert 2 < none.backward / none.forward < 2.2


def timed(line: str, pieces: int = 8) -> StepTime:
    return step_time(
        preset("7b"), KERNELS, Layout.parse(line), micro_batch_size=1, num_pieces=pieces,
        recompute="none",
    )  # fmt: skip


def test_each_kind_waits_for_its_own() -> None:
    plain = timed("fsdp=64")
    assert plain.tensor == plain.context == plain.pipeline == plain.recompute == 0 < plain.data
    assert timed("fsdp=32 tp=2").tensor > 0 and timed("fsdp=32 cp=2").context > 0
    # In a pipeline a piece's time is waited for by each stage but the last: 3 of 8 + 3.
    few, many = timed("fsdp=16 pp=4", 8), timed("fsdp=16 pp=4", 64)
    assert few.pipeline / few.compute == pytest.approx(3 / 8, rel=0.1)
    assert many.pipeline / many.compute == pytest.approx(3 / 64, rel=0.4)
    assert plain.total == pytest.approx(plain.compute + plain.data + plain.update + plain.rest)


def test_replicas_add_up_once_a_step() -> None:
    """As `Several.accumulate` has it: shards scatter every piece's gradients, replicas add the sums
    up after the last."""
    layout = Layout(dp=2, fsdp=8)
    sent = exchange(A100, layout, 1e9)
    assert sent.gather == pytest.approx(2e9 * 7 / 8 / 231e9, rel=0.01)
    assert sent.scatter == pytest.approx(2 * sent.gather, rel=0.01)
    # The two nodes' members of each of 8 pairs, over a network of their own.
    assert sent.add == pytest.approx(4e9 / 8 / 22.5e9, rel=0.01)
    slow = Kernels(Cluster(device("a100-80g"), 16, network=0.25))

    def data(line: str, pieces: int) -> float:
        return step_time(
            preset("7b"), slow, Layout.parse(line), micro_batch_size=1, num_pieces=pieces,
            recompute="none",
        ).data  # fmt: skip

    more = {line: data(line, 9) - data(line, 1) for line in ("dp=2 fsdp=8", "fsdp=16")}
    # Eight more pieces talk in the nodes alone.
    assert more["dp=2 fsdp=8"] < 0.5 * data("dp=2 fsdp=8", 1) < more["fsdp=16"]
