"""What each process of the layouts' test does: python -m torch.distributed.run ... FILE CASES"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from puna.attention import causal, document_mask, masked
from puna.config import ModelConfig
from puna.heads import next_token_logits
from puna.model import Llama, drawn, initialize
from puna.parallel.float8 import to_float8
from puna.parallel.layout import Layout
from puna.parallel.part import Options, take_part
from puna.parallel.place import take_place
from puna.train.loop import Settings, make_optimizer, optimizer_step
from puna.train.losses import next_token_loss_sum
from puna.train.several import Several
from puna.train.single import Single

CONFIG = ModelConfig(32, 4, 8, 4, 48, vocab_size=64, context_length=32)
TIED = ModelConfig(32, 4, 8, 4, 48, vocab_size=64, context_length=32, tied=True)
SETTINGS = Settings(steps=20, learning_rate=1e-2, warmup_steps=2, dtype="fp32")
BATCH, CLIP = 16, 0.4  # windows a step; a norm that some gradients exceed


@dataclass(frozen=True)
class Windows:
    """Random windows, which repeat after a few steps so that there is something to learn."""

    micro_batch_size: int
    rank: int = 0
    num_ranks: int = 1
    documents: bool = False

    def micro_batches(self, step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step % 3)
        shape = (BATCH, CONFIG.context_length + 1)
        batch = torch.randint(CONFIG.vocab_size, shape, generator=generator)
        return list(batch.chunk(self.num_ranks)[self.rank].split(self.micro_batch_size))

    def num_tokens(self, batch: Tensor) -> int:
        return batch[:, 1:].numel()

    def windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens = batch[:, :-1]
        mask = document_mask((tokens < 8).cumsum(1)) if self.documents else None
        return tokens, batch[:, 1:], mask

    def loss(self, model: Any, network: Llama, batch: Tensor) -> Tensor:
        tokens, targets, mask = self.windows(batch)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        hidden = model(tokens, positions, causal if mask is None else masked(mask))
        return next_token_loss_sum(next_token_logits(network, hidden), targets)

    def evaluate(self, loss: Any) -> dict[str, Any]:
        raise NotImplementedError


def run(trainee: Any, stage: Windows, steps: int) -> dict[str, Any]:
    """Losses, norms, and all gradients before the first and the last update."""
    optimizer = make_optimizer(trainee.network, SETTINGS)
    found: dict[str, Any] = {"loss": [], "norm": []}
    clip = trainee.clip
    for step in range(steps):
        batches = stage.micro_batches(step)

        def clipped(limit: float, step: int = step) -> float:
            norm = clip(limit)
            if step in (0, steps - 1):
                grads = [(n, w.grad) for n, w in trainee.network.named_parameters()]
                whole = trainee.gathered(grads) if hasattr(trainee, "gathered") else dict(grads)
                found.update({f"{step}.{name}": x.numpy() for name, x in whole.items()})
            return norm

        trainee.clip = clipped
        tokens = trainee.count(sum(stage.num_tokens(batch) for batch in batches))
        loss, norm = optimizer_step(trainee, optimizer, batches, tokens, rate=1e-2, grad_clip=CLIP)
        found["loss"].append(loss)
        found["norm"].append(norm)
    held_out = torch.randint(64, (5, 33), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        found["held_out"] = trainee.losses(list(held_out.split([1, 2, 1, 1])))
    return found


def alone(case: dict[str, Any]) -> dict[str, Any]:
    """The same by one process."""
    network = Llama(TIED if case.get("tied") else CONFIG)
    if case.get("float8"):
        to_float8(network, emulate=True)
    initialize(network, torch.Generator().manual_seed(1))
    if case["dtype"] == "fp64":
        network.double()
    stage = Windows(BATCH, documents=case.get("documents", False))
    return run(Single(network, stage, SETTINGS), stage, case["steps"])


def main(file: Path, cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    everything = {}
    for case in cases:
        layout = Layout.parse(case["layout"])
        place = take_place(layout, "cpu")
        config = TIED if case.get("tied") else CONFIG
        options = {key: case[key] for key in ("recompute", "compile", "float8") if key in case}
        part = take_part(config, place, Options(dtype=case["dtype"], **options))
        part.fill(drawn(config, torch.Generator().manual_seed(1)))
        pieces = BATCH // layout.num_data_ranks // max(2, layout.pp)
        stage = Windows(
            pieces, place.data_rank, layout.num_data_ranks, case.get("documents", False)
        )
        trainee = Several(part, stage, loss_chunk=case.get("loss_chunk", 0))
        found = run(trainee, stage, case["steps"])
        everything |= {f"{case['name']}/{key}": value for key, value in found.items()}
    if dist.get_rank() == 0:
        np.savez(file, **everything)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
