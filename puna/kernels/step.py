"""The native forward step: `src/step.cpp` by ctypes. The torch network is its definition."""

from __future__ import annotations

import ctypes
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.config import ModelConfig
from puna.kernels.kv_types import KvType
from puna.kernels.lora import LowRanks, addresses
from puna.kernels.tiles import Matrix, Tiles, as_matrix, huge

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
# Temperature, top-k, top-p, min-p, a random number in [0, 1), how many ids can be chosen.
DrawFields = tuple[float, int, float, float, float, int]
_DRAW = struct.Struct("=dqdddq")
_NO_DRAW = bytes(_DRAW.size)

_NORMS = ("attention_norm", "ffn_norm")
_MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
# The inputs of a layer's matrices, and who reads them.
INPUTS = {
    "attention_order": ("attention.wq", "attention.wk", "attention.wv"),
    "wo_order": ("attention.wo",),
    "ffn_order": ("feed_forward.w1", "feed_forward.w3"),
    "w2_order": ("feed_forward.w2",),
}


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _NORMS),
        *((name, Matrix) for name in _MATRICES),
        *((name, ctypes.c_void_p) for name in INPUTS),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_layers", "dim", "num_heads", "num_kv_heads")),
        *((name, ctypes.c_int32) for name in ("head_dim", "ffn_dim", "vocab_size")),
        ("eps", ctypes.c_float),
        ("layers", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
        ("output", Matrix),
        *((name, ctypes.c_void_p) for name in ("cosines", "sines", "keys", "values")),
        ("num_pages", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("kv_type", "padding")),
        ("embeddings", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("row_bytes", "num_blocks")),
        ("dequantize", ctypes.c_void_p),
    )


# Arrays go in as bytes, the cheapest way from numpy to C.
class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_rows", "num_outputs", "num_draws")),
        *((name, ctypes.c_int32) for name in ("table_width", "num_threads", "num_hidden")),
        *((name, ctypes.c_char_p) for name in ("tokens", "positions", "sequences", "tables")),
        *((name, ctypes.c_char_p) for name in ("outputs", "draws")),
        *((name, ctypes.c_void_p) for name in ("chosen", "logits", "workspace")),
        *((name, ctypes.c_void_p) for name in ("adapters", "added")),
        ("rank", ctypes.c_int64),
        *(("hidden", ctypes.c_char_p), ("states", ctypes.c_void_p)),
    )


class Embeddings(NamedTuple):
    """Rows (V, row bytes) as the storage type `dtype` has them, in blocks of so many bytes."""

    rows: NDArray[np.uint8]
    dtype: str
    block_bytes: int


