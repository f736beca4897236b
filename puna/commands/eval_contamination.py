"""`puna eval contamination`: how much of an evaluation stands in training text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from puna.commands.options import json_option
from puna.commands.progress import amount_bar
from puna.formats.errors import printable

if TYPE_CHECKING:
    from puna.data.corpus import Corpus
    from puna.evaluate.contamination.check import Contamination
    from puna.tokenizer import Vocabulary


@click.command("contamination")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Token shards, as puna data build leaves them; repeatable.",
)
@click.option(
    "--tokenizer", metavar="PATH", help="What made them, where it does not lie beside them."
)
@json_option
def contamination(
    run: Path, corpora: tuple[Path, ...], tokenizer: str | None, as_json: bool
) -> None:
    """Find the questions of evaluation RUN in training text, as the Llama 2 paper does (A.6).

    Scores of clean and dirty questions at several least lengths of a match, and whether they say
    that contamination has helped. Writes contamination.json, and for each question its share of
    contaminated tokens; puna eval report shows them. Ctrl-C stops, the same command goes on.
    """
    from puna.data.corpus import open_corpus
    from puna.data.shards import open_shards
    from puna.evaluate.contamination.check import check
    from puna.tokenizer import Tokenizer

    opened = [open_corpus(folder) for folder in corpora]
    vocabulary = _vocabulary(opened, tokenizer)
    shards = [open_shards(corpus.shards, vocabulary) for corpus in opened]
    total = sum(each.manifest.num_tokens for each in shards)
    with amount_bar("tokens", total) as advance:
        found = check(run, shards, Tokenizer(vocabulary), on_tokens=advance)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        _show(found)


def _vocabulary(corpora: list[Corpus], tokenizer: str | None) -> Vocabulary:
    from puna.commands.models import named_vocabulary

    if tokenizer is not None:
        return named_vocabulary(tokenizer)
    for corpus in corpora:
        if corpus.vocabulary is not None:
            return corpus.vocabulary
    raise ValueError(
        f"no tokenizer lies beside {corpora[0].shards}; give the one that made it: --tokenizer PATH"
    )


def _show(found: Contamination) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", overflow="fold")
    for title in ("span", "contaminated", "questions", "n", "score", "Z", "has helped"):
        table.add_column(title, justify="right", no_wrap=True)
    for task in found.tasks:
        at = task.shown
        first = [escape(printable(task.title)), f"{at.length}+", f"{at.share:.1%}"]
        for subset in at.subsets:
            score = "-" if subset.mean is None else f"{100 * subset.mean:.1f}"
            z = "-" if subset.z is None else f"{subset.z:+.2f}"
            helped = ("yes" if at.helped else "no") if first[0] else ""
            table.add_row(*first, subset.name, f"{subset.count:,}", score, z, helped)
            first = ["", "", ""]
    sources = printable(", ".join(found.sources))
    console = Console(highlight=False)
    console.print(
        f"{found.tokens:,} tokens of {found.documents:,} documents ({sources})", markup=False
    )
    console.print(table)
