"""Programs that would do harm: each is contained, counted as a failure, and leaves nothing."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.evaluate.sandbox import calls
from puna.evaluate.sandbox import run as run_module
from puna.evaluate.sandbox.calls import call_filter
from puna.evaluate.sandbox.limits import KINDS, Limits, SandboxError
from puna.evaluate.sandbox.run import require, run, run_all

NAMED = "import ctypes; ctypes.CDLL(None).prctl(15, {name!r}.encode())\n"


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    try:
        require()
    except SandboxError as refusal:
        pytest.skip(str(refusal))


@pytest.fixture
def name() -> Iterator[str]:
    """A name for the processes of one test; none may be left after it."""
    name = f"puna-{secrets.token_hex(4)}"
    yield name
    assert not processes_named(name)


def processes_named(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "comm").read_text().strip() == name:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_right_program_passes() -> None:
    text = "def f(x):\n    return x * 2\n\nassert f(21) == 42\nprint('all well')\n"
    outcome = run(text)
    assert outcome.passed and (outcome.kind, outcome.why) == ("passed", "")
    assert outcome.tail == "all well\n"


def test_many_run_side_by_side_in_their_order() -> None:
    texts = [f"print({n}); assert {n} % 2" for n in range(3)]
    outcomes = run_all(texts, workers=2)
    assert [outcome.passed for outcome in outcomes] == [False, True, False]
    assert [outcome.tail.split("\n")[0] for outcome in outcomes] == ["0", "1", "2"]


# What a program does -> the kind of its end, and a word of why.
WRONG = {
    "a test that fails": ("assert 1 == 2", "failed", "AssertionError"),
    "no Python": ("def f(:", "failed", "SyntaxError"),
    "leaving before the tests": ("import os; os._exit(0)\nassert False", "failed", "left with 0"),
    "exit in silence": ("raise SystemExit(0)", "failed", "SystemExit"),
    "a child that passes for it": (
        "import os\nif os.fork():\n    os.wait()\n    os._exit(0)",
        "failed",
        "left with 0",
    ),
    "a stack that is full": ("import ctypes; ctypes.string_at(0)", "killed", "SIGSEGV"),
    "an endless loop": ("while True: pass", "timeout", "1 s of processor"),
    "10 GB at once": ("x = bytearray(10 << 30)", "memory", "in a process"),
    "10 GB, little by little": (
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "memory",
        "",
    ),
    "10 GB in files": (
        "for n in range(10**6):\n    open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))",
        "failed",
        "No space left",
    ),
    "huge output": ("while True: print('x' * 1000)", "output", "more than"),
    "memory that no limit counts": (
        "import os\nos.memfd_create('x')",
        "failed",
        "PermissionError",
    ),
    "a network call": (
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
        "failed",
        "unreachable",
    ),
    "a name to look up": (
        "import urllib.request\nurllib.request.urlopen('http://example.com', timeout=1)",
        "failed",
        "URLError",
    ),
    "reading users": ("open('/etc/passwd')", "failed", "FileNotFoundError"),
    "reading home": ("import os; os.listdir({home!r})", "failed", "Error"),
    "reading processes": ("import os; os.listdir('/proc')", "failed", "FileNotFoundError"),
    "writing outside": ("open('/outside', 'w')", "failed", "Read-only"),
    "writing to the libraries": (
        "open(__import__('json').__file__, 'a')",
        "failed",
        "Error",
    ),
    "killing the parent": ("import os; os.kill(os.getppid(), 9)", "failed", "PermissionError"),
    "killing all": ("import os; os.kill(-1, 9)", "failed", "PermissionError"),
    "becoming root": ("import os; os.setuid(0)", "failed", "PermissionError"),
    "another namespace": (
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "failed",
        "AssertionError",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_would_do_harm_is_a_failure(case: str, name: str, tmp_path: Path) -> None:
    text, kind, why = WRONG[case]
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = text.replace("{port}", str(server.getsockname()[1]))
        text = text.replace("{home!r}", repr(str(tmp_path)))
        outcome = run(
            NAMED.format(name=name) + text,
            Limits(processor_seconds=1, memory=256 << 20, files=4 << 20),
        )
    assert not outcome.passed and outcome.kind in KINDS
    assert (outcome.kind, why in outcome.why) == (kind, True), outcome
    assert len(outcome.tail) <= 2000


# A shared mapping, so that no process has more addresses than it may.
HOARD = """
import mmap, os, time
for n in range(6):
    if os.fork() == 0:
        block = mmap.mmap(-1, 100 << 20)
        for at in range(0, 100 << 20, 4096): block[at] = 1
        time.sleep(60)
