"""Thousands of requests on the shipped model, 64 at a time, some of them cancelled anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from puna import LLM, SamplingParams
from puna.engine.request import Request

STARTS = ("Once upon a time", "One day, a little", "The dog", "Tim and Anna went to the", "")
WORDS = (
    "the",
    "a",
    "dog",
    "cat",
    "llama",
    "was",
    "big",
    "and",
    "then",
    "she",
    "said",
    "Mom",
    "sad",
)


def requests(count: int, seed: int) -> Iterator[tuple[str, SamplingParams]]:
    generator = random.Random(seed)
    for _ in range(count):
        length = generator.choice([0, 0, 3, 10, 60, 200])
        prompt = " ".join([generator.choice(STARTS), *generator.choices(WORDS, k=length)])
        yield (
            prompt,
            SamplingParams(
                temperature=generator.choice([0, 0.8]),
                seed=generator.randrange(1000),
                max_tokens=generator.choice([1, 4, 16, 48, 120]),
                n=generator.choice([1, 1, 1, 2]),
                stop=generator.choice([(), ("dog",)]),
            ),
        )


def serve(count: int, *, kv_tokens: int, seed: int) -> tuple[int, int]:
    """Serves so many, holds them against each alone; (how many were cancelled, preempted)."""
    llm = LLM("cria", kv_tokens=kv_tokens)
    engine, generator = llm.engine, random.Random(seed)
    todo = requests(count, seed)
    live: list[Request] = []
    done: list[Request] = []
    num_cancelled = num_preempted = 0
    while True:
        while len(live) < 64 and (made := next(todo, None)) is not None:
            ids, params, options = llm.prepare(*made)
            live.append(engine.add(ids, params, **options))
        if not live:
            break
        before = list(engine.scheduler.running)
        engine.step()
        num_preempted += sum(sequence in engine.scheduler.waiting for sequence in before)
        done += [request for request in live if request.finished]
        live = [request for request in live if not request.finished]
        if live and generator.random() < 0.05:
            engine.cancel(live.pop(generator.randrange(len(live))))
            num_cancelled += 1
        engine.pages.check([sequence.pages for sequence in engine.scheduler.running])
    assert not engine.has_work and not engine.scheduler.waiting
    assert engine.pages.num_available == engine.pages.num_pages
    assert len(done) + num_cancelled == count
    alone = LLM("cria", kv_tokens=512, max_sequences=2)
    for request in done:
        alone.engine.weights_changed()  # nothing is left from the one before
        (expected,) = alone.generate([request.prompt or ""], request.params)
        assert request.result() == expected
    return num_cancelled, num_preempted


def test_hundreds_of_requests() -> None:
    num_cancelled, num_preempted = serve(100, kv_tokens=512, seed=1)
    assert num_cancelled > 3 and num_preempted > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_requests() -> None:
    num_cancelled, num_preempted = serve(10_000, kv_tokens=512, seed=2)
    assert num_cancelled > 100 and num_preempted > 50
