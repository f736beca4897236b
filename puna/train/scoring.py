"""What a reward model says of whole dialogs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.chat import Message, encode_dialog
from puna.engine.llm import LLM
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import read_tensor
from puna.tokenizer import Vocabulary
from puna.train.starting import open_start

# Of keys and values, a context at least; *ours*. A scorer stands beside other models, and so leaves
# them the memory that the engine would take.
_KV_TOKENS = 8192


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
    heads = {
        name: read_tensor(checkpoint.tensors[f"{name}.weight"]).float().numpy()[0]
        for name in checkpoint.heads
    }
    plain = checkpoint.without_heads()
    kv_tokens = max(_KV_TOKENS, checkpoint.config.context_length)
    llm = LLM(plain, device=device, dtype=dtype, num_threads=num_threads, kv_tokens=kv_tokens)
    return RewardScorer(llm, heads, checkpoint.path)


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
    """`score` and `safety` of dialogs that end with the assistant's answer, run by the engine, in
    which answers to one prompt share it.

    Scores are raw: sigmoid of a difference of two is how likely the first answer is preferred.
    `heads` are their weights (D,) by name.
    """

    def __init__(self, llm: LLM, heads: Mapping[str, NDArray[np.float32]], path: Path) -> None:
        self._llm, self._heads, self._path = llm, heads, path

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of its heads."""
        return tuple(self._heads)

    def __call__(self, dialogs: Sequence[Sequence[Message]]) -> list[float]:
        return self.score(dialogs)

    def fits(self, dialog: Sequence[Message]) -> bool:
        """Whether a dialog fits the context."""
        return len(self._encoded(dialog)) <= self._llm.config.context_length

    def score(self, dialogs: Sequence[Sequence[Message]]) -> list[float]:
        """The score of each dialog. ValueError where one ends with the user, does not fit the
        context, or has no finite score."""
        return self.score_ids([self._encoded(dialog) for dialog in dialogs])

    def safety(self, dialogs: Sequence[Sequence[Message]]) -> list[float]:
        """How likely each answer is safe, by the auxiliary head of a safety model."""
        if "safety" not in self._heads:
            raise ValueError(f"{self._path} has no safety head; it is a model of helpfulness")
        logits = self._read([self._encoded(dialog) for dialog in dialogs], "safety")
        return [1 / (1 + float(np.exp(-logit))) for logit in logits]

    def score_ids(self, dialogs: Sequence[Sequence[int]]) -> list[float]:
        """The same of token ids, BOS and EOS included; at the last of them."""
        return self._read(dialogs, "score")

    def _encoded(self, dialog: Sequence[Message]) -> list[int]:
        if not dialog or dialog[-1].role != "assistant":
            raise ValueError("what is scored is an answer: the dialog is to end with the assistant")
        return encode_dialog(self._llm.tokenizer, dialog).ids

    def _read(self, dialogs: Sequence[Sequence[int]], head: str) -> list[float]:
        context = self._llm.config.context_length
        if too_long := [len(ids) for ids in dialogs if len(ids) > context]:
            raise ValueError(
                f"a dialog of {max(too_long):,} tokens cannot be scored: {self._path} has a "
                f"context of {context:,}"
            )
        if not dialogs:
            return []
        states = self._llm.embed([list(ids) for ids in dialogs], pooling="last")
        found = [float(state.vector @ self._heads[head]) for state in states]
        if bad := [number for number, score in enumerate(found) if not np.isfinite(score)]:
            raise ValueError(
                f"{self._path} gives {len(bad)} scores that are no number: it is broken"
            )
        return found
