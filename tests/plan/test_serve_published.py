"""Predicted decoding beside gpt-fast's published figures, which no constant was tuned on.

Source: gpt-fast, README.md, "Benchmarks": eight A100-80GB, one sequence, a prompt of five tokens
and answers of 200; one die of an MI250X. int8 has a bf16 scale a row, int4 a bf16 scale and zero
for 32 weights, both for the head too.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from puna.config import ModelConfig, preset
from puna.plan.hardware import device
from puna.plan.serve import Setting, speed
from puna.plan.weights import Weights, weights

LLAMA3 = {"vocab_size": 128256}
MODELS = {
    "7b": preset("7b"),
    "70b": preset("70b"),
    "3.1-8b": ModelConfig(4096, 32, 32, 8, 14336, **LLAMA3),
    "3.1-70b": ModelConfig(8192, 80, 64, 8, 28672, **LLAMA3),
    "3.1-405b": ModelConfig(16384, 126, 128, 8, 53248, **LLAMA3),
}
BITS = {"bf16": 16, "int8": 8, "int4": 5}
# "Graphics memory bandwidth" of one of its two dies: AMD Instinct MI250X data sheet, 3.2 TB/s.
GCD = replace(device("mi300x"), name="mi250x-gcd", bandwidth=1638, bf16=191.5, memory=64)
A100 = device("a100-80g")
# model, format, devices, tokens/s
PUBLISHED = [
    ("7b", "bf16", 1, 104.9), ("7b", "int8", 1, 155.58), ("7b", "int4", 1, 196.80),
    ("70b", "int8", 1, 19.13), ("70b", "int4", 1, 25.25),
    ("3.1-8b", "bf16", 1, 93.89), ("3.1-8b", "int8", 1, 137.64), ("3.1-70b", "int8", 1, 18.04),
    ("7b", "bf16", 2, 168.84), ("7b", "bf16", 4, 254.02), ("7b", "bf16", 8, 328.43),
    ("70b", "bf16", 2, 21.32), ("70b", "bf16", 4, 38.01), ("70b", "bf16", 8, 62.50),
    ("3.1-8b", "bf16", 2, 149.10), ("3.1-8b", "bf16", 4, 217.21), ("3.1-8b", "bf16", 8, 276.01),
    ("3.1-70b", "bf16", 2, 16.03), ("3.1-70b", "bf16", 4, 37.45), ("3.1-70b", "bf16", 8, 58.78),
    ("70b", "int8", 8, 80.44), ("70b", "int4", 8, 90.77), ("3.1-70b", "int8", 8, 75.58),
    ("3.1-405b", "int8", 8, 15.60),
    ("7b", "bf16", 0, 76.33), ("7b", "int8", 0, 101.86),  # on the MI250X
]  # fmt: skip


def predicted(model: str, form: str, devices: int) -> float:
    config = MODELS[model]
    plain = weights(config, "bf16")
    read = round(plain.num_read * BITS[form] / 8)
    stored = Weights(form, read, read, plain.num_read, "bf16", "int8")
    row = A100 if devices else GCD
    return speed(Setting(config, stored, row, max(1, devices)), 1, context=105).each


def test_the_median_error_is_within_fifteen_percent(capsys: pytest.CaptureFixture[str]) -> None:
    errors = []
    for model, form, devices, published in PUBLISHED:
        found = predicted(model, form, devices)
        errors.append(found / published - 1)
        name = f"{devices} A100" if devices else "MI250X die"
        print(f"{model:9} {form:5} {name:11} {published:7.1f} {found:7.1f} {errors[-1]:+.1%}")
    print(f"median {statistics.median(map(abs, errors)):.1%}, worst {max(map(abs, errors)):.1%}")
    assert statistics.median(map(abs, errors)) < 0.15
    floats = [
        abs(error)
        for error, (_, form, devices, _) in zip(errors, PUBLISHED, strict=True)
        if form == "bf16" and devices
    ]
    assert statistics.median(floats) < 0.15
