"""Tables and bars of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puna.report.markup import Markup, element, joined

# Text, a count, a share of 1, or markup of its own.
Cell = str | int | float | Markup


@dataclass(frozen=True)
class Column:
    """What stands over a column, and over it and its neighbours of the same `group`."""

    title: str
    group: str = ""
    number: bool = True


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], total: bool = False) -> Markup:
    """Rows of cells, the first of which names its row; `total` sets the last row apart."""
    body = [_row(columns, row) for row in (rows[:-1] if total else rows)]
    parts = [element("thead", *_head(columns)), element("tbody", *body)]
    if total:
        parts.append(element("tfoot", _row(columns, rows[-1])))
    return element("div", element("table", *parts), class_="wide", tabindex="0")


def share(value: float) -> str:
    """A share of 1 in per cent, one decimal; what is not nothing is not written as nothing."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"


def bar(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """A bar of (class, share of 1) parts, from the left; `label` says the same in words.

    A picture without text in it, so that it is as wide as there is room.
    """
    at = 0.0
    rects = []
    for kind, value in parts:
        if value > 0:
            width = max(value, 0.002)  # what there is can be seen
            begin = min(at, 1 - width)
            rects.append(
                element(
                    "rect", class_=kind, x=f"{100 * begin:.3f}", y="0", width=f"{100 * width:.3f}",
                    height="10",
                )
            )  # fmt: skip
        at += value
    return element(
        "svg", *rects, class_="bar", viewBox="0 0 100 10", preserveAspectRatio="none", role="img",
        aria_label=label,
    )  # fmt: skip


def interval_bar(kind: str, value: float, ends: tuple[float, float] | None, label: str) -> Markup:
    """A bar of one share of 1, with a line over its interval (`ends`; None: it has none)."""
    shapes = [(kind, 0.0, max(value, 0.002), "0", "10")]
    if ends is not None:
        low, high = ends
        shapes.append(("whisker", low, max(high - low, 0.002), "4.2", "1.6"))
        shapes += [("whisker", min(end, 0.996), 0.004, "1.5", "7") for end in ends]
    rects = [
        element("rect", class_=name, x=f"{100 * x:.3f}", y=y, width=f"{100 * width:.3f}", height=h)
        for name, x, width, y, h in shapes
    ]
    return element(
        "svg", *rects, class_="bar", viewBox="0 0 100 10", preserveAspectRatio="none", role="img",
        aria_label=label,
    )  # fmt: skip


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """What the (class, name) of bars' parts are."""
    return element(
        "ul",
        *(
            element("li", bar([(kind, 1.0)], ""), f" {name}")
            for kind, name in entries
        ),
        class_="legend",
    )  # fmt: skip


def _head(columns: Sequence[Column]) -> list[Markup]:
    titles = [
        element("th", column.title, scope="col", **_class("n" if column.number else ""))
        for column in columns
    ]
    if not any(column.group for column in columns):
        return [element("tr", *titles)]
    groups = []
    start = 0
    while start < len(columns):
        group, end = columns[start].group, start
        while end < len(columns) and columns[end].group == group:
            end += 1
        span = {"colspan": str(end - start)}
        if group:
            groups.append(element("th", group, scope="colgroup", class_="group", **span))
        else:
            groups.append(element("td", **span))
        start = end
    return [element("tr", *groups), element("tr", *titles)]


def _row(columns: Sequence[Column], row: Sequence[Cell]) -> Markup:
    cells = [element("th", _shown(row[0]), scope="row")]
    for column, cell in zip(columns[1:], row[1:], strict=True):
        kind = "n" if column.number else ""
        if column.number and not isinstance(cell, str) and cell == 0:
            kind = "n none"
        cells.append(element("td", _shown(cell), **_class(kind)))
    return element("tr", *cells)


def _shown(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return share(cell) if cell else "0"


def _class(kind: str) -> dict[str, str]:
    return {"class_": kind} if kind else {}


def lines(parts: list[Markup]) -> Markup:
    """Each part in a line of its own within a cell."""
    return joined([element("div", part) for part in parts])
