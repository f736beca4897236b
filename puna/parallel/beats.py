"""What ranks tell of where they are, and who of them keeps the others waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Of a step, in this order, and for how many timeouts a rank may be there: loading and compiling,
# sampling, and writing much, take long. An evaluation is entered again at each piece.
PHASES = {
    "start": 6, "data": 1, "sampling": 6, "gradients": 1, "rollback": 6, "evaluation": 6,
    "checkpoint": 6,
}  # fmt: skip
LEFT = "left"  # how a rank ends that has not failed


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank tells: who it is, how often it told, and where it is.

    `position` counts batches; `waits` says that it is in a collective, `line` where in the program;
    `end` how it ended, "" while it is there.
    """

    host: str
    pid: int
    beats: int = 0
    position: int = 0
    step: int = 0
    phase: str = "start"
    waits: bool = False
    line: str = ""
    end: str = ""

    @property
    def place(self) -> tuple[int, int]:
        """What is less on a rank that is behind."""
        return self.position, list(PHASES).index(self.phase)

    @property
    def where(self) -> str:
        return f"step {self.step}, {self.phase}" if self.step else self.phase

    def __str__(self) -> str:
        return f"(pid {self.pid} on {self.host})"


Beats = Mapping[int, Beat | None]  # of each rank; None: it never told anything


def standing(beats: Beats, silent: set[int]) -> list[str]:
    """Who keeps the others waiting, and why this is thought; [] where no rank differs.

    Those that are `silent` by now; else those that are behind; else those that do not wait in a
    collective while others do.
    """
    here = {rank: beat for rank, beat in beats.items() if beat is not None}
    if silent or not here:
        return _silent(beats, silent)
    furthest = max(beat.place for beat in here.values())
    late = {rank: beat for rank, beat in here.items() if beat.place < furthest}
    if not late and any(beat.waits for beat in here.values()):
        late = {rank: beat for rank, beat in here.items() if not beat.waits}
    return [
        f"rank {rank} {beat} stands still at {beat.where}, {beat.line}"
        for rank, beat in late.items()
    ]


def gone(beats: Beats, silent: set[int], dead: set[int]) -> list[str]:
    """Who ended, and how: those that failed, else the `dead`, else the `silent`.

    Not those that ended because of others.
    """
    there = {rank: beat for rank, beat in beats.items() if beat is None or beat.end != LEFT}
    failed = [f"rank {n} {b} failed at {b.where}: {b.end}" for n, b in there.items() if b and b.end]
    died = [
        f"rank {rank} {beat} was killed; it was last seen at {beat.where}"
        for rank, beat in there.items()
        if beat and rank in dead
    ]
    return failed or died or _silent(there, silent)


def _silent(beats: Beats, silent: set[int]) -> list[str]:
    return [
        f"rank {rank} {beat} does not answer; it was last seen at {beat.where}"
        if beat
        else f"rank {rank} has not begun"
        for rank, beat in beats.items()
        if rank in silent
    ]
