"""Which storage type each tensor of a file gets: one for all, or llama.cpp's mixes (`q4_k_m`, ...).

A mix gives more bits to the tensors that need them most: the output head, the values, the
feed-forward's last matrix. The rules are those of llama.cpp's `llama-quant.cpp`, so that a name
means the same file there and here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from puna.config import ModelConfig
from puna.quantize.storage import STORAGE, storage_type


@dataclass(frozen=True, slots=True)
class _Place:
    """What a rule may ask about the layer it decides for."""

    layer: int
    num_layers: int
    queries_per_kv: int

    @property
    def early(self) -> bool:
        return self.layer < self.num_layers // 8

    @property
    def sensitive(self) -> bool:
        """The first and last eighth of the layers, and every third between."""
        eighth = self.num_layers // 8
        late = self.layer >= 7 * self.num_layers // 8
        return self.early or late or (self.layer - eighth) % 3 == 2


_Rule = Callable[[_Place], str | None]


@dataclass(frozen=True, slots=True)
class Mix:
    """`base` for every matrix; `rules` by part of a layer (None: the base) for those with more."""

    base: str
    rules: dict[str, _Rule] = field(default_factory=dict)
    with_importance: dict[str, _Rule] = field(default_factory=dict)


def _always(dtype: str) -> _Rule:
    return lambda place: dtype


_MORE_BITS: dict[str, _Rule] = {
    part: lambda place: "q6_k" if place.sensitive else None for part in ("wv", "w2")
}

MIXES: dict[str, Mix] = {
    "q4_0": Mix("q4_0", with_importance={"w2": lambda p: "q4_1" if p.early else None}),
    "q4_1": Mix("q4_1"),
    "q5_0": Mix("q5_0", with_importance={"w2": lambda p: "q5_1" if p.early else None}),
    "q5_1": Mix("q5_1"),
    "q8_0": Mix("q8_0"),
    "q2_k": Mix(
        "q2_k",
        {
            "wv": lambda p: "q4_k" if p.queries_per_kv >= 4 else "q3_k",
            "wo": _always("q3_k"),
            "w2": _always("q3_k"),
        },
    ),
    "q2_k_s": Mix(
        "q2_k",
        {
            "wv": lambda p: "q4_k" if p.queries_per_kv >= 4 else None,
            "w2": lambda p: "q4_k" if p.early else None,
        },
    ),
    "q3_k_s": Mix("q3_k"),
    "q3_k_m": Mix(
        "q3_k",
        {
            "wv": lambda p: "q5_k" if p.layer < 2 else "q4_k",
            "wo": _always("q4_k"),
            "w2": lambda p: "q5_k" if p.layer < p.num_layers // 16 else "q4_k",
        },
    ),
    "q3_k_l": Mix("q3_k", dict.fromkeys(("wv", "wo", "w2"), _always("q5_k"))),
    "q4_k_s": Mix(
        "q4_k",
        {
            "wv": lambda p: "q5_k" if p.layer < 4 else None,
            "w2": lambda p: "q5_k" if p.early else None,
        },
    ),
    "q4_k_m": Mix("q4_k", _MORE_BITS),
    "q5_k_s": Mix("q5_k"),
    "q5_k_m": Mix("q5_k", _MORE_BITS),
    "q6_k": Mix("q6_k"),
}
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
FLOATS = ("f32", "f16", "bf16")
# Every name that `storage_types` takes.
NAMES = (*FLOATS, *MIXES, *ALIASES)

# Where a row is no multiple of a type's block: the next of smaller blocks, at last f16.
_FALLBACKS = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_LAST_FALLBACK = "f16"


def mix_name(name: str) -> str:
    """`name` without aliases; ValueError lists the names there are."""
    name = ALIASES.get(name, name)
    if name not in MIXES and name not in FLOATS:
        raise ValueError(f"no storage or mix '{name}'; there are: {', '.join(NAMES)}")
    return name


def storage_types(
    config: ModelConfig, name: str, *, pure: bool = False, importance: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Canonical name of each matrix -> its storage type, and a note for each fallback.

    `name` is a float type or a mix; `pure` gives every matrix the mix's base type; `importance`
    says whether columns are weighted, with which two mixes guard the first layers.
    """
    dtypes: dict[str, str] = {}
    fallbacks: Counter[tuple[str, str, int]] = Counter()
    for tensor, shape in config.tensor_shapes().items():
        if len(shape) == 1:
            continue
        wanted = _wanted(config, tensor, name, pure, importance)
        dtypes[tensor] = _fitting(wanted, shape[-1])
        if dtypes[tensor] != wanted:
            fallbacks[wanted, dtypes[tensor], shape[-1]] += 1
    notes = [
        f"{count} tensors have rows of {columns} numbers, which {wanted}'s blocks do not fill; "
        f"stored as {got}"
        for (wanted, got, columns), count in fallbacks.items()
    ]
    return dtypes, notes


def _wanted(config: ModelConfig, tensor: str, name: str, pure: bool, importance: bool) -> str:
    name = mix_name(name)
    if name in FLOATS:
        return name
    mix = MIXES[name]
    if pure:
        return mix.base
    part = tensor.removesuffix(".weight").rpartition(".")[2]
    if part == "output" or (part == "tok_embeddings" and config.tied):
        fits = config.dim % storage_type(mix.base).block_size == 0
        return "q8_0" if mix.base == "q8_0" or not fits else "q6_k"
    rule = mix.rules.get(part) or (mix.with_importance.get(part) if importance else None)
    if rule is None:
        wanted = mix.base
    else:
        place = _Place(
            int(tensor.split(".")[1]), config.num_layers, config.num_heads // config.num_kv_heads
        )
        wanted = rule(place) or mix.base
    # Of Llama 2 70B, whose eight key/value heads make this matrix an eighth of the queries'.
    if part == "wv" and _is_70b(config) and wanted in ("q3_k", "q4_k"):
        return "q5_k"
    return wanted


def _is_70b(config: ModelConfig) -> bool:
    return config.num_layers == 80 and config.num_heads != config.num_kv_heads


def _fitting(dtype: str, row_length: int) -> str:
    """`dtype`, or what llama.cpp stores rows of this length as instead."""
    if row_length % STORAGE[dtype].block_size == 0:
        return dtype
    smaller = _FALLBACKS.get(dtype, _LAST_FALLBACK)
    return smaller if row_length % STORAGE[smaller].block_size == 0 else _LAST_FALLBACK
