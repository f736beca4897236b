"""The table of devices, and what is looked up in it."""

from __future__ import annotations

import pytest

from puna.plan.hardware import DEVICES, Cluster, device, identify, peak_tflops


@pytest.mark.parametrize(
    ("name", "bf16", "fp8"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, None),
        ("NVIDIA H100 80GB HBM3", 989, 1979),
        ("NVIDIA H100 PCIe", 756, 1513),
        ("NVIDIA H200", 989, 1979),
        ("NVIDIA H200 NVL", 835, 1671),
        ("NVIDIA A10G", None, None),  # no A10
        ("cpu", None, None),
    ],
)
def test_peaks_of_devices(name: str, bf16: float | None, fp8: float | None) -> None:
    assert peak_tflops(name, "bf16") == bf16 and peak_tflops(name, "fp8") == fp8
    assert peak_tflops(name, "fp64") is None


def test_names_that_programs_see() -> None:
    for reported, name in (
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD EPYC 9654 96-Core Processor", "epyc-9654"),
        ("Intel(R) Xeon(R) Platinum 8480+", "xeon-8480"),
    ):
        found = identify(reported)
        assert found is not None and found.name == name


def test_no_row_is_hidden_by_another() -> None:
    for row in DEVICES.values():
        assert identify(f"Maker {row.words}") is row


def test_rows_are_plausible() -> None:
    for row in DEVICES.values():
        assert row.source and row.kind in ("gpu", "cpu")
        assert row.matmul < (row.bf16 or 1) and row.memory * row.bandwidth * row.power > 0
        assert row.fp8 in (0, pytest.approx(2 * row.bf16, rel=0.02))
        if row.kind == "gpu":
            assert row.units and row.link and row.network and row.bf16 > row.fp32


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match=r"mean a100-40g or a100-80g.*; there are"):
        device("a100")
    with pytest.raises(ValueError, match="a100-80g does not multiply in fp8"):
        device("a100-80g").peak("fp8")


def test_a_cluster_takes_what_its_device_usually_has() -> None:
    cluster = Cluster(device("a100-80g"), 2000)
    assert (cluster.per_node, cluster.num_nodes, cluster.network, cluster.power) == (
        8,
        250,
        25,
        400,
    )
    slower = Cluster(device("a100-80g"), 2000, network=12.5, power=350, topology="4:1")
    assert slower.network_rate == 12.5e9 / 4 and slower.power == 350
    with pytest.raises(ValueError, match="takes 400 W at most, not 500"):
        Cluster(device("a100-80g"), 8, power=500)
    with pytest.raises(ValueError, match="no topology 'ring'; there are: full"):
        Cluster(device("a100-80g"), 8, topology="ring")
    with pytest.raises(ValueError, match="at least one device"):
        Cluster(device("a100-80g"), 0)
