"""Runs a program that a model wrote, in a sandbox of its own, and says how it ended."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import puna
from puna.evaluate.sandbox.limits import Limits, Outcome, SandboxError

DEFAULTS = Limits()
_START_SECONDS = 30.0  # for the sandbox around the program, on a busy machine
_LAUNCH = "import sys; sys.path.insert(0, {root!r}); from puna.evaluate.sandbox import launcher"
HELP = (
    "code benchmarks run programs that a model wrote, which is not done without a sandbox: "
    "it needs Linux 5.14 or later on x86-64 or aarch64, with user namespaces allowed "
    "(in a container: privileged, or with a seccomp profile that allows them)"
)


def run(text: str, limits: Limits = DEFAULTS) -> Outcome:
    """Runs a Python program (standard library, no network, an empty folder) to its end.

    It has passed where it ran past its last line, raised nothing and left nothing running. All of
    its processes have ended on return. Raises SandboxError where there is no sandbox.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"{sys.platform} has no namespaces of Linux; {HELP}")
    root = str(Path(puna.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-c", _LAUNCH.format(root=root) + "; launcher.main()"]
    with tempfile.TemporaryDirectory(prefix="puna-sandbox-") as folder:
        job = json.dumps({"text": text, "folder": folder, "limits": asdict(limits)})
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the caller, who ends the launcher then
        )
        with process:
            try:
                answer, errors = process.communicate(job.encode(), limits.seconds + _START_SECONDS)
            except subprocess.TimeoutExpired:
                raise SandboxError(f"the sandbox did not start in {_START_SECONDS:g} s") from None
            finally:
                process.kill()  # and with it, where it has not ended, all that is inside
    lines = errors.decode("utf-8", "replace").strip().splitlines() or ["no answer"]
    found = json.loads(answer) if answer else {"refused": lines[-1]}
    if "refused" in found:
        raise SandboxError(f"this machine refuses the sandbox ({found['refused']}); {HELP}")
    return Outcome(**found)


def run_all(texts: Sequence[str], limits: Limits = DEFAULTS, workers: int = 1) -> list[Outcome]:
    """`run` for each, `workers` at a time; outcomes in the order of the programs."""
    if min(workers, len(texts)) < 2:  # in this thread, where Ctrl-C ends the program at once
        return [run(text, limits) for text in texts]
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(run, text, limits) for text in texts]
        try:
            return [future.result() for future in waiting]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def require() -> None:
    """Raises SandboxError where a program cannot be run: asked before answers are written."""
    outcome = run("print(6 * 7)\n")
    if not outcome.passed or outcome.tail != "42\n":
        said = " ".join((outcome.why + " " + outcome.tail).split())
        raise SandboxError(f"no Python runs in the sandbox ({said}); {HELP}")
