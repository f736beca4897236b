"""Whether a model fits this machine's memory: said before it is read."""

from __future__ import annotations

import os
from pathlib import Path

from puna.config import ModelConfig
from puna.formats.checkpoint import Checkpoint
from puna.kernels.kv_types import KV_TYPES, PAGE_SIZE
from puna.quantize.mixes import storage_types
from puna.quantize.storage import STORAGE

# What is proposed to who has too little memory, from the best.
_SMALLER = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
_CONTEXTS = 8  # whose keys and values are held, where there is memory for so many
_SHARE = 4  # one part in so many of the free memory


def free_memory() -> int | None:
    """Bytes that this process may still take, None where the system does not tell."""
    limits = []
    if Path("/proc/meminfo").exists():
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # A container's own limit (cgroup v2).
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists():
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            limits.append(int(most) - int((group / "memory.current").read_text()))
    return min(limits, default=None)


def chosen_kv_dtype(kv_dtype: str, checkpoint: Checkpoint, dtype: str | None) -> str:
    """The type of keys and values, of `KV_TYPES`; ValueError for one that there is not.

    "auto" is f32 beside matrices in float32 (as stored, or converted to `dtype`), so that a step
    gives the network's logits to 1e-5. Else it is f16, which rounds less than the weights do.
    """
    if kv_dtype not in ("auto", *KV_TYPES):
        raise ValueError(f"no kv_dtype {kv_dtype!r}; there are: auto, {', '.join(KV_TYPES)}")
    if kv_dtype != "auto":
        return kv_dtype
    matrices = {dtype or t.dtype for t in checkpoint.tensors.values() if len(t.shape) > 1}
    return "f32" if matrices == {"f32"} else "f16"


def kv_bytes(config: ModelConfig, num_tokens: int, kv_dtype: str) -> int:
    """Bytes of keys and values of so many tokens, kept as `kv_dtype` (of `KV_TYPES`)."""
    page = sum(KV_TYPES[kv_dtype].page_bytes(config))
    return config.num_layers * config.num_kv_heads * page * num_tokens // PAGE_SIZE


def plan_kv_tokens(
    checkpoint: Checkpoint,
    weight_bytes: int,
    free: int | None,
    wanted: int | None,
    kv_dtype: str,
) -> int:
    """For how many tokens keys and values are held: `wanted`, or what suits the free memory.

    Raises ValueError, with the numbers and what would fit, where weights and keys and values (of
    one context, if nothing is wanted) are more than is free.
    """
    config = checkpoint.config
    least = config.context_length if wanted is None else wanted
    needed = weight_bytes + kv_bytes(config, least, kv_dtype)
    if free is not None and needed > free:
        raise ValueError(
            f"{checkpoint.path} takes {_readable(weight_bytes)} of memory for its weights and "
            f"{_readable(needed - weight_bytes)} for keys and values of {least} tokens in "
            f"{kv_dtype}; {_readable(free)} are free. "
            f"{_advice(config, weight_bytes, free, least, kv_dtype)}"
        )
    if wanted is not None:
        return wanted
    most = _CONTEXTS * least
    if free is None:
        return most
    affordable = (free - weight_bytes) // _SHARE // kv_bytes(config, 1, kv_dtype)
    return max(least, min(most, affordable))


def _advice(
    config: ModelConfig, weight_bytes: int, free: int, num_tokens: int, kv_dtype: str
) -> str:
    needed = {name: kv_bytes(config, num_tokens, name) for name in KV_TYPES}
    for name, size in needed.items():
        if size < needed[kv_dtype] and weight_bytes + size <= free:
            return f"--kv-dtype {name} makes {_readable(size)} of keys and values, which fits"
    for name in _SMALLER:
        size = quantized_bytes(config, name)
        if size < weight_bytes and size + needed[kv_dtype] <= free:
            return f"puna quantize --to {name} makes {_readable(size)} of the weights, which fits"
    if weight_bytes + kv_bytes(config, 1, kv_dtype) < free:
        return "Hold fewer tokens (kv_tokens)"
    return "No quantization would fit"


def quantized_bytes(config: ModelConfig, name: str) -> int:
    """Bytes of the weights with matrices stored as the type or mix `name`."""
    dtypes, _ = storage_types(config, name)
    return sum(
        STORAGE[dtypes.get(tensor, "f32")].num_bytes(shape)
        for tensor, shape in config.tensor_shapes().items()
    )


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
