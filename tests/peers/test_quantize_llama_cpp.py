"""Quantization beside ggml's own: the same bytes of the old types, less error in the k-types."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from puna.commands.models import resolve
from puna.quantize.storage import STORAGE
from tests.quantize.samples import WEIGHTS, importances, weights

pytestmark = pytest.mark.peers

LEGACY = {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
K_TYPES = {"q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14}
MATRICES = ("layers.2.attention.wq", "layers.0.attention.wv", "layers.3.feed_forward.w2")


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    llama_cpp = pytest.importorskip("llama_cpp")
    (path,) = (Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so")
    return ctypes.CDLL(str(path))


def ggml_quantize(library, name: str, x: np.ndarray, importance=None) -> np.ndarray:
    x = np.ascontiguousarray(x)
    out = np.empty(STORAGE[name].stored_shape(x.shape), np.uint8)
    library.ggml_quantize_chunk(
        {**LEGACY, **K_TYPES}[name],
        ctypes.c_void_p(x.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(x.shape[0]),
        ctypes.c_int64(x.shape[1]),
        None if importance is None else ctypes.c_void_p(importance.ctypes.data),
    )
    return out


@pytest.mark.parametrize("sort", WEIGHTS)
@pytest.mark.parametrize("name", LEGACY)
def test_legacy_types_have_ggmls_bytes(ggml: ctypes.CDLL, name: str, sort: str) -> None:
    x = weights(sort) / 2 + np.float32(0)  # without -0
    np.testing.assert_array_equal(STORAGE[name].quantize(x, None), ggml_quantize(ggml, name, x))


def matrices() -> dict[str, np.ndarray]:
    found = {kind: weights(kind, 64) for kind in ("gaussian", "heavy tails")}
    found["outliers"] = weights("outlier rows and columns", 64)
    tensors = resolve("cria").tensors
    return found | {name: tensors[f"{name}.weight"].read_float32() for name in MATRICES}


@pytest.mark.parametrize("matrix", matrices())
@pytest.mark.parametrize("name", K_TYPES)
def test_k_types_err_less(ggml: ctypes.CDLL, name: str, matrix: str) -> None:
    x = matrices()[matrix]
    for importance in (None, *importances(x.shape[1]).values()):
        ours = error(name, x, STORAGE[name].quantize(x, importance), importance)
        theirs = error(name, x, ggml_quantize(ggml, name, x, importance), importance)
        assert ours <= theirs


def error(name: str, x: np.ndarray, raw: np.ndarray, importance: np.ndarray | None) -> float:
    squares = (STORAGE[name].dequantize(raw).astype(np.float64) - x) ** 2
    return float(np.average(squares.mean(axis=0), weights=importance))