class Forward:
    """A model's weights in tiles, and the pages that its steps fill with keys and values.

    `keys` and `values` are bytes (layers, pages, KV heads, bytes) as `kv_type` has them. `tiles`
    and `norms` go by the canonical names; the tiles of a tied head by "output.weight". `orders`
    has, for matrices whose columns are not in order, which input each column is (int32); those of
    one input (`INPUTS`) have the same. Not for several threads at once.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        config: ModelConfig,
        tiles: Mapping[str, Tiles],
        norms: Mapping[str, Floats],
        embeddings: Embeddings,
        *,
        num_pages: int,
        kv_type: KvType,
        num_threads: int | None = None,
        orders: Mapping[str, Ints] | None = None,
    ) -> None:
        self._library = library
        library.puna_workspace_bytes.restype = ctypes.c_int64
        self.config = config
        self.num_pages = num_pages
        self.num_threads = num_threads or physical_cores()
        pages = (config.num_layers, num_pages, config.num_kv_heads)
        self.keys, self.values = (
            huge(math.prod(pages) * size).reshape(*pages, size)
            for size in kv_type.page_bytes(config)
        )
        cosines, sines = rotary_tables(config)
        self._orders = orders or {}
        self._kept: dict[str, Any] = {"cosines": cosines, "sines": sines}
        self._layers = (_Layer * config.num_layers)()
        for i, layer in enumerate(self._layers):
            for name, readers in INPUTS.items():
                order = self._orders.get(f"layers.{i}.{readers[0]}.weight")
                setattr(layer, name, None if order is None else order.ctypes.data)
        self._model = _Model(
            *(config.num_layers, config.dim, config.num_heads, config.num_kv_heads),
            *(config.head_dim, config.ffn_dim, config.vocab_size, config.norm_eps),
            self._layers,
            *(None, Matrix()),
            *(array.ctypes.data for array in (cosines, sines, self.keys, self.values)),
            *(num_pages, kv_type.number, 0),
        )
        self.look_up(embeddings)
        for name in {*config.tensor_shapes(), "output.weight"} - {"tok_embeddings.weight"}:
            self.replace(name, tiles[name] if name in tiles else norms[name])
        self._workspace = huge(0)

    def check_update(self, names: Iterable[str]) -> None:
        """ValueError where one is a matrix whose columns have an order of their own."""
        if fixed := self._orders.keys() & set(names):
            raise ValueError(
                f"{min(fixed)} was quantized in order of activation and cannot be updated"
            )

    def replace(self, name: str, weight: Tiles | Floats) -> None:
        """Runs with this matrix, or this norm, from now on."""
        *path, leaf, _ = name.split(".")
        owner = self._layers[int(path[1])] if path else self._model
        setattr(owner, leaf, as_matrix(weight) if isinstance(weight, Tiles) else weight.ctypes.data)
        self._kept[name] = weight

    def look_up(self, embeddings: Embeddings) -> None:
        """Has tokens embedded by these rows from now on."""
        rows = np.ascontiguousarray(embeddings.rows)
        dequantize = getattr(self._library, f"puna_dequantize_{embeddings.dtype}")
        model = self._model
        model.embeddings, model.row_bytes = rows.ctypes.data, rows.shape[1]
        model.num_blocks = rows.shape[1] // embeddings.block_bytes
        model.dequantize = ctypes.cast(dequantize, ctypes.c_void_p)
        self._kept["embeddings"] = rows

    def low_ranks(self, pairs: Mapping[str, tuple[Floats, Floats]]) -> LowRanks:
        """An adapter for the steps of this model; see `LowRanks`."""
        return LowRanks(self._library, self.config.num_layers, pairs, self._orders)

    def __call__(
        self,
        tokens: Ints,
        positions: Ints,
        sequences: Ints,
        tables: Ints,
        outputs: Ints,
        draws: Sequence[DrawFields | None],
        hidden: Ints,
        adapters: Sequence[LowRanks | None] = (),
        added: Floats | None = None,
    ) -> tuple[Ints, Floats, Floats]:
        """Tokens (L,) drawn after the rows `outputs`, logits of those that draw none, and states.

        Row r is `tokens[r]`, at `positions[r]` of the sequence whose pages are in row
        `sequences[r]` of `tables` (S, P). Its keys and values are kept there before any row
        attends. The token of an output whose place in `draws` (L,) has None is -1, and so is that
        of one whose highest logit is not finite. Logits are (L - draws, vocabulary). States
        (N, dim) are the rows `hidden` after the last norm. `adapters` has that of each sequence
        (S,), where any has one; `added` (R, dim) goes to the embeddings of those that have one.
        """
        num_draws = len(draws) - draws.count(None)
        chosen = np.empty(len(outputs), np.int32)
        logits = np.empty((len(outputs) - num_draws, self.config.vocab_size), np.float32)
        states = np.empty((len(hidden), self.config.dim), np.float32)
        arrays = (tokens, positions, sequences, tables, outputs)
        pairs = addresses(adapters) if adapters else None
        step = _Step(
            *(len(tokens), len(outputs), num_draws),
            *(tables.shape[1], self.num_threads, len(hidden)),
            *(np.asarray(array, np.int32).tobytes() for array in arrays),
            b"".join([_NO_DRAW if draw is None else _DRAW.pack(*draw) for draw in draws]),
            *(chosen.ctypes.data, logits.ctypes.data, None),
            None if pairs is None else ctypes.addressof(pairs),
            None if added is None else added.ctypes.data,
            max((adapter.rank for adapter in adapters if adapter), default=0),
            *(np.asarray(hidden, np.int32).tobytes(), states.ctypes.data),
        )
        needed = self._library.puna_workspace_bytes(ctypes.byref(self._model), ctypes.byref(step))
        if needed > self._workspace.size:
            self._workspace = huge(needed)
        step.workspace = self._workspace.ctypes.data
        self._library.puna_step(ctypes.byref(self._model), ctypes.byref(step))
        return chosen, logits, states


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
