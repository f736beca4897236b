"""Bytes of a model's weights by how they are stored, and of its keys and values.

The room below `quantize` cannot ask it; a test holds this table against its tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from puna.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Storage:
    """`block` neighbours in a row share `block_bytes` bytes; with `block` 0 a row takes a byte a
    number, and `block_bytes` more. `product` is what a GPU multiplies it in, `cpu_product` a CPU.
    """

    name: str
    block: int
    block_bytes: int
    product: str = "bf16"
    cpu_product: str = "int8"

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor; ValueError where blocks do not fill its rows."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        if not self.block:
            return rows * (columns + self.block_bytes)
        if columns % self.block:
            raise ValueError(
                f"{self.name} needs rows in multiples of {self.block}, not {columns}; "
                "choose f16 or a format of smaller blocks"
            )
        return rows * (columns // self.block) * self.block_bytes


STORAGE: dict[str, Storage] = {
    row.name: row
    for row in (
        Storage("f32", 1, 4, "fp32", "fp32"),
        Storage("f16", 1, 2, "bf16", "fp32"),
        Storage("bf16", 1, 2, "bf16", "fp32"),
        # Blocks of GGML's files.
        Storage("q4_0", 32, 18),
        Storage("q4_1", 32, 20),
        Storage("q5_0", 32, 22),
        Storage("q5_1", 32, 24),
        Storage("q8_0", 32, 34),
        Storage("q2_k", 256, 84),
        Storage("q3_k", 256, 110),
        Storage("q4_k", 256, 144),
        Storage("q5_k", 256, 176),
        Storage("q6_k", 256, 210),
        # What a GPU runs: a scale of two bytes and a zero of one for each group (int4) or row.
        Storage("int4", 128, 67),
        Storage("int8", 0, 3),
        # A float32 scale a row; fp8_dynamic rounds activations too, and multiplies in fp8.
        Storage("fp8", 0, 4),
        Storage("fp8_dynamic", 0, 4, "fp8"),
    )
}
# Those that leave embedding and head in bf16.
IN_BLOCKS = ("int4", "int8", "fp8", "fp8_dynamic")
# Bytes of a number, and of the scale that a head's numbers share at a position.
KV_TYPES: dict[str, tuple[int, int]] = {"f32": (4, 0), "f16": (2, 0), "int8": (1, 2)}


@dataclass(frozen=True, slots=True)
class Weights:
    """`total` bytes of all, `read` of those that a token's step reads, `num_read` how many they
    are; `product` and `cpu_product` as `Storage` has them."""

    name: str
    total: int
    read: int
    num_read: int
    product: str
    cpu_product: str

    @property
    def bits(self) -> float:
        """Bits a weight of those that are read."""
        return 8 * self.read / self.num_read


def types_of(config: ModelConfig, name: str) -> dict[str, str]:
    """Matrix -> its storage, where one is for all; ValueError lists the names there are."""
    if name not in STORAGE:
        raise ValueError(f"no format '{name}'; there are: {', '.join(STORAGE)}")
    matrices = [tensor for tensor, shape in config.tensor_shapes().items() if len(shape) > 1]
    if name not in IN_BLOCKS:
        return dict.fromkeys(matrices, name)
    return {m: name if m.startswith("layers.") else "bf16" for m in matrices}


def weights(config: ModelConfig, name: str, types: Mapping[str, str] | None = None) -> Weights:
    """Of a model stored as `name`; `types` says what that is for each matrix, where it is a mix.

    Norms are float32. An embedding that is no head is not read: rows are looked up.
    """
    types = types_of(config, name) if types is None else types
    shapes = config.tensor_shapes()
    sizes = {t: STORAGE[types.get(t, "f32")].num_bytes(shape) for t, shape in shapes.items()}
    looked_up = 0 if config.tied else sizes["tok_embeddings.weight"]
    num_looked_up = 0 if config.tied else math.prod(shapes["tok_embeddings.weight"])
    total = sum(sizes.values())
    main = STORAGE[types["layers.0.feed_forward.w1.weight"]]
    return Weights(
        name,
        total,
        total - looked_up,
        config.num_parameters - num_looked_up,
        main.product,
        main.cpu_product,
    )


# What a model is stored as by a format's name: `weights`, or what knows `quantize`'s mixes too.
WeightsFor = Callable[[ModelConfig, str], Weights]


def kv_bytes(config: ModelConfig, kv_type: str = "f16") -> int:
    """Bytes of the keys and values of one position; ValueError lists the types there are."""
    if kv_type not in KV_TYPES:
        raise ValueError(
            f"no type of keys and values '{kv_type}'; there are: {', '.join(KV_TYPES)}"
        )
    size, scale = KV_TYPES[kv_type]
    return 2 * config.num_layers * config.num_kv_heads * (config.head_dim * size + scale)
