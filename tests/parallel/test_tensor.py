"""Tensor parallel against one process: by arithmetic, and in real processes on gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from puna import LLM, SamplingParams
from puna.engine.gpu import loading as gpu_loading
from puna.engine.gpu.loading import load_gpu_runner
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.network import as_checkpoint
from puna.parallel.ranks import Ranks
from puna.parallel.tensor import Gathered, Summed, by_inputs, by_outputs, check, place
from puna.quantize.block_schemes import BLOCK_SCHEMES
from puna.quantize.gptq import GPTQSettings, quantize_matrix
from puna.quantize.linear import QuantizedLinear
from tests.engine.gpu.test_runner import PAGES, STEPS
from tests.samples import random_model, small_config

ROOT = Path(__file__).parents[2]
SCHEMES = ["dense", "int8", "int4", "fp8", "q4_0", "q4_k", "q6_k", "q5_1"]


def layer_of(name: str) -> nn.Module:
    weight = torch.randn(48, 1024, generator=torch.Generator().manual_seed(0))
    if name == "dense":
        linear = nn.Linear(1024, 48, bias=False)
        linear.weight = nn.Parameter(weight)
        return linear
    if name in BLOCK_SCHEMES:
        scheme = BLOCK_SCHEMES[name]
        return QuantizedLinear(scheme, scheme.pack(weight, 0), scheme.group_size)
    return QuantizedLinear.from_weight(weight, name)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("size", [2, 4])
def test_shares_together_are_the_layer(name: str, size: int) -> None:
    layer = layer_of(name)
    x = torch.randn(3, 1024, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole: Tensor = layer(x)
        outputs = [by_outputs(layer, rank, size)(x) for rank in range(size)]
        torch.testing.assert_close(torch.cat(outputs, dim=-1), whole)
        parts = x.chunk(size, dim=-1)
        sums = [by_inputs(layer, rank, size)(part) for rank, part in enumerate(parts)]
        torch.testing.assert_close(sum(sums), whole, rtol=1e-4, atol=1e-4)


def test_sums_over_processes_are_compiled_whole() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = layer_of("dense")
        summed = Summed(layer, dist.group.WORLD, 1)
        compiled = torch.compile(summed, backend="aot_eager", fullgraph=True, dynamic=False)
        x = torch.randn(3, 1024, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), layer(x))
    finally:
        torch._dynamo.reset()
        dist.destroy_process_group()


def test_layers_on_the_cpu_are_refused_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = as_checkpoint(random_model(small_config(num_layers=4), seed=1), tmp_path, None)
    save_checkpoint(source, tmp_path / "x.gguf", "gguf", dtype="f32")
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    monkeypatch.setattr(gpu_loading, "least", lambda number, ranks: number)
    monkeypatch.setattr(gpu_loading, "read_network", lambda *arguments: pytest.fail("was read"))
    sizes = gpu_loading.sizes_of(checkpoint, "auto", 2)
    free = sizes.others + sizes.work + sum(sizes.layers)  # nothing for keys and values
    with pytest.raises(ValueError, match="the 2 GPUs do not hold the model"):
        load_gpu_runner(
            checkpoint, "cpu", kv_tokens=16, free=free, ranks=Ranks(0, 2, torch.device("cpu"))
        )


def test_a_share_holds_no_more_than_its_part() -> None:
    for cut in (by_inputs, by_outputs):
        share, whole = cut(layer_of("dense"), 1, 4).weight, layer_of("dense").weight
        assert share.untyped_storage().nbytes() == whole.nbytes // 4


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="1024 inputs in groups of 256 cannot be cut in 8"):
        by_inputs(layer_of("q4_k"), 0, 8)
    x = torch.randn(64, 128) * torch.linspace(2, 0.1, 128)
    grouped = quantize_matrix(torch.randn(8, 128), x.T @ x, GPTQSettings(group_size=32))
    ordered = QuantizedLinear.from_grouped(grouped, "int4")
    ranks = Ranks(0, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"layers.0.attention.wo: .*act_order"):
        place("layers.0.attention.wo", ordered, ranks)
    with pytest.raises(ValueError, match="2 key/value heads cannot be shared by 4 processes"):
        check(small_config(num_kv_heads=2), 4)
    with pytest.raises(ValueError, match="feed-forward of 49"):
        check(small_config(num_kv_heads=2, ffn_dim=49), 2)
    check(small_config(num_kv_heads=2), 2)


def test_where_a_layer_stands_says_how_it_is_cut() -> None:
    ranks = Ranks(1, 2, torch.device("cpu"))
    found = {
        name: type(place(f"layers.0.x.{name}", layer_of("dense"), ranks))
        for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    }
    assert {name for name, kind in found.items() if kind is Summed} == {"wo", "w2"}
    assert isinstance(place("output", layer_of("dense"), ranks), Gathered)
    # 48 outputs do not divide by 5: the head stays whole.
    head = layer_of("dense")
    assert place("output", head, Ranks(1, 5, torch.device("cpu"))) is head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of 4 key/value heads: one of 97 tokens, which no processes share, and one of 100."""
    path = tmp_path_factory.mktemp("shares")
    shape = {"dim": 256, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 1024, "context_length": 64}
    for dtype, size in (("f32", 97), ("q8_0", 100)):
        model = random_model(small_config(**shape, vocab_size=size), seed=1)
        source = as_checkpoint(model, path, None)
        save_checkpoint(source, path / f"{dtype}.gguf", "gguf", dtype=dtype)
    return path


@pytest.mark.parametrize("size", [2, 4])
def test_logits_equal_the_single_process(
    size: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.parallel.shares", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(gpu_loading, "compute_type", lambda *arguments: torch.float32)
    cases = [("f32", "auto"), ("f32", "int8"), ("q8_0", "auto")]
    if size == 2:  # a quarter of 256 inputs would be half a group
        cases.append(("f32", "int4"))
    for name, dtype in cases:
        checkpoint = open_checkpoint(folder / f"{name}.gguf")
        alone = load_gpu_runner(checkpoint, "cpu", dtype, kv_tokens=PAGES * 16, free=1 << 40)
        found = np.load(folder / f"{name}-{dtype}.npz")
        for step, key in zip(STEPS, found.files, strict=True):
            expected = alone.step(step).logits
            assert found[key].shape == expected.shape
            if not len(expected):
                continue
            distance = np.linalg.norm(found[key] - expected) / np.linalg.norm(expected)
            assert distance < 1e-5
        (folder / f"{name}-{dtype}.npz").unlink()


def test_a_user_gets_the_same_text() -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--tensor-parallel", "--temperature", "0", "--max-tokens", "12", "-p", "The dog"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "puna", "complete", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    params = SamplingParams(temperature=0, max_tokens=12)
    (expected,) = LLM("cria").generate("The dog", params)
    assert done.stdout == f"The dog{expected.outputs[0].text}\n"


def test_one_process_is_told_how_to_be_several() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "puna", "complete", "--tensor-parallel"],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 2 and "torchrun --nproc-per-node" in done.stderr