time.sleep(60)
"""
BOMB = """
import os
while True:
    try: os.fork()
    except OSError: pass
"""
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
"""


LASTING = {
    "memory of many": (HOARD, "memory"),
    "fork bomb": (BOMB, "timeout"),
    "daemon": (DAEMON, "processes"),
    "sleep": ("import time; time.sleep(60)", "timeout"),
    "thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
        "timeout",
    ),
}


@pytest.mark.parametrize("case", LASTING)
def test_what_lasts_is_ended_with_all_that_came_of_it(case: str, name: str) -> None:
    text, kind = LASTING[case]
    limits = Limits(seconds=1 if kind == "timeout" else 30, memory=256 << 20, processes=8)
    assert run(NAMED.format(name=name) + text, limits).kind == kind


def test_the_end_of_the_caller_ends_all(name: str, tmp_path: Path) -> None:
    text = NAMED.format(name=name) + "while True: pass"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(run_module.__file__).parents[3]),
        "TMPDIR": str(tmp_path),  # who is killed leaves its folder
    }
    caller = subprocess.Popen(
        [sys.executable, "-c", f"from puna.evaluate.sandbox.run import run; run({text!r})"],
        env=environment,
    )
    wait_until(lambda: bool(processes_named(name)))
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    wait_until(lambda: not processes_named(name))


def wait_until(condition: object, seconds: float = 200) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_without_a_sandbox_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The launcher is refused new namespaces; the program is not run outside of them."""
    refusing = (
        "import os; os.setgroups = lambda groups: None; os.setresuid = None\n"
        "from puna.evaluate.sandbox import system\n"
        "def unshare(flags): raise PermissionError(1, 'unshare: Operation not permitted')\n"
        "system.unshare = unshare\n"
    )
    launch = run_module._LAUNCH.replace("from puna", f"exec({refusing!r}); from puna", 1)
    monkeypatch.setattr(run_module, "_LAUNCH", launch)
    left = tmp_path / "left"
    with pytest.raises(SandboxError, match=r"sandbox .unshare: Operation not permitted"):
        run(f"open({str(left)!r}, 'w')")
    assert not left.exists()
    with pytest.raises(SandboxError, match="privileged"):
        require()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="darwin"):
        run("print(1)")


def test_limits_are_held_against_zero() -> None:
    with pytest.raises(ValueError, match="'memory' must be more than 0"):
        Limits(memory=0)


@pytest.mark.parametrize("machine", calls.MACHINES)
def test_the_filter_answers_as_its_table_says(machine: str) -> None:
    """The filter's lines, run by a machine of its own here."""
    at = calls.MACHINES.index(machine)
    lines = list(struct.iter_unpack("=HBBI", call_filter(machine)))

    def answer(call: int, argument: int = 0, architecture: int = calls._ARCHITECTURES[at]) -> int:
        fields = {0: call, 4: architecture, 16: argument & 0xFFFFFFFF}
        held, line = 0, 0
        while True:
            code, so, otherwise, value = lines[line]
            line += 1
            if code == calls._RETURN:
                return int(value)
            if code == calls._LOAD:
                held = fields[value]
                continue
            true = {
                calls._IF_EQUAL: held == value,
                calls._IF_LEAST: held >= value,
                calls._IF_BITS: bool(held & value),
            }[code]
            line += so if true else otherwise

    refused = calls._ERROR | 1
    assert all(answer(numbers[at]) == refused for numbers in calls.DENIED.values())
    assert answer(calls.CLONE[at], signal.SIGCHLD) == calls._ALLOW
    assert answer(calls.CLONE[at], 0x10000000 | signal.SIGCHLD) == refused
    assert answer(calls.CLONE3[at]) == calls._ERROR | 38
    for numbers in calls.SIGNALS.values():
        assert [answer(numbers[at], pid) for pid in (1, -1, 2)] == [refused, refused, calls._ALLOW]
    assert answer(0) == calls._ALLOW and answer(calls._X32) == refused
    assert answer(0, architecture=0x40000003) == calls._KILL


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        call_filter("riscv64")
