"""What each process of the statistics' test does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from puna.model import drawn
from puna.parallel.part import Options, take_part
from puna.parallel.place import take_place
from puna.plan.layout import Layout
from puna.train.loop import make_optimizer, optimizer_step
from puna.train.several import Several
from puna.train.watch import Watch
from tests.parallel.layouts import CLIP, CONFIG, SETTINGS, Windows

STEPS = 3
LAYOUTS = ("dp=2", "fsdp=2", "cp=2", "tp=2", "pp=2")
WATCHED = dataclasses.replace(SETTINGS, statistics_every=2, grad_clip=CLIP)


def watched(trainee: Any, stage: Windows) -> dict[str, Any]:
    """The record of the second step, which is the one that statistics are taken of."""
    optimizer = make_optimizer(trainee.network, WATCHED)
    watch = Watch(trainee, optimizer, WATCHED, None)
    records = []
    for step in range(STEPS):
        watch.begin(step + 1)
        batches = stage.micro_batches(step)
        tokens = trainee.count(sum(stage.num_tokens(batch) for batch in batches))
        watch.lap("data")
        loss, norm = optimizer_step(trainee, optimizer, batches, tokens, rate=1e-2, grad_clip=CLIP)
        records.append({"loss": loss, "grad_norm": norm} | watch.end(tokens, norm))
    assert ["statistics" in record for record in records] == [False, True, False]
    return records[1]


def main(file: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for line in LAYOUTS:
        layout = Layout.parse(line)
        place = take_place(layout, "cpu")
        part = take_part(CONFIG, place, Options(dtype="fp64"))
        part.fill(drawn(CONFIG, torch.Generator().manual_seed(1)))
        stage = Windows(4, place.data_rank, layout.num_data_ranks)
        found[line] = watched(Several(part, stage), stage)
    if dist.get_rank() == 0:
        file.write_text(json.dumps(found))
    dist.destroy_process_group()
