"""Predicted tokens/s of the CPU engine beside measured ones, with the bandwidth measured between.

    python benchmarks/plan_beside_engine.py [--rounds 60] [--threads 2] [--machine machine.json]

Measures this machine first, as `puna plan calibrate` does (or takes what that kept), on networks of
other shapes than the ones that are predicted: the shipped model and random weights in the shape of
llama2.c's 110M, each in q4_0, q8_0 and f16. Then, in turn, memory is read (for a model that fits
half the cache, as many bytes of it) and the model decodes one sequence; what `puna.plan.serve`
predicts from the one is printed beside the other. Seconds are of processor time a thread, and the
sixth of the rounds counts that was least disturbed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from convert_7b import random_checkpoint

from puna.commands.models import resolve
from puna.config import ModelConfig
from puna.engine.calibrate import alternating, calibrate, decoding, read_job
from puna.engine.cpu.runner import NativeRunner
from puna.formats.checkpoint import Checkpoint
from puna.plan.machine import Machine, Pace, read_rate
from puna.plan.serve import Engine, Setting, speed
from puna.plan.weights import weights

_READ = 1 << 26  # bytes of memory that are read between
_CONTEXT = 8  # positions, of the middle of a burst
_110M = ModelConfig(768, 12, 12, 12, 2048, context_length=1024, tied=True)


def predicted(machine: Machine, pace: Pace, config: ModelConfig, form: str) -> float:
    """tokens/s."""
    stored = weights(config, form)
    rate = read_rate(pace, stored, machine.cache)
    engine = Engine(1.0, 1.0, pace.layer_seconds, pace.step_seconds)
    device = replace(machine.device, bandwidth=rate / 1e9)
    setting = Setting(config, stored, device, context=_CONTEXT, prompt=1, engine=engine)
    return speed(setting, 1, _CONTEXT).each


def measured(
    checkpoint: Checkpoint, form: str, threads: int, rounds: int, size: int
) -> tuple[float, float]:
    """Bytes/s at which `size` bytes are read, and tokens/s, in turn."""
    runner = NativeRunner(checkpoint, num_pages=8, dtype=form, kv_dtype="f16", num_threads=threads)
    decode, steps = decoding(runner)
    with read_job(threads, size) as (read, num_bytes):
        memory, burst = alternating((read, decode), rounds, threads)
    return num_bytes / memory, steps / burst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", help="of 1 and all cores")
    parser.add_argument("--machine", type=Path, help="what puna plan calibrate kept")
    parser.add_argument("--formats", nargs="+", default=["q4_0", "q8_0", "f16"])
    args = parser.parse_args()
    if args.machine is None:
        machine = calibrate(args.rounds, args.formats)
    else:
        machine = Machine.from_dict(json.loads(args.machine.read_text(encoding="utf-8")))
    print(f"{machine.name}, {machine.cores} cores", flush=True)
    shipped = resolve("cria")
    models = {"cria": shipped, "110m": random_checkpoint(_110M)}
    for threads in args.threads or sorted(machine.paces):
        for name, checkpoint in models.items():
            for form in args.formats:
                size = weights(checkpoint.config, form).read
                inside = size <= machine.cache / 2
                size = size if inside else max(_READ, int(2 * machine.cache))
                read, found = measured(checkpoint, form, threads, args.rounds, size)
                beside = {"cache_bandwidth" if inside else "bandwidth": read}
                pace = replace(machine.paces[threads], **beside)
                guess = predicted(machine, pace, checkpoint.config, form)
                print(
                    f"{threads} threads  {name:5} {form:5} read {read / 1e9:5.1f} GB/s  "
                    f"predicted {guess:8.1f}  measured {found:8.1f} tokens/s  "
                    f"{guess / found - 1:+.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
