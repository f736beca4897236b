"""Names the rank that keeps the others waiting: stopped, hung, failed or gone.

Each rank tells the store at which the processes met where it is, every few seconds and from a
thread, so that one that waits in a collective still does. Who has not moved for long looks at the
others (`beats.standing`). Clocks are not compared: that another moves is seen by its counters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from puna.parallel.beats import LEFT, PHASES, Beat, Beats, gone, standing

HUNG = 3  # the exit status of who waited for a hung rank
_SILENT = 4  # beats that do not come from a rank that is taken for silent
# In errors of gloo and NCCL that are no `DistError`.
_SIGNS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class LostError(ValueError):
    """Another rank is gone, or cannot be reached."""


class Watch:
    """This rank's beats, and its eye on the others'. Use it by `watched`."""

    def __init__(
        self,
        store: Store,
        rank: int,
        num_ranks: int,
        *,
        timeout: float,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._store, self._rank, self._num_ranks = store, rank, num_ranks
        self._timeout, self._leave = timeout, leave
        # torchrun gives 30 seconds to those that ask who is gone.
        self._interval = min(3.0, timeout / 20) if timeout else 3.0
        self._own = Beat(socket.gethostname(), os.getpid())  # the thread's; `_at` is the caller's
        self._at: dict[str, Any] = {"position": 0, "step": 0, "phase": "start"}
        self._first: int | None = None
        self._thread = threading.get_ident()
        self._moved = self._answered = time.monotonic()
        self._seen: dict[int, tuple[Beat | None, float]] = {}  # and when it last changed
        self._end, self._alarmed = "", False
        self._wake, self._over = threading.Event(), threading.Event()
        self._tell()
        self._teller = threading.Thread(target=self._beat, name="beats", daemon=True)
        self._teller.start()
        if timeout:
            threading.Thread(target=self._judge, name="watchdog", daemon=True).start()

    def enter(self, position: int, step: int, phase: str) -> None:
        """This rank begins a phase of `PHASES`, at a position of the data."""
        if self._first is None:
            self._first = position
        if position == self._first and phase in ("data", "sampling", "gradients"):
            phase = "start"  # the first step compiles
        self._at = {"position": position, "step": step, "phase": phase}
        self._moved = time.monotonic()

    def close(self, end: str = LEFT) -> None:
        """Ends the beats, and tells the others why."""
        self._over.set()
        self._end = end
        self._wake.set()
        self._teller.join(timeout=5)  # a store that is gone may not answer

    def lost(self, within: float = math.inf) -> list[str]:
        """Which ranks are gone; [] if all still tell that they are not, `within` so many seconds.

        Of this machine that is known at once, of another when it has been silent for long enough.
        """
        self._alarmed = True
        self._wake.set()
        until = time.monotonic() + min(within, (_SILENT + 2) * self._interval)
        while time.monotonic() < until:
            beats = self._beats()
            if found := gone(beats, set(), _dead(beats, self._own.host)):
                return found
            time.sleep(0.05)
        return gone(self._beats(), self._silent(), set())

    def _beat(self) -> None:
        ended = False
        while not ended:
            self._wake.wait(self._interval)
            ended = bool(self._end)
            with contextlib.suppress(RuntimeError):  # `_judge` sees that it does not answer
                self._tell()
                if self._alarmed or 0 < self._timeout / 2 < self._stood():
                    self._look()
                self._answered = time.monotonic()
            if self._alarmed and not ended:
                time.sleep(0.1)

    def _judge(self) -> None:
        while not self._over.wait(self._interval):
            beats, silent = self._beats(), self._silent()
            phases = {self._at["phase"]} | {beat.phase for beat in beats.values() if beat}
            # Whatever takes long, a rank tells that it is there meanwhile.
            patience = 1 if silent else max(PHASES[phase] for phase in phases)
            if self._stood() < self._timeout * patience:
                continue
            if time.monotonic() - self._answered > _SILENT * self._interval:
                found = ["the first machine, where the processes met, does not answer"]
            else:
                found = standing(beats, silent)
            self._give_up(found or ["no rank is behind the others"])

    def _give_up(self, found: list[str]) -> None:
        own = dataclasses.replace(self._own, **self._at)
        text = (
            f"puna: error: training hangs: {'; '.join(found)}. Rank {self._rank} {own} has not "
            f"moved for {self._stood():.0f} s at {own.where}, and ends\n"
        )
        if not own.waits:  # what the others wait for
            frame = sys._current_frames().get(self._thread)
            text += "".join(traceback.format_stack(frame))
        # Not by sys.stderr, whose lock the thread that hangs may have.
        os.write(2, text.encode())
        self._leave(HUNG)

    def _stood(self) -> float:
        return time.monotonic() - self._moved

    def _beats(self) -> Beats:
        return {rank: beat for rank, (beat, _) in self._seen.items()}

    def _silent(self) -> set[int]:
        """Whose beats have not come for so long that they should have."""
        limit = time.monotonic() - _SILENT * self._interval
        return {rank for rank, (_, changed) in self._seen.items() if changed < limit}

    def _tell(self) -> None:
        frame = sys._current_frames().get(self._thread)
        here: dict[str, Any] = {"waits": _waits(frame), "line": _line(frame), "end": self._end}
        beats = self._own.beats + 1
        self._own = dataclasses.replace(self._own, beats=beats, **here, **self._at)
        self._store.set(str(self._rank), json.dumps(dataclasses.asdict(self._own)))

    def _look(self) -> None:
        keys = [str(rank) for rank in range(self._num_ranks)]
        came = keys if self._store.check(keys) else [k for k in keys if self._store.check([k])]
        told = dict(zip(came, self._store.multi_get(came), strict=True))
        seen = dict(self._seen)
        for rank, key in enumerate(keys):
            beat = Beat(**json.loads(told[key])) if key in told else None
            if rank not in seen or seen[rank][0] != beat:
                seen[rank] = beat, time.monotonic()
        self._seen = seen  # at once, for the other threads


@contextlib.contextmanager
def watched(rank: int, num_ranks: int, *, timeout: float) -> Iterator[Watch]:
    """A watch over all ranks, each of which enters this.

    Where none moves for `timeout` seconds (0: however long) the process ends with status `HUNG`.
    Where the connection to another is lost, a LostError says to which.
    """
    watch = Watch(_meeting(), rank, num_ranks, timeout=timeout)
    end = LEFT
    with _asked_before_the_end(watch):
        try:
            yield watch
        except RuntimeError as error:
            if not _is_of_connection(error):
                end = _short(error)
                raise
            _ignore_termination()
            found = watch.lost() or [f"a rank cannot be reached: {_short(error)}"]
            raise LostError("; ".join(found)) from error
        except LostError:
            raise
        except BaseException as error:
            end = _short(error)
            raise
        finally:
            watch.close(end)


def _meeting() -> Store:
    """A client of its own of the store that the processes met at, and a name space there."""
    name = [os.urandom(8).hex()]
    dist.broadcast_object_list(name, src=0)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore(name[0], dist.TCPStore(host, port, is_master=False))  # type: ignore[attr-defined]


@contextlib.contextmanager
def _asked_before_the_end(watch: Watch) -> Iterator[None]:
    """While inside, SIGTERM ends this process by a LostError where another is gone.

    torchrun ends all as soon as one is gone; the others may not have seen yet that it is.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        _ignore_termination()
        if found := watch.lost(within=2):
            raise LostError("; ".join(found))
        raise SystemExit(128 + number)

    if not _takes_signals():
        yield
        return
    previous = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    except LostError:
        raise  # it still has to be said
    except BaseException:
        signal.signal(signal.SIGTERM, previous)
        raise
    signal.signal(signal.SIGTERM, previous)


def _ignore_termination() -> None:
    """From now on torchrun has to wait, as it does for 30 seconds, until this process ends."""
    if _takes_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _takes_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_of_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS)


def _dead(beats: Beats, host: str) -> set[int]:
    """Ranks of this machine whose process has ended."""
    return {rank for rank, b in beats.items() if b and b.host == host and not _is_alive(b.pid)}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # Z: it has ended, and who started it does not know yet.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or no /proc
        return True


def _waits(frame: FrameType | None) -> bool:
    """Whether a thread is in torch.distributed."""
    return (
        frame is not None and Path(dist.__file__).parent in Path(frame.f_code.co_filename).parents
    )


def _line(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
