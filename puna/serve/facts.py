"""What the layers of one request tell each other, kept in `scope["state"]`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from puna.serve.asgi import Scope

KEY = "facts"  # where in scope["state"], so `request.state.facts` in a handler


@dataclass
class Facts:
    """One request. Handlers fill in model, tokens and times; log and metrics read them at the end.

    Times are of `time.perf_counter()`, in seconds.
    """

    request_id: str = ""
    key_name: str | None = None
    model: str | None = None  # as served, never as asked for: it becomes a label
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None  # the kind of error, also when it came after the status was sent
    started_at: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    last_token_at: dict[int, float] = field(default_factory=dict)  # of each choice
    token_gaps: list[float] = field(default_factory=list)  # seconds between tokens of a choice

    def took_tokens(self, count: int, choice: int = 0) -> None:
        """Counts `count` generated tokens of a choice that arrive now, and when."""
        if count <= 0:
            return
        now = time.perf_counter()
        if self.first_token_at is None:
            self.first_token_at = now
        if choice in self.last_token_at:
            self.token_gaps += [(now - self.last_token_at[choice]) / count] * count
        self.last_token_at[choice] = now
        self.completion_tokens += count


def facts_of(scope: Scope) -> Facts:
    """The request's facts; made by the first layer that asks."""
    state = scope.setdefault("state", {})
    if KEY not in state:
        state[KEY] = Facts()
    facts: Facts = state[KEY]
    return facts
