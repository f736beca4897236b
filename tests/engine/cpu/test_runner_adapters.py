"""Adapters on the runners: against merged weights, the network, and themselves in other batches."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from puna.engine.batch import Batch
from puna.engine.cpu.runner import NativeRunner
from puna.engine.cpu.weights import embeddings_of
from puna.engine.torch_runner import TorchRunner
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.adapters import Adapter, Pair, merged, open_adapter, read_pairs
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import as_checkpoint, load_model
from puna.kernels import native
from puna.kernels.kv_types import KV_TYPES
from puna.kernels.step import Forward
from puna.kernels.tiles import pack
from tests.engine.cpu.test_runner import LENGTH, config, distances, rows, tokens_of
from tests.formats.test_lora import EMBEDDING, MATRICES, make_pairs, write
from tests.samples import random_model, small_config, transformers_twin

ALL = (*MATRICES, "output.weight", EMBEDDING)
TABLE = [2, 0, 5, 3]

pytestmark = pytest.mark.skipif(not native.available(), reason="native code was not built")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return as_checkpoint(random_model(config(), seed=1), tmp_path_factory.mktemp("base"), None)


@pytest.fixture(scope="module")
def stored(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("stored")

    def make(dtype: str) -> Checkpoint:
        path = folder / f"{dtype}.gguf"
        if not path.exists():
            save_checkpoint(base, path, "gguf", dtype=dtype, pure=True)
        return open_checkpoint(path)

    return make


def adapter(
    kind: str, folder: Path, model: Checkpoint, names: tuple[str, ...] = ALL, rank: int = 3
) -> Adapter:
    """One that changes the logits about as much as the weights make them."""
    pairs = make_pairs(model, names, rank)
    small = {name: (a / a.shape[1] ** 0.5, b * np.float32(0.2)) for name, (a, b) in pairs.items()}
    folder.mkdir(exist_ok=True)
    return open_adapter(write(kind, folder, model, small))


def pairs_of(lora: Adapter, model: Checkpoint, scale: float = 1) -> dict[str, Pair]:
    return read_pairs(lora.scaled(scale), model.config, model.path)


def with_adapters(batch: Batch, *slots: int) -> Batch:
    return replace(batch, adapters=np.array(slots, np.int32))


@pytest.mark.parametrize("kind", ["peft", "gguf", "ggla"])
def test_equals_merged_weights(kind: str, level: str, base: Checkpoint, tmp_path: Path) -> None:
    names = ALL[:-1] if kind == "ggla" else ALL
    lora = adapter(kind, tmp_path, base, names)
    batch = rows(tokens_of(97), 0, LENGTH, TABLE)
    runner = NativeRunner(base, num_pages=6)
    plain = runner.step(batch).logits
    for scale in (1.0, -0.5):
        expected = NativeRunner(merged(base, lora, scale), num_pages=6).step(batch).logits
        runner.load_adapter(3, pairs_of(lora, base, scale))
        found = runner.step(with_adapters(batch, 3)).logits
        assert distances(found, expected).max() < 1e-5
        assert distances(found, plain).min() > 0.1
        runner.unload_adapter(3)
        assert np.array_equal(runner.step(with_adapters(batch, -1)).logits, plain)


@pytest.mark.parametrize("name", ALL)
def test_each_matrix_alone(name: str, base: Checkpoint, tmp_path: Path) -> None:
    lora = adapter("peft", tmp_path, base, (name,), rank=20)
    batch = rows(tokens_of(97), 0, LENGTH, TABLE)
    expected = NativeRunner(merged(base, lora), num_pages=6).step(batch).logits
    torch_runner = TorchRunner(load_model(base), num_pages=6)
    for runner in (NativeRunner(base, num_pages=6), torch_runner):
        plain = runner.step(batch).logits
        runner.load_adapter(0, pairs_of(lora, base))
        found = runner.step(with_adapters(batch, 0)).logits
        assert distances(found, expected).max() < 1e-5 < distances(found, plain).max()
        assert np.array_equal(runner.step(batch).logits, plain)


def test_the_step_equals_the_network(level: str, base: Checkpoint, tmp_path: Path) -> None:
    first = pairs_of(adapter("peft", tmp_path / "a", base), base)
    second = pairs_of(adapter("gguf", tmp_path / "b", base, MATRICES[3:9], rank=17), base, -2)
    batch = with_adapters(three(tokens_of(97)), 5, -1, 0)
    found = []
    for runner in (NativeRunner(base, num_pages=12), TorchRunner(load_model(base), num_pages=12)):
        runner.load_adapter(5, first)
        runner.load_adapter(0, second)
        found.append(runner.step(batch).logits)
    assert distances(*found).max() < 1e-5


def three(tokens: NDArray[np.int32]) -> Batch:
    """The same tokens in three sequences."""
    lengths = [LENGTH, LENGTH, LENGTH]
    return Batch(
        tokens=np.tile(tokens, 3),
        positions=np.tile(np.arange(LENGTH, dtype=np.int32), 3),
        sequences=np.repeat(np.arange(3, dtype=np.int32), lengths),
        tables=np.array([[1, 4, 6, 11], [7, 0, 2, 3], [5, 8, 9, 10]], np.int32),
        outputs=np.arange(3 * LENGTH, dtype=np.int32)[::-1].copy(),
    )


@pytest.mark.parametrize("dtype", ["f32", "q4_k", "q8_0"])
def test_batches_chunks_and_threads_change_no_bit(
    dtype: str, level: str, stored: Any, tmp_path: Path
) -> None:
    model = stored(dtype)
    first = pairs_of(adapter("peft", tmp_path / "a", model, rank=5), model)
    second = pairs_of(adapter("gguf", tmp_path / "b", model, MATRICES[::2], rank=33), model, 3)
    tokens = tokens_of(97)

    def runner(num_threads: int) -> NativeRunner:
        made = NativeRunner(model, num_pages=12, num_threads=num_threads)
        made.load_adapter(0, first)
        made.load_adapter(1, second)
        return made

    whole = {
        slot: runner(1).step(with_adapters(rows(tokens, 0, LENGTH, TABLE), slot)).logits
        for slot in (-1, 0, 1)
    }
    assert np.array_equal(whole[-1], runner(1).step(rows(tokens, 0, LENGTH, TABLE)).logits)
    assert distances(whole[0], whole[-1]).min() > 0.05 < distances(whole[1], whole[0]).min()
    for num_threads in (1, 2, 3):
        slots = (1, -1, 0)
        together = runner(num_threads).step(with_adapters(three(tokens), *slots)).logits[::-1]
        for part, slot in zip(np.split(together, 3), slots, strict=True):
            assert np.array_equal(part, whole[slot])
        for slot, cuts in ((0, [0, 1, 2, 9, 30, LENGTH]), (1, [0, 17, LENGTH])):
            made = runner(num_threads)
            parts = [
                made.step(with_adapters(rows(tokens, a, b, [7, 8, 9, 10]), slot)).logits
                for a, b in pairwise(cuts)
            ]
            assert np.array_equal(np.concatenate(parts), whole[slot])


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 1}, {"tied": True}], ids=str)
def test_odd_shapes(changes: dict[str, Any], level: str, tmp_path: Path) -> None:
    shape = {"dim": 24, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 44, "context_length": 64}
    model = as_checkpoint(random_model(small_config(**shape | changes), seed=3), tmp_path, None)
    lora = adapter("gguf", tmp_path, model, MATRICES if model.config.tied else ALL, rank=1)
    batch = rows(tokens_of(97), 0, LENGTH, TABLE)
    runner = NativeRunner(model, num_pages=6, num_threads=3)
    runner.load_adapter(0, pairs_of(lora, model))
    expected = NativeRunner(merged(model, lora), num_pages=6).step(batch).logits
    assert distances(runner.step(with_adapters(batch, 0)).logits, expected).max() < 1e-5


def test_inputs_in_another_order(base: Checkpoint, tmp_path: Path) -> None:
    """Weights quantized in order of activation have their columns moved; adapters have not."""
    library, generator = native.library(), np.random.default_rng(0)
    assert library is not None
    tiles, norms, orders = {}, {}, {}
    for name, tensor in base.tensors.items():
        if name == EMBEDDING:
            continue
        matrix = tensor.read_float32()
        if matrix.ndim == 1:
            norms[name] = matrix
            continue
        if name != "output.weight":
            # wk and wv take wq's input, w3 takes w1's.
            same = re.sub("w[kv]", "wq", name).replace("w3", "w1")
            order = generator.permutation(matrix.shape[1]).astype(np.int32)
            orders[name] = orders.get(same, order)
            matrix = np.ascontiguousarray(matrix[:, orders[name]])
        tiles[name] = pack(library, "f32", matrix.view(np.uint8), matrix.shape[1])
    moved, plain = (NativeRunner(base, num_pages=6) for _ in range(2))
    embeddings = embeddings_of(base.tensors[EMBEDDING], "f32")
    moved._forward = Forward(
        library,
        base.config,
        tiles,
        norms,
        embeddings,
        num_pages=6,
        kv_type=KV_TYPES["f32"],
        orders=orders,
    )
    batch, pairs = (
        rows(tokens_of(97), 0, LENGTH, TABLE),
        pairs_of(adapter("gguf", tmp_path, base), base),
    )
    for runner in (moved, plain):
        runner.load_adapter(0, pairs)
    assert distances(moved.step(batch).logits, plain.step(batch).logits).max() < 1e-5
    adapted = with_adapters(batch, 0)
    assert distances(moved.step(adapted).logits, plain.step(adapted).logits).max() < 1e-5
    before = moved.step(batch).logits
    other = as_checkpoint(random_model(base.config, seed=8), tmp_path, None).tensors
    with pytest.raises(ValueError, match=r"layers\.0\..* cannot be updated"):
        moved.update({name: other[name] for name in (EMBEDDING, MATRICES[0])})
    assert np.array_equal(moved.step(batch).logits, before)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"everything": True}], ids=str)
def test_equals_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    """Adapters that PEFT makes and saves, on the network that it changed."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = random_model(config(), seed=1)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    options: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": modules} | settings
    if options.pop("everything", False):
        options["target_modules"] = [*modules, "embed_tokens", "lm_head"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(transformers_twin(model), peft.LoraConfig(**options)).eval()
        generator = torch.Generator().manual_seed(1)
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.data.normal_(0.0, 0.15, generator=generator)
        tuned.save_pretrained(tmp_path)
    tokens = tokens_of(97)
    with torch.no_grad():
        expected = tuned(torch.from_numpy(tokens)[None].long()).logits[0].numpy()
    base = as_checkpoint(model, tmp_path, None)
    runner = NativeRunner(base, num_pages=6)
    runner.load_adapter(0, pairs_of(open_adapter(tmp_path), base))
    batch = rows(tokens, 0, LENGTH, TABLE)
    assert distances(runner.step(with_adapters(batch, 0)).logits, expected).max() < 2e-5
    assert distances(runner.step(batch).logits, expected).min() > 0.05


@pytest.mark.parametrize("tied", [False, True])
def test_update(tied: bool, tmp_path: Path) -> None:
    old, new = (
        as_checkpoint(random_model(config(tied=tied), seed=seed), tmp_path, None) for seed in (1, 2)
    )
    batch = rows(tokens_of(97), 0, LENGTH, TABLE)
    for make in (
        lambda model: NativeRunner(model, num_pages=6),
        lambda model: NativeRunner(model, num_pages=6, dtype="bf16"),
        lambda model: TorchRunner(load_model(model), num_pages=6),
    ):
        runner = make(old)
        before = runner.step(batch).logits
        runner.update(new.tensors)
        assert np.array_equal(runner.step(batch).logits, make(new).step(batch).logits)
        runner.update(old.tensors)
        assert np.array_equal(runner.step(batch).logits, before)
        for name in ("layers.1.feed_forward.w3.weight", "layers.0.ffn_norm.weight", EMBEDDING):
            runner.update({name: new.tensors[name]})
            part = replace(old, tensors={**old.tensors, name: new.tensors[name]})
            assert np.array_equal(runner.step(batch).logits, make(part).step(batch).logits)
            runner.update({name: old.tensors[name]})
