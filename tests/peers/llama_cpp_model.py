"""llama.cpp through llama-cpp-python: logits, greedy ids and its quantizer, as plain functions."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


class Model:
    """One GGUF file open in llama.cpp, on one thread, its cache in F32."""

    def __init__(self, path: Path, context: int = 512) -> None:
        self.llama = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_threads=1,
            n_threads_batch=1,
            type_k=0,
            type_v=0,
            logits_all=True,
            verbose=False,
        )

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(tokens, vocabulary): the logits that follow each token."""
        self.llama.reset()
        self.llama.eval(tokens)
        return self.llama.scores[: len(tokens)].copy()

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """The `count` likeliest continuations, one at a time."""
        out = list(tokens)
        self.llama.reset()
        self.llama.eval(tokens)
        for _ in range(count):
            out.append(int(self.llama.scores[self.llama.n_tokens - 1].argmax()))
            self.llama.eval(out[-1:])
        return out[len(tokens) :]


def quantize(source: Path, destination: Path, file_type: int, **settings: Any) -> None:
    """`llama_model_quantize` to a file type of llama.h; AssertionError if it refuses."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 1
    for key, value in settings.items():
        setattr(params, key, value)
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(destination).encode(), ctypes.byref(params)
    )
    assert code == 0
