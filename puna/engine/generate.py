"""Generation for one sequence: prefill, then token by token, ids and text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from puna.engine.cache import KVCache
from puna.engine.sampling import Sampling, choose
from puna.engine.stopping import StopStrings
from puna.heads import next_token_logits
from puna.model import Llama
from puna.tokenizer import Tokenizer


@torch.inference_mode()
def generate_ids(
    model: Llama,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    num_pieces: int | None = None,
) -> Iterator[int]:
    """Yields up to `max_tokens` new ids, fewer where the context is full.

    Ids from `num_pieces` on (padding rows of the embedding) are never chosen. Raises ValueError
    for an empty prompt and for one that leaves no room in the context.
    """
    context = model.config.context_length
    if not prompt:
        raise ValueError("the prompt has no tokens, not even BOS")
    if len(prompt) >= context:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, the model's context holds {context}; shorten it"
        )
    generator = np.random.default_rng(sampling.seed)
    weight = model.norm.weight
    capacity = min(context, len(prompt) + max_tokens)
    cache = KVCache(model.config, capacity=capacity, device=weight.device, dtype=weight.dtype)
    ids = list(prompt)
    for _ in range(min(max_tokens, context - len(prompt))):
        tokens = torch.tensor([ids[cache.length :]], device=weight.device)
        positions = torch.arange(cache.length, len(ids), device=weight.device)[None]
        hidden = model(tokens, positions, cache.attend)
        cache.advance(tokens.shape[1])
        logits = next_token_logits(model, hidden[0, -1]).float().cpu().numpy()
        token = choose(logits[:num_pieces], sampling, generator)
        ids.append(token)
        yield token


@dataclass
class Completion:
    """Text as it is generated. Iterate over it once; then the other fields are final.

    `finish_reason` is `stop` (EOS or a stop string) or `length` (max_tokens, or the context full).
    """

    model: Llama
    tokenizer: Tokenizer
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    stops: Sequence[str] = ()
    strip_space: bool = True
    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"

    def __iter__(self) -> Iterator[str]:
        decoder = self.tokenizer.stream(strip_space=self.strip_space)
        stopping = StopStrings(self.stops)
        tokens = generate_ids(
            self.model,
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
