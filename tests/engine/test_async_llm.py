"""`AsyncLLM`: what a stream gets when it looks seldom, and what whole answers cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

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
    assert joined(deltas) == Delta(1, "abc", (5, 6), (first, second), "length")
    assert joined(deltas[:1]) is deltas[0]


def test_who_looks_late_gets_all_of_an_output_at_once(llm: AsyncLLM) -> None:
    async def late() -> list[Delta]:
        stream = llm.stream("Once upon a time", PARAMS)
        found = [await anext(stream)]
        while llm.llm.engine.has_work:  # the loop stands still until the engine is done
            time.sleep(0.01)
        return found + [delta async for delta in stream]

    first, *rest = asyncio.run(late())
    assert len(rest) <= 2 + 1  # one of each output, and what came with the first
    (whole,) = LLM("cria").generate("Once upon a time", PARAMS)
    for output in whole.outputs:
        own = joined([delta for delta in (first, *rest) if delta.index == output.index])
        assert own.text == output.text and list(own.token_ids) == output.token_ids
        assert list(own.logprobs) == output.logprobs
        assert own.finish_reason == output.finish_reason


def test_a_stream_that_begins_and_ends_is_told_at_once(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing between is due for an hour: the first token and the end come all the same.
    monkeypatch.setattr(async_llm, "STREAM_INTERVAL", 3600)

    async def run() -> list[Delta]:
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        return [delta async for delta in llm.stream("Once upon a time", params)]

    found = asyncio.run(run())
    assert len(found) <= 2 and found[-1].finish_reason == "length"
    assert sum(len(delta.token_ids) for delta in found) == 40


def test_a_whole_answer_wakes_its_loop_once(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    wake = async_llm._wake
    monkeypatch.setattr(async_llm, "_wake", lambda some: (woken.append(len(some)), wake(some)))
    monkeypatch.setattr(async_llm, "STREAM_INTERVAL", 0)
    asyncio.run(llm.generate("Once upon a time", PARAMS))
    assert sum(woken) == 1
