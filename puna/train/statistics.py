"""Norms of gradients, weights and updates, of each layer and of each kind of matrix.

A rank adds up the squares of what lies with it, and the ranks add up theirs: so a network cut in
any way, a stage of a pipeline too, gives the numbers of a whole one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from puna.heads import heads_of
from puna.model import Llama
from puna.parallel.fsdp import local, num_copies

if TYPE_CHECKING:
    from puna.train.contracts import Trainee
    from puna.train.log import Record
    from puna.train.loop import Settings

MEASURES = ("gradient", "weight", "update")


def groups(name: str) -> tuple[str, ...]:
    """What a weight belongs to: its layer and its kind, "layers.3" and "attention.wq"; what is not
    in a layer is alone."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] != "layers":
        return (parts[0],)
    return (".".join(parts[:2]), ".".join(parts[2:]))


class Statistics:
    """Takes them in the optimizer's step, while gradients are there, every `statistics_every`
    steps.

    `{"statistics": {"gradient": {group: norm}, "weight": {...}, "update": {...}}}`: the norm of the
    gradient before clipping, that of the weights after the update, and the norm of the update over
    that of the weights.
    """

    def __init__(
        self, trainee: Trainee, optimizer: torch.optim.Optimizer, settings: Settings
    ) -> None:
        self._trainee, self._every = trainee, settings.statistics_every
        self._grad_clip = settings.grad_clip
        self._due = False
        self._squares: list[float] | None = None
        if self._every:
            optimizer.register_step_post_hook(self._after_update)

    def begin(self, step: int) -> None:
        self._due = bool(self._every) and step % self._every == 0
        self._squares = None

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._due:
            self._squares = square_norms(self._trainee.network, optimizer)

    def end(self, grad_norm: float) -> Record:
        """Every rank calls it, with the norm of all gradients before they were clipped."""
        if self._squares is None:
            return {}
        squares = self._trainee.total(*self._squares)
        names = weight_names(self._trainee.network)
        sums: dict[str, dict[str, float]] = {measure: {} for measure in MEASURES}
        for number, name in enumerate(names):
            for which, measure in enumerate(MEASURES):
                square = squares[len(MEASURES) * number + which]
                for group in groups(name):
                    sums[measure][group] = sums[measure].get(group, 0.0) + square
        # Clipping has made the gradients smaller.
        scale = min(1.0, self._grad_clip / (grad_norm + 1e-6))
        weights = sums["weight"]
        found = {
            "gradient": {g: s**0.5 / scale for g, s in sums["gradient"].items()},
            "weight": {g: s**0.5 for g, s in weights.items()},
            "update": {
                g: (s / weights[g]) ** 0.5 if weights[g] else 0.0 for g, s in sums["update"].items()
            },
        }
        return {"statistics": {m: _rounded(values) for m, values in found.items()}}


def weight_names(network: Llama) -> list[str]:
    """Of the whole network, of which this may be a part."""
    return [*network.config.tensor_shapes(), *(f"{head}.weight" for head in heads_of(network))]


@torch.no_grad()
def square_norms(network: Any, optimizer: torch.optim.Optimizer) -> list[float]:
    """This rank's part of the squared norms of each weight's gradient, itself and its update: three
    numbers a weight, in the order of the whole network's; 0 where it lies with another stage."""
    here = dict(network.named_parameters())
    options = {id(w): group for group in optimizer.param_groups for w in group["params"]}
    squares: list[Tensor] = []
    for name in weight_names(network):
        weight = here.get(name)
        if weight is None:
            squares += [torch.zeros((), dtype=torch.float64)] * len(MEASURES)
            continue
        gradient = torch.zeros(()) if weight.grad is None else local(weight.grad)
        update = adamw_update(weight, optimizer.state[weight], options[id(weight)])
        squares += [_square(x) / num_copies(weight) for x in (gradient, local(weight), update)]
    device = next(iter(here.values())).device
    return torch.stack([square.to(device) for square in squares]).tolist()


def adamw_update(weight: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """What AdamW (arXiv 1711.05101) just took from this rank's part of a weight.

    Worked out from its moments, so that no copy of the weights from before is needed.
    """
    beta1, beta2 = options["betas"]
    step = float(state["step"])
    first = local(state["exp_avg"]) / (1 - beta1**step)
    second = (local(state["exp_avg_sq"]) / (1 - beta2**step)).sqrt_().add_(options["eps"])
    moved = first.div_(second).mul_(options["lr"])
    # Decay came first: after = before (1 - decay) - moved.
    decay = options["lr"] * options["weight_decay"]
    before = (local(weight) + moved) / (1 - decay)
    return moved.add_(before, alpha=decay)


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()


def _rounded(values: dict[str, float]) -> dict[str, float]:
    """To six digits: they are for looking at, and there are many."""
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def layer_order(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The groups of a record's statistics as rows: by depth, and by kind of matrix."""
    rows = list(names)
    layers = [n for n in rows if n.startswith("layers.") or ("." not in n and "_norm" not in n)]
    return layers, [n for n in rows if n not in layers]
