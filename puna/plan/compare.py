"""Plans side by side: every number that they have, and how it relates to the first plan's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST_BYTES = 16 << 20  # of a plan, which are kilobytes


@dataclass(frozen=True, slots=True)
class Line:
    """A field of the plans, `values` in their order (None: one has no such)."""

    field: str
    values: tuple[float | str | None, ...]

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Each number over the first; None where that says nothing."""
        first = _number(self.values[0])
        numbers = [_number(value) for value in self.values]
        return tuple(value / first if value is not None and first else None for value in numbers)


def _number(value: float | str | None) -> float | None:
    return None if isinstance(value, str | bool) else value


def read_plan(path: Path) -> dict[str, Any]:
    """What `puna plan ... --json` printed; ValueError for any other file."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is too large to be a plan")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}); make it with puna plan ... --json"
        ) from None
    if not isinstance(plan, dict) or "kind" not in plan:
        raise ValueError(f"{path} is no plan; make one with puna plan ... --json")
    return plan


def compare(plans: Sequence[dict[str, Any]], *, all_fields: bool = False) -> list[Line]:
    """A line for each field that differs, or for all; ValueError for plans of different kinds."""
    if len(plans) < 2:
        raise ValueError("one plan cannot be compared; name two or more")
    kinds = list(dict.fromkeys(str(plan["kind"]) for plan in plans))
    if len(kinds) > 1:
        raise ValueError(f"plans of different kinds cannot be compared: {', '.join(kinds)}")
    flat = [dict(_leaves(plan)) for plan in plans]
    fields = dict.fromkeys(field for leaves in flat for field in leaves)
    lines = [Line(field, tuple(leaves.get(field) for leaves in flat)) for field in fields]
    return [line for line in lines if all_fields or len(set(line.values)) > 1]


def _leaves(plan: Any, prefix: str = "") -> Iterator[tuple[str, float | str | None]]:
    """Numbers and names of nested objects, by dotted fields; of lists, numbered."""
    if isinstance(plan, dict):
        for key, value in plan.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(plan, list):
        for number, value in enumerate(plan):
            name = value.get("name", number) if isinstance(value, dict) else number
            yield from _leaves(value, f"{prefix}.{name}")
    elif plan is None or isinstance(plan, int | float | str):
        yield prefix, plan
