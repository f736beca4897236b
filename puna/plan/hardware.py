"""Devices and clusters of them: what the makers' data sheets say, one row a device.

Rates are per device and without sparsity, for which NVIDIA's sheets mostly give twice as much.
Bandwidths are one way: half of what a sheet adds up in both directions.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    words       all of them are in what the device calls itself
    bf16 ...    TFLOP/s at best, by the type that matrices are multiplied in; 0 where it has none
    matmul      bf16 TFLOP/s that somebody measured of the best-shaped product; 0 where nobody did
    units       streaming multiprocessors or compute units, which a product's tiles are dealt to
    memory      GiB that programs see; of a CPU, what such a machine usually has (*ours*)
    bandwidth   GB/s of that memory
    link        GB/s one way to the other devices of a node
    network     GB/s one way to other nodes, a device's share
    power       W; per_node how many devices a node has
    """

    name: str
    words: str
    source: str
    bf16: float
    fp8: float
    fp32: float
    int8: float
    matmul: float
    units: int
    memory: float
    bandwidth: float
    link: float
    network: float
    power: float
    per_node: int
    kind: str = "gpu"

    @property
    def memory_bytes(self) -> float:
        return self.memory * 2**30

    def peak(self, dtype: str) -> float:
        """FLOP/s at best in "bf16", "fp8", "fp32" or "int8"; ValueError where it has none."""
        rate: float = {
            "bf16": self.bf16, "fp8": self.fp8, "fp32": self.fp32, "int8": self.int8
        }.get(dtype, 0.0)  # fmt: skip
        if not rate:
            raise ValueError(f"{self.name} does not multiply in {dtype}")
        return rate * 1e12


_MAMF = "matmul: S. Bekman, ml-engineering, MAMF table"
_CPU = "data sheet: cores x base clock x 32 FLOP a cycle (Xeon 64);"

# The first row whose words fit is taken: the more words the earlier. Sources: the maker's sheet for
# rates, memory, links and power; network what its usual platform has (DGX, HGX), *ours* for cards.
# fmt: off
_ROWS: tuple[Device, ...] = (
    #       bf16,   fp8,  fp32,  int8,matmul,unit,GiB, GB/s,link, net,    W, per node
    Device("a100-40g", "A100 40GB", f"NVIDIA A100 data sheet; {_MAMF}",
             312,     0,  19.5,   624, 271.2, 108,  40, 1555, 300,   25,  400, 8),
    Device("a100-80g", "A100", f"NVIDIA A100 data sheet; {_MAMF}",
             312,     0,  19.5,   624, 271.2, 108,  80, 2039, 300,   25,  400, 8),
    Device("a800-80g", "A800", "NVIDIA A800 data sheet; matmul: the A100's, the same chip",
             312,     0,  19.5,   624, 271.2, 108,  80, 2039, 200,   25,  400, 8),
    Device("h100-pcie", "H100 PCIe", "NVIDIA H100 data sheet, 2022",
             756,  1513,    51,  1513,     0, 114,  80, 2000,  64, 12.5,  350, 8),
    Device("h100-nvl", "H100 NVL", "NVIDIA H100 data sheet",
             835,  1671,    60,  1671,     0, 132,  94, 3900,  64, 12.5,  400, 8),
    Device("h100-96g", "H100 96GB", f"torchtitan, benchmarks (HBM2e, run at 500 W); {_MAMF}",
             989,  1979,    67,  1979, 794.5, 132,  95, 2400, 450,   50,  700, 8),
    Device("h100-80g", "H100", f"NVIDIA H100 data sheet, SXM; {_MAMF}",
             989,  1979,    67,  1979, 794.5, 132,  80, 3350, 450,   50,  700, 8),
    Device("h200-nvl", "H200 NVL", "NVIDIA H200 data sheet",
             835,  1671,    60,  1671,     0, 132, 140, 4800,  64, 12.5,  600, 8),
    Device("h200", "H200", f"NVIDIA H200 data sheet, SXM; {_MAMF}",
             989,  1979,    67,  1979, 794.5, 132, 140, 4800, 450,   50,  700, 8),
    Device("gh200", "GH200", f"NVIDIA GH200 data sheet; {_MAMF}",
             989,  1979,    67,  1979, 828.6, 132,  95, 4000, 450,   50,  900, 1),
    Device("h800", "H800", "NVIDIA H800 data sheet, SXM; matmul: the H100's, the same chip",
             989,  1979,    67,  1979, 794.5, 132,  80, 3350, 200,   50,  700, 8),
    Device("h20", "H20", "NVIDIA H20 data sheet",
             148,   296,    44,   296,     0,  78,  96, 4000, 450,   50,  400, 8),
    Device("b200", "B200", f"NVIDIA DGX B200 data sheet; {_MAMF}",
            2250,  4500,    80,  4500,  1745, 148, 180, 8000, 900,   50, 1000, 8),
    Device("l4", "L4", "NVIDIA L4 data sheet",
             121,   242,  30.3,   242,     0,  58,  22,  300,  32,  3.1,   72, 8),
    Device("l40s", "L40S", "NVIDIA L40S data sheet",
             362,   733,  91.6,   733,     0, 142,  45,  864,  32, 12.5,  350, 8),
    Device("a10", "A10", "NVIDIA A10 data sheet",
             125,     0,  31.2,   250,     0,  72,  22,  600,  32,  3.1,  150, 8),
    Device("rtx-4090", "RTX 4090", "NVIDIA Ada whitepaper, fp32 sums",
           165.2, 330.3,  82.6, 660.6,     0, 128,  24, 1008,  32,  3.1,  450, 8),
    Device("mi300x", "MI300X", f"AMD Instinct MI300X data sheet; {_MAMF}",
            1307,  2614, 163.4,  2614, 668.4, 304, 192, 5300, 448,   50,  750, 8),
    Device("mi325x", "MI325X", f"AMD Instinct MI325X data sheet; {_MAMF}",
            1307,  2614, 163.4,  2614, 784.9, 304, 256, 6000, 448,   50, 1000, 8),
    # CPUs, a socket each, without units for matrices, whose clocks are not published.
    Device("epyc-9654", "EPYC 9654", f"AMD EPYC 9654, {_CPU} 12 x DDR5-4800",
               0,     0,   7.4,     0,     0,   0, 768,  461,   0, 12.5,  360, 1, "cpu"),
    Device("xeon-8480", "Xeon 8480", f"Intel Xeon 8480+, {_CPU} 8 x DDR5-4800",
               0,     0,   7.2,     0,     0,   0, 512,  307,   0, 12.5,  350, 1, "cpu"),
    Device("graviton3", "Neoverse V1", f"AWS c7g, {_CPU} 8 x DDR5-4800; power *ours*",
               0,     0,   5.3,     0,     0,   0, 128,  307,   0, 3.75,  100, 1, "cpu"),
    Device("ryzen-7950x", "Ryzen 7950X", f"AMD Ryzen 9 7950X, {_CPU} 2 x DDR5-5200",
               0,     0,   2.3,     0,     0,   0,  64,   83,   0, 0.12,  170, 1, "cpu"),
)
# fmt: on
DEVICES: dict[str, Device] = {row.name: row for row in _ROWS}


