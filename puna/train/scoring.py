"""What a reward model says of whole dialogs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from puna.chat import Message, encode_dialog
from puna.engine.loading import load_network
from puna.formats.checkpoint import Checkpoint
from puna.heads import heads_of, scalar
from puna.model import Llama
from puna.tokenizer import Vocabulary
from puna.train.starting import open_start
from puna.train.window_loss import hidden_states

_MOST_TOKENS = 8192  # of a batch, padding too; *ours*


def open_scorer(
    model: str | Path,
    *,
    vocabulary: Vocabulary | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    num_threads: int | None = None,
) -> RewardScorer:
    """A reward model by path (a run's folder too) or name.

    ValueError where it has no score head, or another vocabulary than `vocabulary`: that of the
    model whose ids it is to score.
    """
    checkpoint = open_start(model)
    check_scorer(checkpoint, vocabulary)
    threads = torch.get_num_threads()
    network = load_network(checkpoint, device, dtype)
    torch.set_num_threads(num_threads or threads)
    return RewardScorer(network, checkpoint)


def check_scorer(checkpoint: Checkpoint, vocabulary: Vocabulary | None) -> None:
    """ValueError unless this is a reward model, and of this vocabulary."""
    if "score" not in checkpoint.heads:
        raise ValueError(
            f"{checkpoint.path} is no reward model: it has no score head; see puna reward"
        )
    own = checkpoint.vocabulary
    if vocabulary is not None and (own is None or own.pieces != vocabulary.pieces):
        raise ValueError(
            f"{checkpoint.path} is a reward model of another vocabulary; train one from a model "
            "with the same tokenizer"
        )


class RewardScorer:
    """`score` and `safety` of dialogs that end with the assistant's answer, batched by length.

    Scores are raw: sigmoid of a difference of two is how likely the first answer is preferred.
    """

    def __init__(self, network: Llama, checkpoint: Checkpoint) -> None:
        self.network, self.heads = network, heads_of(network)
        self._tokenizer, self._path = checkpoint.tokenizer(), checkpoint.path

    def __call__(self, dialogs: Sequence[Sequence[Message]]) -> list[float]:
        return self.score(dialogs)

    def fits(self, dialog: Sequence[Message]) -> bool:
        """Whether a dialog fits the context."""
        return len(self._encoded(dialog)) <= self.network.config.context_length

    def score(self, dialogs: Sequence[Sequence[Message]]) -> list[float]:
        """The score of each dialog. ValueError where one ends with the user, does not fit the
        context, or has no finite score."""
        return self.score_ids([self._encoded(dialog) for dialog in dialogs])

    def safety(self, dialogs: Sequence[Sequence[Message]]) -> list[float]:
        """How likely each answer is safe, by the auxiliary head of a safety model."""
        if "safety" not in self.heads:
            raise ValueError(f"{self._path} has no safety head; it is a model of helpfulness")
        logits = self._read([self._encoded(dialog) for dialog in dialogs], "safety")
        return [1 / (1 + float(np.exp(-logit))) for logit in logits]

    def score_ids(self, dialogs: Sequence[Sequence[int]]) -> list[float]:
        """The same of token ids, BOS and EOS included; at the last of them."""
        return self._read(dialogs, "score")

    def _encoded(self, dialog: Sequence[Message]) -> list[int]:
        if not dialog or dialog[-1].role != "assistant":
            raise ValueError("what is scored is an answer: the dialog is to end with the assistant")
        return encode_dialog(self._tokenizer, dialog).ids

    @torch.inference_mode()
    def _read(self, dialogs: Sequence[Sequence[int]], head: str) -> list[float]:
        context = self.network.config.context_length
        if too_long := [len(ids) for ids in dialogs if len(ids) > context]:
            raise ValueError(
                f"a dialog of {max(too_long):,} tokens cannot be scored: {self._path} has a "
                f"context of {context:,}"
            )
        found = [0.0] * len(dialogs)
        for batch in _batches([len(ids) for ids in dialogs]):
            rows = [torch.tensor(dialogs[number]) for number in batch]
            scores = self._scores(rows, head)
            for number, score in zip(batch, scores.tolist(), strict=True):
                found[number] = score
        if bad := [number for number, score in enumerate(found) if not np.isfinite(score)]:
            raise ValueError(
                f"{self._path} gives {len(bad)} scores that are no number: it is broken"
            )
        return found

    def _scores(self, rows: list[Tensor], head: str) -> Tensor:
        device = self.network.norm.weight.device
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        # Padding follows what is read, which does not look at it.
        hidden = hidden_states(self.network, padded, None)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        return scalar(
            self.network, head, hidden[torch.arange(len(rows), device=device), last]
        ).cpu()


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of dialogs in batches of at most `_MOST_TOKENS`, those of like length together."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        # They come in order of length: each is the longest of its batch so far.
        if not batches or (len(batches[-1]) + 1) * lengths[number] > _MOST_TOKENS:
            batches.append([])
        batches[-1].append(number)
    return batches
