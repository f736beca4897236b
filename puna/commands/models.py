"""`--model` -> a checkpoint or a network: a path, a shipped model, or one on a hub."""

from __future__ import annotations

import importlib.util
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.catalog import find
from puna.formats import open_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.vocabularies import load_vocabulary
from puna.hub.names import HubName, parse
from puna.kernels import native
from puna.tokenizer import Vocabulary

if TYPE_CHECKING:
    from puna.engine.batch import Runner
    from puna.model import Llama

SHIPPED = ("cria",)
# A name that ends so and is no file is a slip in a path, not a repository.
_FILE_SUFFIXES = (".gguf", ".bin", ".pth", ".safetensors", ".json", ".model")
# Parameters below which waking a second thread takes longer than its share of the work.
_SMALL = 50_000_000


def resolve(
    model: str, tokenizer: Path | None = None, *, download: bool = True, **options: Any
) -> Checkpoint:
    """Opens what `--model` names, downloading it from the hub first if it may and must.

    `options` go to `open_checkpoint`. ValueError says what to do about a name that is nothing.
    """
    vocabulary = None if tokenizer is None else load_vocabulary(tokenizer)
    return open_checkpoint(locate(model, download=download), vocabulary, **options)


def locate(model: str, *, download: bool = True) -> Path:
    """The file or folder that a path, a shipped model's name or a hub name means.

    Of the hub's models, those on this machine need no network; others are downloaded, or are a
    ValueError if `download` is False.
    """
    if Path(model).exists():
        return Path(model)
    if model in SHIPPED:
        return shipped_path(model)
    name = hub_name(model)
    if name is None:
        raise ValueError(f"no such file or folder: {model}")

    from puna.hub.cache import find_pulled
    from puna.hub.errors import NotFoundError

    path = find_pulled(name)
    if path is None and download:
        from puna.commands.pull import pull_model

        try:
            pull_model(name)
        except NotFoundError as error:
            raise ValueError(f"there is no file or folder {model}, and {error}") from None
        path = find_pulled(name)
    if path is None:
        raise ValueError(f"{name} is not on this machine; puna pull {name} downloads it")
    return path


def hub_name(model: str) -> HubName | None:
    """`model` as a name on a hub; None if it rather is a path that is not there."""
    base = re.split("[@:]", model, maxsplit=1)[0]
    if find(base):
        return parse(model)
    if "/" not in base or (base == model and Path(base).suffix in _FILE_SUFFIXES):
        return None
    try:
        return parse(model)
    except ValueError:
        return None


def named_vocabulary(source: str) -> Vocabulary:
    """The vocabulary of a tokenizer file, or of a model as `locate` finds it."""
    return load_vocabulary(locate(source))


def shipped_path(name: str) -> Path:
    return Path(str(files("puna") / "models" / f"{name}.gguf"))


def load_network(checkpoint: Checkpoint, device: str, dtype: str) -> Llama:
    """The network of a checkpoint, on a device, ready to run."""
    import torch

    from puna.formats.network import load_model

    if checkpoint.config.num_parameters < _SMALL:
        torch.set_num_threads(1)
    types = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}
    types["fp16"] = torch.float16
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    return load_model(checkpoint, device=device, dtype=types[dtype]).eval()


def load_runner(checkpoint: Checkpoint, device: str, dtype: str) -> Runner:
    """What generates with a checkpoint, with pages for one whole context.

    On a CPU that is native code, and `dtype` "auto" means as stored; elsewhere, and without native
    code, the network, which is said.
    """
    context = checkpoint.config.context_length
    if device == "cpu" and native.available():
        from puna.engine.native_runner import NativeRunner

        stored = {"auto": None, "fp32": "f32", "bf16": "bf16", "fp16": "f16"}[dtype]
        num_pages = -(-context // NativeRunner.page_size)
        num_threads = 1 if checkpoint.config.num_parameters < _SMALL else None
        return NativeRunner(checkpoint, num_pages=num_pages, dtype=stored, num_threads=num_threads)
    if device == "cpu":
        if importlib.util.find_spec("torch") is None:
            raise ValueError(
                "native code was not built and there is no torch; install a C++ compiler (g++) "
                "and Puna again, or puna[train]"
            )
        click.echo("native code was not built; running on torch, which is slower", err=True)

    from puna.engine.torch_runner import TorchRunner

    network = load_network(checkpoint, device, dtype)
    return TorchRunner(network, num_pages=-(-context // TorchRunner.page_size))
