"""A network that one process trains, compiled."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from puna.model import Llama, initialize
from puna.train.loop import Settings
from puna.train.single import Single
from tests.parallel.layouts import CONFIG, Windows


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # tracing looks at it
@pytest.mark.parametrize("documents", [False, True])
def test_one_compilation_serves_all_blocks(
    monkeypatch: pytest.MonkeyPatch, documents: bool
) -> None:
    eager = functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", eager)  # traced as ever, but not made into C++
    losses, gradients = [], []
    for is_compiled in (False, True):
        network = Llama(CONFIG)
        initialize(network, torch.Generator().manual_seed(0))
        stage = Windows(4, documents=documents)
        settings = Settings(steps=3, warmup_steps=0, dtype="fp32", compile=is_compiled)
        trainee = Single(network, stage, settings)
        torch._dynamo.reset()
        counters.clear()
        losses.append(trainee.accumulate(stage.micro_batches(0), 100))
        gradients.append([weight.grad for weight in network.parameters()])
        assert counters["stats"]["unique_graphs"] == int(is_compiled)
    assert len(network.layers) == 4
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch._dynamo.reset()
