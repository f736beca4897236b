"""The process that stands outside of the namespaces, makes them and watches what is inside.

Run by `run.py` as a program of its own: a fork of a process with threads and a model would be no
safe place to start from. Reads a job from standard input, writes how it ended to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from puna.evaluate.sandbox.inside import HOST_NAME, USER, first_process
from puna.evaluate.sandbox.limits import Limits, Outcome
from puna.evaluate.sandbox.system import NEW_NAMESPACES, die_with_parent, unshare

NOBODY = 65534  # who a program is outside, where the caller is root
LOOK_SECONDS = 0.02  # between two looks at the memory
_CHUNK = 1 << 16


def main() -> None:
    die_with_parent()
    job = json.loads(sys.stdin.buffer.read())
    limits = Limits(**job["limits"])
    try:
        found = asdict(launch(job["text"], job["folder"], limits))
    except OSError as error:
        found = {"refused": error.strerror or str(error)}
    print(json.dumps(found))


def launch(text: str, folder: str, limits: Limits) -> Outcome:
    """Runs one program; all that came of it has ended on return. OSError: the system refuses."""
    job_reader, job_writer = os.pipe()
    answer_reader, answer_writer = os.pipe()
    output_reader, output_writer = os.pipe()
    if os.geteuid() == 0:
        os.setgroups([])
    holder = os.fork()
    if holder == 0:
        os.close(job_writer)
        _hold(folder, job_reader, answer_writer, output_writer)
    for pipe in (job_reader, answer_writer, output_writer):
        os.close(pipe)
    handle = os.pidfd_open(holder)  # until it is known, stands for the first process
    try:
        answers = _Answers(answer_reader)
        answers.wait_for("apart")
        _map_users(holder)
        os.write(job_writer, b"\n")
        answers.wait_for("first", "ready")
        first = int(answers.heard["first"])
        handle = os.pidfd_open(first)  # the first takes all of its namespace along
        _children(first)
        with open(job_writer, "wb") as job:
            job.write(json.dumps({"text": text, "limits": asdict(limits)}).encode())
        return _Watch(first, limits).until_end(answers, output_reader)
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.waitpid(holder, 0)


class _Answers:
    """What the processes inside say, a line of JSON each, in any order."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.heard = pipe, dict[str, Any]()
        self._rest = b""

    def wait_for(self, *names: str) -> None:
        """Reads until all are there; OSError where something is refused, or nobody is left."""
        while not all(name in self.heard for name in names):
            if not self.read():
                raise OSError(0, "its first process ended")

    def read(self) -> bool:
        """Reads what is there; False at the end. OSError where it says that it was refused."""
        chunk = os.read(self.pipe, _CHUNK)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self.heard |= json.loads(line)
        if "refused" in self.heard:
            raise OSError(0, self.heard["refused"])
        return bool(chunk)


class _Watch:
    """Time, memory and output of what runs below the first process."""

    def __init__(self, first: int, limits: Limits) -> None:
        self.first, self.limits = first, limits
        self.began = time.monotonic()
        self.tail, self.written = b"", 0

    def until_end(self, answers: _Answers, output: int) -> Outcome:
        open_pipes = [answers.pipe, output]
        while True:
            ready, _, _ = select.select(open_pipes, [], [], LOOK_SECONDS)
            if output in ready:
                chunk = os.read(output, _CHUNK)
                self.written += len(chunk)
                self.tail = (self.tail + chunk)[-self.limits.tail :]
                if not chunk:
                    open_pipes.remove(output)
                if self.written > self.limits.output:
                    return self._ended("output", f"more than {self.limits.output} bytes")
            elif answers.pipe in ready:  # and all that was written before it has been read
                if answers.read():
                    return self._verdict(**answers.heard["end"])
                return self._ended("killed", "with the process that watched it")
            if time.monotonic() - self.began > self.limits.seconds:
                return self._ended("timeout", f"longer than {self.limits.seconds:g} s")
            if held_memory(self.first) > self.limits.memory:
                return self._ended("memory", f"more than {self.limits.memory} bytes in all")

    def _verdict(self, status: int, verdict: str, others: bool) -> Outcome:
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU:
                used = f"{self.limits.processor_seconds} s of processor"
                return self._ended("timeout", f"longer than {used}")
            return self._ended("killed", f"by {signal.Signals(number).name}")
        if verdict.startswith("MemoryError"):
            return self._ended("memory", f"more than {self.limits.memory} bytes in a process")
        if verdict != "passed":
            return self._ended("failed", verdict or f"left with {os.WEXITSTATUS(status)}")
        if others:
            return self._ended("processes", "left some running")
        if os.WEXITSTATUS(status) != 0:
            return self._ended("failed", f"left with {os.WEXITSTATUS(status)}")
        return self._ended("passed", "")

    def _ended(self, kind: str, why: str) -> Outcome:
        tail = self.tail.decode("utf-8", "replace")
        return Outcome(kind, why, tail, round(time.monotonic() - self.began, 3))


def held_memory(first: int) -> int:
    """Bytes that a process and its descendants hold, what they share counted for each of them."""
    total, waiting = 0, [first]
    while waiting:
        pid = waiting.pop()
        try:
            total += _resident(Path(f"/proc/{pid}/status").read_text())
            waiting += _children(pid)
        except OSError:  # it has ended
            continue
    return total


def _children(pid: int) -> list[int]:
    """OSError where it has ended, or the kernel does not tell (CONFIG_PROC_CHILDREN)."""
    lists = [thread / "children" for thread in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for one in lists for child in one.read_text().split()]


def _resident(status: str) -> int:
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(kinds))


def _hold(folder: str, job: int, answer: int, output: int) -> NoReturn:
    """The process between: new namespaces hold its children only, so it forks the first of them."""
    try:
        unshare(sum(NEW_NAMESPACES.values()))
        die_with_parent()
        os.write(answer, b'{"apart": true}\n')
        if os.read(job, 1) != b"\n":  # the users are mapped now, or nobody waits
            os._exit(0)
        first = os.fork()
        if first == 0:
            socket.sethostname(HOST_NAME)
            first_process(folder, job, answer, output)
        os.write(answer, json.dumps({"first": first}).encode() + b"\n")
        os.close(answer)
        os.close(output)
        os.waitpid(first, 0)
    except OSError as error:
        os.write(answer, json.dumps({"refused": str(error.strerror)}).encode() + b"\n")
    os._exit(0)


def _map_users(holder: int) -> None:
    """The caller is itself inside, and the program's user, or nobody for a root, `USER`."""
    for kind, mine in (("uid", os.geteuid()), ("gid", os.getegid())):
        rows = f"0 0 1\n{USER} {NOBODY} 1\n" if os.geteuid() == 0 else f"{USER} {mine} 1\n"
        if kind == "gid":
            Path(f"/proc/{holder}/setgroups").write_text("deny")
        Path(f"/proc/{holder}/{kind}_map").write_text(rows)
