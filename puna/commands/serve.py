"""`puna serve`: models behind an OpenAI-compatible API, and a chat in the browser."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.options import (
    address_options,
    compute_options,
    draft_option,
    kv_dtype_option,
    threads_option,
    tokenizer_option,
)
from puna.commands.sections import SectionedCommand

if TYPE_CHECKING:
    from puna.serve.keys import Keys


# Of the extra `serve`: what is imported before anything can be said.
NEEDED = ("fastapi", "uvicorn", "prometheus_client")

HEADINGS = {
    "more_models": "Models",
    "device": "How they run",
    "host": "Address",
    "api_keys": "Who may ask",
    "max_requests": "How much, how long",
    "log_requests": "Log and pages",
}


@click.command(cls=SectionedCommand, headings=HEADINGS)
@click.argument("models", nargs=-1, metavar="[[NAME=]MODEL]...")
@click.option(
    "--model", "-m", "more_models", multiple=True, metavar="[NAME=]MODEL",
    help="The same as an argument; repeatable.  [default: cria-chat]",
)  # fmt: skip
@tokenizer_option
@click.option(
    "--lora", "adapters", multiple=True, metavar="NAME=ADAPTER",
    help="Serve the model with this LoRA adapter as NAME; NAME@MODEL=... with several models; "
    "repeatable.",
)  # fmt: skip
@compute_options
@kv_dtype_option
@click.option(
    "--kv-tokens", type=click.IntRange(min=1), metavar="N",
    help="Hold keys and values of N tokens.  [default: what suits the free memory]",
)  # fmt: skip
@click.option(
    "--max-sequences", type=click.IntRange(min=1), default=64, show_default=True, metavar="N",
    help="Run at most N outputs together; the others wait.",
)  # fmt: skip
@draft_option
@threads_option
@click.option(
    "--replicas", type=click.IntRange(min=1), metavar="N",
    help="Run each model N times, in processes of their own on Ray Serve.  [default: once, here]",
)  # fmt: skip
@click.option(
    "--ray-address", metavar="HOST:PORT",
    help="With --replicas, use the machines of this Ray cluster.  [default: this one]",
)  # fmt: skip
@address_options(8000)
@click.option(
    "--uds",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen at this Unix socket instead.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="Serve HTTPS with this certificate.",
)
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="PEM", help="Its private key.")
@click.option(
    "--api-keys", type=click.Path(path_type=Path), metavar="FILE",
    help="Lines NAME:KEY; also PUNA_API_KEY. Needed unless --host is this machine alone.",
)  # fmt: skip
@click.option(
    "--cors-origin", "origins", multiple=True, metavar="URL",
    help="Let pages of this origin call; repeatable.  [default: none]",
)  # fmt: skip
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME",
    help="Without keys, another name that this server is asked by; repeatable.",
)  # fmt: skip
@click.option(
    "--max-requests", type=click.IntRange(min=1), default=1024, show_default=True, metavar="N",
    help="Refuse (429) what comes when N requests run or wait.",
)  # fmt: skip
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), metavar="N",
    help="Allow at most N tokens an output.  [default: the context]",
)  # fmt: skip
@click.option(
    "--max-body", type=click.IntRange(min=1), default=4 << 20, show_default=True, metavar="BYTES",
    help="Refuse larger requests.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=600, show_default=True,
    metavar="SECONDS", help="Break off an answer that takes longer.",
)  # fmt: skip
@click.option(
    "--drain-delay", type=click.FloatRange(min=0), default=0, show_default=True,
    metavar="SECONDS", help="After SIGTERM, first say so at /ready and take requests so long.",
)  # fmt: skip
@click.option(
    "--drain-timeout", type=click.FloatRange(min=0), default=30, show_default=True,
    metavar="SECONDS", help="Then wait so long for what runs.",
)  # fmt: skip
@click.option(
    "--log/--no-log", "log_requests", default=True, show_default=True,
    help="A line of JSON for each request, on standard error; without what people wrote.",
)  # fmt: skip
@click.option(
    "--access-log",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write those lines to this file instead.",
)
@click.option(
    "--log-prompts", is_flag=True, help="Log also the first 4096 characters of what people wrote."
)
@click.option("--web/--no-web", default=True, show_default=True, help="Show the chat at /.")
def serve(
    models: tuple[str, ...],
    more_models: tuple[str, ...],
    adapters: tuple[str, ...],
    host: str,
    port: int,
    uds: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    api_keys: Path | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    max_requests: int,
    max_new_tokens: int | None,
    max_body: int,
    timeout: float,
    drain_delay: float,
    drain_timeout: float,
    log_requests: bool,
    access_log: Path | None,
    log_prompts: bool,
    web: bool,
    replicas: int | None,
    ray_address: str | None,
    **engine: Any,
) -> None:
    """Answer OpenAI's clients over HTTP, and people at a web page.

    Serves the shipped model where none is named. Each [NAME=]MODEL is a file or folder in any
    format, a shipped model, or a hub's; clients ask for it by its own name or NAME.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"puna serve needs {', '.join(missing)}: pip install 'puna[serve]'")
    from puna.commands.engines import loaded
    from puna.serve.access_log import open_log
    from puna.serve.deadlines import Stopping
    from puna.serve.exposure import check_exposure, check_origins
    from puna.serve.listening import bind, bind_unix, check_tls, closed_after
    from puna.serve.running import RunOptions, run
    from puna.serve.service import Limits
    from puna.serve.stack import Logging, Protection, build

    keys = _keys(api_keys)
    if uds is None:
        check_exposure(host, keys)
    check_origins(origins)
    check_tls(tls_cert, tls_key)
    # The address first: a port in use is said before a large model is loaded.
    listener = bind(host, port) if uds is None else bind_unix(uds)
    stopping = Stopping()
    protection = Protection(
        keys=keys,
        hosts=(host, *hosts),
        origins=origins,
        capacity=max_requests,
        max_body_bytes=max_body,
        seconds=timeout,
    )
    log = Logging(open_log(access_log) if log_requests or access_log else None, log_prompts)
    options = RunOptions(drain_timeout, drain_delay, tls_cert=tls_cert, tls_key=tls_key)
    asked = (*models, *more_models) or ("cria-chat",)
    with (
        closed_after(listener),
        loaded(asked, adapters, engine, replicas, ray_address) as served,
    ):
        app = build(
            served,
            stopping,
            protection=protection,
            limits=Limits(max_new_tokens=max_new_tokens),
            log=log,
            chat=web,
        )

        def announce(url: str) -> None:
            names = ", ".join(each.name for each in served.all())
            click.echo(f"{names} at {url}/v1{f'; chat at {url}' if web else ''}", err=True)

        code = run(app, listener, stopping, options, announce)
    sys.exit(code)


def _keys(path: Path | None) -> Keys | None:
    from puna.serve.keys import environment_keys, read_keys

    if path is not None:
        return read_keys(path, lambda text: click.secho(text, fg="yellow", err=True))
    return environment_keys(os.environ.get("PUNA_API_KEY"), os.environ.get("PUNA_API_KEYS"))
