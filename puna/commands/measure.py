"""How good models are on a text: what `puna perplexity` and `puna quantize --compare` print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from puna.commands.options import Scope
from puna.commands.progress import bar
from puna.commands.render import human_bytes
from puna.data.text import documents
from puna.engine.loading import load_network
from puna.formats.checkpoint import Checkpoint
from puna.formats.saving import bits_per_weight

if TYPE_CHECKING:
    from puna.evaluate.perplexity import Window


@dataclass(frozen=True, slots=True)
class Row:
    """A model's line of the table; the fields after `perplexity_error` are against the original,
    divergences in nats a token, None for the original itself."""

    model: str
    bytes: int
    bits_per_weight: float
    perplexity: float
    perplexity_error: float
    ratio: float | None = None
    mean_kl: float | None = None
    median_kl: float | None = None
    kl_99: float | None = None
    max_kl: float | None = None
    same_top: float | None = None


def measure(
    models: Sequence[tuple[str, Checkpoint]],
    original: tuple[str, Checkpoint] | None,
    scope: Scope,
    device: str,
    dtype: str,
) -> list[Row]:
    """A row for each model, the original's first. One model and the original are held at a time."""
    from puna.evaluate.perplexity import compare, network_logits, perplexity

    if original is None:
        rows = []
        for label, checkpoint in models:
            windows = _windows(checkpoint, scope)
            logits = network_logits(load_network(checkpoint, device, dtype))
            with bar(label, total=len(windows)) as advance:
                found = perplexity(logits, windows, on_window=lambda so_far: advance())
            rows.append(_row(label, checkpoint, found.value, found.error))
        return rows
    base_label, base = original
    windows = _windows(base, scope)
    base_network = load_network(base, device, dtype)
    rows = []
    for label, checkpoint in models:
        _check_same_text(base, checkpoint, label)
        network = load_network(checkpoint, device, dtype)
        with bar(label, total=len(windows)) as advance:
            pair = compare(
                network_logits(base_network),
                network_logits(network),
                windows,
                on_window=lambda mean_kl: advance(),
            )
        if not rows:
            rows.append(_row(base_label, base, pair.base.value, pair.base.error))
        rows.append(
            _row(
                label,
                checkpoint,
                pair.model.value,
                pair.model.error,
                ratio=pair.ratio,
                mean_kl=pair.mean_kl,
                median_kl=pair.median_kl,
                kl_99=pair.kl_99,
                max_kl=pair.max_kl,
                same_top=pair.same_top,
            )
        )
    return rows


def _row(
    label: str, checkpoint: Checkpoint, perplexity: float, error: float, **against: float
) -> Row:
    bits = bits_per_weight(checkpoint)
    return Row(label, checkpoint.num_bytes, bits, perplexity, error, **against)


def _windows(checkpoint: Checkpoint, scope: Scope) -> list[Window]:
    from puna.evaluate.perplexity import chunk_windows, strided_windows

    if scope.context > checkpoint.config.context_length:
        raise ValueError(
            f"--context {scope.context} is more than the {checkpoint.config.context_length} tokens "
            f"that {checkpoint.path} was trained for"
        )
    tokenizer = checkpoint.tokenizer()
    ids = tokenizer.encode("\n\n".join(documents(scope.text)), bos=True)
    if scope.chunks is not None:
        ids = ids[: scope.chunks * (scope.stride or scope.context)]
    if scope.stride is not None:
        return list(strided_windows(ids, context=scope.context, stride=scope.stride))
    return list(chunk_windows(ids, context=scope.context, bos_id=tokenizer.bos_id))


def _check_same_text(base: Checkpoint, other: Checkpoint, label: str) -> None:
    ours, theirs = base.vocabulary, other.vocabulary
    if ours is not None and theirs is not None and ours.pieces != theirs.pieces:
        raise ValueError(
            f"{label} has another vocabulary than the original; they cannot be compared"
        )


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """The table on standard output, or one JSON list."""
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return
    compared = any(row.mean_kl is not None for row in rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    titles = ["size", "bits/weight", "perplexity"]
    titles += ["change", "KL mean", "KL 99 %", "same top-1"] if compared else []
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Path(row.model).name, *_cells(row)[: len(titles)])
    Console(highlight=False).print(table)


def _cells(row: Row) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    change: Any = None if row.ratio is None else row.ratio - 1
    return [
        human_bytes(row.bytes),
        f"{row.bits_per_weight:.2f}",
        f"{row.perplexity:.3f} ± {row.perplexity_error:.3f}",
        text(change, "+.2%"),
        text(row.mean_kl, ".4f"),
        text(row.kl_99, ".4f"),
        text(row.same_top, ".2%"),
    ]
