"""Bodies, times and the queue: what is too large, too slow or too many, and what it is told."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from puna.serve import gate as gate_module
from puna.serve.asgi import App, Receive, Scope, Send
from puna.serve.deadlines import Deadline, Stopping
from puna.serve.gate import Admission, BusyError, Gate
from puna.serve.limits import BodyLimit
from puna.serve.running import RunOptions
from tests.serve.apps import make_app, request, serving

LIMIT = 1000


class Recorder:
    """An app that tells which requests reached it and ended in it."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.reached: list[str] = []
        self.left: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.reached.append(scope["path"])
        try:
            await self.app(scope, receive, send)
        finally:
            if scope["type"] == "http":
                self.left.append(scope["path"])


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(make_app())


@pytest.fixture
def port(recorder: Recorder) -> Iterator[int]:
    app = BodyLimit(recorder, LIMIT, seconds=0.5)
    with serving(app, RunOptions(header_timeout=0.5, drain_timeout=5)) as port:
        yield port


def exchange(port: int, *parts: bytes, shut: bool = False) -> bytes:
    """Sends the parts, reads until the server closes or has answered and closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        for part in parts:
            raw.sendall(part)
        if shut:
            raw.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: raw.recv(65536), b""))


HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_up_to_the_limit_pass(port: int, size: int, chunked: bool) -> None:
    body = b"x" * size
    content = iter([body[:10], body[10:]]) if chunked else body
    assert httpx.post(f"http://127.0.0.1:{port}/echo", content=content).text == str(size)


@pytest.mark.parametrize("size", [LIMIT + 1, 50 * LIMIT, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_larger_ones_do_not(port: int, recorder: Recorder, size: int, chunked: bool) -> None:
    body = b"x" * size
    content = iter([body[:10], body[10:]]) if chunked else body
    answer = httpx.post(f"http://127.0.0.1:{port}/echo", content=content)
    assert answer.status_code == 413
    assert answer.json() == {
        "error": {
            "message": "The request's body is larger than 1000 bytes.",
            "type": "invalid_request_error",
            "param": None,
            "code": "request_too_large",
        }
    }
    assert answer.headers["connection"] == "close"
    assert recorder.reached == []


def test_a_body_that_is_refused_beforehand_need_not_be_sent(port: int) -> None:
    answer = exchange(port, HEAD + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


def test_who_sends_it_all_before_reading_still_gets_the_answer(port: int) -> None:
    head = HEAD + b"Content-Length: 20000000\r\n\r\n"
    assert exchange(port, head, b"x" * 20_000_000).startswith(b"HTTP/1.1 413")


def test_no_more_is_held_of_an_endless_body_than_the_limit() -> None:
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        if taken > 3:  # what is read on is thrown away; the client leaves
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"x" * 600, "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append((taken, message))

    scope = {"type": "http", "path": "/echo", "headers": []}
    asyncio.run(BodyLimit(make_app(), LIMIT, 5)(scope, receive, send))
    assert sent[0][0] == 2  # refused with the second chunk
    assert sent[0][1]["status"] == 413


@pytest.mark.parametrize("length", [b"2000000000000000000000", b"9" * 400])
def test_absurd_lengths(port: int, recorder: Recorder, length: bytes) -> None:
    answer = exchange(port, HEAD + b"Content-Length: " + length + b"\r\n\r\n", shut=True)
    assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    assert recorder.reached == []


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b"10, 11", b"ten"])
def test_lengths_that_are_none(port: int, recorder: Recorder, length: bytes) -> None:
    answer = exchange(port, HEAD + b"Content-Length: " + length + b"\r\n\r\n0123456789")
    assert answer.startswith(b"HTTP/1.1 400")
    assert recorder.reached == []


def test_a_length_that_says_too_little_smuggles_nothing(port: int, recorder: Recorder) -> None:
    answer = exchange(port, HEAD + b"Content-Length: 4\r\n\r\nfour and more")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 400") == 1
    assert recorder.reached == ["/echo"]


def test_a_length_that_says_too_much_is_waited_for_only_so_long(
    port: int, recorder: Recorder
) -> None:
    answer = exchange(port, HEAD + b"Content-Length: 900\r\n\r\nfour")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer
    assert recorder.reached == []


def test_a_body_that_drips_is_not_waited_for(port: int, recorder: Recorder) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.sendall(HEAD + b"Content-Length: 900\r\n\r\n")
        raw.settimeout(0.05)
        answer = b""
        for _ in range(600):
            try:
                raw.sendall(b"x")
                answer += raw.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break
        assert answer.startswith(b"HTTP/1.1 408")
    assert recorder.reached == []


def test_who_leaves_during_the_body_never_reaches_the_app(port: int, recorder: Recorder) -> None:
    assert exchange(port, HEAD + b"Content-Length: 900\r\n\r\nfour", shut=True)[:12] in (
        b"",
        b"HTTP/1.1 400",
    )
    assert httpx.post(f"http://127.0.0.1:{port}/echo", content=b"four").text == "4"
    assert recorder.reached == ["/echo"]


@pytest.mark.parametrize(
    "start", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "], ids=len
)
def test_headers_that_dawdle_are_cut(port: int, start: bytes) -> None:
    assert exchange(port, start) == b""


def test_headers_that_dawdle_on_a_connection_that_was_used() -> None:
    with (
        serving(make_app(), RunOptions(header_timeout=0.5, keep_alive=3600)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
    ):
        raw.sendall(HEAD + b"Content-Length: 4\r\n\r\nfour")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        raw.sendall(b"GET / HT")
        assert raw.recv(65536) in (b"", b"4")
        assert b"".join(iter(lambda: raw.recv(65536), b"")) == b""


def test_a_body_that_nobody_reads_is_cut() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await make_app()(scope, receive, send)
        await send({"type": "http.response.start", "status": 401, "headers": []})
        return await send({"type": "http.response.body", "body": b""})

    with (
        serving(refuse, RunOptions(header_timeout=0.5, keep_alive=3600)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
    ):
        raw.sendall(HEAD + b"Content-Length: 900\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 401")
        raw.sendall(b"x")
        while raw.recv(65536):
            pass


def test_the_clock_of_headers_does_not_cut_answers() -> None:
    app = make_app(steps=10, pause=0.05)
    with serving(app, RunOptions(header_timeout=0.2)) as port:
        assert httpx.post(f"http://127.0.0.1:{port}/slow", content=b"four").text == "slow"


def test_large_headers_are_refused(port: int) -> None:
    answer = exchange(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 100_000)
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")


def test_a_client_that_reads_no_more_is_dropped() -> None:
    left = asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await make_app()(scope, receive, send)
        if scope["path"] == "/wait":
            await asyncio.wait_for(left.wait(), 30)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return await send({"type": "http.response.body", "body": b"left"})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.create_task(_until_gone(receive))
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        left.set()
        return None

    with (
        serving(flood, RunOptions(stall_timeout=0.3)) as port,
        socket.create_connection(("127.0.0.1", port)) as raw,
    ):
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert httpx.get(f"http://127.0.0.1:{port}/wait", timeout=30).text == "left"


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def test_the_gate_admits_so_many_and_tells_the_others_when_to_come() -> None:
    async def main() -> None:
        gate = Gate(2)
        async with gate.enter(), gate.enter():
            with pytest.raises(BusyError) as caught:
                async with gate.enter():
                    pass
            assert gate.num_inside == 2
        assert gate.num_inside == 0
        async with gate.enter():
            assert gate.num_inside == 1
        error = caught.value
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert error.headers == {"Retry-After": "1"}

    asyncio.run(main())


def test_the_gate_needs_a_place() -> None:
    with pytest.raises(ValueError, match="at least 1 request, not 0"):
        Gate(0)


def test_retry_after_follows_durations_and_those_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now

    monkeypatch.setattr(gate_module, "time", Clock)

    async def main() -> None:
        nonlocal now
        gate = Gate(2)
        for _ in range(100):  # the mean comes near 10 s: a place falls free every 5 s
            async with gate.enter():
                now += 10
        waits = []
        async with gate.enter(), gate.enter():
            for _ in range(15):
                with pytest.raises(BusyError) as caught:
                    async with gate.enter():
                        pass
                waits.append(int(caught.value.headers["Retry-After"]))
        assert waits == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 60, 60, 60]
        for _ in range(14):  # those who came again
            async with gate.enter():
                now += 10
        assert gate.retry_seconds() == 5

    asyncio.run(main())


@asynccontextmanager
async def asking(app: App, path: str, count: int) -> AsyncIterator[list[Any]]:
    """`count` requests at once; what they were answered, when the block is over."""
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await request(app, path))

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(ask())
        yield answers


@pytest.mark.parametrize("path", ["/stream", "/slow", "/fail"])
def test_places_are_given_back(path: str) -> None:
    async def main() -> None:
        gate = Gate(3)
        app = Admission(make_app(steps=3, pause=0.001), gate, ["/stream", "/slow", "/fail"])
        if path == "/fail":
            with pytest.raises(RuntimeError):
                await request(app, path)
        else:
            async with asking(app, path, 5) as answers:
                pass
            assert sorted(status for status, _, _ in answers) == [200] * 3 + [429] * 2
            body = next(body for status, _, body in answers if status == 429)
            assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
        assert gate.num_inside == 0

        asked = asyncio.create_task(request(app, "/slow"))
        await asyncio.sleep(0)
        assert gate.num_inside == 1
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert gate.num_inside == 0

    asyncio.run(main())


def test_other_paths_pass_a_full_gate() -> None:
    async def main() -> None:
        gate = Gate(1)
        app = Admission(make_app(), gate, ["/stream"])
        async with gate.enter():
            assert (await request(app, "/stream"))[0] == 429
            assert (await request(app, "/ready"))[0] == 200

    asyncio.run(main())


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("path", ["/slow", "/stream", "/partial", "/echo"])
def test_answers_that_take_too_long(path: str, is_cut: bool) -> None:
    """`/echo` is whole in time."""

    async def main() -> None:
        stopping = Stopping()
        recorder = Recorder(make_app(steps=10_000, pause=0.01))
        app = Deadline(recorder, stopping, None if is_cut else 0.1)
        asked = asyncio.create_task(request(app, path))
        if is_cut:
            await asyncio.sleep(0.1)
            stopping.begin()
            stopping.cut()
        status, headers, body = await asked
        assert recorder.left == [path]
        assert stopping.timers == set()
        expected = "server_stopping" if is_cut else "timeout"
        if path == "/echo":
            assert (status, body) == (200, b"0")
        elif path == "/slow":
            assert status == (503 if is_cut else 504)
            assert headers["connection"] == "close"
            assert json.loads(body)["error"]["code"] == expected
        else:
            assert status == 200
            last = body.decode().strip().split("\n\n")[-1].removeprefix("data: ")
            if path == "/stream":
                assert json.loads(last)["error"]["code"] == expected
            else:  # left open: no client takes half a document for a whole one
                assert last.isdigit()

    asyncio.run(main())


def test_requests_after_the_cut_are_over_at_once() -> None:
    async def main() -> None:
        stopping = Stopping()
        stopping.cut()
        app = Deadline(make_app(steps=10_000), stopping, 60)
        assert (await request(app, "/slow"))[0] == 503

    asyncio.run(main())


def test_an_apps_own_timeouts_are_its_own() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(request(Deadline(app, Stopping(), 60)))


def test_half_a_document_is_seen_to_be_half() -> None:
    app = Deadline(make_app(steps=10_000, pause=0.01), Stopping(), 0.1)
    with (
        serving(app, RunOptions()) as port,
        pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"),
    ):
        httpx.post(f"http://127.0.0.1:{port}/partial")
