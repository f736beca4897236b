"""A client that leaves frees its work within one step of the engine."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from puna.serve.deadlines import Stopping
from puna.serve.models import Models, Served
from puna.serve.stack import build
from tests.serve.servers import PATIENCE, Running, engine, in_thread, until

LONG = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 400, "ignore_eos": True}
PATHS = {
    "completion": ("/v1/completions", LONG),
    "completions": ("/v1/completions", LONG | {"prompt": ["The dog", "A cat"], "n": 2}),
    "best": ("/v1/completions", LONG | {"n": 1, "best_of": 3}),
    "chat": ("/v1/chat/completions", CHAT),
}


class Steps:
    """The engine's steps, which the test lets happen one by one."""

    def __init__(self, step: Callable[[], Any]) -> None:
        self._step = step
        self._changed = threading.Condition()
        self._allowed: float = float("inf")
        self.is_waiting = False

    def __call__(self) -> Any:
        with self._changed:
            self.is_waiting = True
            assert self._changed.wait_for(lambda: self._allowed > 0, PATIENCE)
            self.is_waiting = False
            self._allowed -= 1
        return self._step()

    def allow(self, count: float) -> None:
        """Allows so many more steps, or all with infinity."""
        with self._changed:
            self._allowed = count
            self._changed.notify()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Running, Steps]]:
    """A server whose engine runs four sequences at a time, and its steps."""
    with engine("cria", max_sequences=4) as llm:
        steps = Steps(llm.llm.engine.step)
        llm.llm.engine.step = steps  # type: ignore[method-assign]
        with in_thread(build(Models([Served("cria", llm)]), Stopping()), llm) as server:
            yield server, steps


@contextmanager
def asked(server: Running, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
    """A connection on which a request was sent, and that is closed at the end."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        yield connection
    finally:
        connection.close()


def at_work(server: Running, count: int) -> Callable[[], bool]:
    return lambda: sum(server.statistics()[:2]) == count


def is_freed_within_a_step(server: Running, steps: Steps, left: int = 0) -> None:
    """One more step, and the engine has only `left` sequences."""
    assert server.llm is not None
    jobs = server.llm._jobs
    until(lambda: not jobs.empty(), "the engine is told that the client has left")
    # All that one client's several prompts leave behind is told at once; let it be.
    before = -1
    while before != jobs.qsize():
        before = jobs.qsize()
        threading.Event().wait(0.05)
    steps.allow(1)
    until(lambda: jobs.empty() and at_work(server, left)(), "the engine is free")
    steps.allow(float("inf"))
    if not left:
        until(server.is_idle, "the pages are free")
        server.llm.llm.engine.pages.check([])


# The best of several cannot be streamed.
@pytest.mark.parametrize(
    ("name", "stream"),
    [
        (name, stream)
        for name in PATHS
        for stream in (False, True)
        if (name, stream) != ("best", True)
    ],
)
def test_before_the_first_token(running: tuple[Running, Steps], name: str, stream: bool) -> None:
    server, steps = running
    path, body = PATHS[name]
    steps.allow(0)
    with asked(server, path, body | {"stream": stream}):
        until(lambda: steps.is_waiting, "the engine has it")
    is_freed_within_a_step(server, steps)


@pytest.mark.parametrize("name", ["completion", "completions", "chat"])
def test_in_the_middle_of_a_stream(running: tuple[Running, Steps], name: str) -> None:
    server, steps = running
    path, body = PATHS[name]
    with asked(server, path, body | {"stream": True}) as connection:
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: {")
        steps.allow(0)
        until(lambda: steps.is_waiting, "the engine stands still")
        answer.close()
    is_freed_within_a_step(server, steps)


def test_in_the_middle_of_a_whole_answer(running: tuple[Running, Steps]) -> None:
    server, steps = running
    path, body = PATHS["completions"]
    steps.allow(0)
    with asked(server, path, body):
        until(lambda: steps.is_waiting, "the engine has it")
        steps.allow(5)
        until(lambda: server.statistics().num_running == 4 and steps.is_waiting, "it runs")
    is_freed_within_a_step(server, steps)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_waiting_for_others(running: tuple[Running, Steps], stream: bool) -> None:
    server, steps = running
    path, body = PATHS["completion"]
    steps.allow(0)
    with asked(server, path, body | {"n": 4}):
        until(lambda: steps.is_waiting, "the engine is full")
        with asked(server, path, body | {"stream": stream}):
            assert server.llm is not None
            until(lambda: not server.llm._jobs.empty(), "it has come")  # type: ignore[union-attr]
            steps.allow(2)
            until(lambda: at_work(server, 5)() and steps.is_waiting, "it waits in the queue")
            assert server.statistics().num_waiting == 1
        # The others go on, and end when their client leaves.
        is_freed_within_a_step(server, steps, left=4)
    until(server.is_idle, "the engine is free")
    server.llm.llm.engine.pages.check([])


def test_others_are_not_touched(running: tuple[Running, Steps]) -> None:
    server, _ = running
    fields = {"prompt": "The llama", "seed": 3, "max_tokens": 60}
    with server.http() as http_client:
        expected = http_client.post("/v1/completions", json=fields).json()["choices"][0]["text"]
        with ThreadPoolExecutor() as pool:
            for _ in range(3):
                with asked(server, "/v1/completions", LONG | {"stream": True}) as connection:
                    connection.getresponse().readline()
                    other = pool.submit(http_client.post, "/v1/completions", json=fields)
                assert other.result(PATIENCE).json()["choices"][0]["text"] == expected
    until(server.is_idle, "the engine is free")


def test_a_body_that_never_ends(running: tuple[Running, Steps]) -> None:
    server, _ = running
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("content-length", "1000")
    connection.putheader("content-type", "application/json")
    connection.endheaders()
    connection.send(b'{"prompt": "a')
    connection.close()
    with server.http() as http_client:
        assert http_client.get("/health").status_code == 200
    assert server.is_idle()
