"""Measures a machine for `puna.plan`: how fast it reads, and what the native step makes of that.

Networks of other shapes than any preset, of random weights, are run: one whose weights lie in
memory and one whose weights lie in the cache for each format, and two of almost nothing, whose
difference is what a layer costs besides. Bursts alternate with reading memory, as a machine's
bandwidth changes while it is measured; those count in which the process had most of the processors.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from puna.config import ModelConfig
from puna.engine.bench import reading, seconds_of
from puna.engine.collectives import all_reduce_rate
from puna.engine.cpu.runner import NativeRunner
from puna.engine.memory import free_memory
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.kernels.step import physical_cores
from puna.plan.machine import Machine, Pace
from puna.plan.weights import weights
from puna.quantize.storage import STORAGE

FORMATS = ("q4_0", "q4_k", "q6_k", "q8_0", "f16")
_STREAMED, _CACHED = 4.0, 0.2  # of the cache, what the probes' weights take
_BURST = 3e-3  # seconds, about: as long as a scheduler leaves a process alone
_MOST_STEPS = 16  # tokens of a burst
_READ = 1 << 26  # bytes of memory that are read between, more than most caches
_LARGE, _SMALL = (1024, 2816), (512, 1536)  # width of the model, and of its feed-forward
_PROMPT = 256


def calibrate(
    rounds: int = 60,
    formats: Sequence[str] = FORMATS,
    on_job: Callable[[], None] = lambda: None,
    *,
    cache: int | None = None,
    collectives: bool = False,
) -> Machine:
    """The machine of this process; `cache` bytes of its last cache, asked of it by default.

    `collectives` measures two processes adding up, where torch is there. ValueError where no native
    code was built.
    """
    cores = physical_cores()
    cache = last_cache() if cache is None else cache
    paces = {
        threads: _pace(threads, cache, formats, rounds, on_job) for threads in sorted({1, cores})
    }
    fp32 = _numpy_rate(cores, rounds)
    int8 = _prompt_rate(cores, rounds)
    on_job()
    return Machine(
        name=_processor(),
        cores=cores,
        memory=float(free_memory() or 0),
        cache=float(cache),
        fp32=fp32,
        int8=int8,
        paces=paces,
        all_reduce=all_reduce_rate() if collectives else None,
        measured=datetime.now(UTC).date().isoformat(),
    )


def num_jobs(formats: Sequence[str] = FORMATS) -> int:
    """How often `calibrate` calls `on_job`."""
    return len({1, physical_cores()}) * (2 * len(formats) + 1) + 1


def last_cache() -> int:
    """Bytes of the largest cache; 16 MB where the system does not tell."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=16 << 20)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _pace(
    threads: int, cache: int, formats: Sequence[str], rounds: int, on_job: Callable[[], None]
) -> Pace:
    shallow, deep = (_probe(ModelConfig(64, n, 1, 1, 64, 64, 256), "f32", threads) for n in (2, 34))
    steps = _MOST_STEPS
    bursts = [Job(partial(seconds_of, runner, 1, 0, 1, steps)) for runner in (shallow, deep)]
    few, many = alternating(bursts, rounds, threads)
    layer = max(0.0, (many - few) / steps / 32)
    step = max(0.0, few / steps - 2 * layer)
    on_job()
    rates: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {"streamed": {}, "cached": {}}
    for where, share, shape in (("streamed", _STREAMED, _LARGE), ("cached", _CACHED, _SMALL)):
        size = max(_READ, 2 * cache) if where == "streamed" else int(share * cache)
        speeds = []
        for form in formats:
            config = _filling(share * cache, form, *shape)
            decode, steps = decoding(_probe(config, form, threads))
            with read_job(threads, size) as (read, num_bytes):
                memory, burst = alternating((read, decode), rounds, threads)
            speeds.append(num_bytes / memory)
            besides = step + config.num_layers * layer
            seconds = max(burst / steps - besides, burst / steps / 4)
            shares[where][form] = weights(config, form).read / seconds / speeds[-1]
            on_job()
        rates[where] = statistics.median(speeds)
    return Pace(
        rates["streamed"], rates["cached"], shares["cached"], shares["streamed"], layer, step
    )


