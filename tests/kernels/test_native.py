"""Native code gives the bytes that its definition in numpy gives, whatever the processor has."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from puna.kernels import compiling, native
from tests.quantize.samples import KINDS, WEIGHTS, importances, random_blocks, weights

LEVELS = compiling.levels()


@pytest.fixture(scope="module", params=LEVELS)
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    if request.param not in native.libraries():
        pytest.skip(f"no native code for {request.param} that runs here")
    return native.libraries()[request.param]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", KINDS)
def test_dequantizes_as_numpy(library: ctypes.CDLL, name: str) -> None:
    kind = KINDS[name]
    blocks = random_blocks(kind)
    ours, expected = native.dequantize(library, name, blocks, kind.size), kind.dequantize(blocks)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(ours), ~numbers)
    np.testing.assert_array_equal(ours[numbers].view("u4"), expected[numbers].view("u4"))


@pytest.mark.parametrize("sort", WEIGHTS)
@pytest.mark.parametrize("name", KINDS)
def test_quantizes_as_numpy(library: ctypes.CDLL, name: str, sort: str) -> None:
    kind = KINDS[name]
    x = weights(sort, rows=5)  # not a multiple of what is worked on at a time
    x = np.clip(x, -kind.limit, kind.limit)
    blocks = x.reshape(-1, kind.size)
    row_bytes = 512 // kind.size * kind.num_bytes
    expected = kind.quantize(blocks, None).reshape(5, row_bytes)
    np.testing.assert_array_equal(native.quantize(library, name, x, None, row_bytes), expected)
    for importance in importances().values():
        columns = np.maximum(importance / importance.mean(), np.float32(1e-4))
        counted = np.broadcast_to(columns, x.shape).reshape(blocks.shape)
        expected = kind.quantize(blocks, counted).reshape(5, row_bytes)
        ours = native.quantize(library, name, x, columns, row_bytes)
        np.testing.assert_array_equal(ours, expected)


def test_one_block_alone(library: ctypes.CDLL) -> None:
    x = weights("gaussian", 3, 256)
    for name in ("q4_k", "q5_k"):  # which are worked on in pairs
        expected = KINDS[name].quantize(x, None)
        ours = native.quantize(library, name, x, None, KINDS[name].num_bytes)
        np.testing.assert_array_equal(ours, expected)


def test_every_half_is_read_and_written(library: ctypes.CDLL) -> None:
    """All f16 numbers as the minimum of Q4_1 blocks, and halfway between neighbours."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[np.isfinite(halves.view(np.float16))]
    blocks = np.zeros((len(halves), 20), np.uint8)
    blocks[:, 2:4] = halves.view(np.uint8).reshape(-1, 2)
    blocks[:, 0:2] = 0
    x = native.dequantize(library, "q4_1", blocks, 32)
    expected = halves.view(np.float16).astype(np.float32) + np.float32(0)  # -0 + 0 is 0
    np.testing.assert_array_equal(x[:, 0].view("u4"), expected.view("u4"))

    every = np.arange(1 << 16, dtype=np.uint16)
    x = native.dequantize(library, "f16", every.view(np.uint8).reshape(-1, 2), 1)[:, 0]
    np.testing.assert_array_equal(
        x.view("u4"), every.view(np.float16).astype(np.float32).view("u4")
    )

    steps = np.sort(expected[expected >= 0])
    between = (steps[1:] / 2 + steps[:-1] / 2)[:, None] * np.ones(32, np.float32)
    for values in (between, np.nextafter(between, 0), np.nextafter(between, 1e9), -between):
        stored = native.quantize(library, "q4_1", values, None, 20)
        expected_bits = values[:, 0].astype(np.float16).view(np.uint16)
        np.testing.assert_array_equal(stored[:, 2:4].copy().view(np.uint16)[:, 0], expected_bits)


def test_the_largest_magnitude(library: ctypes.CDLL) -> None:
    x = weights("heavy tails")
    assert native.largest(library, x) == np.abs(x).max()
    assert native.largest(library, x[:0]) == 0
    x[3, 7] = -np.inf
    assert native.largest(library, x) == np.inf
    x[20, 1] = np.nan
    assert np.isnan(native.largest(library, x))


def test_importance_of_another_length_is_refused(library: ctypes.CDLL) -> None:
    with pytest.raises(ValueError, match="does not fit rows"):
        native.quantize(
            library, "q4_k", np.zeros((2, 512), np.float32), np.ones(256, np.float32), 288
        )


def test_the_best_library_is_used() -> None:
    found = native.libraries()
    assert native.available() == bool(found)
    if found:
        assert native.library() is list(found.values())[-1]
        assert list(found) == [level for level in LEVELS if level in found]


def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip("no native code was built")
    assert native._load(LEVELS[0]) is not None
    monkeypatch.setattr(native, "digest", lambda: "other")
    assert native._load(LEVELS[0]) is None


def test_what_cannot_be_loaded_is_not_used(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert native._load(LEVELS[0]) is None
    compiling.library_path(LEVELS[0], tmp_path).write_bytes(b"not a library")
    assert native._load(LEVELS[0]) is None


@pytest.mark.parametrize(
    ("compiler", "problem"), [("false", "false failed"), ("no-such-compiler", "No such file")]
)
def test_without_a_compiler_there_is_no_library(
    tmp_path, monkeypatch: pytest.MonkeyPatch, compiler: str, problem: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    problems = compiling.compile_libraries(tmp_path)
    assert len(problems) == len(LEVELS)
    assert all(problem in text for text in problems)
    assert not list(tmp_path.iterdir())
