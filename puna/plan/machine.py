"""What `puna plan calibrate` measured of a machine, as a device that plans use: `--gpu this`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puna.config import ModelConfig
from puna.plan.hardware import Device
from puna.plan.serve import Engine
from puna.plan.weights import Weights

THIS = "this"
FILE = "machine.json"
_VERSION = 1
# Parameters below which the engine runs on one thread; a test holds it against the engine's.
SMALL_MODEL = 50_000_000
_WATTS_A_CORE = 10.0  # *ours*: nothing here can measure it


@dataclass(frozen=True, slots=True)
class Pace:
    """The native step on so many threads.

    `bandwidth` bytes/s that as many threads just read from memory, `cache_bandwidth` from the
    cache; by format of the weights, as shares of these, how fast a step reads weights that lie in
    memory (`streamed`) and in the cache (`cached`). A layer and a step cost `layer_seconds` and
    `step_seconds` besides.
    """

    bandwidth: float
    cache_bandwidth: float
    cached: dict[str, float]
    streamed: dict[str, float]
    layer_seconds: float
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Machine:
    """`memory` bytes that are there, `cache` bytes of the last cache; FLOP/s of products in
    float32, and of blocks by the native step; `paces` by number of threads, 1 and `cores`;
    `all_reduce` bytes/s between two processes (None: not measured).
    """

    name: str
    cores: int
    memory: float
    cache: float
    fp32: float
    int8: float
    paces: dict[int, Pace]
    all_reduce: float | None = None
    measured: str = ""

    @property
    def device(self) -> Device:
        """The row of this machine."""
        return Device(
            name=THIS,
            words=self.name,
            source=f"puna plan calibrate, {self.measured}",
            bf16=0,
            fp8=0,
            fp32=self.fp32 / 1e12,
            int8=self.int8 / 1e12,
            matmul=0,
            units=0,
            memory=self.memory / 2**30,
            bandwidth=self.paces[self.cores].bandwidth / 1e9,
            link=(self.all_reduce or 0) / 1e9,
            network=0,
            power=_WATTS_A_CORE * self.cores,
            per_node=1,
            kind="cpu",
        )

    def engine(self, config: ModelConfig, weights: Weights) -> Engine:
        """What the engine makes of this machine with a model: on one thread, where it is small."""
        pace = self.paces[1 if config.num_parameters < SMALL_MODEL else self.cores]
        share = read_rate(pace, weights, self.cache) / self.paces[self.cores].bandwidth
        return Engine(share, 1.0, pace.layer_seconds, pace.step_seconds)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"version": _VERSION}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Machine:
        """The inverse of `to_dict`; ValueError for anything else."""
        try:
            fields = dict(values)
            if fields.pop("version") != _VERSION:
                raise ValueError("another version")
            paces = {int(n): Pace(**pace) for n, pace in fields.pop("paces").items()}
            machine = cls(**fields, paces=paces)
            machine.device  # noqa: B018  (that it has what a device needs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no calibration of this version ({error})") from None
        return machine


def read_rate(pace: Pace, weights: Weights, cache: float) -> float:
    """Bytes/s at which a step reads its weights.

    Those up to half the cache stay in it, those of twice its size never do; between, the logarithm
    of the size decides (*ours*). A mix of formats reads as the measured one of the nearest bits.
    """
    bits = _NAMED_BITS.get(weights.name, weights.bits)
    name = min(pace.streamed, key=lambda form: abs(_NAMED_BITS[form] - bits))
    if weights.name in pace.streamed:
        name = weights.name
    outside = min(1.0, max(0.0, math.log2(weights.read / cache) / 2 + 0.5))
    inside_seconds = (1 - outside) / (pace.cached[name] * pace.cache_bandwidth)
    return 1 / (inside_seconds + outside / (pace.streamed[name] * pace.bandwidth))


# Bits a weight of the formats that are measured.
_NAMED_BITS = {"q4_0": 4.5, "q4_k": 4.5, "q6_k": 6.5625, "q8_0": 8.5, "f16": 16.0, "f32": 32.0}


def load(folder: Path | None) -> Machine:
    """The calibration that `folder` has; ValueError, saying what to do, where there is none."""
    path = None if folder is None else folder / FILE
    if path is None or not path.exists():
        raise ValueError("this machine was not measured yet: puna plan calibrate")
    try:
        return Machine.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}; measure again: puna plan calibrate") from None


def save(machine: Machine, folder: Path) -> Path:
    """Writes it where `load` finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(machine.to_dict(), indent=1), encoding="utf-8")
    temporary.replace(path)
    return path
