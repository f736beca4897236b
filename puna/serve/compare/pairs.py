"""Two answers to a prompt, from different models and temperatures where there are several."""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from puna.chat import Message
from puna.engine.params import SamplingParams
from puna.engine.prompts import encode
from puna.serve.errors import APIError
from puna.serve.models import Served

TRIES = 4  # until two answers differ; a cold model may know only one


@dataclass(frozen=True, slots=True)
class Candidate:
    """What an answer can come from."""

    served: Served
    temperature: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A text and what it came from."""

    text: str
    model: str
    temperature: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers in the order in which they are shown, which says nothing of their models."""

    id: str
    prompt: tuple[Message, ...]
    answers: tuple[Answer, Answer]


def candidates(served: Sequence[Served], temperatures: Sequence[float]) -> list[Candidate]:
    """Every model at every temperature."""
    return [Candidate(*each) for each in itertools.product(served, temperatures)]


async def draw_pair(
    prompt: Sequence[Message],
    pool: Sequence[Candidate],
    generator: random.Random,
    *,
    max_tokens: int | None = None,
) -> Pair:
    """Two different answers, of two candidates where there are two.

    Raises APIError (409) where the models have only one answer, ValueError for a prompt that they
    cannot take.
    """
    chosen = generator.sample(pool, 2) if len(pool) > 1 else [pool[0], pool[0]]
    for _ in range(TRIES):
        first, second = await asyncio.gather(
            *(_answer(prompt, each, generator.getrandbits(31), max_tokens) for each in chosen)
        )
        if first.text and second.text and first.text != second.text:
            return Pair(secrets.token_hex(8), tuple(prompt), (first, second))
    raise APIError(
        409,
        "both answers are the same, or one is empty: skip this prompt, or compare at a higher "
        "--temperature",
        code="equal_answers",
    )


async def _answer(
    prompt: Sequence[Message], candidate: Candidate, seed: int, max_tokens: int | None
) -> Answer:
    served = candidate.served
    params = SamplingParams(candidate.temperature, seed=seed, max_tokens=max_tokens)
    encoded = encode(served.backend.tokenizer, prompt)
    output = await served.backend.generate(encoded, params, adapter=served.adapter)
    return Answer(output.outputs[0].text.strip(), served.name, candidate.temperature)
