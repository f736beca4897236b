"""`puna serve` itself: what it says of slips, and that it leaves nothing behind."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import pytest

from puna.cli import puna
from puna.commands import serve as command
from puna.commands.serve import HEADINGS, serve
from tests.serve.servers import puna_serve


def refused(*arguments: str) -> str:
    """What the command says instead of serving."""
    with pytest.raises((ValueError, OSError)) as error:  # of both `main` says one line
        puna.main(["serve", "--port", "0", *arguments], "puna", standalone_mode=False)
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no such file or folder: nowhere"),
        (["--model", "nowhere"], "no such file or folder: nowhere"),
        (["cria", "-m", "cria"], "two are to be served as cria"),
        (["chat="], "chat= names no model: write NAME=MODEL"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--lora", "nowhere"], "write NAME=ADAPTER"),
        (["--lora", "tales=nowhere"], "no such file or folder: nowhere"),
        (["--host", "0.0.0.0"], "there is no API key: give --api-keys FILE"),
        (["--api-keys", "nowhere"], "cannot read API keys from nowhere"),
        (["--tls-cert", "nowhere"], "go together"),
        (["--cors-origin", "chat.example"], "write it as browsers do"),
        (["--cors-origin", "https://chat.example/"], "write it as browsers do"),
        (["--cors-origin", "https://Chat.example"], "write it as browsers do"),
        (["--ray-address", "127.0.0.1:1"], "say how many with --replicas"),
    ],
)
def test_slips_are_said(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PUNA_API_KEY", "PUNA_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    assert said in refused(*arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else sys)
    assert refused() == "puna serve needs uvicorn: pip install 'puna[serve]'"


def test_a_socket_goes_where_the_model_does_not_load() -> None:
    with tempfile.TemporaryDirectory() as folder:  # short: such a path has at most 107 bytes
        assert "no such file" in refused("--uds", f"{folder}/s", "nowhere")
        assert not list(Path(folder).iterdir())


def test_the_help_has_each_option_once_under_a_heading() -> None:
    options = [param for param in serve.params if isinstance(param, click.Option)]
    assert options[0].name in HEADINGS
    assert HEADINGS.keys() <= {option.name for option in options}
    shown = serve.get_help(click.Context(serve, info_name="serve"))
    assert [shown.count(f"\n{title}:\n") for title in HEADINGS.values()] == [1] * len(HEADINGS)
    for option in options:
        assert shown.count(f"\n  {option.opts[0]} ") + shown.count(f" {option.opts[0]} ") >= 1


def test_models_may_be_options() -> None:
    several = puna_serve("one=cria", "--model", "two=cria", "-m", "three=cria")
    with several as server, server.http() as client:
        names = [each["id"] for each in client.get("/v1/models").json()["data"]]
    assert names == ["one", "two", "three"]
