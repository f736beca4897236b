"""Speed and error of quantizing, beside llama.cpp's quantizer, one thread each.

    python benchmarks/quantize_speed.py [--rows 512] [--columns 4096] [--bursts 7] [--weighted]

Both quantize the same Gaussian matrix by turns, in short bursts; medians are shown, and the ratio
of each pair's times, so that a busy machine does not favour either. The error is the root of the
mean squared difference to the weights, with --weighted each column counting by its importance.
The peer is llama-cpp-python's ggml; without it, Puna is shown alone.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from puna.kernels import native
from puna.quantize.storage import STORAGE, Bytes, Floats

GGML_TYPES = {
    "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8,
    "q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--bursts", type=int, default=7)
    parser.add_argument("--weighted", action="store_true")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    x = (rng.standard_normal((args.rows, args.columns)) * 0.02).astype(np.float32)
    importance = None
    if args.weighted:
        importance = rng.exponential(size=args.columns).astype(np.float32)
    ggml = load_ggml()
    if ggml is None:
        print("llama_cpp is not installed: no peer to compare with", file=sys.stderr)
    if not native.available():
        print("Puna's native code was not built: this is numpy", file=sys.stderr)

    print("type      Puna MB/s   ggml MB/s   Puna/ggml   Puna RMSE   ggml RMSE   ratio")
    for name in GGML_TYPES:
        sides: list[Callable[[], Bytes]] = [lambda n=name: STORAGE[n].quantize(x, importance)]
        if ggml is not None:
            sides.append(lambda n=name: ggml_quantize(ggml, n, x, importance))
        print(f"{name:6s}", row(name, x, importance, sides, args.bursts))


def row(
    name: str,
    x: Floats,
    importance: Floats | None,
    sides: list[Callable[[], Bytes]],
    bursts: int,
) -> str:
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(bursts):
        for side, taken in zip(sides, times, strict=True):
            begin = time.perf_counter()
            side()
            taken.append(time.perf_counter() - begin)
    speeds = [x.nbytes / statistics.median(taken) / 1e6 for taken in times]
    errors = [rmse(STORAGE[name].dequantize(side()), x, importance) for side in sides]
    if len(sides) == 1:
        return f"{speeds[0]:12.1f}{'-':>12}{'-':>12}{errors[0]:12.3e}{'-':>12}{'-':>8}"
    faster = statistics.median(b / a for a, b in zip(*times, strict=True))
    return (
        f"{speeds[0]:12.1f}{speeds[1]:12.1f}{faster:12.2f}"
        f"{errors[0]:12.3e}{errors[1]:12.3e}{errors[0] / errors[1]:8.3f}"
    )


def rmse(y: Floats, x: Floats, importance: Floats | None) -> float:
    squares = (y.astype(np.float64) - x) ** 2
    return float(np.sqrt(np.average(squares.mean(axis=0), weights=importance)))


def load_ggml() -> ctypes.CDLL | None:
    """llama-cpp-python's ggml, None where it is not installed."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    (path,) = (Path(found.origin).parent / "lib").glob("libggml-base.so")
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def ggml_quantize(library: ctypes.CDLL, name: str, x: Floats, importance: Floats | None) -> Bytes:
    out = np.empty(STORAGE[name].stored_shape(x.shape), np.uint8)
    library.ggml_quantize_chunk(
        GGML_TYPES[name],
        ctypes.c_void_p(x.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(x.shape[0]),
        ctypes.c_int64(x.shape[1]),
        None if importance is None else ctypes.c_void_p(importance.ctypes.data),
    )
    return out


if __name__ == "__main__":
    main()
