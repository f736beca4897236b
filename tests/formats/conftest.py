"""A tiny checkpoint with a vocabulary made in code, and files damaged in many ways."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.config import ModelConfig
from puna.formats import open_checkpoint
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.quantize.storage import STORAGE
from puna.tokenizer import PieceType, Vocabulary
from puna.tokenizer.vocabulary import byte_piece

VOCAB_SIZE = 320
MERGED = (
    "▁t", "he", "in", "an", "▁a", "re", "on", "▁w", "er", "ou", "it", "is", "or", "▁the", "at",
    "ll", "la", "ma", "lla", "llama",
)  # fmt: skip
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def make_vocabulary() -> Vocabulary:
    """`<unk> <s> </s>`, 256 bytes, letters, and what merges of them make: 320 pieces."""
    normal = [*MERGED, "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHI"]
    head = ["<unk>", "<s>", "</s>", *(byte_piece(value) for value in range(256))]
    normal += [f"▁{letter}" for letter in "bcdefghijklmnopqrsuvx"][: VOCAB_SIZE - 259 - len(normal)]
    kinds = [PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL] + [PieceType.BYTE] * 256
    return Vocabulary(
        pieces=(*head, *normal),
        scores=(*(0.0 for _ in head), *(-float(rank) for rank in range(len(normal)))),
        types=(*kinds, *(PieceType.NORMAL for _ in normal)),
    )


def make_config(**changes: Any) -> ModelConfig:
    values = {"dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 96}
    values |= {"vocab_size": VOCAB_SIZE, "context_length": 64, "norm_eps": 1e-5}
    return ModelConfig(**values | changes)


def make_checkpoint(dtype: str = "f32", seed: int = 0, **changes: Any) -> Checkpoint:
    """Random weights stored as `dtype`, in memory; `changes` go to the config."""
    config = make_config(**changes)
    generator = np.random.default_rng(seed)
    kind = STORAGE[dtype]

    def lazy(shape: tuple[int, ...]) -> LazyTensor:
        raw = kind.quantize(generator.standard_normal(shape, dtype=np.float32), None)
        return LazyTensor(shape, dtype, raw.copy)

    vocabulary = make_vocabulary()
    return Checkpoint(
        format="test",
        path=Path("tiny"),
        config=config,
        tensors={name: lazy(shape) for name, shape in config.tensor_shapes().items()},
        load_vocabulary=lambda: vocabulary,
        chat_template=CHAT_TEMPLATE,
        name="Tiny",
        license="apache-2.0",
    )


def assert_same_tensors(
    actual: Mapping[str, LazyTensor], expected: Mapping[str, LazyTensor]
) -> None:
    """The same names, shapes, types and bits."""
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (tensor.shape, tensor.dtype), name
        np.testing.assert_array_equal(actual[name].read(), tensor.read(), err_msg=name)


def assert_same(actual: Checkpoint, expected: Checkpoint) -> None:
    assert actual.config == expected.config
    assert actual.vocabulary == expected.vocabulary
    assert_same_tensors(actual.tensors, expected.tensors)


def truncated(data: bytes, count: int = 60) -> Iterator[bytes]:
    """The file cut at many lengths, most of them near its start and its end."""
    near = {0, 1, 3, 4, 7, 8, 12, 27, 28, 40, 100, 255, 256, 257, 300, 1000}
    cuts = near | {len(data) - n for n in (1, 2, 4, 16, 22, 30, 60, 100, 1000)}
    cuts |= {len(data) * step // count for step in range(count)}
    return (data[:cut] for cut in sorted(cuts) if 0 <= cut < len(data))


def flipped(data: bytes, begin: int, end: int, count: int, seed: int = 0) -> Iterator[bytes]:
    """The file with bytes of [begin, end) replaced: single ones, and runs of FF or 00."""
    generator = random.Random(seed)
    runs = [b"\xff" * 4, b"\xff" * 8, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\0\1\0\0\0"]
    for step in range(count):
        at = generator.randrange(begin, end)
        new = bytes([generator.randrange(256)]) if step % 2 else generator.choice(runs)
        yield data[:at] + new + data[at + len(new) :]


def assert_well_said(error: FormatError, folder: Path) -> None:
    """One line that names a file of the folder, a field, and a byte that the file may have."""
    assert len(str(error).splitlines()) == 1, error
    assert error.path.is_relative_to(folder), error
    assert error.field and error.problem, error
    size = os.path.getsize(error.path) if os.path.isfile(error.path) else 0  # noqa: PTH113, PTH202
    assert 0 <= error.offset <= size, error


@pytest.fixture
def reads() -> Callable[[Path, Path, bytes], bool]:
    """reads(model, file, data): whether `model` opens and reads with `data` as its `file`.

    Only FormatErrors of one line that name a file of the model may come out.
    """

    def attempt(model: Path, file: Path, data: bytes) -> bool:
        file.write_bytes(data)
        try:
            checkpoint = open_checkpoint(model)
            for tensor in checkpoint.tensors.values():
                tensor.read()
            _ = checkpoint.vocabulary
        except FormatError as error:
            assert_well_said(error, file.parent)
            return False
        return True

    return attempt


@pytest.fixture
def vocabulary() -> Vocabulary:
    return make_vocabulary()
