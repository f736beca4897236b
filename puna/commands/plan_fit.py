"""`puna plan fit`: what the machine at hand can run, serve and train."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace

import click

from puna.commands.cache import cache_folder
from puna.commands.options import json_option
from puna.commands.plan_shared import device_of, seconds, show_json, weights_of
from puna.commands.render import human_bytes
from puna.config import PRESETS
from puna.plan import machine
from puna.plan.fit import Fit
from puna.plan.fit import fit as fits
from puna.plan.hardware import DEVICES, Device, identify


@click.command()
@click.option("--model", "-m", "models", multiple=True, metavar="MODEL",
              help="Only this preset; repeatable.")  # fmt: skip
@click.option("--format", "formats", multiple=True, metavar="NAME",
              help="Only this format: bf16, int8, q4_0, q4_k_m, ...; repeatable.")  # fmt: skip
@click.option("--gpu", metavar="NAME", help="Ask of this device instead of the machine at hand.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True,
              help="How many of --gpu.")  # fmt: skip
@click.option("--context", type=click.IntRange(min=1), metavar="N",
              help="Tokens of a dialog that must fit, or as many as the model takes.")  # fmt: skip
@json_option
def fit(
    models: tuple[str, ...],
    formats: tuple[str, ...],
    gpu: str | None,
    gpus: int,
    context: int | None,
    as_json: bool,
) -> None:
    """List which models this machine runs in which format, how fast, and which it can train.

    GPUs are found by nvidia-smi; the processor is as puna plan calibrate measured it, which is done
    quickly where it was not done yet.
    """
    for name in models:
        if name not in PRESETS:
            raise ValueError(f"no preset '{name}'; there are: {', '.join(PRESETS)}")
    if gpu is None:
        asked = list(_at_hand())
    else:
        measured = machine.load(cache_folder()) if gpu == machine.THIS else None
        asked = [(device_of(gpu), gpus, measured)]
    found = []
    for row, count, here in asked:
        engine_for = here.engine if here is not None else lambda config, stored: None
        rows = fits(
            row, count, models or tuple(PRESETS), formats or None, engine_for, context, weights_of
        )
        found.append((row, count, rows))
    if as_json:
        show_json(
            {
                "kind": "fit",
                "devices": [
                    {"device": row.name, "words": row.words, "count": count, "source": row.source,
                     "fits": [asdict(line) for line in rows]}
                    for row, count, rows in found
                ],
            }
        )  # fmt: skip
        return
    for row, count, rows in found:
        _show(row, count, rows)


def _at_hand() -> Iterator[tuple[Device, int, machine.Machine | None]]:
    """GPUs of each kind, then the processor."""
    yield from ((row, count, None) for row, count in gpus_here(_nvidia_smi()))
    try:
        here = machine.load(cache_folder())
    except ValueError:
        from puna.commands.progress import bar
        from puna.engine.calibrate import calibrate, num_jobs

        with bar("measuring", total=num_jobs()) as advance:
            here = calibrate(6, on_job=advance)
    yield here.device, 1, here


def _nvidia_smi() -> str:
    """`name, MiB` of each GPU, a line each; nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    fields = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run([program, *fields], capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else ""


def gpus_here(listed: str) -> list[tuple[Device, int]]:
    """The table's rows of the GPUs that nvidia-smi listed, with the memory that it says, and how
    many there are of each; ValueError for one that the table does not know."""
    counts: dict[Device, int] = {}
    for line in filter(None, map(str.strip, listed.splitlines())):
        name, _, memory = line.rpartition(",")
        row = identify(name)
        if row is None:
            raise ValueError(
                f"the table knows no '{name}'; ask of one that is like it: --gpu "
                f"{', '.join(DEVICES)}"
            )
        row = replace(row, memory=float(memory) / 1024)
        counts[row] = counts.get(row, 0) + 1
    return list(counts.items())


def _show(device: Device, count: int, rows: list[Fit]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    memory = human_bytes(device.memory_bytes)
    speed = f"{device.bandwidth:,.1f} GB/s"
    name = device.words if device.name == machine.THIS else device.name
    console.print(f"[bold]{count} x {name}, {memory} of memory each, {speed}[/bold]")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "format", "weights", "tokens/s", "first token", "users", "trains at"):
        named = title in ("model", "format")
        table.add_column(title, justify="left" if named else "right", no_wrap=True)
    for row in rows:
        training = "-" if row.training is None else f"{row.training:,.0f}"
        cells = ("none fits", *("-",) * 4)
        if row.format is not None:
            assert row.weight_bytes and row.each and row.first_token_seconds
            cells = (
                row.format,
                human_bytes(row.weight_bytes),
                f"{row.each:,.1f}",
                seconds(row.first_token_seconds),
                f"{row.users:,}",
            )
        table.add_row(row.model, *cells, training)
    console.print(table)
