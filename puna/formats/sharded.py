"""A checkpoint that several ranks of a training run wrote: each its own pieces of every tensor.

checkpoint.json, the manifest; weights-NNNNN.safetensors with pieces under Meta's names, rotary
pairs half-split; optimizer-NNNNN.safetensors, not read here; tokenizer.model; perhaps
chat_template.jinja. No pickles.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from puna.config import ModelConfig
from puna.formats.adapters import peft
from puna.formats.checkpoint import Checkpoint, check_tensors
from puna.formats.huggingface import read_chat_template
from puna.formats.manifest import MANIFEST, read_manifest
from puna.formats.pieces import find_pieces, put_together
from puna.formats.vocabularies import beside

NAME = "sharded"


def weights_name(rank: int) -> str:
    return f"weights-{rank:05}.safetensors"


def shapes_of(config: ModelConfig, found: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Of the network's weights, and of the heads that are among those `found`."""
    heads = config.head_shapes().items()
    return config.tensor_shapes() | {name: shape for name, shape in heads if name in found}


def detect(path: Path) -> bool:
    other = (path / "config.json").is_file() or peft.detect(path)
    return path.is_dir() and (path / MANIFEST).is_file() and not other


def read(path: Path) -> Checkpoint:
    """Opens a folder; FormatError if it is damaged. Checksums are for those who resume."""
    manifest = read_manifest(path)
    config = manifest.model
    files = [path / name for name in sorted(manifest.files) if name.startswith("weights-")]
    found = find_pieces(files)
    if config.num_layers > len(found):  # before anything is made for each layer
        check_tensors(config, {}, path)
    tensors = put_together(found, shapes_of(config, found), path)
    return Checkpoint(
        format=NAME,
        path=path,
        config=config,
        tensors={name: tensor.stored().lazy() for name, tensor in tensors.items()},
        load_vocabulary=lambda: beside(path),
        chat_template=read_chat_template(path),
    )
