"""How the libraries of native code are made: once for each instruction set, from the same sources.

Standard library only: the build hook runs this before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Sequence
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
    """Makes the libraries with $CXX, or g++, or clang++; the complaints of those that failed.

    The sources of all libraries are shared out to the processors together.
    """
    make = partial(_compile, folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool, ThreadPoolExecutor(len(levels())) as waiting:
        problems = waiting.map(partial(make, share=pool.map), levels())
        return [problem for problem in problems if problem]


def _compile(
    folder: Path, level: str, share: Callable[..., Iterable[str | None]] = map
) -> str | None:
    """Makes one library; what the compiler complained of. `share` maps over the sources."""
    import tempfile  # and the others here, because who only looks for a library starts faster

    path = library_path(level, folder)
    flags = (*FLAGS, *_level_flags()[level], f'-DPUNA_DIGEST="{digest()}"')
    # The longest first, which is the step: so none is left alone at the end.
    sources = sorted((FOLDER / "src").glob("*.cpp"), reverse=True)
    problem = None
    with tempfile.TemporaryDirectory() as scratch:
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        for compiler in [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]:
            commands = [
                (*flags, "-c", str(source), "-o", str(made))
                for source, made in zip(sources, objects, strict=True)
            ]
            failed = [text for text in share(partial(_run, compiler), commands) if text]
            if not failed:
                unfinished = path.with_suffix(".partial")
                link = (*FLAGS, "-shared", *map(str, objects), "-o", str(unfinished))
                failed = [text for text in [_run(compiler, link)] if text]
                if not failed and unfinished.exists():
                    unfinished.replace(path)
                    return None
                unfinished.unlink(missing_ok=True)
            problem = problem or f"{level}: {failed[0] if failed else f'{compiler} made nothing'}"
    return problem


def _run(compiler: str, arguments: Sequence[str]) -> str | None:
    """What a compiler complains of; None if it did not fail."""
    import shlex
    import subprocess

    command = [*shlex.split(compiler), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{compiler}: {error.strerror}"
    return f"{compiler} failed: {done.stderr.strip()[:2000]}" if done.returncode else None
