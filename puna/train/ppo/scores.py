"""What reward models say of a policy's answers, and which of them counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from puna.data.prompts import Prompt
from puna.train.log import Record
from puna.train.ppo.advantages import switched
from puna.train.sampling import Dialog, Scorer, answered, rewards_of


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


def joined_scores(parts: Sequence[Scores]) -> Scores:
    """The scores of several processes' answers, one part after another."""

    def together(name: str) -> Tensor | None:
        each = [getattr(part, name) for part in parts]
        return None if each[0] is None else torch.cat(each)

    reward, helpfulness = together("reward"), together("helpfulness")
    assert reward is not None and helpfulness is not None
    return Scores(reward, helpfulness, together("safety"), together("gold"))


def by_beginning(scorer: Scorer, fits: Callable[[Dialog], bool]) -> Scorer:
    """A scorer of which answers that do not fit its context get a score by their beginning.

    An answer may take more tokens than were sampled when it is encoded anew: bytes that are no text
    become longer ones. ValueError where the prompt alone is too long.
    """

    def shortened(dialog: Dialog) -> Dialog:
        while not fits(dialog):
            *prompt, answer = dialog
            if not answer.content:
                raise ValueError(
                    f"a prompt does not fit the reward model's context: {prompt[-1].content[:60]!r}"
                )
            dialog = answered(prompt, answer.content[: len(answer.content) * 3 // 4])
        return dialog

    return lambda dialogs: scorer([shortened(dialog) for dialog in dialogs])


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
        is_safety = torch.tensor([prompt.is_risky for prompt in prompts])
        reward = switched(helpfulness, safety, is_safety)
    return Scores(reward, helpfulness, safety, gold)
