"""The native forward step: `src/step.cpp` by ctypes. The torch network is its definition."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.config import ModelConfig
from puna.kernels.tiles import ROWS, Tiles, huge

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
# Temperature, top-k, top-p, min-p, a random number in [0, 1), how many ids can be chosen.
DrawFields = tuple[float, int, float, float, float, int]
_DRAW = struct.Struct("=dqdddq")
_NO_DRAW = bytes(_DRAW.size)

PAGE_SIZE = ROWS  # positions of a page of keys and values


_NORMS = ("attention_norm", "ffn_norm")
_MATRICES = {"attention": ("wq", "wk", "wv", "wo"), "feed_forward": ("w1", "w2", "w3")}
# The inputs of a layer's matrices, and who reads them.
INPUTS = {
    "attention_order": ("attention.wq", "attention.wk", "attention.wv"),
    "wo_order": ("attention.wo",),
    "ffn_order": ("feed_forward.w1", "feed_forward.w3"),
    "w2_order": ("feed_forward.w2",),
}


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("tiles", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("kind", "rows", "columns", "padding")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _NORMS),
        *((name, _Matrix) for names in _MATRICES.values() for name in names),
        *((name, ctypes.c_void_p) for name in INPUTS),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_layers", "dim", "num_heads", "num_kv_heads")),
        *((name, ctypes.c_int32) for name in ("head_dim", "ffn_dim", "vocab_size")),
        ("eps", ctypes.c_float),
        ("layers", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
        ("output", _Matrix),
        *((name, ctypes.c_void_p) for name in ("cosines", "sines", "keys", "values")),
        ("num_pages", ctypes.c_int64),
        ("embeddings", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("row_bytes", "num_blocks")),
        ("dequantize", ctypes.c_void_p),
    )


# Arrays go in as bytes, the cheapest way from numpy to C.
class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_rows", "num_outputs", "num_draws")),
        *((name, ctypes.c_int32) for name in ("table_width", "num_threads", "padding")),
        *((name, ctypes.c_char_p) for name in ("tokens", "positions", "sequences", "tables")),
        *((name, ctypes.c_char_p) for name in ("outputs", "draws")),
        *((name, ctypes.c_void_p) for name in ("chosen", "logits", "workspace")),
    )


class Forward:
    """A model's weights in tiles, and the pages of keys and values that its steps fill.

    `tiles` and `norms` go by the canonical names; the tiles of a tied head by "output.weight".
    `orders` has, for matrices whose columns are not in order, which input each column is (int32);
    those of one input (`INPUTS`) have the same. `embeddings` are rows as stored (V, row bytes), in
    blocks of so many bytes of that type. Not for several threads at once.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        config: ModelConfig,
        tiles: Mapping[str, Tiles],
        norms: Mapping[str, Floats],
        embeddings: NDArray[np.uint8],
        embedding_type: str,
        block_bytes: int,
        *,
        num_pages: int,
        num_threads: int | None = None,
        orders: Mapping[str, Ints] | None = None,
    ) -> None:
        self._library = library
        library.puna_workspace_bytes.restype = ctypes.c_int64
        self.config = config
        self.num_pages = num_pages
        self.num_threads = num_threads or physical_cores()
        head_stride = -(-config.head_dim // ROWS) * ROWS
        pages = (config.num_layers, num_pages, config.num_kv_heads)
        self.keys = _zeros((*pages, config.head_dim, PAGE_SIZE))
        self.values = _zeros((*pages, PAGE_SIZE, head_stride))
        cosines, sines = rotary_tables(config)
        orders = orders or {}
        embeddings = np.ascontiguousarray(embeddings)
        self._kept: list[Any] = [tiles, norms, cosines, sines, orders, embeddings]
        layers = (_Layer * config.num_layers)()
        for i, layer in enumerate(layers):
            for name in _NORMS:
                setattr(layer, name, norms[f"layers.{i}.{name}.weight"].ctypes.data)
            for part, names in _MATRICES.items():
                for name in names:
                    setattr(layer, name, _matrix(tiles[f"layers.{i}.{part}.{name}.weight"]))
            for name, readers in INPUTS.items():
                order = orders.get(f"layers.{i}.{readers[0]}.weight")
                setattr(layer, name, None if order is None else order.ctypes.data)
        self._model = _Model(
            *(config.num_layers, config.dim, config.num_heads, config.num_kv_heads),
            *(config.head_dim, config.ffn_dim, config.vocab_size, config.norm_eps),
            layers,
            norms["norm.weight"].ctypes.data,
            _matrix(tiles["output.weight"]),
            *(array.ctypes.data for array in (cosines, sines, self.keys, self.values)),
            num_pages,
            embeddings.ctypes.data,
            embeddings.shape[1],
            embeddings.shape[1] // block_bytes,
            ctypes.cast(getattr(library, f"puna_dequantize_{embedding_type}"), ctypes.c_void_p),
        )
        self._workspace = huge(0)

    def __call__(
        self,
        tokens: Ints,
        positions: Ints,
        sequences: Ints,
        tables: Ints,
        outputs: Ints,
        draws: Sequence[DrawFields | None],
    ) -> tuple[Ints, Floats]:
        """Tokens (L,) drawn after the rows `outputs`, and logits of those that draw none.

        Row r is `tokens[r]`, at `positions[r]` of the sequence whose pages are in row
        `sequences[r]` of `tables` (S, P). Its keys and values are kept there before any row
        attends. The token of an output whose place in `draws` (L,) has None is -1, and so is that
        of one whose highest logit is not finite. Logits are (L - draws, vocabulary).
        """
        num_draws = len(draws) - draws.count(None)
        chosen = np.empty(len(outputs), np.int32)
        logits = np.empty((len(outputs) - num_draws, self.config.vocab_size), np.float32)
        arrays = (tokens, positions, sequences, tables, outputs)
        step = _Step(
            *(len(tokens), len(outputs), num_draws, tables.shape[1], self.num_threads, 0),
            *(np.asarray(array, np.int32).tobytes() for array in arrays),
            b"".join([_NO_DRAW if draw is None else _DRAW.pack(*draw) for draw in draws]),
            *(chosen.ctypes.data, logits.ctypes.data, None),
        )
        needed = self._library.puna_workspace_bytes(ctypes.byref(self._model), ctypes.byref(step))
        if needed > self._workspace.size:
            self._workspace = huge(needed)
        step.workspace = self._workspace.ctypes.data
        self._library.puna_step(ctypes.byref(self._model), ctypes.byref(step))
        return chosen, logits


def choose(library: ctypes.CDLL, logits: Floats, draw: DrawFields) -> int:
    """The token that a step would draw from these logits (V,), -1 where it finds none."""
    row = np.ascontiguousarray(logits, np.float32)
    token: int = library.puna_choose(ctypes.c_void_p(row.ctypes.data), _DRAW.pack(*draw))
    return token


def rotary_tables(config: ModelConfig) -> tuple[Floats, Floats]:
    """Cosines and sines (context, head_dim / 2) of the rotary embedding (arXiv 2104.09864)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = np.arange(config.context_length, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def physical_cores() -> int:
    """Cores that this process may use, those that share one counted once."""
    usable = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


def _matrix(tiles: Tiles) -> _Matrix:
    return _Matrix(tiles.data.ctypes.data, tiles.kind, tiles.rows, tiles.columns, 0)


def _zeros(shape: tuple[int, ...]) -> Floats:
    size = int(np.prod(shape)) * 4
    return huge(size).view(np.float32).reshape(shape)
