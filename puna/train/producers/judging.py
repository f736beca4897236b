"""One reward of two reward models, by the paper's switch (arXiv 2307.09288, section 3.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from puna.train.ppo.advantages import switched
from puna.train.sampling import Dialog, Scorer


def switched_scorer(
    helpfulness: Scorer, safety: Scorer, is_safety: Callable[[Dialog], bool]
) -> Scorer:
    """Safety's reward where the prompt is a risky one or the answer unsafe, else helpfulness'.

    `is_safety` is asked of prompts, which end with the user.
    """

    def score(dialogs: Sequence[Dialog]) -> list[float]:
        helpful, safe = torch.tensor(helpfulness(dialogs)), torch.tensor(safety(dialogs))
        risky = torch.tensor([is_safety(dialog[:-1]) for dialog in dialogs])
        return switched(helpful.double(), safe.double(), risky).tolist()

    return score
