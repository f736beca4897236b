"""How fast a model answers on some devices, and how many people at once.

A step of decoding reads all weights once, and the keys and values of each sequence; it multiplies
each token with all weights; each layer costs a fixed time besides, and with tensor parallelism two
all-reduces. The longer of reading and multiplying counts. A prompt is multiplied at once. The test
`tests/plan/test_serve_published.py` holds this against gpt-fast's published figures, on which no
constant here was tuned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from puna.config import ModelConfig
from puna.plan.counts import forward_flops
from puna.plan.hardware import Cluster, Device
from puna.plan.network import Group
from puna.plan.weights import Weights, kv_bytes

# Of a device's memory, what weights, keys and values may take: vLLM's default.
MEMORY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine makes of a device: shares of its bandwidth and of its best rate of products,
    and seconds that each layer, and each step, costs besides."""

    bandwidth_share: float
    product_share: float
    layer_seconds: float
    step_seconds: float


# Source of the first two: MLC LLM in sh1ng/llm-perf-bench, tokens/s of one sequence. HBM: two
# A100-PCIe at 1935 GB/s give Llama 2 70B 17.0 in fp16 and 40.9 in 4.5 bits; the bytes between take
# 1436 GB/s. GDDR, and the seconds of a layer: Llama 2 7B and 13B in 4.5 bits, 204.8 and 113.5 on an
# RTX 4090, 186.7 and 107.4 on a 3090 Ti, give 0.95 and 0.98, 30 and 50 microseconds. Products: an
# H200 multiplies bf16 at 0.78 to 0.81 of its best, and attention and norms are slower (*ours*).
# A CPU's are *ours*: `puna plan calibrate` measures a machine's own.
ENGINES: dict[str, Engine] = {
    "hbm": Engine(0.74, 0.75, 40e-6, 0.0),
    "gddr": Engine(0.95, 0.75, 40e-6, 0.0),
    "cpu": Engine(0.90, 0.50, 5e-6, 50e-6),
}
_HBM = 1200  # GB/s, which no device with another memory reaches


