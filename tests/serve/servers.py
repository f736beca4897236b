"""Servers for the tests: the app in a thread of this process, and `puna serve` in its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from openai import AsyncOpenAI, OpenAI

from puna import AsyncLLM
from puna.engine.statistics import Statistics
from puna.serve.connections import timed_protocol

PATIENCE = 200.0  # seconds until what must come is given up


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`; `llm` is its engine, where it is in this process."""

    url: str
    llm: AsyncLLM | None = None
    process: subprocess.Popen[bytes] | None = None

    def client(self, **options: Any) -> OpenAI:
        """The official client; it tries nothing twice, and checks the types of all that it gets."""
        return OpenAI(**_options(self.url, options))

    def async_client(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(**_options(self.url, options))

    def http(self, **options: Any) -> httpx.Client:
        """A plain client, for paths such as /v1/completions."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, **options)

    def statistics(self) -> Statistics:
        """How the engine stands."""
        assert self.llm is not None
        return self.llm.llm.engine.statistics()

    def is_idle(self) -> bool:
        """Whether no request has anything in the engine any more."""
        now = self.statistics()
        return (now.num_running, now.num_waiting, now.num_pages_used) == (0, 0, 0)


def _options(url: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "base_url": f"{url}/v1",
        "api_key": "none",
        "max_retries": 0,
        "timeout": PATIENCE,
        "_strict_response_validation": True,
    } | options


@contextmanager
def in_thread(app: Any, llm: AsyncLLM | None = None) -> Iterator[Running]:
    """Runs an app in a thread, at a free port of the loopback address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    http = timed_protocol(10.0, 60.0)  # as `puna serve` has it
    server = uvicorn.Server(uvicorn.Config(app, http=http, ws="none", log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],), name="server", daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the server starts")
        assert server.started, "the server ended before it began"
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", llm)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
    assert not thread.is_alive(), "the server does not end"


@contextmanager
def engine(model: Any = "cria", **options: Any) -> Iterator[AsyncLLM]:
    """An engine that is closed at the end."""
    llm = AsyncLLM(model, **options)
    try:
        yield llm
    finally:
        asyncio.run(llm.close())


@contextmanager
def puna_serve(
    *arguments: str, log: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[Running]:
    """Runs `puna serve` with these arguments at a free port; what it prints goes to `log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = log.open("wb") if log else subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-m", "puna", "serve", *arguments, "--port", str(port)],
        stdout=output,
        stderr=subprocess.STDOUT,
        env=os.environ | (env or {}),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or _answers(url), "the server answers")
        assert process.poll() is None, f"puna serve ended with {process.returncode}"
        yield Running(url, process=process)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            if log:
                output.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Any, what: str) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s in vain until {what}"
        time.sleep(0.02)
