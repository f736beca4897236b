"""What comes back from the engine: deltas as they come, and the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from puna.engine.params import SamplingParams
from puna.engine.sampling import TokenLogprobs
from puna.engine.stopping import StopStrings
from puna.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step, or some (`joined`), added to output number `index` of a request.

    The text of a token may come later than the token: with the bytes that make a character whole,
    or when no stop string can begin there any more.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """Deltas in their order, those of each output made one."""
    found: dict[int, list[Delta]] = {}
    for delta in deltas:
        found.setdefault(delta.index, []).append(delta)
    return [own[0] if len(own) == 1 else _join(own) for own in found.values()]


def _join(deltas: Sequence[Delta]) -> Delta:
    return Delta(
        deltas[0].index,
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        tuple(logprobs for delta in deltas for logprobs in delta.logprobs),
        deltas[-1].finish_reason,
    )


@dataclass
class Completion:
    """One output. `token_ids` has all tokens that were chosen, also those that ended it.

    `finish_reason` is None while it grows, then `stop` (EOS, a stop id or a stop string, which
    `stop_reason` names) or `length` (max_tokens, or the context is full). `logprobs` is None where
    none were asked for, and so is `cumulative_logprob`.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    """A request's result, its outputs by index, or with `best_of` the best first.

    The first token of a prompt follows nothing: its entry in `prompt_logprobs` is None. Of the
    prompt's tokens, `num_cached_tokens` had been run for an earlier one.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A prompt as one vector, (D,) float32: the mean of its hidden states after the last norm, or
    the last of them. Not normalised.
    """

    vector: NDArray[np.float32]
    prompt_token_ids: list[int]


class Writer:
    """Makes a completion from the tokens that are chosen for it."""

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        strip_space: bool,
    ) -> None:
        self.completion = Completion(index)
        self._params, self._max_tokens = params, max_tokens
        self._stop_ids = {*params.stop_ids, *([] if params.ignore_eos else [tokenizer.eos_id])}
        self._decoder = tokenizer.stream(strip_space=strip_space)
        self._stopping = StopStrings(params.stop)
        if params.logprobs is not None:
            self.completion.logprobs = []
        if self.wants_logprobs:
            self.completion.cumulative_logprob = 0.0

    @property
    def wants_logprobs(self) -> bool:
        """Whether `push` must be told the token's log-probability."""
        return self._params.logprobs is not None or (self._params.best_of or 0) > self._params.n

    @property
    def room(self) -> int:
        """How many more tokens it may have."""
        return self._max_tokens - len(self.completion.token_ids)

    def end(self) -> Delta:
        """Ends it before its first token, where none may come."""
        self.completion.finish_reason = "length"
        return Delta(self.completion.index, "", (), (), "length")

    def push(self, token: int, logprobs: TokenLogprobs | None, *, ends: bool = False) -> Delta:
        """Adds a token; `ends` if nothing may follow it."""
        whole = self.completion
        whole.token_ids.append(token)
        if logprobs is not None:
            assert whole.cumulative_logprob is not None
            whole.cumulative_logprob += logprobs.logprob
        reported: tuple[TokenLogprobs, ...] = ()
        if whole.logprobs is not None and logprobs is not None:
            whole.logprobs.append(logprobs)
            reported = (logprobs,)
        text = ""
        if token in self._stop_ids:
            whole.finish_reason, whole.stop_reason = "stop", token
        else:
            text = self._stopping.push(self._decoder.push(token))
            if ends:
                whole.finish_reason = "stop"
            elif self.room == 0:
                whole.finish_reason = "length"
        if whole.finish_reason:
            text += self._stopping.push(self._decoder.finish())
            if not self._stopping.stop:
                text += self._stopping.finish()
        if self._stopping.stop:
            whole.finish_reason, whole.stop_reason = "stop", self._stopping.stop
        whole.text += text
        return Delta(whole.index, text, (token,), reported, whole.finish_reason)
