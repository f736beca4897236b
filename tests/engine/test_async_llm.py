"""`AsyncLLM`: what a stream gets when it looks seldom, and what whole answers cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest

from puna import LLM, AsyncLLM, SamplingParams
from puna.engine import async_llm
from puna.engine.output import Delta, joined
from puna.engine.sampling import TokenLogprobs

PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=1, n=2)


@pytest.fixture(scope="module")
def llm() -> Iterator[AsyncLLM]:
    llm = AsyncLLM("cria", kv_tokens=2048)
    yield llm
    asyncio.run(llm.close())


def test_deltas_are_joined_in_order() -> None:
    first, second = TokenLogprobs(5, -0.5, 1, {}), TokenLogprobs(6, -1.5, 2, {})
    deltas = [Delta(1, "a", (5,), (first,)), Delta(1, "bc", (6,), (second,), "length")]
    other = Delta(0, "x", (7,))
    whole = Delta(1, "abc", (5, 6), (first, second), "length")
    assert joined([deltas[0], other, deltas[1]]) == [whole, other]
    assert joined([]) == []


def test_who_looks_late_gets_all_at_once(llm: AsyncLLM) -> None:
    async def late() -> list[Sequence[Delta]]:
        parts = llm.parts("Once upon a time", PARAMS)
        found = [await anext(parts)]
        while llm.llm.engine.has_work:  # the loop stands still until the engine is done
            time.sleep(0.01)
        return found + [deltas async for deltas in parts]

    found = asyncio.run(late())
    assert len(found) <= 2
    (whole,) = LLM("cria").generate("Once upon a time", PARAMS)
    for output, own in zip(whole.outputs, joined(chain(*found)), strict=True):
        assert own.index == output.index
        assert own.text == output.text and list(own.token_ids) == output.token_ids
        assert list(own.logprobs) == output.logprobs
        assert own.finish_reason == output.finish_reason


def test_a_stream_that_begins_and_ends_is_told_at_once(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing between is due for an hour: the first token and the end come all the same.
    monkeypatch.setattr(async_llm, "STREAM_INTERVAL", 3600)

    async def run() -> list[Sequence[Delta]]:
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        return [deltas async for deltas in llm.parts("Once upon a time", params)]

    found = asyncio.run(run())
    assert len(found) <= 2 and found[-1][-1].finish_reason == "length"
    assert sum(map(len, found)) == 40


def test_a_whole_answer_wakes_its_loop_once(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    wake = async_llm._wake
    monkeypatch.setattr(async_llm, "_wake", lambda some: (woken.append(len(some)), wake(some)))
    monkeypatch.setattr(async_llm, "STREAM_INTERVAL", 0)
    asyncio.run(llm.generate("Once upon a time", PARAMS))
    assert sum(woken) == 1
