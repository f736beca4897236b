"""Checkpoints as a GPU runs them: packed as stored. On the CPU, with the kernels' definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puna.engine.gpu import loading as gpu_loading
from puna.engine.gpu.loading import compute_type, load_gpu_runner, sizes_of
from puna.engine.loading import load_runner
from puna.engine.torch_runner import TorchRunner
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import as_checkpoint, load_model
from puna.quantize.linear import QuantizedLinear
from tests.engine.gpu.test_runner import PAGES, STEPS
from tests.formats.gptq_folders import make_folder
from tests.samples import random_model, small_config

FREE = 1 << 40


def saved(tmp_path: Path, dtype: str, **options: Any) -> Checkpoint:
    shape = {"dim": 256, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 512, "context_length": 64}
    source = as_checkpoint(random_model(small_config(**shape), seed=1), tmp_path, None)
    save_checkpoint(source, tmp_path / "x.gguf", "gguf", dtype=dtype, **options)
    return open_checkpoint(tmp_path / "x.gguf")


def load(checkpoint: Checkpoint, dtype: str = "auto") -> Any:
    return load_gpu_runner(checkpoint, "cpu", dtype, kv_tokens=PAGES * 16, free=FREE)


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations of packed weights in float32, to tell errors from rounding."""
    monkeypatch.setattr(gpu_loading, "compute_type", lambda *arguments: torch.float32)


@pytest.mark.parametrize("dtype", ["q4_0", "q8_0", "q4_k_m", "q5_k_m", "q6_k", "q3_k_m", "q2_k"])
def test_blocks_stay_blocks(dtype: str, tmp_path: Path, in_float32: None) -> None:
    checkpoint = saved(tmp_path, dtype)
    runner = load(checkpoint)
    expected = TorchRunner(load_model(checkpoint), num_pages=PAGES)
    for step in STEPS:
        np.testing.assert_allclose(
            runner.step(step).logits, expected.step(step).logits, rtol=0, atol=2e-4
        )
    linears = [m for m in runner.model.modules() if isinstance(m, QuantizedLinear)]
    held = sum(tensor.nbytes for linear in linears for tensor in linear.buffers())
    stored = sum(
        tensor.num_bytes
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) == 2 and name != "tok_embeddings.weight"
    )
    assert stored <= held < 1.2 * stored and len(linears) >= 9
    floats = sum(weight.nbytes for weight in runner.model.parameters())
    sizes = sizes_of(checkpoint, "auto")
    assert sum(sizes.layers) + sizes.others == held + floats


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_integers_stay_integers(
    bits: int, act_order: bool, tmp_path: Path, in_float32: None
) -> None:
    config = small_config(dim=64, ffn_dim=96, context_length=64)
    make_folder(tmp_path, bits=bits, act_order=act_order, config=config)
    checkpoint = open_checkpoint(tmp_path)
    runner = load(checkpoint)
    linears = [m for m in runner.model.modules() if isinstance(m, QuantizedLinear)]
    assert {m.scheme.name for m in linears} == {"int8" if bits == 8 else "int4"}
    # In order of activation each layer made here has an order of its own, and stays apart.
    assert len(linears) == (7 if act_order else 4) * config.num_layers
    expected = TorchRunner(load_model(checkpoint), num_pages=PAGES)
    for step in STEPS:
        found, exact = runner.step(step).logits, expected.step(step).logits
        if len(exact):
            assert np.linalg.norm(found - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_weights_are_converted_when_asked(dtype: str, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "f32")
    runner = load(checkpoint, dtype)
    weight = runner.model.tok_embeddings.weight
    assert weight.dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
    assert runner._attentions[0].keys.dtype == weight.dtype
    kinds = {m.scheme.name for m in runner.model.modules() if isinstance(m, QuantizedLinear)}
    assert kinds == ({dtype} if dtype.startswith("int") else set())
    expected = TorchRunner(load_model(checkpoint), num_pages=PAGES)
    found, exact = (r.step(STEPS[0]).logits for r in (runner, expected))
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < {"fp32": 1e-5, "bf16": 0.05, "int8": 0.06, "int4": 0.5}[dtype]


def test_the_type_of_activations(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "f16")
    assert compute_type(checkpoint, "auto") == torch.float16
    assert compute_type(checkpoint, "fp32") == torch.float32
    assert compute_type(checkpoint, "int4") == torch.bfloat16
    (tmp_path / "b").mkdir()
    assert compute_type(saved(tmp_path / "b", "q4_0"), "auto") == torch.bfloat16


def test_what_does_not_fit_is_refused_before_reading(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "q4_0")
    with pytest.raises(ValueError, match="a single layer beside embedding, head"):
        load_gpu_runner(checkpoint, "cpu", kv_tokens=64, free=1000)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "q4_0")
    with pytest.raises(ValueError, match="device 'cuda'"):
        load_runner(checkpoint, "cuda")
    with pytest.raises(ValueError, match="int4 runs on a GPU"):
        load_runner(checkpoint, "cpu", "int4")
    with pytest.raises(ValueError, match="there are: auto, fp32, bf16, fp16, int8, int4"):
        load_runner(checkpoint, "cuda", "fp64")
