"""Tokens that are drawn inside a step: whose, how, and what a step that draws gives.

A runner knows nothing of requests and seeds: each output of a batch may have a `Draw`, which holds
the random number. `answered` defines what runners then do; native code does the same, faster.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.engine.batch import NO_TOKEN, Answer, Batch, Draw, Output
from puna.engine.params import SamplingParams
from puna.engine.sampling import NO_CHOICE, Ids, choose, drawn, uniforms

_AHEAD = 64  # random numbers that are made at once: one costs as much as all


class Draws:
    """How token number `index` of one output is drawn, None where its logits are needed.

    They are for the first token of a request with several outputs, which all choose from one row.
    """

    def __init__(self, params: SamplingParams, seed: int, sample: int, vocab_size: int) -> None:
        self._seed, self._sample, self._vocab_size = seed, sample, vocab_size
        self._cuts = (params.temperature, params.top_k, params.top_p, params.min_p)
        self._first = int((params.best_of or params.n) > 1)
        self._begin = 0
        self._numbers: list[float] = []  # from the one for `_begin` on

    def __call__(self, index: int) -> Draw | None:
        if index < self._first:
            return None
        return Draw(*self._cuts, self._uniform(index), self._vocab_size)

    def _uniform(self, index: int) -> float:
        if self._cuts[0] == 0:
            return 0.0
        if not 0 <= index - self._begin < len(self._numbers):
            numbers = uniforms(self._seed, self._sample, index, _AHEAD).tolist()
            self._begin, self._numbers = index, numbers  # together: a step may be broken off
        return self._numbers[index - self._begin]


def draws_of(params: SamplingParams, seed: int, sample: int, vocab_size: int) -> Draws | None:
    """How an output's tokens are drawn, None where that takes more than its logits and a `Draw`.

    The parameters alone decide it, so that a result does not depend on what else is in a batch.
    """
    alters = (
        params.typical_p < 1
        or params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
        or bool(params.logit_bias)
    )
    reports = params.logprobs is not None or params.prompt_logprobs is not None
    compares = (params.best_of or 0) > params.n
    follows = (params.json_schema, params.regex, params.grammar) != (None, None, None)
    if alters or reports or compares or follows:
        return None
    return Draws(params, seed, sample, vocab_size)


def answered(
    batch: Batch, logits_LV: NDArray[np.float32], hidden_ND: NDArray[np.float32]
) -> Output:
    """What a step gives whose outputs have these logits."""
    if not batch.draws:
        return Output(np.full(len(logits_LV), NO_TOKEN, np.int32), logits_LV, hidden_ND)
    tokens = [
        NO_TOKEN if draw is None else _token(row, draw)
        for row, draw in zip(logits_LV, batch.draws, strict=True)
    ]
    others = [draw is None for draw in batch.draws]
    return Output(np.array(tokens, np.int32), logits_LV[others], hidden_ND)


def _token(logits_V: NDArray[np.float32], draw: Draw) -> int:
    try:
        return drawn(logits_V[: draw.vocab_size], draw)
    except ValueError:
        return NO_TOKEN


def token_of(
    answer: Answer,
    params: SamplingParams,
    prompt_ids: Ids,
    output_ids: Ids,
    *,
    seed: int,
    sample: int,
) -> int:
    """The token that a step drew, or one chosen from the logits that it gave.

    Raises ValueError where none can be chosen.
    """
    if not isinstance(answer, int):
        return choose(answer, params, prompt_ids, output_ids, seed=seed, sample=sample)
    if answer == NO_TOKEN:
        raise ValueError(NO_CHOICE)
    return answer
