"""`puna data`: from raw text to clean, tokenized shards, and a report of what was done."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import click

from puna.commands.options import json_option

_NEEDED = (
    "datatrove",
    "matplotlib",
    "orjson",
    "py3langid",
    "pyarrow",
    "regex",
    "xxhash",
    "zstandard",
)

_SAMPLE = """\
# What a corpus is built from, and how. Paths are relative to this file.
# Every step below is on with these values; step = false switches one off.

[[source]]
name = "books"
path = "books/*.jsonl.zst"      # .txt .jsonl (.gz .zst) .parquet .warc.gz; files, folders, patterns
licence = "public domain in the US"
kind = "gutenberg"              # plain, gutenberg, factbook, wikitext
upsample = 1.0                  # how often its tokens are seen while another source's are once
# What is otherwise for this source. C4's rules are for web pages; Gopher's leave out whole books.
steps = { c4 = false, gopher = { max_words = 0 } }

# [[source]]
# name = "web"
# hub = "HuggingFaceFW/fineweb"  # a data set on the hub, streamed
# hub_options = { name = "sample-10BT", split = "train" }
# licence = "ODC-By-1.0"

[steps.language]
languages = ["en"]

[steps.decontaminate]
evaluation = []                 # files or folders of evaluation sets; none: the step is off

[tokenize]
tokenizer = "cria"              # a tokenizer file, or a shipped model's name

[run]
executor = "local"              # local, slurm, ray
workers = 2                     # tasks (files) at once
# options = { partition = "cpu", time = "12:00:00" }   # datatrove's, of that executor
"""


@click.group()
def data() -> None:
    """Clean text, tokenize it, and see what was done to it."""


@data.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("corpus.toml"))
def new(path: Path) -> None:
    """Write a configuration to start from (corpus.toml)."""
    if path.exists():
        raise ValueError(f"{path} exists already; choose another name")
    path.write_text(_SAMPLE, encoding="utf-8")
    click.echo(f"wrote {path}; then: puna data build {path} --out FOLDER", err=True)


@data.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the build.")
@click.option("--workers", type=click.IntRange(min=1), help="Tasks at once, not the config's.")
@click.option("--executor", help="local, slurm or ray, not the config's.")
def build(config: Path, out: Path, workers: int | None, executor: str | None) -> None:
    """Build the corpus that CONFIG (TOML, see puna data new) describes.

    Reads, cleans, deduplicates, decontaminates and tokenizes. A build that was stopped or killed
    goes on when the same command is given again; what is done is not done again.
    """
    _check_installed()
    from puna.commands.models import named_vocabulary
    from puna.commands.progress import phase_bar
    from puna.data.pipeline.build import build as run_build
    from puna.data.pipeline.config import read_config
    from puna.tokenizer.sentencepiece_model import write_model

    read = read_config(config)
    run = dataclasses.replace(
        read.run, executor=executor or read.run.executor, workers=workers or read.run.workers
    )
    read = dataclasses.replace(read, run=run)
    tokenizer = None
    if read.tokenize.enabled:
        beside = config.parent / read.tokenize.tokenizer
        name = str(beside) if beside.is_file() else read.tokenize.tokenizer
        tokenizer = write_model(named_vocabulary(name))
    try:
        with phase_bar(out) as watch:
            finished = run_build(read, out, tokenizer, watch)
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on from here", err=True)
        raise
    if not finished:
        click.echo(f"submitted; when it is done: puna data report {out}", err=True)
        return
    _report(out, as_json=False)


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def report(folder: Path, as_json: bool) -> None:
    """Say what a build did; write report.html, report.md, report.json and plots into its FOLDER."""
    _check_installed()
    _report(folder, as_json)


def _report(folder: Path, as_json: bool) -> None:
    from puna.data.pipeline.report_files import write_report

    report = write_report(folder)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        _print(report)
        click.echo(f"report: {folder / 'report.html'}", err=True)
    if not report["complete"]:
        click.echo("not finished; give the same puna data build again to go on", err=True)
    elif not any(source["documents_out"] for source in report["sources"].values()):
        raise ValueError(f"no document is left; {folder / 'report.html'} says why")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("source")
    for column in ("documents", "kept", "M characters", "kept", "tokens", "of the mix"):
        table.add_column(column, justify="right")
    for name, s in report["sources"].items():
        table.add_row(
            name, f"{s['documents_in']:,}", f"{s['documents_out']:,}",
            f"{s['characters_in'] / 1e6:.1f}", f"{s['characters_out'] / 1e6:.1f}",
            f"{s['tokens']:,}", f"{s['weight']:.1%}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for step, sources in report["steps"].items():
        reasons: dict[str, int] = {}
        for tally in sources.values():
            for reason, count in tally["dropped"].items():
                reasons[reason] = reasons.get(reason, 0) + count
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
            console.print(f"  {step}: {count:,} dropped: {reason}", highlight=False, markup=False)


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"puna data needs {', '.join(missing)}: pip install 'puna[data]'")
