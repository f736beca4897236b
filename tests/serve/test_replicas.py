"""Replicas on Ray Serve: the answers of one engine, whichever of them dies. Needs puna[ray]."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from puna import AsyncLLM, SamplingParams
from puna.commands.engines import load_engine
from puna.engine.async_llm import EngineStoppedError
from puna.engine.output import Delta, joined
from puna.formats import open_checkpoint
from puna.hub.locate import shipped_path
from puna.serve.replicas.cluster import Plan, replicas

if TYPE_CHECKING:
    from puna.serve.replicas.remote import RemoteLLM

# Not imported here: that must be done by who sets how it runs.
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (puna[ray])"
)
PATIENCE = 60.0
LONG = SamplingParams(temperature=1.0, seed=7, max_tokens=400, ignore_eos=True, n=16)
STORY = "Once upon a time there was a little llama who lived on a hill behind the village. " * 3


@pytest.fixture(scope="module")
def alone() -> Iterator[AsyncLLM]:
    llm = AsyncLLM("cria")
    yield llm
    asyncio.run(llm.close())


# Starting Ray and two replicas takes longer than all the tests.
@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteLLM]:
    before = dict(os.environ)
    plan = Plan(open_checkpoint(shipped_path("cria")), partial(load_engine, "cria", {}), {})
    with replicas({"cria": plan}, 2) as backends:
        yield backends["cria"]
    os.environ.clear()
    os.environ.update(before)
    with warnings.catch_warnings():  # Ray does not wait for the processes that it ends
        warnings.simplefilter("ignore")
        gc.collect()


async def processes(remote: RemoteLLM) -> dict[int, Any]:
    """The statistics of each replica that answers, by its process."""
    reports = await remote.reports()
    return {report.process: report.statistics for report in reports}


async def both(remote: RemoteLLM) -> dict[int, Any]:
    """As `processes`, when there are two."""
    deadline = time.monotonic() + PATIENCE
    while len(found := await processes(remote)) < 2:
        assert time.monotonic() < deadline, "no new replica was started"
        await asyncio.sleep(0.2)
    return found


def merged(deltas: list[Delta]) -> list[Delta]:
    """All of each output as one delta: where its parts begin and end is a matter of time."""
    return sorted(joined(deltas), key=lambda delta: delta.index)


async def streamed(
    llm: RemoteLLM | AsyncLLM, prompt: Any, params: SamplingParams | None = None, **options: Any
) -> AsyncGenerator[Delta, None]:
    """What follows a prompt, one delta after another."""
    async with aclosing(llm.parts(prompt, params, **options)) as parts:
        async for deltas in parts:
            for delta in deltas:
                yield delta


async def collected(stream: AsyncIterator[Delta]) -> list[Delta]:
    return merged([delta async for delta in stream])


PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=40),
    "seeded": SamplingParams(temperature=1.2, seed=11, max_tokens=40, n=2),
    "logprobs": SamplingParams(seed=3, max_tokens=10, logprobs=2, prompt_logprobs=1),
    "structured": SamplingParams(seed=3, max_tokens=40, regex="(one|two), (three|four)"),
    "stopped": SamplingParams(temperature=0, max_tokens=60, stop=(" big",)),
}


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_answers_are_those_of_one_engine(
    remote: RemoteLLM, alone: AsyncLLM, params: SamplingParams
) -> None:
    async def ask(llm: Any) -> tuple[Any, list[Delta]]:
        deltas = await collected(streamed(llm, "The dog", params))
        return await llm.generate("The dog", params), deltas

    (whole, deltas), (expected, expected_deltas) = asyncio.run(ask(remote)), asyncio.run(ask(alone))
    assert whole.outputs == expected.outputs
    assert whole.prompt_logprobs == expected.prompt_logprobs
    assert deltas == expected_deltas


@needs_ray
@pytest.mark.slow
def test_embeddings_and_room_are_those_of_one_engine(remote: RemoteLLM, alone: AsyncLLM) -> None:
    ours, theirs = asyncio.run(remote.embed("The dog")), asyncio.run(alone.embed("The dog"))
    assert ours.vector.tolist() == theirs.vector.tolist()
    assert remote.room(100) == alone.room(100)
    assert remote.config == alone.config


@needs_ray
@pytest.mark.slow
def test_what_an_engine_refuses_is_refused(remote: RemoteLLM) -> None:
    for prompt in ([5] * 600, [2**40] * 40, []):
        with pytest.raises(ValueError, match="the prompt has") as error:
            asyncio.run(remote.generate(prompt, LONG))
        assert not isinstance(error.value, EngineStoppedError)
    with pytest.raises(ValueError, match="adapter"):
        asyncio.run(collected(streamed(remote, "The dog", LONG, adapter="none")))


@needs_ray
@pytest.mark.slow
def test_a_prompt_goes_to_the_replica_that_has_its_beginning(remote: RemoteLLM) -> None:
    async def ask() -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=1)
        stories = [f"Number {n}. {STORY}" for n in range(6)]
        for story in stories:
            await remote.generate(story, params)
        # Not in the order in which they would be shared out in turn.
        again = [await remote.generate(f"{story} And then", params) for story in reversed(stories)]
        return [result.num_cached_tokens for result in again]

    assert min(asyncio.run(ask())) >= 48


@needs_ray
@pytest.mark.slow
def test_many_at_once_use_both(remote: RemoteLLM) -> None:
    async def ask() -> list[int]:
        before = await both(remote)
        await asyncio.gather(
            *(remote.generate(f"{n} dogs", SamplingParams(max_tokens=20)) for n in range(8))
        )
        after = await both(remote)
        return [after[key].prompt_tokens - before[key].prompt_tokens for key in before]

    assert min(asyncio.run(ask())) > 0


def kill_the_busy(found: dict[int, Any]) -> None:
    busy = [process for process, statistics in found.items() if statistics.num_running]
    assert len(busy) == 1
    os.kill(busy[0], signal.SIGKILL)


@needs_ray
@pytest.mark.slow
def test_a_stream_goes_on_when_its_replica_is_killed(remote: RemoteLLM, alone: AsyncLLM) -> None:
    async def ask() -> tuple[list[Delta], set[int], set[int]]:
        before = await both(remote)
        deltas = []
        async for delta in streamed(remote, "The dog", LONG):
            deltas.append(delta)
            if len(deltas) == 1:
                kill_the_busy(await processes(remote))
        return merged(deltas), set(before), set(await both(remote))

    deltas, before, after = asyncio.run(ask())
    assert deltas == asyncio.run(collected(streamed(alone, "The dog", LONG)))
    # It was killed, and another was started.
    assert len(before & after) == 1 and len(after) == 2


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("seed", [7, None])
def test_a_whole_answer_comes_when_its_replica_is_killed(
    remote: RemoteLLM, alone: AsyncLLM, seed: int | None
) -> None:
    params = replace(LONG, seed=seed)

    async def ask() -> Any:
        await both(remote)
        task = asyncio.ensure_future(remote.generate("The dog", params))
        while not (await remote.statistics()).num_running:
            await asyncio.sleep(0.01)
        kill_the_busy(await processes(remote))
        return await task

    result = asyncio.run(ask())
    assert [len(output.token_ids) for output in result.outputs] == [400] * 16
    if seed is not None:
        assert result.outputs == asyncio.run(alone.generate("The dog", params)).outputs


@needs_ray
@pytest.mark.slow
def test_leaving_frees_the_replica(remote: RemoteLLM) -> None:
    # Two of the same: were the first not gone, it would still run when the second is half-way.
    params = LONG

    async def ask() -> int:
        await both(remote)
        first = streamed(remote, "The dog", params)
        await anext(first)
        await first.aclose()
        second = streamed(remote, "The dog", params)
        seen = 0
        while seen < 50 * params.n:
            seen += len((await anext(second)).token_ids)
        running = (await remote.statistics()).num_running
        await second.aclose()
        while (await remote.statistics()).num_running:
            await asyncio.sleep(0.01)
        return running

    assert asyncio.run(ask()) == 16


class DyingHandle:
    """Ray Serve's handle of replicas that all die after their first delta."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def options(self, **options: Any) -> DyingHandle:
        return self

    @property
    def stream(self) -> DyingHandle:
        return self

    def remote(self, job: Any) -> DyingAnswer:
        self.jobs.append(job)
        return DyingAnswer()


