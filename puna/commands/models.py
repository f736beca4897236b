"""`--model` -> a checkpoint or a network: a path, or a model that ships with Puna."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from puna.catalog import find
from puna.formats import open_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.vocabularies import load_vocabulary
from puna.tokenizer import Vocabulary

if TYPE_CHECKING:
    from puna.model import Llama

SHIPPED = ("cria",)
# Parameters below which waking a second thread takes longer than its share of the work.
_SMALL = 50_000_000


def resolve(model: str, tokenizer: Path | None = None) -> Checkpoint:
    """Opens what `--model` names; ValueError says what to do about a name that is no file."""
    vocabulary = None if tokenizer is None else load_vocabulary(tokenizer)
    if model in SHIPPED and not Path(model).exists():
        return open_checkpoint(shipped_path(model), vocabulary)
    if not Path(model).exists() and (known := find(model)):
        raise ValueError(
            f"{known.name} is not on this machine; download {known.repository} and give its folder"
        )
    return open_checkpoint(Path(model), vocabulary)


def named_vocabulary(source: str) -> Vocabulary:
    """The vocabulary of a tokenizer file, a model file or folder, or a shipped model."""
    if source in SHIPPED and not Path(source).exists():
        return load_vocabulary(shipped_path(source))
    return load_vocabulary(Path(source))


def shipped_path(name: str) -> Path:
    return Path(str(files("puna") / "models" / f"{name}.gguf"))


def load(checkpoint: Checkpoint, device: str, dtype: str) -> Llama:
    """The network of a checkpoint, on a device, ready to run."""
    import torch

    from puna.formats.network import load_model

    if checkpoint.config.num_parameters < _SMALL:
        torch.set_num_threads(1)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    return load_model(checkpoint, device=device, dtype=types[dtype]).eval()
