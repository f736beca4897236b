"""The long run: `python -m tests.fuzz --cases 100000`, in one process a processor."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.cases import Model
from tests.fuzz.seeds import SEEDS

_BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="in all, over all formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-offenders"))
    options = parser.parse_args()
    each = -(-options.cases // len(options.only))
    jobs = [
        (name, options.seed, begin, min(begin + _BATCH, each), str(options.out))
        for begin in range(0, each, _BATCH)
        for name in options.only
    ]
    counts: dict[str, Counter[str]] = {name: Counter() for name in options.only}
    share: dict[str, float] = dict.fromkeys(options.only, 0.0)
    started = time.monotonic()
    running: list[tuple[Any, Any, tuple[Any, ...]]] = []
    done = 0
    while jobs or running:
        while jobs and len(running) < options.processes:
            job = jobs.pop(0)
            receiver, sender = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(target=_run_batch, args=(*job, sender))
            process.start()
            sender.close()
            running.append((process, receiver, job))
        process, receiver, job = running.pop(0)
        counted, largest = _result(receiver)
        process.join()
        if process.exitcode != 0 and not counted:
            counted = Counter({"crashed or hung": 1})
            print(f"offender: {job[:4]} ended its process with {process.exitcode}", flush=True)
        counts[job[0]] += counted
        share[job[0]] = max(share[job[0]], largest)
        done += 1
        if done % 20 == 0:
            total = sum(sum(counter.values()) for counter in counts.values())
            print(f"{total} cases in {time.monotonic() - started:.0f} s", flush=True)
    _report(counts, share)
    kept = {"opened", "refused"}
    sys.exit(any(set(counter) - kept for counter in counts.values()))


def _result(receiver: Any) -> tuple[Counter[str], float]:
    try:
        counted, largest = receiver.recv()
    except EOFError:
        return Counter(), 0.0
    return counted, largest


def _run_batch(name: str, seed: int, begin: int, end: int, out: str, sender: Any) -> None:
    counted: Counter[str] = Counter()
    largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        model = Model(name, Path(folder))
        _ = model.attempt()  # imports and caches are no case's doing
        tracemalloc.start()
        whole = model.attempt()
        assert not whole.offence and not whole.refusal, whole
        for index in range(begin, end):
            outcome = model.run(seed, index)
            largest = max(largest, outcome.peak / outcome.allowed)
            kind = "refused" if outcome.refusal else "opened"
            if outcome.offence:
                kind = "offended"
                _keep(name, seed, index, outcome.offence, Path(out))
            counted[kind] += 1
    sender.send((counted, largest))


def _keep(name: str, seed: int, index: int, offence: str, out: Path) -> None:
    """The damaged model and what it did, in a folder of its own."""
    print(f"offender: {name} seed {seed} case {index}: {offence[:300]}", flush=True)
    target = out / f"{name}-{seed}-{index}"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        model = Model(name, Path(folder))
        with model.damaged(random.Random(f"{seed} {name} {index}")):
            shutil.copytree(folder, target)
    (target / "offence.json").write_text(json.dumps({"offence": offence}, indent=2) + "\n")


def _report(counts: dict[str, Counter[str]], share: dict[str, float]) -> None:
    total: Counter[str] = Counter()
    print(f"{'format':22}{'cases':>9}{'opened':>9}{'refused':>9}{'other':>7}{'peak/allowed':>14}")
    for name, counter in counts.items():
        total += counter
        _line(name, counter, share[name])
    _line("all", total, max(share.values()))


def _line(name: str, counter: Counter[str], share: float) -> None:
    other = sum(counter.values()) - counter["opened"] - counter["refused"]
    print(
        f"{name:22}{sum(counter.values()):9}{counter['opened']:9}{counter['refused']:9}"
        f"{other:7}{share:14.2f}"
    )


if __name__ == "__main__":
    main()
