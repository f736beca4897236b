"""How the commands show things to people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def human_bytes(number: float) -> str:
    """1536 -> '1.5 kB' (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def human_count(number: float) -> str:
    """6738415616 -> '6.74B'."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def human_seconds(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def facts_table(title: str, facts: Mapping[str, str]) -> None:
    """A two-column table on standard output; a plain one where that is no terminal."""
    console = Console(highlight=False)
    table = Table(title=None, show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for key, text in facts.items():
        table.add_row(key.replace("_", " "), text)
    console.print(f"[bold]{title}[/bold]", markup=True, soft_wrap=True)
    console.print(table)
