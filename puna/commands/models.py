"""`--model` -> a checkpoint: a path, a shipped model, or one on a hub, downloaded when needed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from puna.commands.cache import cache_folder
from puna.engine.speculate import PROMPT_LOOKUP
from puna.formats import open_checkpoint, run_folder
from puna.formats.adapters import Adapter, open_adapter
from puna.formats.checkpoint import Checkpoint
from puna.formats.vocabularies import load_vocabulary
from puna.hub.locate import SHIPPED, NotPulledError
from puna.hub.locate import locate as locate_here
from puna.tokenizer import Vocabulary

if TYPE_CHECKING:
    from puna.engine.llm import LLM

_LARGE = 256 << 20  # bytes of weights that take so long to load that a bar is shown


def resolve(
    model: str, tokenizer: Path | None = None, *, download: bool = True, **options: Any
) -> Checkpoint:
    """Opens what `--model` names, downloading it from the hub first if it may and must.

    `options` go to `open_checkpoint`. ValueError says what to do about a name that is nothing.
    """
    vocabulary = None if tokenizer is None else load_vocabulary(tokenizer)
    return open_checkpoint(locate(model, download=download), vocabulary, **options)


def locate(model: str, *, download: bool = True) -> Path:
    """Where the named model lies; it is downloaded first if it must, and may, be."""
    try:
        return locate_here(model)
    except NotPulledError as missing:
        if not download:
            raise
        from puna.commands.pull import pull_model
        from puna.hub.errors import NotFoundError

        try:
            pull_model(missing.name)
        except NotFoundError as error:
            raise ValueError(f"there is no file or folder {model}, and {error}") from None
    return locate_here(model)


def lasting_name(model: str, path: Path) -> str:
    """What a run finds the model by that was located at `path`: a shipped one's name, else that."""
    shipped = model in SHIPPED and not Path(model).exists()
    return model if shipped else str(path.resolve())


def load(
    checkpoint: Checkpoint,
    *,
    device: str,
    dtype: str,
    kv_dtype: str,
    draft: str | None = None,
    adapters: Mapping[str, Sequence[Adapter]] = MappingProxyType({}),
    tensor_parallel: bool = False,
) -> LLM:
    """The model, ready to be asked; a bar says how far a large one is, where someone looks."""
    from puna.engine.llm import LLM

    options: dict[str, Any] = {"device": device, "dtype": dtype, "kv_dtype": kv_dtype}
    options["adapters"] = adapters
    options["cache_folder"] = cache_folder()
    options["tensor_parallel"] = tensor_parallel
    if checkpoint.num_bytes < _LARGE or not sys.stderr.isatty():
        return LLM(checkpoint, draft=opened_draft(draft), **options)

    from puna.commands.progress import loading_bar

    with loading_bar(checkpoint) as watched:
        return LLM(watched, draft=opened_draft(draft), **options)


def opened_draft(draft: str | None) -> Checkpoint | str | None:
    """What `--draft` names: a model, or the way to guess without one."""
    return draft if draft in (None, PROMPT_LOOKUP) else resolve(draft)


def opened_adapter(adapter: str) -> Adapter:
    """What a `--lora` names: PATH[:SCALE], or a hub's name, downloaded when needed.

    Of a run the newest checkpoint.
    """
    path, _, scale = adapter.rpartition(":")
    try:
        path, factor = (path, float(scale)) if path else (adapter, 1.0)
    except ValueError:
        path, factor = adapter, 1.0
    found = locate(path)
    if run_folder.detect(found):
        found = run_folder.newest(found)
    return open_adapter(found).scaled(factor)


def named_adapters(adapters: tuple[str, ...]) -> dict[str, Sequence[Adapter]]:
    """All `--lora` as one adapter for an `LLM`, by a name; none where none is given."""
    return {" ".join(adapters): [opened_adapter(each) for each in adapters]} if adapters else {}


def named_vocabulary(source: str) -> Vocabulary:
    """The vocabulary of a tokenizer file, or of a model as `locate` finds it."""
    return load_vocabulary(locate(source))
