"""The native step against the network, with the same weights and the same activations of 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.engine.batch import Batch, Draw, greedy
from puna.engine.cpu.runner import NativeRunner
from puna.engine.draws import answered
from puna.engine.torch_runner import TorchRunner
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import as_checkpoint, load_model
from puna.kernels import native
from puna.model import Llama
from tests.samples import random_model, small_config

EXACT = ("f32", "f16", "bf16")
BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
LENGTH = 50

pytestmark = pytest.mark.skipif(not native.available(), reason="native code was not built")


def config(**changes: Any) -> Any:
    values = {"dim": 256, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 512, "context_length": 64}
    return small_config(**values | changes)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Checkpoint] = {}

    def make(dtype: str) -> Checkpoint:
        if dtype not in made:
            path = tmp_path_factory.mktemp("native") / f"{dtype}.gguf"
            source = as_checkpoint(random_model(config(), seed=1), path, None)
            save_checkpoint(source, path, "gguf", dtype=dtype, pure=True)
            made[dtype] = open_checkpoint(path)
        return made[dtype]

    return make


class EightBit(nn.Module):
    """A linear layer whose input is rounded to 8 bits, with a scale for each 32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(-1, (-1, 32))
        largest = groups.abs().amax(-1, keepdim=True)
        codes = (groups * (127 / largest)).round()
        return (codes * (largest / 127)).flatten(-2) @ self.weight.T


def reference(checkpoint: Checkpoint, *, eight_bit: bool) -> TorchRunner:
    model = load_model(checkpoint, device="cpu", dtype=torch.float32)
    if eight_bit:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, EightBit(child.weight.detach()))
    return TorchRunner(model, num_pages=LENGTH)


def rows(tokens: NDArray[np.int32], begin: int, end: int, table: list[int]) -> Batch:
    return Batch(
        tokens=tokens[begin:end],
        positions=np.arange(begin, end, dtype=np.int32),
        sequences=np.zeros(end - begin, np.int32),
        tables=np.array([table], np.int32),
        outputs=np.arange(end - begin, dtype=np.int32),
    )


def singles(tokens: NDArray[np.int32]) -> Batch:
    """Each token the first of a sequence of its own."""
    each = np.arange(len(tokens), dtype=np.int32)
    return Batch(tokens, np.zeros_like(each), each, each[:, None], each)


def tokens_of(vocab_size: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, vocab_size, LENGTH).astype(np.int32)


def distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each row of logits is from the expected one, relative to that one's length."""
    return np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("dtype", (*EXACT, *BLOCKS))
def test_logits_equal_the_networks(dtype: str, level: str, stored: Any) -> None:
    checkpoint = stored(dtype)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} <= {dtype, "f32"}
    batch = rows(tokens_of(97), 0, LENGTH, [2, 0, 5, 3])
    found = NativeRunner(checkpoint, num_pages=6).step(batch).logits
    if dtype in EXACT:
        exact = reference(checkpoint, eight_bit=False).step(batch).logits
        assert distances(found, exact).max() < 1e-5
        return
    # Sums in another order differ in the last place. Where that makes an activation's code round
    # the other way, a row and those that attend to it part by one rounding, but not by more.
    apart = distances(found, reference(checkpoint, eight_bit=True).step(batch).logits)
    assert apart[0] < 1e-4 and apart.max() < 3e-2
    alone = singles(tokens_of(97))
    found = NativeRunner(checkpoint, num_pages=LENGTH).step(alone).logits
    apart = distances(found, reference(checkpoint, eight_bit=True).step(alone).logits)
    assert np.median(apart) < 1e-4
    unrounded = distances(found, reference(checkpoint, eight_bit=False).step(alone).logits)
    assert np.median(unrounded) > 3e-3