@contextlib.contextmanager
def read_job(threads: int, size: int) -> Iterator[tuple[Job, int]]:
    """Reading `size` bytes, of a cache that holds them several times, and how many that are."""
    passes = max(1, _READ // size)
    with reading(threads, size, passes) as read:
        yield Job(read, read if passes > 1 else bool), passes * size


class Job(NamedTuple):
    """What is timed, and what is done before it: a model must be back in the cache that reading
    memory emptied."""

    run: Callable[[], object]
    before: Callable[[], object] = bool


def alternating(jobs: Sequence[Job], rounds: int, threads: int) -> list[float]:
    """Seconds that each of some jobs takes on so many busy threads, run in turn.

    They are of processor time, which leaves out when others had the processor, and medians of the
    sixth of the rounds in which that was least.
    """
    found = []
    for _ in range(rounds + 1):
        seconds, shares = [], []
        for job in jobs:
            job.before()
            began, used = time.perf_counter(), time.process_time()
            job.run()
            seconds.append((time.process_time() - used) / threads)
            shares.append(seconds[-1] / (time.perf_counter() - began))
        found.append((min(shares), seconds))
    best = sorted(found[1:], key=lambda pair: pair[0])[-max(3, rounds // 6) :]
    return [statistics.median(column) for column in zip(*(s for _, s in best), strict=True)]


def _filling(num_bytes: float, form: str, dim: int, ffn_dim: int) -> ModelConfig:
    """So wide a network, with layers of about so many bytes."""
    make = partial(ModelConfig, dim, num_heads=dim // 64, num_kv_heads=dim // 64, ffn_dim=ffn_dim)
    one, two = (weights(make(num_layers=n, vocab_size=256), form).read for n in (1, 2))
    layers = max(1, round((num_bytes - one) / (two - one)) + 1)
    return make(num_layers=layers, vocab_size=256)


def _probe(config: ModelConfig, form: str, threads: int) -> NativeRunner:
    """A network whose matrices repeat a few random rows."""
    generator = np.random.default_rng(0)

    def tensor(shape: tuple[int, ...]) -> LazyTensor:
        storage = STORAGE[form if len(shape) > 1 else "f32"]

        def read() -> np.ndarray:
            few = generator.standard_normal((16, shape[-1]), np.float32) * np.float32(0.02)
            stored = storage.quantize(few if len(shape) > 1 else few[0], None)
            return np.resize(stored, storage.stored_shape(shape))

        return LazyTensor(shape, storage.name, read)

    tensors = {name: tensor(shape) for name, shape in config.tensor_shapes().items()}
    checkpoint = Checkpoint("random", Path("probe"), config, tensors)
    return NativeRunner(checkpoint, num_pages=40, kv_dtype="f16", num_threads=threads)


def decoding(runner: NativeRunner) -> tuple[Job, int]:
    """A burst of decoding one sequence, and how many tokens it has."""
    once = min(seconds_of(runner, 1, 0, 1, 1) for _ in range(4))
    steps = max(1, min(_MOST_STEPS, round(_BURST / once)))
    burst = partial(seconds_of, runner, 1, 0, 1)
    return Job(partial(burst, steps), partial(burst, 1)), steps


def _prompt_rate(threads: int, rounds: int) -> float:
    """FLOP/s of blocks, reading a prompt."""
    config = ModelConfig(1024, 4, 16, 16, 2816, vocab_size=256)
    runner = _probe(config, "q8_0", threads)
    seconds = alternating((Job(partial(seconds_of, runner, 1, 0, _PROMPT, 1)),), rounds, threads)
    return 2 * config.num_parameters * _PROMPT / seconds[0]


def _numpy_rate(threads: int, rounds: int, size: int = 1024) -> float:
    """FLOP/s of float32 products by numpy's library."""
    x = np.random.default_rng(0).standard_normal((size, size), np.float32)
    return 2 * size**3 / alternating((Job(partial(np.matmul, x, x)),), rounds, threads)[0]