class DyingAnswer:
    def __init__(self) -> None:
        self.parts = iter([(), (Delta(0, "a", (1,)),)])

    def __aiter__(self) -> DyingAnswer:
        return self

    async def __anext__(self) -> tuple[Delta, ...]:
        from ray.exceptions import ActorDiedError

        try:
            return next(self.parts)
        except StopIteration:
            raise ActorDiedError from None

    def cancel(self) -> None:
        pass


@needs_ray
@pytest.mark.slow
def test_tries_are_bounded_and_have_one_seed(remote: RemoteLLM) -> None:
    handle = DyingHandle()
    dying = type(remote)(remote.config, remote.tokenizer, handle, 512)
    deltas: list[Delta] = []

    async def ask() -> None:
        async for delta in streamed(dying, "The dog"):
            deltas.append(delta)

    with pytest.raises(EngineStoppedError, match="4 replicas died"):
        asyncio.run(ask())
    assert deltas == [Delta(0, "a", (1,))]
    assert len(handle.jobs) == 4 and len({job.params.seed for job in handle.jobs}) == 1
    assert handle.jobs[0].params.seed is not None
    asyncio.run(dying.close())
    with pytest.raises(EngineStoppedError, match="closed"):
        asyncio.run(ask())


def living(session: int) -> list[str]:
    """The processes of a session, but for those that have ended and that nobody asked for."""
    rows = subprocess.run(
        ["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    fields = [row.split(None, 2) for row in rows]
    return [args for sid, stat, args in fields if int(sid) == session and "Z" not in stat]


def serve(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "puna", "serve", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_command_leaves_nothing_behind(end: signal.Signals) -> None:
    with serve("--replicas", "2", "--port", "0", "--no-log") as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("cria at http://127.0.0.1:"), line
        assert [args for args in living(process.pid) if "ray::ServeReplica" in args]
        os.killpg(process.pid, end)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""
    deadline = time.monotonic() + PATIENCE
    while left := living(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@needs_ray
@pytest.mark.slow
def test_what_keeps_replicas_from_starting_is_said() -> None:
    with serve("--replicas", "2", "--port", "0", "--kv-tokens", str(10**12)) as process:
        _, error = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 2
    assert (
        error.startswith("puna: error: ") and "of memory" in error and len(error.splitlines()) == 1
    )


def test_without_ray_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'puna\[ray\]'"), replicas({}, 2):
        pass