@pytest.mark.parametrize("dtype", ["f32", "q4_k", "q6_k", "q8_0"])
def test_chunks_batches_and_threads_change_no_bit(dtype: str, level: str, stored: Any) -> None:
    checkpoint, table = stored(dtype), [2, 0, 5, 3]
    first, second = tokens_of(97), tokens_of(97, seed=1)
    runner = NativeRunner(checkpoint, num_pages=12, num_threads=2)
    whole = runner.step(rows(first, 0, LENGTH, table)).logits
    for cuts in ([0, 1, 2, 9, 30, LENGTH], [0, 17, LENGTH], range(LENGTH + 1)):
        parts = [
            runner.step(rows(first, a, b, [7, 8, 9, 10])).logits
            for a, b in zip(cuts, list(cuts)[1:], strict=False)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
    for num_threads in (1, 3):
        other = NativeRunner(checkpoint, num_pages=6, num_threads=num_threads)
        assert np.array_equal(other.step(rows(first, 0, LENGTH, table)).logits, whole)

    # Two sequences in a batch, whose first page the second shares with a third.
    alone = NativeRunner(checkpoint, num_pages=6).step(rows(second, 0, LENGTH, table)).logits
    mixed = Batch(
        tokens=np.concatenate([second, first[16:]]),
        positions=np.concatenate([np.arange(LENGTH), np.arange(16, LENGTH)]).astype(np.int32),
        sequences=np.repeat(np.array([0, 1], np.int32), [LENGTH, LENGTH - 16]),
        tables=np.array([[1, 4, 6, 11], [7, 0, 2, 3]], np.int32),
        outputs=np.array([3, 49, 50, 83], np.int32),
    )
    assert np.array_equal(
        runner.step(mixed).logits, np.stack([alone[3], alone[49], whole[16], whole[49]])
    )


@pytest.mark.parametrize("dtype", ["f32", "q4_k"])
def test_states_beside_tokens_and_alone(dtype: str, level: str, stored: Any) -> None:
    """The rows after the last norm: the network's, in any order, whatever else is in the step."""
    checkpoint, table = stored(dtype), [2, 0, 5, 3]
    plain = rows(tokens_of(97), 0, LENGTH, table)
    some = np.array([49, 3, 3, 0, 17], np.int32)
    mixed = replace(plain, draws=tuple([None, greedy(97)] * (LENGTH // 2)), hidden=some)
    expected = NativeRunner(checkpoint, num_pages=6, num_threads=1).step(plain)
    assert expected.hidden.shape == (0, 256)
    all_rows = replace(plain, outputs=some[:0], hidden=plain.outputs)
    for num_threads in (1, 2, 3):
        runner = NativeRunner(checkpoint, num_pages=6, num_threads=num_threads)
        alone, both = runner.step(all_rows), runner.step(mixed)
        assert alone.logits.shape == (0, 97) and len(alone.tokens) == 0
        assert np.array_equal(both.hidden, alone.hidden[some])
        assert np.array_equal(both.logits, expected.logits[::2])
        assert both.tokens[1::2].tolist() == expected.logits[1::2].argmax(1).tolist()
        cuts = ([0, 1, 9, 30, LENGTH], [0, 17, LENGTH])[num_threads % 2]
        parts = [
            runner.step(replace(rows(tokens_of(97), a, b, table), hidden=plain.outputs[: b - a]))
            for a, b in pairwise(cuts)
        ]
        assert np.array_equal(np.concatenate([part.hidden for part in parts]), alone.hidden)
    other = reference(checkpoint, eight_bit=dtype != "f32").step(all_rows)
    assert distances(alone.hidden, other.hidden).max() < (1e-5 if dtype == "f32" else 3e-2)
    torch_mixed = reference(checkpoint, eight_bit=False).step(mixed)
    assert torch_mixed.hidden.shape == (5, 256) and len(torch_mixed.logits) == LENGTH // 2


def test_pages_are_copied_before_the_step(stored: Any) -> None:
    tokens = tokens_of(97)
    runner = NativeRunner(stored("f32"), num_pages=6)
    whole = runner.step(rows(tokens, 0, LENGTH, [0, 1, 2, 3])).logits
    tail = rows(tokens, 40, LENGTH, [0, 1, 4, 5])
    copied = Batch(
        tail.tokens, tail.positions, tail.sequences, tail.tables, tail.outputs, ((2, 4),)
    )
    assert np.array_equal(runner.step(copied).logits, whole[40:])


@pytest.fixture(params=[{}, {"num_kv_heads": 1}, {"tied": True}], ids=str)
def odd(request: pytest.FixtureRequest) -> Iterator[Llama]:
    """A shape of which nothing is a multiple of 16."""
    shape = {"dim": 24, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 44, "context_length": 64}
    yield random_model(small_config(**shape | request.param), seed=3)


def test_odd_shapes(odd: Llama, level: str, tmp_path: Path) -> None:
    save_checkpoint(as_checkpoint(odd, tmp_path, None), tmp_path / "odd.gguf", "gguf", dtype="f32")
    checkpoint = open_checkpoint(tmp_path / "odd.gguf")
    batch = rows(tokens_of(97), 0, LENGTH, [2, 0, 5, 3])
    found = NativeRunner(checkpoint, num_pages=6).step(batch).logits
    assert distances(found, TorchRunner(odd, num_pages=6).step(batch).logits).max() < 1e-5


def test_weights_are_converted_when_asked(stored: Any) -> None:
    batch = rows(tokens_of(97), 0, LENGTH, [2, 0, 5, 3])
    found = NativeRunner(stored("q4_k"), num_pages=6, dtype="f32").step(batch).logits
    expected = reference(stored("q4_k"), eight_bit=False).step(batch).logits
    assert distances(found, expected).max() < 1e-5


def test_a_step_draws_what_its_logits_say(level: str, stored: Any) -> None:
    """Any mix of outputs with and without a draw, on any number of threads."""
    generator = np.random.default_rng(1)
    checkpoint = stored("q8_0")
    vocab_size = checkpoint.config.vocab_size
    # So many that the draws share their memory with unpacked tiles.
    plain, size = singles(np.tile(tokens_of(vocab_size), 2)), 2 * LENGTH
    logits = NativeRunner(checkpoint, num_pages=size, num_threads=1).step(plain).logits
    runners = [NativeRunner(checkpoint, num_pages=size, num_threads=n) for n in (1, 2, 3)]
    different = set()
    for share in (0.0, 0.3, 1.0):
        draws = [
            greedy(vocab_size)
            if generator.random() < 0.3
            else Draw(3.0, 0, 0.9, 0.01, generator.random(), vocab_size - 9)
            for _ in range(size)
        ]
        batch = replace(
            plain, draws=tuple(d if generator.random() < share else None for d in draws)
        )
        expected = answered(batch, logits, np.empty((0, 256), np.float32))
        for runner in runners:
            found = runner.step(batch)
            assert found.tokens.tolist() == expected.tokens.tolist()
            assert np.array_equal(found.logits, expected.logits)
        different |= set(expected.tokens.tolist())
    assert len(different) > 20
