"""`puna plan simulate`: a planned run played through, and how it scales."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from puna.commands.options import json_option
from puna.commands.plan_shared import (
    cluster_of,
    cluster_options,
    config_of,
    seconds,
    show_json,
)
from puna.commands.recipes import Count
from puna.commands.render import facts_table
from puna.plan.compute import Kernels
from puna.plan.failures import GPU_HOURS_PER_FAILURE, RESTART_SECONDS
from puna.plan.layout import Layout
from puna.plan.run import (
    Faults,
    Healthy,
    Overlap,
    Point,
    SimulatedRun,
    healthy,
    scaling,
    simulate_run,
)
from puna.plan.search import Run
from puna.plan.simulate import Spread

_BATCH_TOKENS = 2**22  # Llama 2's 4M
_SMALLEST = 8  # devices that a scaling curve begins with
_MOST_POINTS = 14


@click.command()
@click.option("--model", "-m", default="70b", show_default=True, metavar="MODEL",
              help="A preset (7b), a known model, or a file or folder of one.")  # fmt: skip
@click.option("--tokens", type=Count(), default="2T", show_default=True, metavar="N",
              help="How many are trained on, such as 20B or 2T.")  # fmt: skip
@cluster_options("a100-80g", 2000)
@click.option("--batch-size", type=click.IntRange(min=1), metavar="WINDOWS",
              help="Windows a step, or near it. [default: 4M tokens]")  # fmt: skip
@click.option("--parallel", metavar="LAYOUT",
              help="This layout, such as 'pp=5 fsdp=50 tp=8'. [default: the fastest]")  # fmt: skip
@click.option("--mtbf", type=float, default=round(GPU_HOURS_PER_FAILURE), show_default=True,
              metavar="HOURS", help="GPU-hours between two failures; Llama 3's.")  # fmt: skip
@click.option("--restart", type=float, default=RESTART_SECONDS, show_default=True,
              metavar="SECONDS", help="From a failure to the first new step.")  # fmt: skip
@click.option("--save", type=float, metavar="SECONDS",
              help="For which a checkpoint stops training. [default: 1 GB/s a node]")  # fmt: skip
@click.option("--spread", type=float, default=0.02, show_default=True, metavar="SHARE",
              help="Standard deviation between ranks; from step to step half of it.")  # fmt: skip
@click.option("--slow", type=float, default=0.0, show_default=True, metavar="SHARE",
              help="Of the ranks, which are slower by a tenth.")  # fmt: skip
@click.option("--runs", type=click.IntRange(1, 10_000), default=200, show_default=True,
              help="Whole runs that are played through.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Draw how it scales, from 8 GPUs to four times --gpus, as PNG.")  # fmt: skip
@json_option
def simulate(as_json: bool, plot: Path | None, **given: Any) -> None:
    """Play a training run through: pipeline, slow ranks, failures, restarts.

    The plan of puna plan train says how long a step takes where nothing goes wrong. Here each rank
    has its own speed, all wait for the slowest, and what fails loses what was not saved.
    """
    if plot is not None and not plot.resolve().parent.is_dir():
        raise ValueError(f"there is no folder {plot.resolve().parent} to draw into")
    run = _run(given)
    faults = Faults(
        given["mtbf"], given["restart"], given["save"],
        Spread(given["spread"], given["spread"] / 2, given["slow"]),
    )  # fmt: skip
    each, shape, layout, overlap, batch_tokens = healthy(run)
    cluster = run.kernels.cluster
    found = simulate_run(
        run.model, given["tokens"], batch_tokens, cluster.count, cluster.per_node,
        each, shape, faults, given["seed"], given["runs"],
    )  # fmt: skip
    points = [] if plot is None else _scaled(run, faults, given)
    if plot is not None:
        from puna.plan.plot import plot_scaling

        name = f"{given['model']}, {cluster.device.name}, {given['tokens'] / 1e12:g}T tokens"
        plot_scaling({name: points}, plot, "How the run scales")
    if as_json:
        curve = {"scaling": [asdict(point) for point in points]} if points else {}
        show_json(found.to_dict() | {"layout": layout, "collectives": overlap._asdict()} | curve)
        return
    _show(given["model"], layout, each, overlap, found)
    if plot is not None:
        click.echo(f"{len(points)} numbers of GPUs drawn in {plot}")


def _run(given: dict[str, Any]) -> Run:
    names = ("gpu", "gpus", "per_node", "network", "power", "topology")
    kernels = Kernels(cluster_of(**{name: given[name] for name in names}))
    model = config_of(given["model"])
    windows = given["batch_size"] or max(1, _BATCH_TOKENS // model.context_length)
    layout = Layout.parse(given["parallel"]) if given["parallel"] else None
    return Run(model, kernels, windows, layout=layout)


def _scaled(run: Run, faults: Faults, given: dict[str, Any]) -> list[Point]:
    from puna.commands.progress import bar

    cluster = run.kernels.cluster
    counts = sorted({*(_SMALLEST << n for n in range(_MOST_POINTS)), cluster.count})
    counts = [count for count in counts if count <= 4 * cluster.count]
    with bar("searching layouts", total=len(counts)) as advance:

        def plan_at(count: int) -> Healthy:
            try:
                kernels = replace(run.kernels, cluster=replace(cluster, count=count))
                return healthy(replace(run, kernels=kernels, layout=None))
            finally:
                advance()

        return scaling(
            run.model, given["tokens"], cluster.per_node, counts, plan_at, faults, given["seed"],
        )  # fmt: skip


def _show(model: str, layout: str, each: float, overlap: Overlap, found: SimulatedRun) -> None:
    facts_table(
        f"{model} on {found.devices:,} devices, played through",
        {
            "layout": f"{layout}, {found.shape.pieces} pieces a step",
            "a step": f"{seconds(found.ideal_seconds)} where all ranks are equal ({each:,.1f} "
            f"tokens/s a device), {seconds(found.step_seconds)} with slow ones "
            f"(+{found.slowest:.1%})",
            "collectives": f"FSDP gathers and scatters for {seconds(overlap.all)} a step, "
            f"{seconds(overlap.shown)} of which computing does not hide",
            "bubble": f"{found.bubble:.1%} of the stages' time",
            "checkpoints": f"every {seconds(found.interval)} of work, each "
            f"{seconds(found.reliability.save)}",
            "failures": f"{found.failures:,.1f}, one every "
            f"{found.reliability.mtbf / 3600:,.1f} hours",
            "goodput": f"{found.goodput:.1%} of the time is progress",
            "days": f"{found.days:,.2f} ({found.days_low:,.2f} to {found.days_high:,.2f} in nine "
            f"of ten); {found.without_failures:,.2f} without failures, {found.expected_days:,.2f} "
            "by Daly's formula",
        },
    )
