"""Who has no key, or comes when all places are taken, gets the official client's own exceptions."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from puna.serve.deadlines import Stopping
from puna.serve.keys import parse_keys
from puna.serve.models import Models, Served
from puna.serve.stack import Protection, build
from tests.serve.conformity import Conforming
from tests.serve.servers import Running, engine, in_thread, until

KEY = "sk-0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    """A server with a key, that takes one request at a time."""
    protection = Protection(keys=parse_keys(f"ana:{KEY}", "the test"), capacity=1)
    with engine("cria") as llm:
        app = Conforming(build(Models([Served("cria", llm)]), Stopping(), protection=protection))
        with in_thread(app, llm) as running:
            yield running
        assert not app.problems


@pytest.mark.parametrize("key", ["none", KEY[:-1], KEY + "0"])
def test_a_wrong_key(guarded: Running, key: str) -> None:
    with guarded.client(api_key=key) as client:
        for ask in (client.models.list, lambda: client.embeddings.create(model="cria", input="a")):
            with pytest.raises(openai.AuthenticationError) as caught:
                ask()
            assert caught.value.code == "invalid_api_key" and key not in str(caught.value)
    with guarded.client(api_key=KEY) as client:
        assert client.models.list().data[0].id == "cria"


def test_too_many_at_once(guarded: Running) -> None:
    with guarded.client(api_key=KEY, _strict_response_validation=False) as client:
        long = {"n": 32, "max_tokens": 400, "extra_body": {"ignore_eos": True}, "stream": True}
        stream = client.completions.create(model="cria", prompt="Once", **long)  # type: ignore[call-overload]
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="cria", prompt="Once", max_tokens=1)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        stream.close()
        until(guarded.is_idle, "the place is free")
        # What runs no model is not counted.
        assert client.models.list().data

        def is_taken() -> bool:
            try:
                client.completions.create(model="cria", prompt="Once", max_tokens=1)
            except openai.RateLimitError:
                return False
            return True

        until(is_taken, "the next is taken in")
