"""What each process of the layouts' test does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from puna.attention import causal, document_mask, masked
from puna.config import ModelConfig
from puna.heads import next_token_logits
from puna.model import Llama, drawn, initialize
from puna.parallel.float8 import to_float8
from puna.parallel.part import Options, take_part
from puna.parallel.place import take_place
from puna.plan.layout import Layout
from puna.train.loop import Settings, make_optimizer, optimizer_step
from puna.train.losses import next_token_loss_sum
from puna.train.several import Several
from puna.train.single import Single

CONFIG = ModelConfig(32, 4, 8, 4, 48, vocab_size=64, context_length=32)
TIED = ModelConfig(32, 4, 8, 4, 48, vocab_size=64, context_length=32, tied=True)
SETTINGS = Settings(steps=20, learning_rate=1e-2, warmup_steps=2, dtype="fp32")
BATCH, CLIP = 16, 0.4  # windows a step; a norm that some gradients exceed


class Case(TypedDict, total=False):
    """A layout and what goes with it; `uneven`: pieces, and how many tokens count in a window."""

    layout: str
    dtype: str
    steps: int
    tied: bool
    documents: bool
    uneven: bool
    loss_chunk: int
    recompute: str
    compile: bool
    float8: str
    schedule: str


@dataclass(frozen=True)
class Windows:
    """Random windows, which repeat after a few steps so that there is something to learn."""

    micro_batch_size: int
    rank: int = 0
    num_ranks: int = 1
    documents: bool = False
    uneven: bool = False

    def micro_batches(self, step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step % 3)
        shape = (BATCH, CONFIG.context_length + 1)
        batch = torch.randint(CONFIG.vocab_size, shape, generator=generator)
        return list(batch.chunk(self.num_ranks)[self.rank].split(self.micro_batch_size))

    def num_tokens(self, batch: Tensor) -> int:
        return int((self.windows(batch)[1] >= 0).sum())

    def windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens, targets = batch[:, :-1], batch[:, 1:]
        if self.uneven:  # of some windows nearly all tokens, of others few
            targets = targets.masked_fill(targets % 32 > batch[:, :1] % 32, -100)
        mask = document_mask((tokens < 8).cumsum(1)) if self.documents else None
        return tokens, targets, mask

    def loss(self, model: Any, network: Llama, batch: Tensor) -> Tensor:
        tokens, targets, mask = self.windows(batch)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        hidden = model(tokens, positions, causal if mask is None else masked(mask))
        return next_token_loss_sum(next_token_logits(network, hidden), targets)

    def evaluate(self, loss: Any) -> dict[str, Any]:
        raise NotImplementedError


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


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
                grads = {n: whole(w.grad) for n, w in trainee.network.named_parameters()}
                for stage_grads in trainee.everyone(grads):  # more than one with a pipeline
                    found.update({f"{step}.{name}": x.numpy() for name, x in stage_grads.items()})
            return norm

        trainee.clip = clipped
        tokens = trainee.count(sum(stage.num_tokens(batch) for batch in batches))
        loss, norm = optimizer_step(trainee, optimizer, batches, tokens, rate=1e-2, grad_clip=CLIP)
        found["loss"].append(loss)
        found["norm"].append(norm)
    held_out = torch.randint(64, (5, 33), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        # Sums over a hundred tokens and more.
        sums = trainee.losses(list(held_out.split([1, 2, 1, 1])))
        found["held_out"] = [loss / 100 for loss in sums]
    return found


def alone(case: Case) -> dict[str, Any]:
    """The same by one process."""
    network = Llama(TIED if case.get("tied") else CONFIG)
    if case.get("float8"):
        to_float8(network, emulate=True)
    initialize(network, torch.Generator().manual_seed(1))
    if case["dtype"] == "fp64":
        network.double()
    stage = _stage(case, BATCH)
    settings = replace(SETTINGS, dtype="bf16" if case["dtype"] == "bf16" else "fp32")
    return run(Single(network, stage, settings), stage, case["steps"])


def as_one_rank(case: Case) -> dict[str, Any]:
    """By a group of one: with bf16, FSDP rounds what autocast leaves in fp32."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return together(case | Case(layout="")) or {}
    finally:
        dist.destroy_process_group()


def together(case: Case) -> dict[str, Any] | None:
    """By each rank of the layout; what was found, of the first."""
    layout = Layout.parse(case["layout"])
    place = take_place(layout, "cpu")
    config = TIED if case.get("tied") else CONFIG
    known: Any = case
    names = ("dtype", "recompute", "compile", "float8", "schedule")
    part = take_part(config, place, Options(**{key: known[key] for key in names if key in case}))
    part.fill(drawn(config, torch.Generator().manual_seed(1)))
    share = BATCH // layout.num_data_ranks
    pieces = share // max(2, layout.pp)
    if case.get("uneven"):
        pieces = 1 if layout.pp > 1 else 3
    stage = _stage(case, pieces, place.data_rank, layout.num_data_ranks)
    found = run(Several(part, stage, loss_chunk=case.get("loss_chunk", 0)), stage, case["steps"])
    return found if dist.get_rank() == 0 else None


def _stage(case: Case, pieces: int, rank: int = 0, num_ranks: int = 1) -> Windows:
    documents, uneven = case.get("documents", False), case.get("uneven", False)
    return Windows(pieces, rank, num_ranks, documents, uneven)
