"""What reward models say of a policy's answers, and which of them counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from puna.data.prompts import Prompt
from puna.train.advantages import switched
from puna.train.log import Record
from puna.train.sampling import Scorer, answered, rewards_of


@dataclass(frozen=True, slots=True)
class Scorers:
    """Two reward models; without `safety` helpfulness alone counts. `gold` is measured beside them
    and never trained on, to see whether what they praise is better."""

    helpfulness: Scorer
    safety: Scorer | None = None
    gold: Scorer | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Raw scores (B,) by each scorer; `reward` is what of them counts (`advantages.switched`)."""

    reward: Tensor
    helpfulness: Tensor
    safety: Tensor | None
    gold: Tensor | None

    def means(self) -> Record:
        """Of those that there are, by their names."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: x.mean().item() for name, x in found.items() if x is not None}


def scores_of(scorers: Scorers, prompts: Sequence[Prompt], texts: Sequence[str]) -> Scores:
    """Scores answers, one to each prompt. ValueError, naming the scorer, for what is no number."""
    dialogs = [answered(p.messages, text) for p, text in zip(prompts, texts, strict=True)]

    def by(name: str) -> Tensor | None:
        scorer = getattr(scorers, name)
        if scorer is None:
            return None
        try:
            return torch.tensor(rewards_of(scorer, dialogs))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    helpfulness, safety, gold = by("helpfulness"), by("safety"), by("gold")
    assert helpfulness is not None
    reward = helpfulness
    if safety is not None:
        is_safety = torch.tensor([prompt.is_safety for prompt in prompts])
        reward = switched(helpfulness, safety, is_safety)
    return Scores(reward, helpfulness, safety, gold)
