"""What a stage starts from: shipped models, paths, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.network import as_checkpoint
from puna.hub.locate import NotPulledError
from puna.tokenizer import Vocabulary
from puna.train.starting import open_start, start_network, start_weights
from tests.samples import random_model, small_config


def test_the_shipped_model_becomes_trainable() -> None:
    start = open_start("cria")
    assert start.vocabulary is not None and start.config.vocab_size == len(start.vocabulary)
    network = start_network(start)
    tensors = open_checkpoint(start.path).tensors
    for name, weight in network.named_parameters():
        assert weight.requires_grad and weight.dtype == torch.float32
        assert torch.equal(weight.detach(), torch.from_numpy(tensors[name].read_float32()))


def test_weights_are_read_by_name(tmp_path: Path, vocabulary: Vocabulary) -> None:
    config = small_config(vocab_size=len(vocabulary))
    model = random_model(config)
    path = tmp_path / "model"
    save_checkpoint(as_checkpoint(model, path, vocabulary), path, "huggingface", dtype="bf16")
    wanted = ["norm.weight", "layers.1.attention.wq.weight"]
    found = dict(start_weights(open_start(path), wanted))
    assert list(found) == wanted
    for name, weight in found.items():
        assert torch.equal(weight, model.get_parameter(name).detach().bfloat16().float())


def test_what_cannot_be_started_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder: nothing"):
        open_start("nothing")
    with pytest.raises(NotPulledError, match="puna pull"):
        open_start("someone/something")
    path = tmp_path / "bare"
    save_checkpoint(as_checkpoint(random_model(small_config()), path, None), path, "huggingface")
    with pytest.raises(ValueError, match="has no tokenizer"):
        open_start(path)
