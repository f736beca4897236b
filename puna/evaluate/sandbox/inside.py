"""Inside the namespaces: the first process makes the room, starts the program and waits for it.

When the first process ends, the kernel ends all others of its namespace, whatever they became.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any, NoReturn

from puna.evaluate.sandbox import program as driver
from puna.evaluate.sandbox.calls import call_filter
from puna.evaluate.sandbox.limits import Limits
from puna.evaluate.sandbox.root import FOLDER, enter, interpreter
from puna.evaluate.sandbox.system import (
    bar_privileges,
    die_with_parent,
    drop_capabilities,
    filter_calls,
    hide_memory,
)

USER = 1000  # inside; outside it is the caller, or nobody where that is root
HOST_NAME = "sandbox"
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "HOME": FOLDER, "PYTHONHASHSEED": "0"}
_VERDICT = 3  # the file descriptor that a verdict goes to
_VERDICT_BYTES = 4096
_REFUSED = "!"


def first_process(folder: str, job: int, answer: int, output: int) -> NoReturn:
    """Reads a job (JSON of `text` and `limits`) from a pipe, runs it, and answers in JSON.

    `folder` is empty and becomes the root. All of standard output and error goes to `output`.
    """
    try:
        die_with_parent()
        hide_memory()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # to a first process that means: ignored
        _say(answer, {"ready": True})
        with open(job, "rb") as pipe:  # its end without a job means that nobody waits any more
            wanted = json.loads(pipe.read())
        limits = Limits(**wanted["limits"])
        python, rules = interpreter(), call_filter()
        command = [python, "-I", "-u", "-c", Path(driver.__file__).read_text(encoding="utf-8")]
        enter(folder, limits.files)
        Path(driver.PATH).write_text(wanted["text"], encoding="utf-8", errors="replace")
        _say(answer, {"end": _run(command, limits, rules, output)})
    except BaseException as error:
        _say(answer, {"refused": str(error)})
    os._exit(0)


def _run(command: list[str], limits: Limits, rules: bytes, output: int) -> dict[str, Any]:
    word = os.urandom(16).hex()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _become_program(command, word, writer, output, limits, rules)
    os.close(writer)
    status = _wait(child)
    others = _others()
    os.set_blocking(reader, False)  # one that is left may hold the other end
    try:
        told = os.read(reader, _VERDICT_BYTES).decode("utf-8", "replace")
    except BlockingIOError:
        told = ""
    known, _, verdict = told.partition(" ")
    if known == _REFUSED + word:
        raise OSError(0, verdict)
    return {"status": status, "verdict": verdict if known == word else "", "others": others}


def _become_program(
    command: list[str], word: str, pipe: int, output: int, limits: Limits, rules: bytes
) -> NoReturn:
    try:
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(pipe, _VERDICT)
        os.closerange(_VERDICT + 1, os.sysconf("SC_OPEN_MAX"))
        os.chdir(FOLDER)
        os.umask(0o077)
        bar_privileges()
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        drop_capabilities()
        for bound, value in _bounds(limits).items():
            resource.setrlimit(bound, (value, value + (bound == resource.RLIMIT_CPU)))
        filter_calls(rules)
        os.execve(command[0], [*command, str(_VERDICT), word], ENVIRONMENT)
    except BaseException as error:
        os.write(_VERDICT, f"{_REFUSED}{word} {error}".encode())
    os._exit(127)


def _bounds(limits: Limits) -> dict[int, int]:
    return {
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_CPU: limits.processor_seconds,
        resource.RLIMIT_FSIZE: limits.files,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: limits.processes + 2,  # and the two that wait for it
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
    }


def _wait(child: int) -> int:
    """The child's status, as waitpid gives it; orphans that end meanwhile are taken in."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return status


def _others() -> bool:
    """Whether processes are left behind; who ended in the same moment is not."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def _say(pipe: int, message: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")
