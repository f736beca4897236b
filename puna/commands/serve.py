"""`puna serve`: models behind an OpenAI-compatible API, and a chat in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from puna.commands.models import resolve
from puna.commands.options import model_options


@click.command()
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 is any that is free.")
def serve(
    model: str,
    tokenizer: Path | None,
    device: str,
    dtype: str,
    kv_dtype: str,
    host: str,
    port: int,
) -> None:
    """Serve models to OpenAI's clients, and a chat at the same address."""
    import uvicorn

    from puna.commands.cache import cache_folder
    from puna.engine.async_llm import AsyncLLM
    from puna.serve.app import create_app
    from puna.serve.models import Models, Served

    checkpoint = resolve(model, tokenizer)
    llm = AsyncLLM(
        checkpoint, device=device, dtype=dtype, kv_dtype=kv_dtype, cache_folder=cache_folder()
    )
    app = create_app(Models([Served(model, llm)]))
    uvicorn.run(app, host=host, port=port)
