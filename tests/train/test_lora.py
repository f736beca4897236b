"""LoRA: gradients of the pairs by plain loops over every kind of base, the whole beside a merged
network, and runs that save and resume the pairs alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from puna.attention import causal
from puna.commands.models import opened_adapter
from puna.commands.sft import sft as command
from puna.engine.gpu.loading import read_linear
from puna.formats import FormatError, open_checkpoint, save_checkpoint
from puna.formats.adapters import merged, open_adapter
from puna.formats.checkpoint import LazyTensor
from puna.formats.network import as_checkpoint, load_model, state_tensors
from puna.lora import TARGETS, LoRALinear, LoRASettings, attach, layers_of, trained
from puna.quantize.linear import QuantizedLinear
from puna.quantize.rounding import round_to_nearest
from puna.tokenizer import Vocabulary
from puna.train.checkpoints import checkpoint_path
from puna.train.log import Record, read_log
from puna.train.run_config import with_layout
from puna.train.sft import run_config, sft
from puna.train.starting import lora_network, open_start
from tests.samples import random_model, small_config
from tests.train.runs import losses
from tests.train.sft_runs import MODEL, new_run, write_dialogs

PAIRS = LoRASettings(rank=3, alpha=6)


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def stored(kind: str) -> LazyTensor:
    """A weight (24, 64) in the blocks of a file."""
    return state_tensors({"w": matrix(24, 64, 1)})["w"].converted(kind)


def blocks(kind: str) -> nn.Module:
    cpu = torch.device("cpu")
    return read_linear("layers.0.attention.wq.weight", stored(kind), "auto", torch.float32, cpu)


def gptq() -> nn.Module:
    """Integers whose groups do not lie side by side, as GPTQ's by order of activation."""
    grouped = round_to_nearest(matrix(24, 64, 1).numpy(), 4, 16, symmetric=False)
    order = np.random.default_rng(2).permutation(64)
    shuffled = {"codes": grouped.codes[:, order], "groups": grouped.groups[order]}
    return QuantizedLinear.from_grouped(type(grouped)(
        4, 16, scales=grouped.scales, zeros=grouped.zeros, **shuffled
    ), "int4")  # fmt: skip


def plain() -> nn.Module:
    linear = nn.Linear(64, 24, bias=False)
    linear.weight = nn.Parameter(matrix(24, 64, 1), requires_grad=False)
    return linear


BASES: dict[str, Callable[[], nn.Module]] = {
    "fp32": plain,
    "int8": lambda: QuantizedLinear.from_weight(matrix(24, 64, 1), "int8"),
    "int4": lambda: QuantizedLinear.from_weight(matrix(24, 64, 1), "int4", 32),
    "gptq": gptq,
    "q4_0": lambda: blocks("q4_0"),
    "q8_0": lambda: blocks("q8_0"),
}


