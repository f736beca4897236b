"""Predicted peak memory beside what training logs, in four processes on a CPU.

    python benchmarks/plan_memory.py          (three shapes in three layouts: a quarter of an hour)
    python benchmarks/plan_memory.py --shapes deep --layouts fsdp=4 --recompute none

`puna pretrain` trains two steps of two pieces in bf16, the processes talking by gloo. Compared is
`memory` of the second step in its log: the most that a process had in memory (`ru_maxrss`), of the
process that had most. Much of that is Python and torch themselves, which a plan leaves out: so a
network of a few megabytes is trained in the same layout too, and the differences to it are
compared, logged and predicted. glibc is told to give back at once what is freed (MALLOC_...), for
what it keeps is nothing that training needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.commands.models import named_vocabulary
from puna.config import ModelConfig
from puna.plan.layout import Layout
from puna.plan.memory import RECOMPUTE, rank_memory
from puna.train.log import read_log
from puna.train.loop import Settings
from puna.train.pretrain import PretrainConfig, prepare

VOCABULARY = "cria"
# Untied, for a pipeline; of the shipped tokenizer's 4096 pieces.
SHAPES = {
    "deep": ModelConfig(768, 16, 12, 12, 2048, vocab_size=4096, context_length=512),
    "wide": ModelConfig(1536, 4, 12, 12, 4096, vocab_size=4096, context_length=512),
    "grouped": ModelConfig(1024, 8, 16, 4, 2816, vocab_size=4096, context_length=1024),
}
SMALL = ModelConfig(64, 4, 4, 4, 192, vocab_size=4096, context_length=64)
LAYOUTS = ("fsdp=4", "fsdp=2 tp=2", "pp=2 fsdp=2")
PIECES, STEPS, LOSS_CHUNK = 2, 2, 128
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True)
class Compared:
    """Bytes of the fullest process, without what one has that trains next to nothing."""

    shape: str
    layout: str
    recompute: str
    predicted: float
    logged: float

    @property
    def error(self) -> float:
        return self.predicted / self.logged - 1


def predicted(config: ModelConfig, layout: Layout, recompute: str) -> float:
    memory = rank_memory(
        config, layout, micro_batch_size=1, num_pieces=PIECES, recompute=recompute,
        loss_chunk=LOSS_CHUNK,
    )  # fmt: skip
    return memory.peak


def logged(config: ModelConfig, layout: Layout, recompute: str) -> float:
    """`memory` of the last step of a run in as many processes as the layout has."""
    settings = Settings(
        STEPS, warmup_steps=0, parallel=str(layout), recompute=recompute, loss_chunk=LOSS_CHUNK
    )
    run_config = PretrainConfig(config, settings, PIECES * layout.num_data_ranks, 1)
    with tempfile.TemporaryDirectory() as folder:
        run, text = Path(folder) / "run", Path(folder) / "text.txt"
        text.write_text("\n".join(_lines()), encoding="utf-8")
        prepare(run, run_config, [text], named_vocabulary(VOCABULARY))
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
        puna = ("-m", "puna", "pretrain", "--out", str(run), "--resume")
        subprocess.run(
            [sys.executable, *torchrun, str(layout.num_ranks), *puna],
            env={**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True,
        )  # fmt: skip
        return float(read_log(run / "log.jsonl")[-1]["memory"])


def _lines() -> Iterator[str]:
    """Text enough for any of the runs: words of random letters."""
    draw = random.Random(0)
    for _ in range(4000):
        yield " ".join("".join(draw.choices("abcdefgh", k=4)) for _ in range(10))


def compare(shapes: list[str], layouts: list[str], recompute: list[str]) -> Iterator[Compared]:
    """Each shape in each layout, what is computed anew in turn."""
    for column, line in enumerate(layouts):
        layout = Layout.parse(line)
        none = logged(SMALL, layout, "none") - predicted(SMALL, layout, "none")
        for row, shape in enumerate(shapes):
            kind = recompute[(row + column) % len(recompute)]
            config = SHAPES[shape]
            yield Compared(
                shape, line, kind, predicted(config, layout, kind),
                logged(config, layout, kind) - none,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS))
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, default=list(RECOMPUTE))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = compare(args.shapes, args.layouts, args.recompute)
    if args.json:
        print(json.dumps([{**dataclasses.asdict(row), "error": row.error} for row in found]))
        return
    print("| shape | layout | recompute | predicted, MB | logged, MB | error |")
    print("|---|---|---|---|---|---|")
    for row in found:
        sizes = f"{row.predicted / 1e6:,.0f} | {row.logged / 1e6:,.0f}"
        print(
            f"| {row.shape} | {row.layout} | {row.recompute} | {sizes} | {row.error:+.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
