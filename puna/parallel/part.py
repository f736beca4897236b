"""What of the network a rank trains: the pieces of `parallel` put on it, in their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from puna.attention import Attend, causal, causal_mask, masked
from puna.config import ModelConfig
from puna.heads import attach
from puna.model import Llama, empty
from puna.parallel.collectives import gather
from puna.parallel.context import gathered, part
from puna.parallel.float8 import to_float8
from puna.parallel.fsdp import local, shard, share_of
from puna.parallel.pipeline import joined, keep_stage, stages_of
from puna.parallel.place import Place
from puna.parallel.recompute import recompute
from puna.parallel.sequence import share_matrices

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True, slots=True)
class Options:
    """How a part computes. `dtype` is bf16, fp32, or fp64 to compare layouts; `float8` is "no",
    "yes", or "emulated" for tests; `schedule` is a pipeline's (`layout.SCHEDULES`); `heads` are the
    scalar heads (`config.HEADS`) that are trained too."""

    dtype: str = "bf16"
    recompute: str = "none"
    compile: bool = False
    float8: str = "no"
    schedule: str = "1f1b"
    heads: tuple[str, ...] = ()


class Chunk(nn.Module):
    """The network, or consecutive layers of it: a stage. The root of FSDP, which `shard` makes it.

    The first has the embedding too, the last (`last`) norm and head.
    """

    def __init__(self, network: Llama, place: Place, *, last: bool) -> None:
        super().__init__()
        self.network, self.place, self.last = network, place, last

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | Attend | None = None) -> Tensor:
        """Token ids, or the hidden states of the stage before -> hidden states.

        `positions` and the rows of `mask` are this rank's part of the windows' (`Part.windows`).
        Where a rank has whole windows and layers, `mask` may be the `attend` itself.
        Between stages ranks of a tensor group have a part of the positions each; the last gives
        all.
        """
        hidden: Tensor = self.network(x, positions, self._attend(mask))
        if self.place.tensor is not None and self.last:
            hidden = gather(hidden, 1, self.place.tensor)
        return hidden

    def _attend(self, mask: Tensor | Attend | None) -> Attend:
        if mask is None:
            return causal
        if not isinstance(mask, Tensor):
            return mask
        context = self.place.context
        return masked(mask) if context is None else gathered(mask, context)


@final
class Part:
    """This rank's part of the network: one chunk, or several of an interleaved pipeline.

    `network` holds the modules of all of them, by their names in the whole network.
    """

    def __init__(self, chunks: list[Chunk], place: Place, options: Options) -> None:
        self.chunks, self.place, self.schedule = chunks, place, options.schedule
        self.network = joined([chunk.network for chunk in chunks])
        self.dtype = _DTYPES[options.dtype]

    def to_empty(self, device: torch.device | str) -> None:
        """Gives the weights memory, not yet filled."""
        for chunk in self.chunks:
            chunk.to_empty(device=device)

    def windows(
        self, tokens: Tensor, targets: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What of whole windows (B, T) is this rank's: tokens, targets, positions, and mask."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        group = self.place.context
        if group is None:
            return tokens, targets, positions, mask
        if mask is None:
            mask = causal_mask(tokens.shape[1], tokens.device).expand(len(tokens), -1, -1, -1)
        cut = [part(x, 1, group).contiguous() for x in (tokens, targets, positions)]
        return cut[0], cut[1], cut[2], part(mask, 2, group)

    def hidden_like(self, tokens: Tensor) -> Tensor:
        """Memory of the shape of what stages pass on for these tokens."""
        positions = tokens.shape[1] // self.place.layout.tp
        shape = (len(tokens), positions, self.network.config.dim)
        return torch.empty(shape, dtype=self.dtype, device=tokens.device)

    def head(self) -> Tensor:
        """The head's weights (V, D), or this rank's share of them, while they are gathered."""
        network = self.network
        head = network.tok_embeddings if network.output is None else network.output
        return local(head.weight)

    def names(self) -> list[str]:
        """The weights of which something is here."""
        return [name for name, _ in self.network.named_parameters()]

    @torch.no_grad()
    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes this rank's shares of whole weights, which come one at a time with their names."""
        own = dict(self.network.named_parameters())
        for name, whole in weights:
            if name in own:
                local(own[name]).copy_(share_of(whole, own[name], self.place))


def take_part(config: ModelConfig, place: Place, options: Options) -> Part:
    """This rank's part, its weights not yet filled; no more memory is taken than for that."""
    own = cut_part(config, place, options)
    own.to_empty(place.device)
    return own


def cut_part(config: ModelConfig, place: Place, options: Options) -> Part:
    """This rank's part on the `meta` device: shapes and no memory."""
    if options.heads and (place.layout.tp > 1 or place.layout.pp > 1):
        raise ValueError(
            f"a {options.heads[0]} head is trained with dp and fsdp, not with tp or pp; "
            f"'{place.layout}' has them"
        )
    stages = stages_of(place, options.schedule)
    num_stages = place.layout.pp * len(stages)
    chunks = [_cut_chunk(config, place, options, stage, num_stages) for stage in stages]
    return Part(chunks, place, options)


def _cut_chunk(
    config: ModelConfig, place: Place, options: Options, stage: int, num_stages: int
) -> Chunk:
    network = empty(config)
    keep_stage(network, stage, num_stages)
    attach(network, *options.heads)
    if options.dtype == "fp64":
        network.double()
    if options.float8 != "no":
        to_float8(network, emulate=options.float8 == "emulated")
    if place.layout.tp > 1:
        share_matrices(network, place.mesh["tp"])
    blocks = list(network.layers.values())
    recompute(blocks, options.recompute)
    if options.compile:
        for block in blocks:
            block.compile()
    chunk = Chunk(network, place, last=stage == num_stages - 1)
    shard(chunk, blocks, place, bf16=options.dtype == "bf16")
    return chunk
