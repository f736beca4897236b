"""What the commands of `puna plan` share: a model's shape by name, a cluster from options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from puna.commands.options import together
from puna.config import PRESETS, ModelConfig
from puna.plan.hardware import DEVICES, TOPOLOGIES, Cluster, device

F = TypeVar("F", bound=Callable[..., Any])


def planned_model(name: str, context_length: int | None = None) -> ModelConfig:
    """The shape of a preset (`7b`), a known model (`llama-2-7b`), or a file or folder of one.

    ValueError where there is none; nothing is downloaded.
    """
    import dataclasses

    config = PRESETS.get(name) or _other(name)
    if context_length is None:
        return config
    return dataclasses.replace(config, context_length=context_length)


def _other(name: str) -> ModelConfig:
    from puna import catalog

    known = catalog.find(name)
    if known is not None:
        return known.config
    from puna.commands.models import resolve

    try:
        return resolve(name, download=False).config
    except ValueError as error:
        presets = ", ".join(PRESETS)
        raise ValueError(f"{error}; the shapes that need no file are: {presets}") from None


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
