"""Keys and values in f32, f16 and int8: the native step against the network, and against itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.engine.batch import Batch
from puna.engine.cpu.runner import NativeRunner
from puna.engine.llm import LLM
from puna.engine.loading import load_runner
from puna.engine.memory import kv_bytes
from puna.engine.params import SamplingParams
from puna.engine.torch_runner import TorchRunner
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import as_checkpoint
from puna.kernels import native
from puna.kernels.kv_types import KV_TYPES
from puna.model import Llama
from tests.engine.cpu.test_runner import rows as rows_of
from tests.samples import random_model, small_config

LENGTH = 530  # positions, of three spans that are summed up by themselves
PAGES = list(np.random.default_rng(5).permutation(34))
# Heads of 32 that share keys and values or do not; one KV head; heads of 6.
SHAPES = {
    "grouped": {"dim": 256, "num_heads": 8, "num_kv_heads": 2},
    "own": {"dim": 64, "num_heads": 2, "num_kv_heads": 2},
    "one": {"dim": 288, "num_heads": 9, "num_kv_heads": 1},
    "odd": {"dim": 24, "num_heads": 4, "num_kv_heads": 2},
}

pytestmark = pytest.mark.skipif(not native.available(), reason="native code was not built")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, tuple[Llama, Checkpoint]] = {}

    def make(shape: str) -> tuple[Llama, Checkpoint]:
        if shape not in made:
            model = random_model(
                small_config(num_layers=2, ffn_dim=64, context_length=544, **SHAPES[shape]), seed=2
            )
            path = tmp_path_factory.mktemp("kv") / "model.gguf"
            save_checkpoint(as_checkpoint(model, path, None), path, "gguf", dtype="f32")
            made[shape] = model, open_checkpoint(path)
        return made[shape]

    return make


def rows(begin: int, end: int, table: list[int], copies: Any = ()) -> Batch:
    tokens = np.random.default_rng(0).integers(0, 97, LENGTH).astype(np.int32)
    return replace(rows_of(tokens, begin, end, table), copies=copies)


def joined(first: Batch, second: Batch) -> Batch:
    """Two batches as one; what is wanted of the second comes after what is of the first."""
    return Batch(
        tokens=np.concatenate([first.tokens, second.tokens]),
        positions=np.concatenate([first.positions, second.positions]),
        sequences=np.concatenate([first.sequences, second.sequences + 1]),
        tables=np.concatenate([first.tables, second.tables]),
        outputs=np.concatenate([first.outputs, second.outputs + len(first.tokens)]),
    )


def distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def expected(models: Any) -> Any:
    made: dict[tuple[str, str], NDArray[np.float32]] = {}

    def make(shape: str, kv_dtype: str) -> NDArray[np.float32]:
        if (shape, kv_dtype) not in made:
            runner = TorchRunner(models(shape)[0], num_pages=34, kv_dtype=kv_dtype)
            made[shape, kv_dtype] = runner.step(rows(0, LENGTH, PAGES)).logits
        return made[shape, kv_dtype]

    return make


# How far rows may be from the network's that keeps the same (median, largest), and how far at least
# (median) from the one that rounds nothing. Sums in another order differ in the last place, which
# makes a few numbers round the other way.
BOUNDS = {"f32": (5e-6, 1e-5, 0), "f16": (1e-4, 5e-4, 2e-4), "int8": (5e-4, 5e-3, 5e-3)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kv_dtype", KV_TYPES)
def test_logits_equal_the_networks(
    kv_dtype: str, shape: str, level: str, models: Any, expected: Any
) -> None:
    runner = NativeRunner(models(shape)[1], num_pages=34, kv_dtype=kv_dtype)
    found = runner.step(rows(0, LENGTH, PAGES)).logits
    median, largest, unrounded = BOUNDS[kv_dtype]
    apart = distances(found, expected(shape, kv_dtype))
    assert np.median(apart) < median and apart.max() < largest
    assert np.median(distances(found, expected(shape, "f32"))) >= unrounded


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kv_dtype", KV_TYPES)
def test_chunks_batches_and_threads_change_no_bit(
    kv_dtype: str, shape: str, level: str, models: Any
) -> None:
    _, checkpoint = models(shape)
    other = list(range(34, 68))
    whole = (
        NativeRunner(checkpoint, num_pages=34, kv_dtype=kv_dtype, num_threads=1)
        .step(rows(0, LENGTH, PAGES))
        .logits
    )
    assert np.isfinite(whole).all()
    # Eleven threads for a single row share the spans of a head, two do not.
    for num_threads in (2, 11):
        runner = NativeRunner(checkpoint, num_pages=68, kv_dtype=kv_dtype, num_threads=num_threads)
        cuts = [0, 3, 4, 140, 255, 256, 257, 259, 400, 512, 513, LENGTH]
        parts = [runner.step(rows(a, b, PAGES)).logits for a, b in pairwise(cuts)]
        assert np.array_equal(np.concatenate(parts), whole)
        # Another sequence with the same tokens, later in its text, in the same steps.
        runner.step(rows(0, 500, other))
        mixed = runner.step(joined(rows(250, 261, PAGES), rows(500, LENGTH, other))).logits
        assert np.array_equal(mixed, np.concatenate([whole[250:261], whole[500:]]))


@pytest.mark.parametrize("kv_dtype", KV_TYPES)
def test_pages_are_copied_before_the_step(kv_dtype: str, models: Any) -> None:
    network, checkpoint = models("grouped")
    for runner in (
        NativeRunner(checkpoint, num_pages=6, kv_dtype=kv_dtype),
        TorchRunner(network, num_pages=6, kv_dtype=kv_dtype),
    ):
        whole = runner.step(rows(0, 50, [0, 1, 2, 3])).logits
        copied = runner.step(rows(40, 50, [0, 1, 4, 5], copies=((2, 4),))).logits
        assert np.allclose(copied, whole[40:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_pages_hold_rounded_numbers(shape: str, level: str, models: Any, tmp_path: Path) -> None:
    """What the first layer keeps, of numbers that are large and small: to nearest, ties to even."""
    model, _ = models(shape)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("wk", "wv"):
        weight = weights[f"layers.0.attention.{name}.weight"]
        sizes = np.random.default_rng(1).integers(-24, 24, (len(weight), 1))
        weight *= weight.new_tensor(2.0**sizes)
    large = random_model(model.config, seed=2)
    large.load_state_dict(weights)
    save_checkpoint(as_checkpoint(large, tmp_path, None), tmp_path / "m.gguf", "gguf", dtype="f32")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")

    def pages(kv_dtype: str) -> list[NDArray[np.uint8]]:
        runner = NativeRunner(checkpoint, num_pages=2, kv_dtype=kv_dtype)
        runner.step(rows(0, 29, [1, 0]))
        forward = runner._forward
        assert sum(a[:, 0].nbytes for a in (forward.keys, forward.values)) == kv_bytes(
            checkpoint.config, 16, kv_dtype
        )
        return [forward.keys[0], forward.values[0]]

    dim = checkpoint.config.head_dim
    width = -(-dim // 16) * 16
    shapes = {0: (dim, 16), 1: (16, width)}
    for part, (exact, half, small) in enumerate(
        zip(pages("f32"), pages("f16"), pages("int8"), strict=True)
    ):
        numbers = exact.view(np.float32).reshape(*exact.shape[:2], *shapes[part])
        limit = np.finfo(np.float16).max
        assert np.abs(numbers).max() > limit and np.abs(numbers[numbers != 0]).min() < 1e-5
        rounded = numbers.clip(-limit, limit).astype(np.float16)
        assert np.array_equal(half, rounded.reshape(*half.shape[:2], -1).view(np.uint8))

        axis = 2 + part
        scales = np.minimum(np.abs(numbers).max(axis) / np.float32(127), limit).astype(np.float16)
        divisors = np.where(scales > 0, scales, 1).astype(np.float32)
        codes = np.rint(numbers / np.expand_dims(divisors, axis)).clip(-127, 127).astype(np.int8)
        assert np.array_equal(small[..., :-32].view(np.int8), codes.reshape(*codes.shape[:2], -1))
        assert np.array_equal(small[..., -32:].view(np.float16), scales)


@pytest.mark.parametrize("kv_dtype", KV_TYPES)
def test_cached_prefixes_and_other_requests_change_nothing(kv_dtype: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=2)
    start = "Once upon a time there was a little llama who lived on a high mountain. "
    prompts = [start + end for end in ("She", "He wanted", "One day, a big")]

    def answers(llm: LLM, prompts: list[str]) -> Any:
        return [
            (o.outputs[0].token_ids, o.outputs[0].logprobs) for o in llm.generate(prompts, params)
        ]

    alone = [answers(LLM("cria", kv_dtype=kv_dtype), [prompt])[0] for prompt in prompts]
    llm = LLM("cria", kv_dtype=kv_dtype)
    assert answers(llm, prompts) == alone
    assert [answers(llm, [prompt])[0] for prompt in prompts] == alone


def test_which_type_is_chosen(models: Any) -> None:
    _, checkpoint = models("grouped")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "f32"),
        ({"dtype": "bf16"}, "f16"),
        ({"kv_dtype": "int8"}, "int8"),
        ({"kv_dtype": "f32", "dtype": "fp16"}, "f32"),
    ]
    for options, expected in cases:
        runner = load_runner(checkpoint, kv_tokens=16, **options)
        assert runner.token_bytes == kv_bytes(checkpoint.config, 16, expected) // 16
    with pytest.raises(ValueError, match="no kv_dtype 'int3'; there are: auto, f32, f16, int8"):
        LLM("cria", kv_dtype="int3")
