"""What an engine was asked for, and what has come of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Many

from puna.engine.endings import Endings, Likelihood
from puna.engine.output import Completion, Delta, Embedding, RequestOutput, Writer
from puna.engine.params import SamplingParams
from puna.engine.pooling import Pooling
from puna.engine.sampling import TokenLogprobs, fresh_seed
from puna.engine.sequence import Sequence
from puna.engine.structure import Structure


class Request:
    """What was asked for, and what has come of it. Made by `Engine.add` and its neighbours."""

    def __init__(
        self,
        prompt: str | None,
        ids: Many[int],
        params: SamplingParams,
        number: int,
        adapter: str | None,
    ) -> None:
        self.prompt, self.prompt_token_ids, self.params = prompt, list(ids), params
        self.number, self.adapter = number, adapter
        self.seed = fresh_seed() if params.seed is None else params.seed
        self.deltas: deque[Delta] = deque()  # not yet fetched
        self.error: ValueError | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.num_cached_tokens = 0
        self.pooling: Pooling | None = None  # of one for an embedding
        self.endings: Endings | None = None  # of one for their likelihoods
        self.writers: list[Writer] = []
        self.structures: list[Structure | None] = []  # of each writer
        self.live: list[Sequence] = []  # by `order[1]`, the index of its output

    @property
    def finished(self) -> bool:
        return not self.live

    def result(self) -> RequestOutput:
        """All of it so far; raises the error that ended it, if one did."""
        if self.error is not None:
            raise self.error
        outputs = [writer.completion for writer in self.writers]
        n = self.params.n
        if len(outputs) > n and self.finished:
            outputs = sorted(outputs, key=_mean_logprob, reverse=True)
        return RequestOutput(
            self.prompt,
            self.prompt_token_ids,
            outputs[:n],
            self.prompt_logprobs,
            self.num_cached_tokens,
        )

    def embedding(self) -> Embedding:
        """What `add_embedding` asked for, when it has finished; raises as `result`."""
        if self.error is not None:
            raise self.error
        assert self.pooling is not None and self.finished
        return Embedding(self.pooling.vector, self.prompt_token_ids)

    def likelihoods(self) -> list[Likelihood]:
        """What `add_endings` asked for, when it has finished; raises as `result`."""
        if self.error is not None:
            raise self.error
        assert self.endings is not None and self.finished
        return self.endings.likelihoods


def _mean_logprob(output: Completion) -> float:
    # With max_tokens 0 there is nothing to take the mean of.
    return (output.cumulative_logprob or 0.0) / max(1, len(output.token_ids))
