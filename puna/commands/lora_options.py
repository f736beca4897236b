"""`--lora-rank` and its neighbours: train pairs beside a frozen model instead of all of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from puna.commands.train_options import given_options

if TYPE_CHECKING:
    from puna.lora import LoRASettings


def lora_options(function: Callable[..., None]) -> Callable[..., None]:
    """The command gets them as one `lora`, None without --lora-rank."""

    @functools.wraps(function)
    def command(
        lora_rank: int | None, lora_alpha: float, lora_targets: str, lora_base: str, **others: Any
    ) -> None:
        from puna.commands.ranks import said_once
        from puna.lora import LoRASettings

        lora: LoRASettings | None = None
        with said_once():
            alone = {"lora_alpha", "lora_targets", "lora_base"} & set(given_options())
            if lora_rank is None and alone:
                name = sorted(alone)[0].replace("_", "-")
                raise ValueError(f"--{name} is for LoRA: give --lora-rank too")
            if lora_rank is not None:
                targets = tuple(name.strip() for name in lora_targets.split(","))
                lora = LoRASettings(lora_rank, lora_alpha, targets, lora_base)
        function(lora=lora, **others)

    for option in (
        click.option("--lora-base", type=click.Choice(["auto", "fp32", "int8", "int4"]),
                     default="auto", show_default=True, help="How LoRA holds the frozen matrices; "
                     "auto: as stored, where that is in integers or blocks, else fp32."),
        click.option("--lora-targets", default="wq,wk,wv,wo,w1,w2,w3", show_default=True,
                     help="The matrices with pairs."),
        click.option("--lora-alpha", type=float, default=16, show_default=True,
                     help="A pair counts alpha / rank times."),
        click.option("--lora-rank", type=int, help="Train a LoRA adapter of this rank beside the "
                     "model, which stays as it is; the checkpoints are for --lora."),
    ):  # fmt: skip
        command = option(command)
    return command
