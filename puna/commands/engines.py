"""The engines that `puna serve` asks: here in this process, or in replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from puna.commands.cache import cache_folder
from puna.commands.models import opened_adapter, opened_draft, resolve
from puna.engine.async_llm import AsyncLLM
from puna.serve.models import Backend, Models, Served
from puna.serve.names import adapters_asked, models_asked


@contextmanager
def loaded(
    models: Sequence[str],
    adapters: Sequence[str],
    options: dict[str, Any],
    replicas: int | None,
    ray_address: str | None,
) -> Iterator[Models]:
    """Loads each model once, however many names it has, with the adapters that are for it.

    `models` and `adapters` as on the command line; `options` are those of `load_engine`, but that
    `threads` is `num_threads`. With `replicas`, so many processes run each model, until the end of
    the block.
    """
    asked = models_asked(models)
    loras = adapters_asked(adapters, asked)
    sources = {each.name: each.source for each in asked}
    options["num_threads"] = options.pop("threads")
    options["cache_folder"] = cache_folder()
    of_model: dict[str, dict[str, str]] = {source: {} for source in sources.values()}
    for each in loras:
        of_model[sources[each.model or ""]][each.name] = each.source
    with _backends(of_model, options, replicas, ray_address) as backends:
        yield Models(
            [Served(each.name, backends[each.source]) for each in asked]
            + [
                Served(each.name, backends[sources[each.model or ""]], each.name, each.model)
                for each in loras
            ]
        )


@contextmanager
def _backends(
    models: Mapping[str, Mapping[str, str]],
    options: dict[str, Any],
    count: int | None,
    ray_address: str | None,
) -> Iterator[Mapping[str, Backend]]:
    """An engine for each model, given the adapters of each: here, or in replicas."""
    if count is None:
        if ray_address is not None:
            raise ValueError("--ray-address is for replicas: say how many with --replicas")
        yield {source: load_engine(source, loras, **options) for source, loras in models.items()}
        return
    from puna.serve.replicas.cluster import Plan, replicas

    # Opened here first: that is where something is downloaded, or refused.
    opened_draft(options["draft"])
    for loras in models.values():
        for adapter in loras.values():
            opened_adapter(adapter)
    plans = {
        source: Plan(
            resolve(source, options["tokenizer"]), partial(load_engine, source, loras), options
        )
        for source, loras in models.items()
    }
    with replicas(plans, count, ray_address) as backends:
        yield backends


def load_engine(
    model: str,
    adapters: Mapping[str, str],
    *,
    tokenizer: Path | None = None,
    draft: str | None = None,
    **options: Any,
) -> AsyncLLM:
    """An engine as the options of `puna serve` describe it; also what each replica calls."""
    loras = {name: opened_adapter(adapter) for name, adapter in adapters.items()}
    checkpoint = resolve(model, tokenizer)
    return AsyncLLM(checkpoint, adapters=loras, draft=opened_draft(draft), **options)
