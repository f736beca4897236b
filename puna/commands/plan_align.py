"""`puna plan align`: what fine-tuning, reward models, rejection sampling and PPO take."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from puna.commands.options import json_option
from puna.commands.plan_shared import (
    cluster_of,
    cluster_options,
    config_of,
    price_options,
    seconds,
    show_json,
)
from puna.commands.render import human_seconds
from puna.plan.align import PAPER_PPO_SECONDS, STAGES, Rig, Stage, Work, make_rig, plan_align
from puna.plan.compute import Kernels
from puna.plan.cost import Cost, cost, rates
from puna.plan.search import Run
from puna.plan.train import plan_train

_DEFAULTS = Work()
_HELP = {
    "examples": "Dialogs of fine-tuning.",
    "example_tokens": "Tokens of each.",
    "epochs": "Times they are seen.",
    "comparisons": "Pairs that each reward model learns from.",
    "comparison_tokens": "Tokens of each of a pair's dialogs.",
    "prompts": "Prompts of rejection sampling.",
    "samples": "Answers to each.",
    "iterations": "Of PPO.",
    "batch": "Prompts of an iteration of PPO.",
    "prompt": "Tokens of a prompt.",
    "answer": "Tokens of an answer.",
}
_FEW = 64  # windows of a step, from which tuning's speed is planned


def _work_options(function: Any) -> Any:
    for field in reversed(fields(Work)):
        name = f"--{field.name.replace('_', '-')}"
        default = getattr(_DEFAULTS, field.name)
        text = _HELP[field.name]
        function = click.option(name, type=int, default=default, show_default=True, help=text)(
            function
        )
    return function


@click.command()
@click.option("--model", "-m", default="70b", show_default=True, metavar="MODEL",
              help="A preset (7b), a known model, or a file or folder of one.")  # fmt: skip
@cluster_options("a100-80g", 64)
@click.option("--stage", "stages", multiple=True, metavar="NAME",
              help=f"Only this, of {', '.join(STAGES)}; repeatable.")  # fmt: skip
@_work_options
@price_options
@json_option
def align(as_json: bool, model: str, stages: tuple[str, ...], **given: Any) -> None:
    """Predict time and cost of alignment: SFT, reward models, rejection sampling, PPO.

    Training is as fast as puna plan train says, sampling as puna plan serve does; reward models
    have the model's size. What Llama 2's paper gives are defaults, the rest is ours.
    """
    config = config_of(model)
    names = ("gpu", "gpus", "per_node", "network", "power", "topology")
    cluster = cluster_of(**{name: given[name] for name in names})
    work = Work(**{field.name: given[field.name] for field in fields(Work)})
    windows = max(_FEW, cluster.count)
    _, best = plan_train(Run(config, Kernels(cluster), windows), 1.0)
    layout = str(best.choice.layout)
    rig = make_rig(config, cluster, best.tokens_per_second)
    found = plan_align(rig, work, stages or tuple(STAGES))
    total = sum(stage.gpu_hours for stage in found)
    money = rates(cluster.device.name, given["price"], given["carbon"], given["pue"])
    bill = cost(total, cluster.power, money)
    if as_json:
        show_json(
            {
                "kind": "align",
                "model": config.to_dict(),
                "devices": cluster.count,
                "device": cluster.device.name,
                "layout": layout,
                "tokens_per_second": rig.training,
                "engine_devices": rig.ways,
                "stages": [stage.to_dict() for stage in found],
                "cost": bill.to_dict(),
            }
        )
        return
    _show(model, layout, rig, found, bill)


def _show(model: str, layout: str, rig: Rig, found: list[Stage], bill: Cost) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    cluster = rig.cluster
    console.print(
        f"[bold]Aligning {model} on {cluster.count} x {cluster.device.name}[/bold]\n"
        f"training: {layout}, {rig.training:,.0f} tokens/s a GPU; sampling: {rig.engines} engines "
        f"of {rig.ways}",
        soft_wrap=True,
    )
    parts = list(dict.fromkeys(part for stage in found for part in stage.parts))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for stage in found:
        table.add_column(stage.name, justify="right")
    table.add_row("times", *(f"{stage.times:,}" for stage in found))
    for part in parts:
        table.add_row(part, *(_share(stage, part) for stage in found))
    table.add_row("each", *(seconds(stage.each) for stage in found))
    table.add_row("all", *(human_seconds(stage.each * stage.times) for stage in found))
    table.add_row("GPU-hours", *(f"{stage.gpu_hours:,.0f}" for stage in found))
    console.print(table)
    money = "" if bill.dollars is None else f", {bill.dollars:,.0f} dollars"
    console.print(
        f"{bill.gpu_hours:,.0f} GPU-hours, {bill.kwh / 1000:,.1f} MWh, "
        f"{bill.tco2eq:,.2f} tCO2eq{money}"
    )
    if any(stage.name == "ppo" for stage in found):
        console.print(
            f"The paper gives about {PAPER_PPO_SECONDS} s for an iteration at 70B, without saying "
            "on how many GPUs.",
            soft_wrap=True,
        )


def _share(stage: Stage, part: str) -> str:
    return f"{stage.parts[part] / stage.each:.0%}" if part in stage.parts else "-"