@pytest.mark.parametrize("base", BASES)
def test_gradients_by_plain_loops(base: str) -> None:
    layer = LoRALinear(BASES[base](), PAIRS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.lora_b.copy_(matrix(24, 3, 3))
    weight = layer.base.weight if base == "fp32" else layer.base.dequantize()
    x, slope = matrix(5, 64, 4).requires_grad_(), matrix(5, 24, 5)
    out = layer(x)
    out.backward(slope)
    w, a, b, xs, g = (
        t.detach().double().numpy() for t in (weight, layer.lora_a, layer.lora_b, x, slope)
    )
    scale = 6 / 3
    y, dx, da, db = (np.zeros(s) for s in (out.shape, x.shape, a.shape, b.shape))
    for n in range(5):
        for o in range(24):
            for i in range(64):
                y[n, o] += w[o, i] * xs[n, i]
                dx[n, i] += g[n, o] * w[o, i]
                for r in range(3):
                    y[n, o] += scale * b[o, r] * a[r, i] * xs[n, i]
                    dx[n, i] += scale * g[n, o] * b[o, r] * a[r, i]
                    da[r, i] += scale * g[n, o] * b[o, r] * xs[n, i]
                    db[o, r] += scale * g[n, o] * a[r, i] * xs[n, i]
    found = {"y": (out, y), "x": (x.grad, dx), "a": (layer.lora_a.grad, da)}
    for name, (ours, expected) in (found | {"b": (layer.lora_b.grad, db)}).items():
        np.testing.assert_allclose(
            ours.detach().numpy(), expected, rtol=1e-4, atol=1e-3, err_msg=name
        )


def logits(model: nn.Module) -> torch.Tensor:
    tokens = torch.arange(24)[None] % 90
    with torch.no_grad():
        return model(tokens, torch.arange(24)[None], causal)


def test_it_is_the_merged_network_and_begins_as_the_base() -> None:
    config = small_config()
    model, base = random_model(config), random_model(config)
    attach(model, LoRASettings(2, 8, ("wq", "w2")), torch.Generator().manual_seed(1))
    assert torch.equal(logits(model), logits(base))
    layers = layers_of(model)
    assert len(layers) == 4 and "layers.1.feed_forward.w2.weight" in layers
    assert all(name.endswith(("lora_a", "lora_b")) for name in trained(model))
    with torch.no_grad():
        for number, (name, layer) in enumerate(layers.items()):
            layer.lora_b.copy_(matrix(*layer.lora_b.shape, seed=number))
            base.get_parameter(name).add_(4 * layer.lora_b @ layer.lora_a)
    torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    run = new_run(tmp_path_factory.mktemp("lora"), vocabulary, lora=PAIRS)
    assert sft(run)
    return run


def test_the_adapter_is_what_was_trained(finished: Path, vocabulary: Vocabulary) -> None:
    found = losses(finished)
    assert found[6] < found[1]
    path = checkpoint_path(finished, 6)
    adapter = open_adapter(path)
    assert len(adapter.parts) == 14 and json.loads((path / "adapter_config.json").read_text())[
        "target_modules"
    ] == sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    start = open_checkpoint(Path(run_config(finished).start))
    tuned = load_model(merged(start, adapter))
    # The network in training, filled with the checkpoint's pairs, is the merged one.
    network = lora_network(start, PAIRS, "cpu", torch.Generator())
    for name, layer in layers_of(network).items():
        with torch.no_grad():
            layer.lora_a.copy_(torch.from_numpy(adapter.parts[name].a.read_float32()))
            layer.lora_b.copy_(torch.from_numpy(adapter.parts[name].b.read_float32()))
    torch.testing.assert_close(logits(network), logits(tuned), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(tuned), logits(load_model(start)), atol=1e-3)
    with pytest.raises(FormatError, match="open its base, with --lora"):
        open_checkpoint(finished)
    with pytest.raises(FormatError, match="of no known format"):
        open_checkpoint(path)


def test_resumed_is_bit_identical(tmp_path: Path, vocabulary: Vocabulary, finished: Path) -> None:
    run = new_run(tmp_path, vocabulary, lora=PAIRS)

    def interrupt(record: Record) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert not sft(run, on_record=interrupt)
    assert sft(run)
    assert losses(run) == losses(finished)
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        files = [checkpoint_path(path, 6) / name for path in (run, finished)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_pairs_go_on_only_beside_their_base(tmp_path: Path, vocabulary: Vocabulary) -> None:
    run = new_run(tmp_path, vocabulary, lora=PAIRS)
    other = random_model(MODEL, seed=1)
    save_checkpoint(as_checkpoint(other, tmp_path, vocabulary), tmp_path / "other", "huggingface")
    (tmp_path / "start").rename(tmp_path / "was")
    (tmp_path / "other").rename(tmp_path / "start")
    with pytest.raises(ValueError, match=r"not those that the run's adapter was begun beside"):
        sft(run)


def test_a_run_is_the_adapter_that_it_trained(finished: Path) -> None:
    step = checkpoint_path(finished, 6)
    named, whole = opened_adapter(f"{finished}:0.5"), open_adapter(step)
    assert named.path == whole.path
    for name, pair in whole.parts.items():
        assert named.parts[name].scale == pair.scale / 2


@pytest.mark.parametrize("base", ["int8", "int4"])
def test_packed_bases_learn(tmp_path: Path, vocabulary: Vocabulary, base: str) -> None:
    run = new_run(tmp_path, vocabulary, lora=LoRASettings(4, 8, base=base), learning_rate=1e-2)
    assert sft(run)
    records = read_log(run / "log.jsonl")
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    network = lora_network(
        open_start(run_config(run).start), LoRASettings(base=base), "cpu", torch.Generator()
    )
    assert all(isinstance(each.base, QuantizedLinear) for each in layers_of(network).values())


def test_the_command_makes_an_adapter(tmp_path: Path) -> None:
    data = write_dialogs(tmp_path / "data.jsonl", 24)
    options = [str(data), "--context-length", "64", "--lora-rank", "4", "--lora-targets", "wq, wv"]
    done = CliRunner().invoke(command, [*options, "--dry-run", "--json"])
    found = json.loads(done.output)["run"]["lora"]
    assert found == {"rank": 4, "alpha": 16, "targets": ["wq", "wv"], "base": "auto"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--lora-alpha", "8"], "--lora-alpha is for LoRA: give --lora-rank too"),
        (["--lora-rank", "0"], "a LoRA rank is 1 or more, not 0"),
        (["--lora-rank", "2", "--lora-alpha", "-1"], "a LoRA alpha is positive"),
        (["--lora-rank", "2", "--lora-targets", "wq,wx"], "LoRA targets are some of wq,"),
        (["--lora-rank", "2", "--lora-targets", "wq,wq"], "LoRA targets are some of wq,"),
        (["--lora-rank", "2", "--statistics-every", "1"], "leave out --statistics-every"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, options: list[str], problem: str) -> None:
    data = write_dialogs(tmp_path / "data.jsonl", 24)
    given = [str(data), "--out", str(tmp_path / "run"), "--context-length", "64", *options]
    done = CliRunner().invoke(command, given)
    assert isinstance(done.exception, ValueError) and problem in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_layouts_and_unknown_settings_are_refused(finished: Path) -> None:
    config = run_config(finished)
    with pytest.raises(ValueError, match="leave out --parallel"):
        with_layout(config, "fsdp=2")
    with pytest.raises(ValueError, match="leave out --float8"):
        replace(config, settings=replace(config.settings, float8=True, dtype="bf16"))
    narrow = replace(config.model, ffn_dim=40)
    with pytest.raises(ValueError, match="int4 packs 32 inputs together; this model has 40"):
        replace(config, model=narrow, lora=LoRASettings(base="int4"))
    with pytest.raises(ValueError, match="does not fit this version"):
        type(config).from_dict(config.to_dict() | {"lora": {"rank": 2, "dropout": 0.1}})
    assert set(TARGETS) == {name.split(".")[-2] for name in layers_of(_everywhere())}


def _everywhere() -> nn.Module:
    model = random_model(small_config())
    attach(model, LoRASettings(), torch.Generator())
    return model
