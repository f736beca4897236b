"""The access log: a line a request, which nobody can forge, with what was asked for and no more."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from puna.serve.access_log import MAX_PROMPT, AccessLog, open_log
from puna.serve.keys import Keys
from tests.serve.apps import KEY, lines, make_app, memory_log, request


def test_a_line_says_what_happened() -> None:
    logger, text = memory_log()
    app = AccessLog(make_app(steps=3, pause=0), logger)
    status, headers, body = asyncio.run(
        request(app, "/stream", headers={"X-Request-Id": "abc-1"}, query=b"secret=1")
    )
    assert status == 200
    assert headers["x-request-id"] == "abc-1"
    (line,) = lines(text)
    assert list(line) == [
        "time", "id", "key", "client", "method", "path", "status", "error", "model",
        "prompt_tokens", "completion_tokens", "ttft_ms", "duration_ms", "bytes",
    ]  # fmt: skip
    assert (line["id"], line["client"], line["method"]) == ("abc-1", "127.0.0.1", "POST")
    assert (line["path"], line["status"], line["bytes"]) == ("/stream", 200, len(body))
    assert line["completion_tokens"] == 3
    assert 0 <= line["ttft_ms"] <= line["duration_ms"]
    assert line["error"] is None
    assert "secret" not in text.getvalue()


@pytest.mark.parametrize("given", ["", "a" * 65, 'x"y', "a b", "a\tb", "\u00e9"])
def test_names_that_are_not_plain_are_replaced(given: str) -> None:
    logger, text = memory_log()
    headers = asyncio.run(request(AccessLog(make_app(), logger), headers={"X-Request-Id": given}))[
        1
    ]
    assert headers["x-request-id"].startswith("req-")
    assert lines(text)[0]["id"] == headers["x-request-id"]


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_logged_only_if_wanted(log_prompts: bool) -> None:
    logger, text = memory_log()
    app = AccessLog(make_app(), logger, log_prompts=log_prompts)
    asyncio.run(request(app, chunks=(b"once ", b"upon\xff")))
    (line,) = lines(text)
    assert line.get("body") == ("once upon\ufffd" if log_prompts else None)


def test_long_bodies_are_cut_but_not_the_keys_in_them() -> None:
    logger, text = memory_log()
    app = AccessLog(make_app(), logger, log_prompts=True, redact=Keys([("a", KEY)]).redact)
    for place in range(MAX_PROMPT - len(KEY) - 1, MAX_PROMPT + 2):
        body = b"x" * place + KEY.encode() + b"y" * 100_000
        asyncio.run(request(app, chunks=(body[:4000], body[4000:])))
    assert all(len(line["body"]) == MAX_PROMPT for line in lines(text))
    assert KEY[:4] not in text.getvalue()


def test_lines_cannot_be_forged() -> None:
    logger, text = memory_log()
    app = AccessLog(make_app(), logger, log_prompts=True)
    asyncio.run(request(app, '/a\n{"forged": 1}\r\u2028\x1b[2J', chunks=(b"\n\x00\x1b\x85",)))
    assert text.getvalue().count("\n") == 1
    assert text.getvalue().isascii()
    assert all(character.isprintable() for character in text.getvalue().rstrip("\n"))
    assert lines(text)[0]["path"] == '/a\n{"forged": 1}\r\u2028\x1b[2J'


def test_long_paths_and_methods_are_cut() -> None:
    logger, text = memory_log()
    asyncio.run(request(AccessLog(make_app(), logger), "/" + "a" * 10_000, method="M" * 10_000))
    assert len(text.getvalue()) < 1000


def test_an_app_that_breaks_is_logged_and_breaks_on() -> None:
    logger, text = memory_log()
    with pytest.raises(RuntimeError, match="the app broke"):
        asyncio.run(request(AccessLog(make_app(), logger), "/fail"))
    assert lines(text)[0]["status"] == 500


def test_logs_in_files_survive_rotation(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    logger = open_log(path)
    logger.info("one")
    path.rename(tmp_path / "old.log")
    logger.info("two")
    for handler in logger.handlers:
        handler.close()
    assert (tmp_path / "old.log").read_text() == "one\n"
    assert path.read_text() == "two\n"
    with pytest.raises(ValueError, match=r"cannot write the log to .*: No such file"):
        open_log(tmp_path / "missing" / "access.log")


def test_no_logger_of_others_is_touched(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers), set(logging.root.manager.loggerDict)
    open_log(None).info("a line")
    assert (list(logging.getLogger().handlers), set(logging.root.manager.loggerDict)) == before
    assert capsys.readouterr().err == "a line\n"
