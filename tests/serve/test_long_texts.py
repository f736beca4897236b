"""What takes long to encode or decode, and those who would have to wait for it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from puna.serve.service import encoded_prompts
from puna.tokenizer import Tokenizer
from tests.serve.servers import Running


def test_others_have_their_turn_between_the_prompts(server: Running) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> int:
        assert server.llm is not None
        served: Any = SimpleNamespace(backend=server.llm)
        task = asyncio.ensure_future(other())
        found = await encoded_prompts(served, ["a llama"] * 20)
        task.cancel()
        return len(found)

    assert asyncio.run(run()) == 20
    assert turns >= 20


def test_tokens_are_decoded_beside_the_loop(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    decode = Tokenizer.decode

    def noted(self: Tokenizer, *args: Any, **options: Any) -> str:
        threads.append(threading.current_thread().name)
        return decode(self, *args, **options)

    monkeypatch.setattr(Tokenizer, "decode", noted)
    with server.http() as http:
        assert http.post("/detokenize", json={"tokens": [300, 301]}).status_code == 200
    assert threads and "server" not in threads
