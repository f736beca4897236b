"""Generation for one sequence: prefill, then token by token, ids and text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from puna.engine.batch import Batch, Runner
from puna.engine.params import SamplingParams
from puna.engine.sampling import choose, fresh_seed
from puna.engine.stopping import StopStrings
from puna.tokenizer import Tokenizer

_CHUNK = 256  # prompt tokens of a step


def generate_ids(
    runner: Runner,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: SamplingParams,
    num_pieces: int | None = None,
) -> Iterator[int]:
    """Yields up to `max_tokens` new ids, fewer where the context is full.

    Ids from `num_pieces` on (padding rows of the embedding) are never chosen. Raises ValueError
    for an empty prompt and for one that leaves no room in the context.
    """
    context = runner.config.context_length
    if not prompt:
        raise ValueError("the prompt has no tokens, not even BOS")
    if len(prompt) >= context:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, the model's context holds {context}; shorten it"
        )
    seed = fresh_seed() if sampling.seed is None else sampling.seed
    ids, length = list(prompt), 0
    for _ in range(min(max_tokens, context - len(prompt))):
        while length < len(ids):
            end = min(len(ids), length + _CHUNK)
            logits = runner.step(_rows(runner, ids, length, end))[0]
            length = end
        token = choose(logits[:num_pieces], sampling, prompt, ids[len(prompt) :], seed=seed)
        ids.append(token)
        yield token


def _rows(runner: Runner, ids: Sequence[int], begin: int, end: int) -> Batch:
    """The tokens of one sequence from `begin` to `end`, in the runner's first pages."""
    return Batch(
        tokens=np.array(ids[begin:end], np.int32),
        positions=np.arange(begin, end, dtype=np.int32),
        sequences=np.zeros(end - begin, np.int32),
        tables=np.arange(-(-end // runner.page_size), dtype=np.int32)[None],
        outputs=np.array([end - begin - 1], np.int32),
    )


@dataclass
class Completion:
    """Text as it is generated. Iterate over it once; then the other fields are final.

    `finish_reason` is `stop` (EOS or a stop string) or `length` (max_tokens, or the context full).
    """

    runner: Runner
    tokenizer: Tokenizer
    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingParams
    stops: Sequence[str] = ()
    strip_space: bool = True
    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"

    def __iter__(self) -> Iterator[str]:
        decoder = self.tokenizer.stream(strip_space=self.strip_space)
        stopping = StopStrings(self.stops)
        tokens = generate_ids(
            self.runner,
            self.prompt,
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            num_pieces=self.tokenizer.vocab_size,
        )
        for token in tokens:
            if token == self.tokenizer.eos_id:
                self.finish_reason = "stop"
                break
            self.ids.append(token)
            yield from self._emit(stopping.push(decoder.push(token)))
            if stopping.stopped:
                self.finish_reason = "stop"
                return
        yield from self._emit(stopping.push(decoder.finish()))
        if not stopping.stopped:
            yield from self._emit(stopping.finish())

    def _emit(self, piece: str) -> Iterator[str]:
        if piece:
            self.text += piece
            yield piece
