"""Seconds from starting `puna complete` until its first byte of text: median, least, most.

python benchmarks/first_output.py [RUNS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds_to_first_byte() -> float:
    command = [sys.executable, "-m", "puna", "complete", "--max-tokens", "8"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        elapsed = time.perf_counter() - started
        process.stdout.read()
    return elapsed


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    seconds_to_first_byte()  # once to fill the disk cache
    times = [seconds_to_first_byte() for _ in range(runs)]
    print(f"median {statistics.median(times):.2f} s, {min(times):.2f} to {max(times):.2f}")
