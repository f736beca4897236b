"""What a program that a model wrote may take, and how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

# How a run ended -> what that means. All but the first count as failures.
KINDS = {
    "passed": "ran to its end, raised nothing, left nothing running",
    "failed": "raised an exception, or left before its end",
    "timeout": "took longer than the time limit",
    "memory": "took more memory than the limit",
    "output": "wrote more than the output limit",
    "processes": "left processes running behind it",
    "killed": "was ended by a signal, such as that of a stack that is full",
}


@dataclass(frozen=True)
class Limits:
    """What one program may take. All values are *ours*; HumanEval's own harness has 3 seconds."""

    seconds: float = 30.0  # on the clock
    processor_seconds: int = 10  # of each process: what decides also where the machine is busy
    memory: int = 1 << 30  # bytes: addresses of a process, and what all hold together
    processes: int = 16  # and threads, at a time
    files: int = 16 << 20  # bytes, of one file and of all that lie in its folder
    open_files: int = 64
    output: int = 1 << 20  # bytes on standard output and error
    tail: int = 2000  # bytes of the output's end that are kept

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"the sandbox's limit {field.name!r} must be more than 0")


@dataclass(frozen=True)
class Outcome:
    """How a program ended: a kind of `KINDS`, why in a line, and the end of what it wrote."""

    kind: str
    why: str
    tail: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.kind == "passed"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class SandboxError(ValueError):
    """This machine gives no sandbox, and without one nothing is run; says what it refuses."""
