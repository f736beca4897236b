"""The table of storage types and how rows are re-stored."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from puna.kernels import native
from puna.quantize import storage
from puna.quantize.storage import STORAGE, convert
from tests.quantize.samples import KINDS, importances, weights


@pytest.fixture(params=["native", "numpy"])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test once with native code and once as where none was built."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "library", lambda: None)
    elif not native.available():
        pytest.skip("no native code was built")
    return request.param


@pytest.mark.parametrize("name", KINDS)
def test_shapes_and_sizes(name: str, side: str) -> None:
    kind = STORAGE[name]
    x = weights("gaussian", 6, 512).reshape(2, 3, 512)
    raw = kind.quantize(x, None)
    assert raw.dtype == np.uint8 and raw.shape == kind.stored_shape(x.shape)
    assert raw.size == kind.num_bytes(x.shape)
    y = kind.dequantize(raw)
    assert y.dtype == np.float32 and y.shape == x.shape
    assert kind.quantize(x[:, :0], None).shape == (2, 0, raw.shape[-1])
    assert kind.dequantize(raw[:, :0]).shape == (2, 0, 512)
    np.testing.assert_array_equal(kind.quantize(x[:, ::2], None), raw[:, ::2])
    np.testing.assert_array_equal(kind.dequantize(raw[:, ::2]), y[:, ::2])


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_blocks_do_not_fill(name: str, side: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs rows that are a multiple of"):
        STORAGE[name].quantize(np.zeros((2, 48), np.float32), None)


@pytest.mark.parametrize("name", KINDS)
def test_weights_that_do_not_fit(name: str, side: str) -> None:
    x = weights("gaussian", 2, 256)
    x[1, 200] = KINDS[name].limit * 1.001
    with pytest.raises(ValueError, match=f"does not fit {name}; use bf16 or f32"):
        STORAGE[name].quantize(x, None)
    x[1, 200] = -KINDS[name].limit
    assert np.isfinite(STORAGE[name].dequantize(STORAGE[name].quantize(x, None))).all()
    x[1, 200] = np.nan
    with pytest.raises(ValueError, match=f"not a finite number, which {name} cannot hold"):
        STORAGE[name].quantize(x, None)


def test_importance_that_does_not_fit(side: str) -> None:
    x = weights("gaussian", 2, 256)
    for bad, problem in (
        (np.ones(255, np.float32), "importance has shape"),
        (np.full(256, np.nan, np.float32), "finite and not negative"),
        (np.full(256, -1, np.float32), "finite and not negative"),
    ):
        with pytest.raises(ValueError, match=problem):
            STORAGE["q4_k"].quantize(x, bad)


def test_columns_of_no_importance_still_count_a_little() -> None:
    relative = storage._relative(np.array([0, 6, 0, 2], np.float32), 4)
    np.testing.assert_array_equal(relative, np.array([1e-4, 3, 1e-4, 1], np.float32))
    np.testing.assert_array_equal(storage._relative(np.zeros(4, np.float32), 4), np.ones(4))


@pytest.mark.parametrize("source", ["f16", "q8_0"])
@pytest.mark.parametrize("target", ["f32", "q5_0", "q3_k"])
def test_rows_are_restored_in_chunks(
    source: str, target: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, importance = weights("heavy tails", 37, 512), importances(512)["heavy"]
    raw = STORAGE[source].quantize(x, None)
    whole = STORAGE[target].quantize(STORAGE[source].dequantize(raw), importance)
    monkeypatch.setattr(storage, "CHUNK", 1500)  # two rows at a time
    for processors in (1, 3):
        monkeypatch.setattr(storage, "_num_processors", lambda count=processors: count)
        np.testing.assert_array_equal(convert(raw, source, target, importance), whole)
    cube = convert(raw[:36].reshape(2, 18, -1), source, target, importance)
    np.testing.assert_array_equal(cube.reshape(36, -1), whole[:36])
    assert convert(raw[:0], source, target).shape == (0, whole.shape[1])
    assert convert(raw[0], source, target, importance).tolist() == whole[0].tolist()


def test_an_error_in_one_chunk_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CHUNK", 1000)
    x = weights("gaussian", 40, 512)
    x[33, 7] = np.inf
    with pytest.raises(ValueError, match="not a finite number, which q4_k"):
        convert(x.view(np.uint8), "f32", "q4_k")


def test_float32_of_a_large_matrix_is_never_whole(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CHUNK", 1 << 14)
    monkeypatch.setattr(storage, "_num_processors", lambda: 2)
    raw = np.tile(STORAGE["f16"].quantize(weights("gaussian", 8, 512), None), (64, 1))
    tracemalloc.start()
    stored = convert(raw, "f16", "q4_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < stored.nbytes + raw.nbytes  # float32 alone would take twice `raw`


def test_threads_may_quantize_at_once(side: str) -> None:
    x = weights("gaussian", 8, 512)
    expected = STORAGE["q6_k"].quantize(x, None)
    with ThreadPoolExecutor(4) as pool:
        for raw in pool.map(lambda _: STORAGE["q6_k"].quantize(x, None), range(16)):
            np.testing.assert_array_equal(raw, expected)
