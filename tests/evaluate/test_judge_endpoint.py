"""A judge over HTTP: what is sent, what is tried again, what its errors say."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from puna.chat import Message
from puna.evaluate.judging.endpoint import Endpoint, RefusedRequestError
from tests.evaluate.judges import Reply, judge

ASKED = [Message("system", "Judge."), Message("user", "“Who?”")]


def error(status: int, message: str, **headers: str) -> Reply:
    return status, json.dumps({"error": {"message": message}}), headers


def test_what_is_sent() -> None:
    seen: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> str:
        seen.append(request)
        return "[[A]]"

    with judge(answer) as url:
        assert Endpoint(url, "big", key="sk-1", max_tokens=7).answer(ASKED) == "[[A]]"
        assert Endpoint(f"{url}/", "big").answer(ASKED) == "[[A]]"
    assert seen[0] == {
        "model": "big",
        "messages": [
            {"role": "system", "content": "Judge."},
            {"role": "user", "content": "“Who?”"},
        ],
        "temperature": 0.0,
        "max_tokens": 7,
        "key": "Bearer sk-1",
    }
    assert seen[1]["key"] is None
    assert "sk-1" not in repr(Endpoint(url, "big", key="sk-1"))


def test_a_busy_judge_is_asked_again() -> None:
    replies: list[Reply] = [error(429, "slow down", **{"Retry-After": "0"}), error(503, ""), "yes"]
    with judge(lambda _: replies.pop(0)) as url:
        assert Endpoint(url, "m", tries=3, pause=0.01).answer(ASKED) == "yes"
    replies = [error(500, "no memory")] * 2
    with (
        judge(lambda _: replies.pop(0)) as url,
        pytest.raises(ValueError, match="did not answer in 2 tries: 500: no memory"),
    ):
        Endpoint(url, "m", tries=2, pause=0.01).answer(ASKED)
    assert not replies


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, "wrong key"), "does not judge: 401: wrong key"),
        (error(404, "no model m"), "does not judge: 404: no model m"),
        ((301, "", {"Location": "http://127.0.0.1:1/v1"}), "does not judge: 301"),
        ((200, "<html>", {}), "not answer as OpenAI's API does; is it the address up to /v1"),
        ((200, '{"choices": []}', {}), "not answer as OpenAI's API does"),
    ],
)
def test_errors_that_end_it(reply: Reply, message: str) -> None:
    asked = []

    def answer(request: dict[str, Any]) -> Reply:
        asked.append(request)
        return reply

    with judge(answer) as url, pytest.raises(ValueError, match=message) as caught:
        Endpoint(url, "m", tries=3, pause=0.01).answer(ASKED)
    assert not isinstance(caught.value, RefusedRequestError)
    assert len(asked) == 1  # another try would not mend it


def test_one_request_is_refused() -> None:
    with (
        judge(lambda _: error(400, "4,100 tokens are too many")) as url,
        pytest.raises(RefusedRequestError, match="400: 4,100 tokens are too many"),
    ):
        Endpoint(url, "m").answer(ASKED)


def test_nobody_is_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ValueError, match=r"did not answer in one try: .*refused"):
        Endpoint(url, "m", tries=1).answer(ASKED)


def test_one_that_hangs_is_given_up() -> None:
    with (
        judge(lambda _: time.sleep(0.5) or "late") as url,
        pytest.raises(ValueError, match="in one try: timed out"),
    ):
        Endpoint(url, "m", tries=1, timeout=0.05).answer(ASKED)


def test_addresses() -> None:
    with pytest.raises(ValueError, match="begins with http"):
        Endpoint("file:///etc/passwd", "m")
