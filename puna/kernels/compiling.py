"""How the libraries of native code are made: once for each instruction set, from the same sources.

Standard library only: the build hook runs this before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

FOLDER = Path(__file__).parent

# Instruction sets by machine, the one that any such processor has first, and the compiler's flags.
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "x86-64": ("-march=x86-64",),  # SSE2
        "x86-64-v3": ("-march=x86-64-v3",),  # AVX2
        "x86-64-v4": ("-march=x86-64-v4",),  # AVX-512
        "x86-64-v4-vnni": ("-march=x86-64-v4", "-mavx512vnni"),
    },
    "aarch64": {
        "armv8-a": ("-march=armv8-a",),  # NEON
        "armv8.2-a-dotprod": ("-march=armv8.2-a+dotprod",),
    },
}
# What some systems call them.
_ALIASES = {"AMD64": "x86_64", "arm64": "aarch64"}

# No contraction: a fused multiply-add would round otherwise than the definitions in numpy.
FLAGS = (
    *("-std=c++20", "-O3", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti"),
    *(
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-Wno-maybe-uninitialized",
        "-Wno-psabi",
        "-pthread",
    ),
)


def levels() -> tuple[str, ...]:
    """Instruction sets that libraries are made for on this machine."""
    return tuple(_level_flags())


def _level_flags() -> dict[str, tuple[str, ...]]:
    machine = _ALIASES.get(platform.machine(), platform.machine())
    return LEVELS.get(machine, {machine: ()})


def library_path(level: str, folder: Path = FOLDER) -> Path:
    return folder / f"libpuna-{level}.so"


def digest() -> str:
    """What sources and flags are known by; a library tells which it was made from."""
    found = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted((FOLDER / "src").iterdir()):
        if path.suffix in (".cpp", ".h"):
            found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def compile_libraries(folder: Path = FOLDER) -> list[str]:
    """Makes the libraries with $CXX, or g++, or clang++; the complaints of those that failed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [problem for problem in pool.map(partial(_compile, folder), levels()) if problem]


def _compile(folder: Path, level: str) -> str | None:
    # Here, because who only asks for a library starts faster without.
    import shlex
    import subprocess

    path = library_path(level, folder)
    unfinished = path.with_suffix(".partial")
    sources = [str(source) for source in sorted((FOLDER / "src").glob("*.cpp"))]
    identity = f'-DPUNA_DIGEST="{digest()}"'
    problem = ""
    for compiler in [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]:
        command = [
            *shlex.split(compiler),
            *FLAGS,
            *_level_flags()[level],
            identity,
            *sources,
            "-o",
            str(unfinished),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            problem = problem or f"{compiler}: {error.strerror}"
            continue
        if done.returncode == 0 and unfinished.exists():
            unfinished.replace(path)
            return None
        problem = f"{compiler} failed for {level}: {done.stderr.strip()[:2000]}"
    unfinished.unlink(missing_ok=True)
    return problem
