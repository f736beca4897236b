"""What an iteration of PPO trains on: answers with their advantages, kept in a file of the run."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from puna.formats.files import atomic_file
from puna.formats.safetensors_file import read_entries, write_arrays
from puna.train.log import Record
from puna.train.ppo.advantages import generalized_advantages, token_rewards, whiten
from puna.train.ppo.rollouts import Tokens

_TYPES = {"I64": torch.int64, "F32": torch.float32}
_NAMES = {torch.int64: "I64", torch.float32: "F32"}


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """By answer and token (B, T), 0 where there is none: the policy's log-probabilities and values
    before it trains, advantages, returns. `figures` go to the log."""

    tokens: Tokens
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    figures: Record


def learned_from(
    tokens: Tokens,
    scores_B: Tensor,
    logprobs_BT: Tensor,
    reference_BT: Tensor,
    values_BT: Tensor,
    figures: Record,
    *,
    beta: float,
    gamma: float,
    lambda_: float,
) -> Experience:
    """Experience from whitened scores of answers. *Ours*: advantages are whitened over all tokens,
    so that the learning rate means the same at any scale of values; returns are not."""
    mask = tokens.mask
    rewards = token_rewards(scores_B, logprobs_BT, reference_BT, mask, beta=beta)
    advantages = generalized_advantages(rewards, values_BT, mask, gamma=gamma, lambda_=lambda_)
    returns = torch.where(mask, advantages + values_BT, 0)
    return Experience(tokens, logprobs_BT, values_BT, whiten(advantages, mask), returns, figures)


def experience_path(run: Path, iteration: int) -> Path:
    return run / "rollouts" / f"iteration-{iteration:06}.safetensors"


def write_experience(path: Path, experience: Experience) -> None:
    """Writes a file that is there once it is whole."""
    tensors = _tensors(experience)
    specs = {name: (_NAMES[x.dtype], tuple(x.shape)) for name, x in tensors.items()}
    arrays = (x.contiguous().numpy().view(np.uint8) for x in tensors.values())
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path, overwrite=True) as file:
        write_arrays(file, specs, arrays, {"figures": json.dumps(experience.figures)})


def read_experience(path: Path) -> Experience:
    """What `write_experience` wrote, bit for bit; FormatError where the file is damaged, ValueError
    where it is missing."""
    if not path.is_file():
        raise ValueError(
            f"{path} is gone: the run is in the middle of that iteration and cannot go on without "
            "what it sampled"
        )
    file, entries, metadata = read_entries(path)
    found = {
        name: torch.from_numpy(file.read(entry.begin, entry.end, name))
        .view(_TYPES[entry.dtype])
        .view(entry.shape)
        for name, entry in entries.items()
    }
    tokens = Tokens(*(found.pop(name) for name in ("ids", "prompt_lengths", "lengths")))
    return Experience(tokens, **found, figures=json.loads(metadata["figures"]))


def forget_experience(run: Path, keep: Collection[int]) -> None:
    """Removes the files of all iterations but those to keep."""
    kept = {experience_path(run, iteration) for iteration in keep}
    for path in (run / "rollouts").glob("iteration-*.safetensors"):
        if path not in kept:
            path.unlink()


def _tensors(experience: Experience) -> dict[str, Tensor]:
    tokens = experience.tokens
    named = {"ids": tokens.ids, "prompt_lengths": tokens.prompt_lengths, "lengths": tokens.lengths}
    for name in ("logprobs", "values", "advantages", "returns"):
        named[name] = getattr(experience, name)
    return named