class DoesNotFitError(ValueError):
    """What the devices cannot hold or do; the message says why, and what would."""


def device(name: str) -> Device:
    """The row called `name`; ValueError lists what there is."""
    if name not in DEVICES:
        near = [known for known in DEVICES if known.startswith(name.lower())]
        near = near or difflib.get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.4)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"no device '{name}'{hint}; there are: {', '.join(DEVICES)}")
    return DEVICES[name]


def identify(reported: str) -> Device | None:
    """The row of a device that calls itself so ("NVIDIA A100-SXM4-80GB"), None where none fits."""
    words = set(re.split(r"[^0-9A-Za-z]+", reported))
    return next((row for row in _ROWS if words.issuperset(row.words.split())), None)


def peak_tflops(reported: str, dtype: str) -> float | None:
    """TFLOP/s at best of a device that calls itself so; None where the table does not know it."""
    row = identify(reported)
    rates = {} if row is None else {"bf16": row.bf16, "fp8": row.fp8, "fp32": row.fp32}
    return rates.get(dtype) or None


# Of a device's network, what share it has while all talk across nodes.
TOPOLOGIES: dict[str, float] = {"full": 1.0, "2:1": 1 / 2, "4:1": 1 / 4}


@dataclass(frozen=True, slots=True)
class Cluster:
    """`count` devices in nodes of `per_node`; 0 takes the device's own figure for `per_node`,
    `network` (GB/s one way a device) and `power` (W, a cap below the device's own).

    ValueError for what no cluster can be.
    """

    device: Device
    count: int
    per_node: int = 0
    network: float = 0.0
    power: float = 0.0
    topology: str = field(default="full")

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a cluster has at least one device, not {self.count}")
        if self.topology not in TOPOLOGIES:
            known = ", ".join(TOPOLOGIES)
            raise ValueError(f"no topology '{self.topology}'; there are: {known}")
        for name, own in (("per_node", self.device.per_node), ("network", self.device.network),
                          ("power", self.device.power)):  # fmt: skip
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must not be {value}")
            object.__setattr__(self, name, value or own)
        if self.power > self.device.power:
            raise ValueError(
                f"{self.device.name} takes {self.device.power:g} W at most, not {self.power:g}"
            )

    @property
    def num_nodes(self) -> int:
        return -(-self.count // self.per_node)

    @property
    def network_rate(self) -> float:
        """Bytes/s one way that a device has to other nodes while all of them talk."""
        return self.network * 1e9 * TOPOLOGIES[self.topology]
