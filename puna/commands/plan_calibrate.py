"""`puna plan calibrate`: measures this machine, for plans with `--gpu this`."""

from __future__ import annotations

import click

from puna.commands.cache import VARIABLE, cache_folder
from puna.commands.options import json_option
from puna.commands.plan_shared import seconds, show_json
from puna.commands.render import facts_table, human_bytes
from puna.plan.machine import Machine, save


@click.command()
@click.option(
    "--rounds", type=click.IntRange(min=3), default=60, show_default=True,
    help="Bursts of each measurement, of which the least disturbed count.",
)  # fmt: skip
@json_option
def calibrate(rounds: int, as_json: bool) -> None:
    """Measure this machine's processor, and keep it for --gpu this.

    Memory, products, and what the engine makes of both with weights of five formats, in the cache
    and outside; with torch, also how fast two processes add numbers up. It takes a minute, and is
    truest on a machine that does nothing else.
    """
    from puna.commands.progress import bar
    from puna.engine.calibrate import calibrate as measure
    from puna.engine.calibrate import num_jobs

    folder = cache_folder()
    if folder is None:
        raise ValueError(f"there is no folder to keep it in; set {VARIABLE} to one")
    with bar("measuring", total=num_jobs()) as advance:
        machine = measure(rounds, on_job=advance, collectives=True)
    path = save(machine, folder)
    if as_json:
        show_json({"kind": "machine", "path": str(path), **machine.to_dict()})
        return
    facts_table(f"{machine.name}, kept in {path}", facts_of(machine))


def facts_of(machine: Machine) -> dict[str, str]:
    """What was measured, in words."""
    facts = {
        "memory": f"{human_bytes(machine.memory)} free",
        "last cache": human_bytes(machine.cache),
        "products": f"{machine.fp32 / 1e9:,.0f} GFLOP/s in float32, {machine.int8 / 1e9:,.0f} of "
        "blocks by the native step",
    }
    for threads, pace in machine.paces.items():
        shares = ", ".join(f"{form} {share:.0%}" for form, share in pace.streamed.items())
        cached = ", ".join(f"{form} {share:.0%}" for form, share in pace.cached.items())
        name = f"{threads} thread" + "s" * (threads > 1)
        facts[name] = f"{pace.bandwidth / 1e9:.1f} GB/s; of it a step reads {shares}; " + (
            f"in the cache {pace.cache_bandwidth / 1e9:.1f} GB/s, of it {cached}; besides "
            f"{seconds(pace.layer_seconds)} a layer, "
            f"{seconds(pace.step_seconds)} a step"
        )
    if machine.all_reduce is not None:
        facts["collectives"] = f"{machine.all_reduce / 1e9:.2f} GB/s added up by two processes"
    return facts
