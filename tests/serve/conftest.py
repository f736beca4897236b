"""The server that most tests ask, and the same model without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from puna import LLM
from puna.serve.deadlines import Stopping
from puna.serve.models import Models, Served
from puna.serve.stack import build
from tests.serve.conformity import Conforming
from tests.serve.servers import Running, engine, in_thread, puna_serve


@pytest.fixture(scope="session")
def conforming_server() -> Iterator[tuple[Running, list[str]]]:
    with engine("cria") as llm:
        app = Conforming(build(Models([Served("cria", llm)]), Stopping()))
        with in_thread(app, llm) as running:
            yield running, app.problems


@pytest.fixture
def server(conforming_server: tuple[Running, list[str]]) -> Iterator[Running]:
    """The shipped model behind HTTP, in a thread; what it sends must be as documented."""
    running, problems = conforming_server
    yield running
    found = list(problems)
    problems.clear()
    assert not found


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def lenient(server: Running) -> Iterator[OpenAI]:
    """A client that takes null where OpenAI sends null and the official types say never.

    They do of the finish_reason in streamed completions, and of the first token's log-probability.
    """
    with server.client(_strict_response_validation=False) as client:
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
