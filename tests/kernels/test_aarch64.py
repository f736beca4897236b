"""The native code of another machine: compiled for aarch64 and run by an emulator of it.

What its libraries give is what numpy and this machine's library give, bit for bit.
"""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.engine.batch import Batch
from puna.engine.cpu.runner import NativeRunner
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import as_checkpoint
from puna.kernels import compiling, native
from puna.kernels.kv_types import KV_TYPES
from puna.kernels.step import rotary_tables
from puna.kernels.tiles import KINDS as TILES
from puna.quantize.storage import STORAGE
from tests.quantize.samples import KINDS, WEIGHTS, importances, random_blocks, weights
from tests.samples import random_model, small_config

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# A processor of each instruction set, that has nothing of the next.
PROCESSORS = {"armv8-a": "cortex-a53", "armv8.2-a-dotprod": "cortex-a76"}
MATRICES = (*(f"attention.w{part}" for part in "qkvo"), *(f"feed_forward.w{i}" for i in (1, 2, 3)))
# The first number of a command to the driver.
COMMANDS = ("tell", "dequantize", "quantize", "largest", "steps")

pytestmark = [
    pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed")
    for name in (COMPILER, EMULATOR)
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the libraries of aarch64, made as on such a machine, and the driver."""
    folder = tmp_path_factory.mktemp("aarch64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "aarch64")
        patch.setenv("CXX", COMPILER)
        assert compiling.levels() == tuple(PROCESSORS)
        assert compiling.compile_libraries(folder) == []
    source = Path(__file__).with_name("aarch64_driver.cpp")
    include = f"-I{compiling.FOLDER / 'src'}"
    command = [COMPILER, "-std=c++20", "-Wno-psabi", include, str(source), "-o", "driver"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@dataclass(frozen=True)
class Machine:
    """A processor of an instruction set, which runs the library that was made for it."""

    level: str
    folder: Path

    def run(self, *commands: bytes, processor: str | None = None) -> bytes:
        (self.folder / "input").write_bytes(b"".join(commands))
        # The folder of the other machine's system libraries, as Debian has it.
        options = ("-L", "/usr/aarch64-linux-gnu", "-cpu", processor or PROCESSORS[self.level])
        library = str(compiling.library_path(self.level, self.folder))
        driver = ("./driver", library, "input", "output")
        subprocess.run((EMULATOR, *options, *driver), cwd=self.folder, check=True)
        return (self.folder / "output").read_bytes()


@pytest.fixture(scope="module", params=PROCESSORS)
def machine(request: pytest.FixtureRequest, built: Path) -> Machine:
    return Machine(request.param, built)


def command(name: str, *values: int | float | str | NDArray[Any]) -> bytes:
    return struct.pack("<i", COMMANDS.index(name)) + arguments(*values)


def arguments(*values: int | float | str | NDArray[Any]) -> bytes:
    def encoded(value: int | float | str | NDArray[Any]) -> bytes:
        if isinstance(value, int):
            return struct.pack("<i", value)
        if isinstance(value, float):
            return struct.pack("<f", value)
        raw = value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes()
        return struct.pack("<q", len(raw)) + raw

    return b"".join(map(encoded, values))


def test_knows_its_processor_and_its_sources(machine: Machine) -> None:
    rank, digest = list(PROCESSORS).index(machine.level), compiling.digest().encode()
    assert machine.run(command("tell")) == struct.pack("<i", rank) + digest
    best = machine.run(command("tell"), processor="max")
    assert best == struct.pack("<i", len(PROCESSORS) - 1) + digest


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", KINDS)
def test_dequantizes_as_numpy(machine: Machine, name: str) -> None:
    kind = KINDS[name]
    blocks = random_blocks(kind)
    expected = kind.dequantize(blocks)
    found = machine.run(command("dequantize", name, len(blocks), kind.size, blocks))
    ours = np.frombuffer(found, "<f4").reshape(expected.shape)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(ours), ~numbers)
    np.testing.assert_array_equal(ours[numbers].view("u4"), expected[numbers].view("u4"))


@pytest.mark.parametrize("name", KINDS)
def test_quantizes_as_numpy(machine: Machine, name: str) -> None:
    kind = KINDS[name]
    x = np.concatenate([weights(sort, rows=1) for sort in WEIGHTS])
    x = np.clip(x, -kind.limit, kind.limit)
    columns = importances()["heavy"]
    columns = np.maximum(columns / columns.mean(), np.float32(1e-4))
    blocks = x.reshape(-1, kind.size)
    counted = np.broadcast_to(columns, x.shape).reshape(blocks.shape)
    row_bytes = 512 // kind.size * kind.num_bytes
    shape = (name, len(x), 512, row_bytes, x)
    found = machine.run(command("quantize", *shape, 0), command("quantize", *shape, 1, columns))
    expected = [kind.quantize(blocks, None), kind.quantize(blocks, counted)]
    ours = np.frombuffer(found, np.uint8).reshape(2, *expected[0].shape)
    np.testing.assert_array_equal(ours, expected)


def test_every_half_is_read_and_written(machine: Machine) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    halves = every.view(np.float16)
    read = np.frombuffer(machine.run(command("dequantize", "f16", len(every), 1, every)), "<f4")
    np.testing.assert_array_equal(read.view("u4"), halves.astype("f4").view("u4"))
    steps = np.sort(halves[halves >= 0].astype("f4"))[:-1]
    between = (steps[1:] / 2 + steps[:-1] / 2)[:, None] * np.ones(32, np.float32)
    found = machine.run(command("quantize", "q4_1", len(between), 32, 20, between, 0))
    written = np.frombuffer(found, np.uint8).reshape(-1, 20)[:, 2:4].copy().view("<u2")[:, 0]
    np.testing.assert_array_equal(written, between[:, 0].astype(np.float16).view("u2"))


def test_the_largest_magnitude(machine: Machine) -> None:
    x = weights("heavy tails")
    found = np.frombuffer(machine.run(command("largest", x.size, x)), "<f4")[0]
    assert found == np.abs(x).max()


def matrix(checkpoint: Checkpoint, name: str, dtype: str) -> bytes:
    tensor = checkpoint.tensors[name].converted(dtype)
    rows, columns = tensor.shape
    stored = tensor.read()
    block_bytes = KINDS[dtype].num_bytes if dtype in KINDS else 0
    return arguments(TILES.get(dtype, -1), rows, columns, block_bytes, stored)


def norm(checkpoint: Checkpoint, name: str) -> bytes:
    return arguments(checkpoint.tensors[name].read_float32())


def steps(
    checkpoint: Checkpoint, dtype: str, kv_dtype: str, num_pages: int, batches: list[Batch]
) -> bytes:
    """The command that runs batches with a checkpoint of which all matrices are `dtype`."""
    c, kv_type = checkpoint.config, KV_TYPES[kv_dtype]
    shape = (c.num_layers, c.dim, c.num_heads, c.num_kv_heads, c.head_dim, c.ffn_dim, c.vocab_size)
    parts = [
        command("steps", *shape, num_pages, kv_type.number, *kv_type.page_bytes(c), c.norm_eps)
    ]
    for i in range(c.num_layers):
        parts += [
            norm(checkpoint, f"layers.{i}.{name}.weight") for name in ("attention_norm", "ffn_norm")
        ]
        parts += [matrix(checkpoint, f"layers.{i}.{name}.weight", dtype) for name in MATRICES]
    parts += [norm(checkpoint, "norm.weight"), matrix(checkpoint, "output.weight", dtype)]
    embeddings = checkpoint.tensors["tok_embeddings.weight"].converted(dtype).read()
    row_bytes = embeddings.shape[1]
    sizes = (row_bytes, row_bytes // STORAGE[dtype].block_bytes)
    parts.append(arguments(*rotary_tables(c), embeddings, *sizes, dtype, len(batches)))
    for num_threads, batch in enumerate(batches, 1):
        counts = (len(batch.tokens), len(batch.outputs), batch.tables.shape[1], num_threads)
        arrays = (batch.tokens, batch.positions, batch.sequences, batch.tables, batch.outputs)
        parts.append(arguments(*counts, *arrays))
    return b"".join(parts)


def some_batches(vocab_size: int) -> list[Batch]:
    """A prompt, long enough for panels; a token after it beside another prompt; one of each."""
    rng = np.random.default_rng(5)
    table = np.array([[2, 0, 5], [4, 1, 3]], np.int32)

    def batch(*rows: tuple[int, int], outputs: list[int]) -> Batch:
        sequences, positions = np.array(rows, np.int32).T
        tokens = rng.integers(0, vocab_size, len(rows)).astype(np.int32)
        return Batch(tokens, positions, sequences, table, np.array(outputs, np.int32))

    first, second = [(0, i) for i in range(33)], [(1, i) for i in range(6)]
    return [
        batch(*first, outputs=[0, 7, 8, 32]),
        batch((0, 33), *second, outputs=[0, 6]),
        batch((1, 6), (0, 34), outputs=[0, 1]),
    ]


SHAPES: dict[str, dict[str, Any]] = {
    "whole": {"dim": 256, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 256},
    "odd": {"dim": 24, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 44},  # nothing by 16
}
CASES = [
    *((dtype, "whole", "f32") for dtype in ("f32", "f16", "bf16", *KINDS)),
    *((dtype, "odd", "f32") for dtype in ("f32", "f16", "bf16")),
    *(("f32", shape, kv_dtype) for shape in SHAPES for kv_dtype in ("f16", "int8")),
]


@pytest.mark.parametrize(("dtype", "shape", "kv_dtype"), CASES)
def test_logits_equal_this_machines(
    machine: Machine,
    dtype: str,
    shape: str,
    kv_dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The level that any x86 has rounds a product and a sum one after the other.
    libraries = [library for level, library in native.libraries().items() if level != "x86-64"]
    if not libraries:
        pytest.skip("no native code with fused multiply-add runs here")
    config = small_config(**SHAPES[shape], vocab_size=41, context_length=64)
    checkpoint = as_checkpoint(random_model(config, seed=1), tmp_path, None)
    batches = some_batches(config.vocab_size)
    ours = np.frombuffer(machine.run(steps(checkpoint, dtype, kv_dtype, 6, batches)), "<u4")
    for library in libraries:
        monkeypatch.setattr(native, "library", lambda library=library: library)
        runner = NativeRunner(checkpoint, num_pages=6, dtype=dtype, kv_dtype=kv_dtype)
        expected = np.concatenate([runner.step(batch).logits for batch in batches])
        np.testing.assert_array_equal(ours, expected.view("u4").ravel())
