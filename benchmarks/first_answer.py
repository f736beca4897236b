"""From nothing to the first answer: seconds to install Puna anew and to ask the shipped model.

    python benchmarks/first_answer.py [--wheel]

In a temporary folder: a virtual environment, `pip install` of a clean copy of this tree without
extras (what must be downloaded is; the native code is compiled for every instruction set), one
question. Compiling is measured once more by itself. With --wheel the tree is built into a wheel
first, and that is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LEFT_OUT = (".*", "*.so", "__pycache__", "build", "dist", "runs")
_COMPILE = "from puna.kernels import compiling; print(*compiling.compile_libraries(), sep='\\n')"


def timed(label: str, *command: str | Path, cwd: Path) -> float:
    """Runs a command, prints how long it took and what it said last; its seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    begin = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    print(f"{label:12} {seconds:6.1f} s   {' '.join(done.stdout.split())[-90:]}", flush=True)
    if done.returncode:
        sys.exit(done.stdout)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--wheel", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, python = folder / "source", folder / "venv" / "bin" / "python"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        constraints = ("-c", source / "constraints.txt")
        total = timed("environment", sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        what = source
        if arguments.wheel:
            wheels = folder / "wheels"
            total += timed("wheel", *pip, "wheel", "--no-deps", "-w", wheels, source, cwd=folder)
            (what,) = wheels.iterdir()
            print(f"{'':24}{what.name}, {what.stat().st_size / 1e6:.1f} MB")
            shutil.move(source, folder / "moved")
            constraints = ("-c", folder / "moved" / "constraints.txt")
        total += timed("install", *pip, "install", *constraints, what, cwd=folder)
        puna = python.with_name("puna")
        total += timed("first answer", puna, "complete", "--max-tokens", "32", cwd=folder)
        print(f"{'in all':12} {total:6.1f} s")
        timed("second", puna, "complete", "--max-tokens", "32", cwd=folder)
        copy = folder / ("moved" if arguments.wheel else "source")
        timed("(compiling)", python, "-c", _COMPILE, cwd=copy)


if __name__ == "__main__":
    main()
