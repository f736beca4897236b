"""The shape of a Llama: `ModelConfig` and the presets, from `tiny` to `70b`.

Sources: "Llama 2" (arXiv 2307.09288, table 1) and its released `params.json` files; "LLaMA"
(arXiv 2302.13971, table 2); "Code Llama" (arXiv 2308.12950) for `34b-gqa`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

# What a field of each annotated type accepts.
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
_MAX_NUMBER = 2**62  # what any format's integers hold
# Scalar heads that a network may have besides its own: a reward model's score and its guess whether
# an answer is safe, PPO's value.
HEADS = ("score", "safety", "value")


class ConfigError(ValueError):
    """A shape that no Llama can have; `field` of ModelConfig is what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that fixes the network's function besides its weights.

    `dim` model width, `ffn_dim` width of the gated feed-forward, `num_kv_heads` heads of keys and
    values (fewer than `num_heads` in grouped-query attention), `tied` whether the output head is
    the token embedding. Raises ConfigError for shapes that no Llama can have.
    """

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_dim: int
    vocab_size: int = 32000
    context_length: int = 4096
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tied: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if type(value) not in _KINDS[str(field.type)]:
                raise ConfigError(field.name, f"{field.name} must be {field.type}, not {value!r}")
            if field.type != "bool" and value > _MAX_NUMBER and value != float("inf"):
                raise ConfigError(field.name, f"{field.name} is not plausible: {value!r}")
            if field.type != "bool" and not 0 < value < float("inf"):
                raise ConfigError(field.name, f"{field.name} must be positive, not {value!r}")
        if self.dim % self.num_heads:
            raise ConfigError(
                "num_heads", f"dim {self.dim} does not divide into {self.num_heads} heads"
            )
        if self.head_dim % 2:
            raise ConfigError(
                "num_heads", f"head dimension {self.head_dim} is odd; rotary pairs need it even"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                "num_kv_heads",
                f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads",
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Width of all keys (or values) of one token."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Exact number of weights; a tied output head counts once."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.kv_dim
        block = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        embeddings = self.vocab_size * self.dim * (1 if self.tied else 2)
        return self.num_layers * block + embeddings + self.dim

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical (Meta's) name -> shape, in the order of a forward pass."""
        shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (self.vocab_size, self.dim)}
        for layer in range(self.num_layers):
            block = {
                "attention_norm": (self.dim,),
                "attention.wq": (self.dim, self.dim),
                "attention.wk": (self.kv_dim, self.dim),
                "attention.wv": (self.kv_dim, self.dim),
                "attention.wo": (self.dim, self.dim),
                "ffn_norm": (self.dim,),
                "feed_forward.w1": (self.ffn_dim, self.dim),
                "feed_forward.w2": (self.dim, self.ffn_dim),
                "feed_forward.w3": (self.ffn_dim, self.dim),
            }
            shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        shapes["norm.weight"] = (self.dim,)
        if not self.tied:
            shapes["output.weight"] = (self.vocab_size, self.dim)
        return shapes

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the weights of all `HEADS`, of which a model has some, mostly none."""
        return {f"{head}.weight": (1, self.dim) for head in HEADS}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; an unknown or missing key is a ValueError."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown config keys {unknown}; known are {sorted(known)}")
        required = {name for name, f in known.items() if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise ValueError(f"config lacks {missing}")
        return cls(**values)


def ffn_dim(dim: int, *, multiple_of: int = 256, multiplier: float | None = None) -> int:
    """Llama's feed-forward width: 2/3 of 4*dim, scaled, rounded up to a multiple.

    Follows Meta's reference code, whose integer truncations matter.
    """
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def _llama1(dim: int, layers: int, heads: int, ffn: int, eps: float = 1e-6) -> ModelConfig:
    return ModelConfig(dim, layers, heads, heads, ffn, context_length=2048, norm_eps=eps)


PRESETS: dict[str, ModelConfig] = {
    # Small ones, *ours*: every dimension a multiple of 256, so that every block quantization fits.
    "tiny": ModelConfig(256, 6, 8, 8, 768, vocab_size=4096, context_length=512, tied=True),
    "small": ModelConfig(512, 8, 8, 8, 1536, vocab_size=8192, context_length=1024, tied=True),
    "medium": ModelConfig(768, 12, 12, 12, 2048, context_length=2048),
    "1b": ModelConfig(2048, 22, 32, 4, 5632),
    # Llama 2.
    "7b": ModelConfig(4096, 32, 32, 32, 11008),
    "13b": ModelConfig(5120, 40, 40, 40, 13824),
    # The published table's 34B (LLaMA 1's 33B shape), and the only 34B ever released.
    "34b": ModelConfig(6656, 60, 52, 52, 17920),
    "34b-gqa": ModelConfig(8192, 48, 64, 8, 22016),
    "70b": ModelConfig(8192, 80, 64, 8, 28672),
    # LLaMA 1, the baseline.
    "llama1-7b": _llama1(4096, 32, 32, 11008),
    "llama1-13b": _llama1(5120, 40, 40, 13824),
    "llama1-33b": _llama1(6656, 60, 52, 17920),
    "llama1-65b": _llama1(8192, 80, 64, 22016, eps=1e-5),
}


def preset(name: str) -> ModelConfig:
    """The preset called `name`; ValueError lists the names there are."""
    if name not in PRESETS:
        raise ValueError(f"no preset '{name}'; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