def engine_of(device: Device) -> Engine:
    """What is known of engines on such devices."""
    if device.kind == "cpu":
        return ENGINES["cpu"]
    return ENGINES["hbm" if device.bandwidth >= _HBM else "gddr"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is served: weights as stored, keys and values as `kv_type`, `context` positions a user,
    `prompt` of which are read before the answer; on `ways` devices that share each matrix."""

    config: ModelConfig
    weights: Weights
    device: Device
    ways: int = 1
    context: int = 4096
    prompt: int = 512
    kv_type: str = "f16"
    engine: Engine | None = None

    def __post_init__(self) -> None:
        heads = self.config.num_heads
        if self.ways < 1 or heads % self.ways:
            raise ValueError(f"{heads} heads do not divide among {self.ways} devices")
        if self.ways > 1 and not self.device.link:
            raise ValueError(f"{self.device.name} has no link to others; use one device")
        if not 1 <= self.context <= self.config.context_length:
            raise ValueError(
                f"a context of {self.context} positions is none of this model's, which was trained "
                f"for up to {self.config.context_length}"
            )
        if not 1 <= self.prompt <= self.context:
            raise ValueError(
                f"a prompt of {self.prompt} tokens does not fit a context of {self.context}"
            )

    @property
    def runs(self) -> Engine:
        return self.engine or engine_of(self.device)

    @property
    def kv_ways(self) -> int:
        """Devices that share the keys and values; of fewer heads, some hold the same."""
        return math.gcd(self.ways, self.config.num_kv_heads)

    @property
    def user_bytes(self) -> float:
        """Bytes of a user's keys and values on each device, when the context is full."""
        return self.context * kv_bytes(self.config, self.kv_type) / self.kv_ways

    @property
    def free_bytes(self) -> float:
        """Bytes of each device for keys and values; negative where the weights do not fit."""
        return MEMORY_SHARE * self.device.memory_bytes - self.weights.total / self.ways

    @property
    def most_users(self) -> int:
        """Whose full contexts fit beside the weights."""
        return max(0, math.floor(self.free_bytes / self.user_bytes))

    @property
    def product_rate(self) -> float:
        """FLOP/s that products reach on one device."""
        on_cpu = self.device.kind == "cpu"
        kinds = (self.weights.cpu_product if on_cpu else self.weights.product, "bf16", "fp32")
        rates = (getattr(self.device, kind) for kind in kinds)
        best = next((rate for rate in rates if rate), 0.0)
        if not best:
            raise ValueError(f"nothing is known of how fast {self.device.name} multiplies")
        return best * 1e12 * self.runs.product_share


def step_seconds(setting: Setting, users: int, context: float | None = None) -> float:
    """Of a step that gives each of `users` sequences, `context` long (None: full), a token."""
    config, engine = setting.config, setting.runs
    context = setting.context if context is None else context
    keys = users * context * kv_bytes(config, setting.kv_type) / setting.kv_ways
    read = setting.weights.read / setting.ways + keys
    reading = read / (setting.device.bandwidth * 1e9 * engine.bandwidth_share)
    flops = users * forward_flops(config, context) / setting.ways
    multiplying = flops / setting.product_rate
    return max(reading, multiplying) + _overheads(setting, users)


def first_token_seconds(setting: Setting) -> float:
    """Of reading a user's prompt, alone."""
    config, tokens = setting.config, setting.prompt
    head = 2 * config.vocab_size * config.dim  # of the last position alone
    flops = tokens * (forward_flops(config, tokens / 2) - head) + head
    multiplying = flops / setting.ways / setting.product_rate
    rate = setting.device.bandwidth * 1e9 * setting.runs.bandwidth_share
    reading = setting.weights.read / setting.ways / rate
    return max(reading, multiplying) + _overheads(setting, tokens)


def _overheads(setting: Setting, rows: int) -> float:
    """Of a step over so many rows: what layers cost besides, and their all-reduces."""
    config, engine = setting.config, setting.runs
    node = Cluster(setting.device, setting.ways, per_node=setting.ways)
    reduces = 2 * Group(node, setting.ways, 1).sum(2 * rows * config.dim)
    return engine.step_seconds + config.num_layers * (engine.layer_seconds + reduces)


@dataclass(frozen=True, slots=True)
class Speed:
    """Of `users` at once with full contexts: tokens/s of all and of each."""

    users: int
    tokens_per_second: float
    each: float

    @property
    def token_seconds(self) -> float:
        return 1 / self.each


def speed(setting: Setting, users: int, context: float | None = None) -> Speed:
    """How fast so many users are answered at once, whether they fit or not."""
    if users < 1:
        raise ValueError(f"{users} users ask nothing")
    seconds = step_seconds(setting, users, context)
    return Speed(users, users / seconds, 1 / seconds)


def best_batch(setting: Setting, gain: float = 0.05) -> Speed | None:
    """The fewest users whose tokens/s together are within `gain` of the most that fit; None where
    none fits."""
    if not setting.most_users:
        return None
    goal = speed(setting, setting.most_users).tokens_per_second * (1 - gain)
    least = _first(1, setting.most_users, lambda n: speed(setting, n).tokens_per_second >= goal)
    return speed(setting, least)


def users_at(setting: Setting, each: float) -> int:
    """The most users that fit and each get `each` tokens a second; 0 where not even one does."""
    if not each > 0:
        raise ValueError(f"a speed of {each:g} tokens a second is none")
    most = setting.most_users
    if not most or speed(setting, 1).each < each:
        return 0
    too_slow = _first(1, most + 1, lambda n: n > most or speed(setting, n).each < each)
    return too_slow - 1


def _first(low: int, high: int, holds: Any) -> int:
    """The least of low ... high for which `holds`, which it does for `high` and all above one."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
