"""What the commands of `puna plan` share: models, devices and formats by their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from puna import catalog
from puna.commands.cache import cache_folder
from puna.commands.options import together
from puna.config import PRESETS, ModelConfig
from puna.plan import machine
from puna.plan.hardware import DEVICES, TOPOLOGIES, Cluster, Device, device
from puna.plan.serve import Engine
from puna.plan.weights import IN_BLOCKS, STORAGE, Weights, weights

F = TypeVar("F", bound=Callable[..., Any])


def model_option(function: F) -> F:
    """`--model`: a preset, or a model's file."""
    return click.option(
        "--model", "-m", default="7b", show_default=True, metavar="MODEL",
        help=f"Preset ({', '.join(PRESETS)}), or a model as for puna info.",
    )(function)  # fmt: skip


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


def cluster_options(gpu: str, gpus: int) -> Callable[[F], F]:
    """`--gpu --gpus --per-node --network --power --topology`, with these defaults.

    The command gets them under these names; `cluster_of` makes a `Cluster` of them.
    """
    return together(
        click.option("--gpu", default=gpu, show_default=True, metavar="NAME",
                     help=f"What devices: {', '.join(DEVICES)}."),
        click.option("--gpus", type=click.IntRange(min=1), default=gpus, show_default=True,
                     metavar="N", help="How many."),
        click.option("--per-node", type=click.IntRange(min=1), metavar="N",
                     help="Devices in a machine. [default: as usual for them]"),
        click.option("--network", type=float, metavar="GBIT",
                     help="Gbit/s of each device to other machines. [default: as usual]"),
        click.option("--power", type=float, metavar="WATTS",
                     help="A cap on each device's power, which clocks follow."),
        click.option("--topology", type=click.Choice(list(TOPOLOGIES)), default="full",
                     show_default=True, help="How much of the network all may use at once."),
    )  # fmt: skip


def cluster_of(
    gpu: str,
    gpus: int,
    per_node: int | None,
    network: float | None,
    power: float | None,
    topology: str,
) -> Cluster:
    """A cluster from the values of `cluster_options`; ValueError for one that cannot be."""
    for option, value in (("network", network), ("power", power)):
        if value is not None and not value > 0:
            raise ValueError(f"--{option} must be more than 0, not {value:g}")
    return Cluster(device(gpu), gpus, per_node or 0, (network or 0.0) / 8, power or 0.0, topology)


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


def config_of(model: str) -> ModelConfig:
    """The shape of a preset, of a released model by its name, or of one that lies here.

    ValueError for what is none of these.
    """
    if model in PRESETS:
        return PRESETS[model]
    known = catalog.find(model)
    if known is not None:
        return known.config
    from puna.commands.models import resolve
    from puna.hub.locate import SHIPPED

    if model not in SHIPPED and "/" not in model and not Path(model).exists():
        raise ValueError(f"no preset and no file '{model}'; presets are: {', '.join(PRESETS)}")
    return resolve(model, download=False).config


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
