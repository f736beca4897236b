"""Pipeline parallel: stages of consecutive layers, by torch's schedules.

A rank has one stage, or with an interleaved schedule several: stage s is rank s modulo pp's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

from puna.model import Llama, empty
from puna.parallel.place import Place
from puna.plan.layout import SCHEDULES

Schedule = Schedule1F1B | ScheduleGPipe | ScheduleInterleaved1F1B

_KINDS: dict[str, type[Schedule]] = {
    "1f1b": Schedule1F1B,  # PipeDream-Flush, arXiv 2006.09503
    "gpipe": ScheduleGPipe,  # arXiv 1811.06965
    "interleaved": ScheduleInterleaved1F1B,  # Megatron-LM, arXiv 2104.04473
}


def stages_of(place: Place, schedule: str) -> list[int]:
    """The stages of the pipeline that are this rank's, in their order."""
    pp = place.layout.pp
    return [place.stage + pp * turn for turn in range(SCHEDULES[schedule] if pp > 1 else 1)]


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


def joined(networks: Sequence[Llama]) -> Llama:
    """The modules of several stages, in their order, in one network: it names their weights."""
    if len(networks) == 1:
        return networks[0]
    whole = empty(networks[0].config)
    blocks = {name: block for network in networks for name, block in network.layers.items()}
    whole.layers = nn.ModuleDict(blocks)
    whole.tok_embeddings = networks[0].tok_embeddings
    whole.norm, whole.output = networks[-1].norm, networks[-1].output
    return whole


def make_schedule(
    kind: str,
    chunks: Sequence[nn.Module],
    place: Place,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    num_pieces: int,
    tokens: tuple[int, int],
    hidden: Tensor,
) -> Schedule:
    """The order of a step's `num_pieces` pieces through the stages, of which `chunks` are here.

    `tokens` is the shape of a piece's ids on this rank, `hidden` a tensor like the hidden states
    that stages pass on. `loss` gets the last stage's and the targets; gradients are summed.
    """
    states = torch.empty_like(hidden, device="meta", requires_grad=True)
    ids = torch.empty(tokens, dtype=torch.int64, device="meta")
    stages = [
        PipelineStage(
            chunk,
            number,
            place.layout.pp * len(chunks),
            place.device,
            input_args=ids if number == 0 else states,
            output_args=states,
            group=place.mesh.get_group("pp"),
        )
        for number, chunk in zip(stages_of(place, kind), chunks, strict=True)
    ]
    # Torch's schedules of one stage a rank take it itself.
    given: Any = stages if SCHEDULES[kind] > 1 else stages[0]
    return _KINDS[kind](given, num_pieces, loss_fn=loss, scale_grads=False)


@torch.no_grad()
def forward_only(
    chunks: Sequence[nn.Module],
    place: Place,
    tokens: Tensor,
    hidden: Tensor,
    *arguments: Tensor | None,
) -> Tensor:
    """A forward pass through the stages; `hidden` is memory for what the stage before sends.

    Gives the hidden states of this rank's last stage.
    """
    group, pp = place.mesh.get_group("pp"), place.layout.pp
    states, last = tokens, pp * len(chunks) - 1
    for turn, chunk in enumerate(chunks):
        stage = place.stage + pp * turn
        if stage > 0:
            dist.recv(hidden, group=group, group_src=(stage - 1) % pp)
        states = chunk(hidden if stage > 0 else tokens, *arguments)
        if stage < last:
            dist.send(states.contiguous(), group=group, group_dst=(stage + 1) % pp)
    return states
