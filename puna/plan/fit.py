"""What the devices at hand can run, serve and train: every preset in every format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from puna.config import PRESETS, ModelConfig
from puna.plan.counts import flops_per_token
from puna.plan.hardware import Device, DoesNotFitError
from puna.plan.serve import Engine
from puna.plan.serve_plan import plan_serve
from puna.plan.weights import Weights, WeightsFor, weights

# What is tried, from the best: what a GPU's engine holds, and a CPU's.
FORMATS = {
    "gpu": ("bf16", "int8", "int4"),
    "cpu": ("f16", "q8_0", "q6_k", "q4_k", "q4_0", "q2_k"),
}
# Bytes a parameter of fp32 weights, gradients and both moments; activations come on top.
_TRAINING_BYTES = 16
# Of those, what activations may add: *ours*, for a window a device with layers recomputed.
_ACTIVATIONS = 1.25
# Of its best rate of products, what training reaches: a GPU in bf16 about the paper's MFU, a CPU
# about what plain torch does in fp32. Both *ours*.
_TRAINING_SHARE = {"gpu": 0.4, "cpu": 0.4}

EngineFor = Callable[[ModelConfig, Weights], Engine | None]


@dataclass(frozen=True, slots=True)
class Fit:
    """A model on the devices: `format` the best that fits one context (None: none does);
    `each` tokens/s alone, `users` whose contexts fit; `training` tokens/s, None where the state of
    training does not fit."""

    model: str
    parameters: int
    format: str | None
    weight_bytes: float | None
    each: float | None
    first_token_seconds: float | None
    users: int
    training: float | None


def fit(
    device: Device,
    devices: int = 1,
    models: Iterable[str] = tuple(PRESETS),
    formats: Iterable[str] | None = None,
    engine_for: EngineFor = lambda config, stored: None,
    context: int | None = None,
    weights_for: WeightsFor = weights,
) -> list[Fit]:
    """A row for each model and each format; one row, without a format, where none fits.

    ValueError for a format that `weights_for` does not know.
    """
    rows = []
    for model in models:
        config = PRESETS[model]
        found = []
        for form in FORMATS[device.kind] if formats is None else formats:
            try:
                stored = weights_for(config, form)
                plan = plan_serve(
                    config,
                    stored,
                    device,
                    devices,
                    context=None if context is None else min(context, config.context_length),
                    engine=engine_for(config, stored),
                )
            except DoesNotFitError:
                continue
            found.append(
                Fit(
                    model,
                    config.num_parameters,
                    form,
                    stored.total,
                    plan.alone.each,
                    plan.first_token_seconds,
                    plan.most_users,
                    training_speed(config, device, devices),
                )
            )
        training = training_speed(config, device, devices)
        nothing = Fit(model, config.num_parameters, None, None, None, None, 0, training)
        rows += found or [nothing]
    return rows


def training_speed(config: ModelConfig, device: Device, devices: int) -> float | None:
    """Tokens/s of pretraining, roughly; None where its state does not fit the devices together."""
    needed = _TRAINING_BYTES * config.num_parameters * _ACTIVATIONS
    if needed > 0.9 * device.memory_bytes * devices:
        return None
    rate = (device.bf16 or device.fp32) * 1e12 * _TRAINING_SHARE[device.kind]
    return rate * devices / flops_per_token(config)
