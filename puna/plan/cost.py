"""What GPU-hours cost: energy, carbon dioxide, money.

Carbon is GPU-hours x power x PUE x intensity, as in "Llama 2" (arXiv 2307.09288, section 2.2.1);
with the defaults below that gives its table.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

# What a data centre takes for each kWh that its machines take, and kg of CO2eq a kWh: these two
# reproduce the paper's table from its GPU-hours and power.
PUE = 1.1
CARBON_INTENSITY = 0.385


@dataclass(frozen=True, slots=True)
class Price:
    """Of an hour of one GPU, in US dollars, and in yuan where a source gives that too."""

    dollars: float
    source: str
    yuan: float | None = None


# The user's figure for all four models: 3,311,616 hours of A100 for 20 million dollars, 200 million
# yuan.
_DOCUMENT = Price(
    20e6 / 3_311_616,
    '"over 20 million dollars", 200 million yuan, for the 3,311,616 GPU-hours of Llama 2',
    yuan=200e6 / 3_311_616,
)
# By a device's name. One that is not here has no price unless it is given.
PRICES: dict[str, Price] = {
    "a100-80g": _DOCUMENT,
    "a800-80g": _DOCUMENT,
    "a100-40g": Price(1.844, "AWS capacity blocks, p4d.24xlarge, Ohio, end of 2024"),
    "h100-80g": Price(4.916, "AWS capacity blocks, p5.48xlarge, Ohio, end of 2024"),
    "h200": Price(5.408, "AWS capacity blocks, p5e.48xlarge, Ohio, end of 2024"),
}


@dataclass(frozen=True, slots=True)
class Rates:
    """`price` dollars and `yuan` an hour of a GPU (None: not known), `carbon` kg CO2eq a kWh."""

    price: float | None = None
    yuan: float | None = None
    pue: float = PUE
    carbon: float = CARBON_INTENSITY
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("price", "yuan", "carbon"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value:g}; it must be a number from 0 on")
        if not 1 <= self.pue < math.inf:
            raise ValueError(f"a PUE of {self.pue:g} is none: a data centre takes at least 1")


def rates(
    device: str, price: float | None = None, carbon: float | None = None, pue: float | None = None
) -> Rates:
    """The rates of a device, each as given or else from the tables; ValueError as `Rates` says."""
    row = PRICES.get(device)
    others = (PUE if pue is None else pue, CARBON_INTENSITY if carbon is None else carbon)
    if price is not None:
        return Rates(price, None, *others, source="as given")
    if row is None:
        return Rates(None, None, *others)
    return Rates(row.dollars, row.yuan, *others, source=row.source)


@dataclass(frozen=True, slots=True)
class Cost:
    """`kwh` with what the data centre adds; `dollars` and `yuan` None where no price is known."""

    gpu_hours: float
    kwh: float
    tco2eq: float
    dollars: float | None
    yuan: float | None
    rates: Rates

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def cost(gpu_hours: float, watts: float, rates: Rates) -> Cost:
    """The cost of so many hours of GPUs that take `watts` each."""
    kwh = gpu_hours * watts / 1000 * rates.pue
    return Cost(
        gpu_hours,
        kwh,
        kwh * rates.carbon / 1000,
        None if rates.price is None else gpu_hours * rates.price,
        None if rates.yuan is None else gpu_hours * rates.yuan,
        rates,
    )
