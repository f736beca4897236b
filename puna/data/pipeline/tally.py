"""What a step did to a source: counted by every task, added up for the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXAMPLES = 3  # dropped documents that a task keeps of each reason
_EXCERPT = 400  # characters of one


@dataclass
class Tally:
    """Documents and characters that came in and went out, and what was dropped, by reason.

    `events` counts what else happened: lines taken out, e-mails replaced, passages cut.
    """

    step: str
    source: str
    documents_in: int = 0
    characters_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    characters_dropped: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def came_in(self, text: str) -> None:
        self.documents_in += 1
        self.characters_in += len(text)

    def went_out(self, text: str) -> None:
        self.documents_out += 1
        self.characters_out += len(text)

    def drop(self, document: Any, reason: str) -> None:
        """Counts a dropped document, and keeps the begin of the first few."""
        self.dropped[reason] += 1
        self.characters_dropped[reason] += len(document.text)
        if self.dropped[reason] <= EXAMPLES:
            # Not what may not be shown: a page that is dropped for what it says of people.
            text = "" if reason.startswith("personal") else document.text
            self.examples.append(
                {
                    "reason": reason,
                    "id": document.id,
                    "title": str(document.metadata.get("title", "")),
                    "excerpt": " ".join(text[:_EXCERPT].split()),
                }
            )

    def add(self, other: Tally) -> None:
        """Adds another task's counts of the same step and source."""
        self.documents_in += other.documents_in
        self.characters_in += other.characters_in
        self.documents_out += other.documents_out
        self.characters_out += other.characters_out
        self.dropped.update(other.dropped)
        self.characters_dropped.update(other.characters_dropped)  # keeps the 0 of an empty one
        self.events.update(other.events)
        for example in other.examples:
            same = [e for e in self.examples if e["reason"] == example["reason"]]
            if len(same) < EXAMPLES:
                self.examples.append(example)

    @property
    def characters_removed(self) -> int:
        """Characters taken out of documents that stayed."""
        return self.characters_in - self.characters_out - sum(self.characters_dropped.values())

    def write(self, folder: Path, rank: int) -> None:
        """`folder/step/rank.json`, which appears only whole."""
        path = folder / self.step / f"{rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")
        partial.replace(path)

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "source": self.source,
            "documents_in": self.documents_in,
            "characters_in": self.characters_in,
            "documents_out": self.documents_out,
            "characters_out": self.characters_out,
            "characters_removed": self.characters_removed,
            "dropped": dict(self.dropped),
            "characters_dropped": dict(self.characters_dropped),
            "events": dict(self.events),
            "examples": self.examples,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tally:
        values = {key: value for key, value in values.items() if key != "characters_removed"}
        for key in ("dropped", "characters_dropped", "events"):
            values[key] = Counter(values[key])
        return cls(**values)


def read_tallies(folder: Path, step: str) -> Iterator[Tally]:
    """The tallies of a step's finished tasks, in the order of their ranks."""
    for path in sorted((folder / step).glob("*.json")):
        yield Tally.from_dict(json.loads(path.read_text(encoding="utf-8")))
