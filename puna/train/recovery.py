"""What a run does about bad batches: leaves them out, or goes back to its last checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from puna.train.checkpoints import RunState
from puna.train.guard import BadBatchError, DivergedError
from puna.train.log import Record


class Recovery:
    """Counts bad batches in a row: `max_skips` are skipped, the next makes the run go back.

    That is to the newest valid checkpoint, which `reload` loads (`checkpoints.restore`; None where
    there is none), `max_rollbacks` times to the same one. The data goes on after the bad batches:
    those since the checkpoint are left out. All ranks do the same. `tell` gets an event for each
    skip and rollback.
    """

    def __init__(
        self,
        run: Path,
        reload: Callable[[], RunState | None],
        tell: Callable[[Record], None],
        *,
        max_skips: int,
        max_rollbacks: int,
    ) -> None:
        self._run, self._reload, self._tell = run, reload, tell
        self._max_skips, self._max_rollbacks = max_skips, max_rollbacks
        self._skips = self._rollbacks = 0

    def applied(self) -> None:
        """A batch was applied."""
        self._skips = 0

    def saved(self) -> None:
        """There is a new checkpoint to go back to."""
        self._rollbacks = 0

    def after(self, bad: BadBatchError, state: RunState) -> RunState:
        """Where the run goes on after a bad batch. Raises DivergedError where it does not."""
        self._skips += 1
        state = dataclasses.replace(state, num_skipped=state.num_skipped + 1)
        event = {"event": "skip", "step": state.step, "num_skipped": state.num_skipped}
        event |= {"loss": _number(bad.loss), "grad_norm": _number(bad.grad_norm)}
        self._tell(event | {"reason": str(bad)})
        if self._skips <= self._max_skips:
            return state
        self._skips, skips = 0, self._skips
        in_a_row = f"{skips} bad batches in a row" if skips > 1 else "a bad batch"
        reason = f"{in_a_row} after step {state.step}: {bad}"
        if self._rollbacks == self._max_rollbacks:
            raise DivergedError(reason, self._rollbacks)
        saved = self._reload()
        if saved is None:
            reason += f"; {self._run} has no checkpoint to go back to"
            raise DivergedError(reason, self._rollbacks)
        self._rollbacks += 1
        left_out = state.position - saved.position
        state = dataclasses.replace(saved, num_skipped=state.position - saved.step)
        event = {"event": "rollback", "step": state.step, "num_skipped": state.num_skipped}
        self._tell(event | {"left_out": left_out, "reason": reason})
        return state


def _number(value: float) -> float | None:
    """As JSON can have it."""
    return value if math.isfinite(value) else None
