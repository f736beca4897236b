"""What serving a model takes: does it fit, how fast is it, how many can use it at once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from puna.config import ModelConfig
from puna.plan.cost import Rates
from puna.plan.hardware import Device, DoesNotFitError
from puna.plan.serve import (
    MEMORY_SHARE,
    Engine,
    Setting,
    Speed,
    best_batch,
    first_token_seconds,
    speed,
    users_at,
)
from puna.plan.weights import Weights, WeightsFor, kv_bytes, weights

# What is proposed to who has too little memory, from the best; None fills no row of this kind.
SMALLER = {"gpu": ("int8", "int4"), "cpu": ("f16", "q8_0", "q6_k", "q5_k", "q4_0", "q3_k", "q2_k")}
_MOST_DEVICES = 1024  # that are looked through for what would fit


@dataclass(frozen=True, slots=True)
class ServePlan:
    """`replicas` engines of `ways` devices each. Bytes are of one device, `alone` and `best` of one
    replica, `most_users` (whose full contexts fit) and `users_at_speed` of all.

    `best` is the fewest users with nearly the most tokens/s; `wanted` is what so many users as were
    asked for get, None where they do not fit, or nobody asked; `devices_wanted` how many devices
    would give them the demanded speed (None: no number would). `dollars` a million tokens.
    """

    model: ModelConfig
    format: str
    bits: float
    device: str
    devices: int
    ways: int
    replicas: int
    context: int
    prompt: int
    kv_type: str
    weight_bytes: float
    user_bytes: float
    free_bytes: float
    memory_bytes: float
    most_users: int
    first_token_seconds: float
    alone: Speed
    best: Speed
    demanded: float
    users_at_speed: int
    users: int | None
    wanted: Speed | None
    devices_wanted: int | None
    dollars: float | None

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "serve", **asdict(self)}


def plan_serve(
    config: ModelConfig,
    stored: Weights,
    device: Device,
    devices: int = 1,
    *,
    context: int | None = None,
    prompt: int | None = None,
    kv_type: str = "f16",
    ways: int | None = None,
    demanded: float = 10.0,
    users: int | None = None,
    engine: Engine | None = None,
    rates: Rates | None = None,
    weights_for: WeightsFor = weights,
) -> ServePlan:
    """The plan; `context` is the model's by default, `prompt` an eighth of it, `ways` what serves
    most users at `demanded` tokens/s each.

    Raises DoesNotFitError for what has no room, ValueError for what cannot be.
    """
    if devices < 1:
        raise ValueError(f"{devices} devices serve nobody")
    if users is not None and users < 1:
        raise ValueError(f"{users} users ask nothing")
    context = config.context_length if context is None else context
    prompt = max(1, context // 8) if prompt is None else prompt
    start = Setting(config, stored, device, 1, context, prompt, kv_type, engine)
    settings = [replace(start, ways=n) for n in _possible(config, device, devices, ways)]
    fitting = [setting for setting in settings if setting.most_users]
    if not fitting:
        raise DoesNotFitError(_too_large(settings[-1], devices, weights_for))
    setting = max(
        fitting, key=lambda s: (users_at(s, demanded) * (devices // s.ways), speed(s, 1).each)
    )
    replicas = devices // setting.ways
    best = best_batch(setting)
    assert best is not None
    share = None if users is None else -(-users // replicas)
    fits = share is not None and share <= setting.most_users
    each_replica = users_at(setting, demanded)
    needed = None
    if users is not None and each_replica:
        needed = -(-users // each_replica) * setting.ways
    dollars = None
    if rates is not None and rates.price is not None:
        dollars = rates.price * setting.ways / 3600 / best.tokens_per_second * 1e6
    return ServePlan(
        model=config,
        format=stored.name,
        bits=stored.bits,
        device=device.name,
        devices=devices,
        ways=setting.ways,
        replicas=replicas,
        context=context,
        prompt=prompt,
        kv_type=kv_type,
        weight_bytes=stored.total / setting.ways,
        user_bytes=setting.user_bytes,
        free_bytes=setting.free_bytes,
        memory_bytes=device.memory_bytes,
        most_users=setting.most_users * replicas,
        first_token_seconds=first_token_seconds(setting),
        alone=speed(setting, 1),
        best=best,
        demanded=demanded,
        users_at_speed=each_replica * replicas,
        users=users,
        wanted=speed(setting, share) if share is not None and fits else None,
        devices_wanted=needed,
        dollars=dollars,
    )


def _possible(config: ModelConfig, device: Device, devices: int, ways: int | None) -> list[int]:
    """Numbers of devices that may share each matrix, ascending; ValueError where there is none."""
    if ways is not None:
        if devices % ways or ways > device.per_node:
            raise ValueError(
                f"{ways} devices cannot share a model on {devices} in nodes of {device.per_node}; "
                "choose a divisor of the number of devices, of one node at most"
            )
        return [ways]
    return [
        n
        for n in range(1, min(devices, device.per_node) + 1)
        if devices % n == 0 and config.num_heads % n == 0 and (n == 1 or device.link)
    ]


def _too_large(setting: Setting, devices: int, weights_for: WeightsFor) -> str:
    """By how much, and what would fit: another format, a shorter context, more devices."""
    missing = setting.user_bytes - setting.free_bytes
    share = "" if setting.ways == 1 else f" (1/{setting.ways} of the weights)"
    said = (
        f"weights in {setting.weights.name} and one context of {setting.context} take "
        f"{_gb(setting.weights.total / setting.ways + setting.user_bytes)} of each "
        f"{setting.device.name}{share}, {_gb(missing)} more than "
        f"{MEMORY_SHARE:.0%} of its {_gb(setting.device.memory_bytes)}; "
    )
    advice = _advice(setting, devices, weights_for)
    return said + (" or ".join(advice) or "nothing known here would fit")


def _advice(setting: Setting, devices: int, weights_for: WeightsFor) -> list[str]:
    found = []
    for name in SMALLER[setting.device.kind]:
        try:
            smaller = replace(setting, weights=weights_for(setting.config, name))
        except ValueError:  # its blocks do not fill this model's rows
            continue
        if smaller.weights.total < setting.weights.total and smaller.most_users:
            found.append(f"--format {name}")
            break
    each = kv_bytes(setting.config, setting.kv_type) / setting.kv_ways
    context = math.floor(setting.free_bytes / each)
    if context >= 256:
        found.append(f"--context {context // 256 * 256}")
    if setting.device.link:
        limit = min(setting.device.per_node, _MOST_DEVICES)
        for ways in range(setting.ways + 1, limit + 1):
            if setting.config.num_heads % ways == 0 and replace(setting, ways=ways).most_users:
                found.append(f"--gpus {max(ways, -(-devices // ways) * ways)}")
                break
    return [f"{advice} fits" for advice in found]


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
