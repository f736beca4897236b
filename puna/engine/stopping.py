"""Stop strings in streamed text, held back while they may still be coming."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text through until one of `stops` is complete; nothing of it comes out.

    Where stops overlap, the one that ends first counts (then the longer), so that the outcome does
    not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self.stop: str | None = None  # which one it was

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to come before any stop.

        Nothing comes after one: `stop` then says which.
        """
        if not self._stops:
            return text
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            end, start = min(found)
            self.stop = self._held[start:end]
            out, self._held = self._held[:start], ""
            return out
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def finish(self) -> str:
        """What was held back for a stop that never came."""
        out, self._held = self._held, ""
        return out

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that `stop` begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
