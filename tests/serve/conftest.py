"""The server that most tests ask, and the same model without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from puna import LLM
from puna.serve.app import create_app
from puna.serve.models import Models, Served
from tests.serve.servers import Running, engine, in_thread, puna_serve


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """The shipped model behind HTTP, in a thread of this process."""
    with engine("cria") as llm, in_thread(create_app(Models([Served("cria", llm)])), llm) as it:
        yield it


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def llm() -> LLM:
    """The same model, asked directly."""
    return LLM("cria")


@pytest.fixture(scope="session")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`puna serve` with the shipped model, in a process of its own."""
    log: Path = tmp_path_factory.mktemp("serve") / "log"
    with puna_serve(log=log) as it:
        yield it
