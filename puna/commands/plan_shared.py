"""What commands of `puna plan` share besides: this machine, formats, prices, how to show things."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from puna.commands.cache import cache_folder
from puna.commands.options import together
from puna.config import ModelConfig
from puna.plan import machine
from puna.plan.hardware import DEVICES, Device, device
from puna.plan.serve import Engine
from puna.plan.weights import IN_BLOCKS, STORAGE, Weights, weights

F = TypeVar("F", bound=Callable[..., Any])


def device_options(function: F) -> F:
    """`--gpu --gpus`: what runs it."""
    return together(
        click.option(
            "--gpu", default="a100-80g", show_default=True, metavar="NAME",
            help=f"Device: {', '.join(DEVICES)}; this: the machine at hand, as puna plan calibrate "
            "measured it.",
        ),
        click.option("--gpus", type=int, default=1, show_default=True, help="How many."),
    )(function)  # fmt: skip


def price_options(function: F) -> F:
    """`--price --carbon --pue`: what an hour and its energy cost."""
    return together(
        click.option("--price", type=float, help="Dollars an hour of a GPU.  [default: a table's]"),
        click.option(
            "--carbon", type=float, help="kg CO2eq a kWh.  [default: 0.385, the paper's]"
        ),
        click.option(
            "--pue", type=float, help="Of the data centre.  [default: 1.1, the paper's]"
        ),
    )(function)  # fmt: skip


def device_of(name: str) -> Device:
    """The row of a device; of this machine, if it was measured."""
    return machine.load(cache_folder()).device if name == machine.THIS else device(name)


def engine_of(name: str, config: ModelConfig, stored: Weights) -> Engine | None:
    """What was measured of the engine on this machine; None for any other device."""
    if name != machine.THIS:
        return None
    return machine.load(cache_folder()).engine(config, stored)


def weights_of(config: ModelConfig, name: str) -> Weights:
    """Of any storage, scheme or mix that there is, as `puna quantize` stores it."""
    from puna.quantize import mixes

    if name in IN_BLOCKS or (name in STORAGE and name not in mixes.NAMES):
        return weights(config, name)
    if name not in mixes.NAMES:
        known = dict.fromkeys((*STORAGE, *mixes.NAMES))
        raise ValueError(f"no format '{name}'; there are: {', '.join(known)}")
    return weights(config, name, mixes.storage_types(config, name)[0])


def show_json(plan: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(plan))


def seconds(number: float) -> str:
    """0.0123 -> '12.3 ms'."""
    if number >= 100:
        return f"{number:,.0f} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e-9:.3g} ns"
