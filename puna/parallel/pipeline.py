"""Pipeline parallel: stages of consecutive layers, by torch's schedules."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from puna.model import Llama
from puna.parallel.place import Place


def keep_stage(network: Llama, stage: int, num_stages: int) -> None:
    """Drops what other stages hold: the layers, embedding, last norm and head."""
    size = len(network.layers) // num_stages
    for number in range(len(network.layers)):
        if number // size != stage:
            del network.layers[str(number)]
    if stage > 0:
        network.tok_embeddings = nn.Identity()  # type: ignore[assignment]
    if stage < num_stages - 1:
        network.norm = nn.Identity()  # type: ignore[assignment]
        network.output = None


def one_forward_one_backward(
    part: nn.Module,
    place: Place,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    num_pieces: int,
    tokens: tuple[int, int],
    hidden: Tensor,
) -> Schedule1F1B:
    """The schedule (PipeDream-Flush, arXiv 2006.09503) of a step of `num_pieces` pieces.

    `tokens` is the shape of a piece's ids on this rank, `hidden` a tensor like the hidden states
    that stages pass on. `loss` gets the last stage's and the targets; gradients are summed.
    """
    states = torch.empty_like(hidden, device="meta", requires_grad=True)
    ids = torch.empty(tokens, dtype=torch.int64, device="meta")
    stage = PipelineStage(
        part,
        place.stage,
        place.layout.pp,
        place.device,
        input_args=ids if place.stage == 0 else states,
        output_args=states,
        group=place.mesh.get_group("pp"),
    )
    return Schedule1F1B(stage, num_pieces, loss_fn=loss, scale_grads=False)


@torch.no_grad()
def forward_only(
    part: nn.Module, place: Place, tokens: Tensor, hidden: Tensor, *arguments: Tensor | None
) -> Tensor:
    """A forward pass through the stages; `hidden` is memory for what the stage before sends.

    Gives this stage's hidden states.
    """
    group = place.mesh.get_group("pp")
    if place.stage > 0:
        dist.recv(hidden, group=group, group_src=place.stage - 1)
    states: Tensor = part(hidden if place.stage > 0 else tokens, *arguments)
    if not place.has_last_stage:
        dist.send(states.contiguous(), group=group, group_dst=place.stage + 1)
    return states
