"""LoRA (arXiv 2106.09685): low-rank pairs that are trained beside frozen linear layers.

A layer may be packed (QLoRA, arXiv 2305.14314): whatever takes x (..., I) and gives (..., O) with a
gradient to its input.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.model import Llama

# What may have a pair; all of them by default, as QLoRA found to be needed.
TARGETS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
BASES = ("auto", "fp32", "int8", "int4")


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """W becomes W + alpha / rank * B A in the layers called `targets`, A (rank, I), B (O, rank).

    `base` is how the frozen matrices are held: fp32, rounded to int8 or int4, or with "auto" as
    they are stored where that is in integers or blocks. Rank and alpha are *ours*.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    base: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON has lists
        if self.rank < 1:
            raise ValueError(f"a LoRA rank is 1 or more, not {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"a LoRA alpha is positive, not {self.alpha}")
        wrong = [name for name in self.targets if name not in TARGETS]
        if wrong or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"LoRA targets are some of {','.join(TARGETS)}, not {','.join(self.targets)!r}"
            )
        if self.base not in BASES:
            raise ValueError(f"a LoRA base is {', '.join(BASES)}, not {self.base!r}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoRALinear(nn.Module):
    """base(x) + scale * (x A^T) B^T. B begins as 0: so the whole begins as the base."""

    def __init__(self, base: Any, settings: LoRASettings, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.settings, self.counts = base, settings, True
        num_inputs, num_outputs = base.in_features, base.out_features
        device = next(x.device for x in (*base.parameters(), *base.buffers()))
        # Drawn on the CPU: the same on every device. PEFT's bound.
        a = torch.empty(settings.rank, num_inputs)
        bound = num_inputs**-0.5
        a.uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(num_outputs, settings.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        if not self.counts:
            return self.base(x)
        more = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return self.base(x) + self.settings.scale * more

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The whole weight (O, I); ValueError where the base is packed."""
        if not isinstance(self.base, nn.Linear):
            raise ValueError("a packed matrix has no weight that its LoRA pair could be added to")
        return self.base.weight + self.settings.scale * (self.lora_b @ self.lora_a)


def attach(model: Llama, settings: LoRASettings, generator: torch.Generator) -> None:
    """Freezes a network and puts pairs beside its `targets`; they alone are trained then."""
    model.requires_grad_(False)
    for path in [path for path, _ in model.named_modules()]:
        if path.startswith("layers.") and path.rpartition(".")[2] in settings.targets:
            layer = LoRALinear(model.get_submodule(path), settings, generator)
            model.set_submodule(path, layer)


def layers_of(model: Llama) -> dict[str, LoRALinear]:
    """The layers with pairs, by the names of the weights that these change; none without LoRA."""
    return {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, LoRALinear)
    }


@contextlib.contextmanager
def without_pairs(model: Llama) -> Iterator[None]:
    """While inside, the network is what it was before its pairs were attached."""
    layers = layers_of(model).values()
    for layer in layers:
        layer.counts = False
    try:
        yield
    finally:
        for layer in layers:
            layer.counts = True


def trained(model: Llama) -> dict[str, nn.Parameter]:
    """What of a network is trained, by its names: with LoRA the pairs, else all."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
