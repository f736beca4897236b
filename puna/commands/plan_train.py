"""`puna plan train`: what a pretraining run takes on a cluster, and its best layout."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from puna.commands.options import json_option
from puna.commands.plan_shared import (
    cluster_of,
    cluster_options,
    config_of,
    model_option,
    price_options,
    show_json,
)
from puna.commands.recipes import Count

if TYPE_CHECKING:
    from puna.plan.cost import Cost
    from puna.plan.failures import FailurePlan
    from puna.plan.search import Found, Run
    from puna.plan.train import TrainPlan

_BATCH_TOKENS = 2**22  # Llama 2's 4M


@click.command()
@model_option
@click.option("--tokens", type=Count(), default="2T", show_default=True, metavar="N",
              help="How many are trained on, such as 20B or 2T.")  # fmt: skip
@cluster_options("a100-80g", 2000)
@click.option("--context-length", type=click.IntRange(min=1), metavar="T",
              help="Positions of a window. [default: the model's]")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), metavar="WINDOWS",
              help="Windows a step, or near it. [default: 4M tokens]")  # fmt: skip
@click.option("--parallel", metavar="LAYOUT",
              help="Only this layout, such as 'dp=2 fsdp=125 tp=8'.")  # fmt: skip
@click.option("--micro-batch-size", type=click.IntRange(min=1), metavar="WINDOWS",
              help="Only so many of a rank's windows at once.")  # fmt: skip
@click.option("--recompute", type=click.Choice(("none", "selective", "full")),
              help="Only this of what the backward pass computes anew.")  # fmt: skip
@click.option("--loss-chunk", type=click.IntRange(min=0), default=1024, show_default=True,
              metavar="N", help="Positions whose logits are there at once; 0: all.")  # fmt: skip
@click.option("--float8", is_flag=True, help="Blocks multiply in fp8.")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True,
              help="Whether what lies between products is fused.")  # fmt: skip
@price_options
@json_option
def train(as_json: bool, **given: Any) -> None:
    """What pretraining takes: memory, the best layout, speed, days, GPU-hours, cost.

    All layouts that training allows are tried on all of the GPUs; what is asked for by an option is
    kept. What does not fit is refused with what would.

    \b
    puna plan train --model 70b --tokens 2T --gpus 2000 --gpu a100-80g
    puna plan train --model 7b --gpus 64 --gpu h100-80g --float8
    """
    from puna.plan.cost import cost, rates
    from puna.plan.failures import plan_failures, reliability
    from puna.plan.train import plan_train

    run = run_of(given)
    plan, found = plan_train(run, given["tokens"])
    cluster = plan.cluster
    bill = cost(
        plan.gpu_hours, cluster.power,
        rates(cluster.device.name, given["price"], given["carbon"], given["pue"]),
    )  # fmt: skip
    steps = plan.tokens / (found.tokens_per_second * cluster.count)
    risk = reliability(plan.model.num_parameters, cluster.count, cluster.per_node)
    failures = plan_failures(steps, risk)
    slower = _on_a800(run, plan)
    if as_json:
        said = _as_json(run, plan, found, bill, failures)
        show_json(said | ({} if slower is None else {"a800": slower}))
        return
    _show(run, plan, found, bill, failures)
    if slower is not None:
        click.echo(
            f"\nOn A800s, which have 400 GB/s of NVLink for 600 of A100s: {slower['layout']}, "
            f"{slower['gpu_hours']:,.0f} GPU-hours "
            f"({slower['gpu_hours'] / plan.gpu_hours - 1:+.1%}), {slower['days']:,.1f} days."
        )


def _on_a800(run: Run, plan: TrainPlan) -> dict[str, Any] | None:
    """What the same takes on the A100 as it was sold in China; None for other devices."""
    from puna.plan.hardware import device
    from puna.plan.train import plan_train

    if plan.cluster.device.name != "a100-80g":
        return None
    cluster = dataclasses.replace(plan.cluster, device=device("a800-80g"))
    kernels = dataclasses.replace(run.kernels, cluster=cluster)
    slower, found = plan_train(dataclasses.replace(run, kernels=kernels), plan.tokens)
    return {
        "layout": str(found.choice.layout),
        "tokens_per_second": slower.tokens_per_second,
        "gpu_hours": slower.gpu_hours,
        "days": slower.days,
    }


def run_of(given: dict[str, Any]) -> Run:
    """The run that the options ask for; ValueError says what is wrong with them."""
    from puna.plan.compute import Kernels
    from puna.plan.layout import Layout
    from puna.plan.search import Run

    model = config_of(given["model"])
    if given["context_length"] is not None:
        model = dataclasses.replace(model, context_length=given["context_length"])
    names = ("gpu", "gpus", "per_node", "network", "power", "topology")
    cluster = cluster_of(**{name: given[name] for name in names})
    kernels = Kernels(cluster, "fp8" if given["float8"] else "bf16", given["compiled"])
    windows = given["batch_size"] or max(1, _BATCH_TOKENS // model.context_length)
    layout = given["parallel"] and Layout.parse(given["parallel"])
    return Run(
        model, kernels, windows, given["loss_chunk"], given["recompute"], layout or None,
        given["micro_batch_size"],
    )  # fmt: skip


def _as_json(
    run: Run, plan: TrainPlan, found: Found, bill: Cost, failures: FailurePlan
) -> dict[str, Any]:
    from puna.plan.counts import FORMULA, flops_per_token
    from puna.plan.train import mfu

    cluster, choice = plan.cluster, found.choice
    return {
        "kind": "train",
        "model": plan.model.to_dict(),
        "parameters": plan.model.num_parameters,
        "tokens": plan.tokens,
        "flops": plan.flops,
        "flops_per_token": flops_per_token(plan.model),
        "formula": FORMULA,
        "cluster": dataclasses.asdict(cluster),
        "layout": dataclasses.asdict(choice.layout),
        "batch_size": choice.batch_size,
        "micro_batch_size": choice.micro_batch_size,
        "recompute": choice.recompute,
        "memory": {**dataclasses.asdict(found.memory), "peak": found.memory.peak,
                   "usable": run.usable_memory},
        "step": {**dataclasses.asdict(found.step), "total": found.step.total},
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "training": {"tokens_per_second": found.tokens_per_second,
                     "mfu": mfu(plan.model, cluster, found.tokens_per_second, plan.dtype)},
        "gpu_hours": plan.gpu_hours,
        "days": plan.days,
        "watts": plan.power,
        "cost": bill.to_dict(),
        "failures": failures.to_dict(),
    }  # fmt: skip


def _show(run: Run, plan: TrainPlan, found: Found, bill: Cost, failures: FailurePlan) -> None:
    from puna.commands.render import facts_table, human_bytes, human_count, human_seconds
    from puna.plan.counts import FORMULA, formula
    from puna.plan.train import SHARE_OF_A_RUN, mfu

    cluster, choice, memory, step = plan.cluster, found.choice, found.memory, found.step
    device, model = cluster.device, plan.model
    at_speed = found.tokens_per_second
    share = mfu(model, cluster, at_speed, plan.dtype)
    windows = f"{choice.num_pieces} x {choice.micro_batch_size}"
    facts_table("The run", {
        "parameters": f"{model.num_parameters:,}",
        "tokens": f"{human_count(plan.tokens)}, {choice.batch_size:,} windows of "
        f"{model.context_length:,} a step, "
        f"{plan.tokens / choice.batch_size / model.context_length:,.0f} steps",
        "FLOPs": f"{plan.flops:.3g} = tokens x ({FORMULA})",
        "a_token": formula(model),
        "cluster": f"{cluster.count:,} x {device.name} in {cluster.num_nodes:,} machines, "
        f"{cluster.power:g} W each, {cluster.network * 8:g} Gbit/s each between machines",
    })  # fmt: skip
    facts_table("\nThe best layout", {
        "layout": f"{choice.layout}, {windows} windows a rank and step",
        "recompute": choice.recompute,
        "memory": f"{human_bytes(memory.peak)} of the {human_bytes(run.usable_memory)} that "
        "training may fill",
        **{f"  {name}": human_bytes(size) for name, size in dataclasses.asdict(memory).items()},
    })  # fmt: skip
    facts_table("\nA step", {
        "seconds": f"{step.total:.2f}",
        **{f"  {_PARTS[name]}": f"{seconds / step.total:6.1%}"
           for name, seconds in dataclasses.asdict(step).items() if seconds},
        "speed": f"{at_speed:,.0f} tokens/s/GPU, MFU {share:.1%}",
    })  # fmt: skip
    facts_table("\nAll of it", {
        "speed": f"{plan.tokens_per_second:,.0f} tokens/s/GPU, MFU {plan.mfu:.1%}: "
        f"{SHARE_OF_A_RUN:.0%} of the hours go into steps",
        "GPU_hours": f"{plan.gpu_hours:,.0f}",
        "days": f"{plan.days:,.1f}",
        "energy": f"{bill.kwh / 1000:,.0f} MWh at {plan.power / 1e6:.2g} MW and a PUE of "
        f"{bill.rates.pue:g}",
        "carbon": f"{bill.tco2eq:,.1f} tCO2eq at {bill.rates.carbon:g} kg a kWh",
        "money": _money(bill),
        "failures": f"{failures.failures:.1f} expected; best to save every "
        f"{human_seconds(failures.interval)}, for a goodput of {failures.goodput:.1%}",
    })  # fmt: skip


_PARTS = {
    "compute": "computing",
    "recompute": "computing anew",
    "tensor": "waiting for tensor parallel",
    "context": "waiting for context parallel",
    "data": "gathering and scattering",
    "pipeline": "waiting in the pipeline",
    "update": "update",
    "rest": "the slowest, and the rest",
}


def _money(bill: Cost) -> str:
    if bill.dollars is None:
        return "no price is known of these; give --price"
    yuan = "" if bill.yuan is None else f", {bill.yuan / 1e6:,.1f} million yuan"
    return (
        f"{bill.dollars / 1e6:,.2f} million dollars{yuan}, at {bill.rates.price:.2f} dollars an "
        f"hour ({bill.rates.source})"
    )
