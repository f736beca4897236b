"""The report as one page (`puna.report`)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from puna.data.pipeline.reasons import in_words
from puna.data.pipeline.steps import STEPS
from puna.report.markup import Markup, element, joined
from puna.report.page import figures, section
from puna.report.page import page as whole_page
from puna.report.tables import Cell, Column, bar, legend, lines, share, table

Report = dict[str, Any]

_SUMMARIES = {
    "read": "empty and binary documents",
    **{name: step.summary for name, step in STEPS.items()},
    "tokenize": "nothing: the documents become ids",
}
_FOUND = (
    ("boilerplate", "characters", "boilerplate", "characters of boilerplate"),
    ("boilerplate", "documents", "boilerplate", "documents with boilerplate"),
    ("personal, replaced", "e-mails", "personal", "emails replaced"),
    ("personal, replaced", "phones", "personal", "phones replaced"),
    ("personal, replaced", "IPs", "personal", "ips replaced"),
    ("personal, replaced", "documents", "personal", "documents with personal information"),
    ("dropped for it", "documents", "personal", None),
    ("dropped for it", "of sites", "sites", None),
    ("duplicates", "exact", "exact", None),
    ("duplicates", "near", "minhash", None),
    ("of evaluation sets", "paragraphs", "decontaminate", "paragraphs cut"),
    ("of evaluation sets", "documents", "decontaminate", None),
)  # (group, title, step, event; None: what the step dropped)


def page(report: Report, name: str) -> str:
    """The page of a report (`report.collect`); `name` is the build's."""
    parts = [
        element("h1", name),
        _state(report),
        _summary(report),
        section("Sources", "What was read, what is left of it, and the mix that is trained on.",
                 _sources(report), _mix(report)),
        section("Through the steps", "All sources together, in the order of the work. Every line "
                 "adds up: left = read − dropped − taken out of documents that stayed.",
                 _flow(report)),
        section("Where the characters went", "Of what was read of each source: kept, or lost to "
                 "which step.", _losses(report)),
        section("Found", "What was taken out, replaced or dropped, in documents of each source.",
                 _found(report)),
        section("Why documents were dropped", "By step, reason and source, the most first.",
                 _reasons(report)),
        element("section", element("h2", "Each step"), *_steps(report)),
    ]  # fmt: skip
    return whole_page(f"{name}: what was built", *parts)


def _state(report: Report) -> Markup:
    if report["complete"]:
        return Markup("")
    return element(
        "p",
        element("strong", "This build is not finished."),
        " What is below is of the tasks that are; the same command goes on with it.",
        class_="warning",
    )


def _summary(report: Report) -> Markup:
    sources = report["sources"].values()
    read, kept = (sum(s[f"documents_{way}"] for s in sources) for way in ("in", "out"))
    given, left = (sum(s[f"characters_{way}"] for s in sources) for way in ("in", "out"))
    return figures(
        (
            (f"{kept:,}", f"documents of {read:,}"),
            (f"{left:,}", f"characters of {given:,}"),
            (share(left / given) if given else "–", "of the characters kept"),
            (f"{report['found']['tokens']:,}", "tokens"),
        )
    )


def _sources(report: Report) -> Markup:
    columns = [
        Column("source", number=False), Column("licence", number=False), Column("files"),
        Column("read", "documents"), Column("kept", "documents"),
        Column("read", "characters"), Column("kept", "characters"), Column("kept", "characters"),
        Column("count", "tokens"), Column("share", "tokens"),
        Column("up-sampled", "mix"), Column("share", "mix"),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            name, s["licence"], s["files"], s["documents_in"], s["documents_out"],
            s["characters_in"], s["characters_out"],
            s["characters_out"] / max(s["characters_in"], 1),
            s["tokens"], float(s["share"]), f"× {s['upsample']:g}", float(s["weight"]),
        ]
        for name, s in report["sources"].items()
    ]  # fmt: skip
    total = [sum(int(row[i]) for row in rows) for i in (2, 3, 4, 5, 6, 8)]
    rows.append([
        "all", "", *total[:5], total[4] / max(total[3], 1), total[5],
        float(bool(total[5])), "", float(bool(total[5])),
    ])  # fmt: skip
    return table(columns, rows, total=True)


def _mix(report: Report) -> Markup:
    if not report["found"]["tokens"]:
        return Markup("")
    rows = []
    for number, (name, s) in enumerate(report["sources"].items()):
        kind = f"c{number % 10}"
        bars = [
            bar([(f"{kind} faint", s["share"])], f"{share(s['share'])} of the tokens"),
            bar([(kind, s["weight"])], f"{share(s['weight'])} of the mix"),
        ]
        shares = [Markup(share(s["share"])), Markup(share(s["weight"]))]
        rows.append([name, lines(bars), lines(shares)])
    columns = [
        Column("source", number=False), Column("above: of the tokens; below: of the mix",
        number=False), Column("share"),
    ]  # fmt: skip
    return table(columns, rows)


def _flow(report: Report) -> Markup:
    columns = [
        Column("step", number=False),
        Column("in", "documents"), Column("dropped", "documents"), Column("left", "documents"),
        Column("in", "characters"), Column("dropped", "characters"),
        Column("taken out", "characters"), Column("left", "characters"),
        Column("left, of what was read", number=False),
    ]  # fmt: skip
    sources = report["sources"].values()
    documents = sum(s["documents_in"] for s in sources)
    characters = read = sum(s["characters_in"] for s in sources)
    rows: list[list[Cell]] = []
    for step, tallies in report["steps"].items():
        if step == "tokenize":
            continue
        # A source that a step is off for goes past it.
        dropped = sum(sum(t["dropped"].values()) for t in tallies.values())
        lost = sum(sum(t["characters_dropped"].values()) for t in tallies.values())
        taken = sum(t["characters_removed"] for t in tallies.values())
        left = characters - lost - taken
        rows.append([
            element("a", step, href=f"#step-{step}"), documents, dropped, documents - dropped,
            characters, lost, taken, left, _left(left, lost + taken, read),
        ])  # fmt: skip
        documents, characters = documents - dropped, left
    return table(columns, rows)


def _left(left: int, lost: int, read: int) -> Markup:
    kept, gone = left / max(read, 1), lost / max(read, 1)
    return joined([
        element("span", share(kept) if left else "0", class_="beside"),
        bar([("kept", kept), ("lost", gone)], f"{share(kept)} left, {share(gone)} lost here"),
    ])  # fmt: skip


def _losses(report: Report) -> Markup:
    steps = [step for step in report["steps"] if step != "tokenize"]
    lost = {
        source: {step: _lost(report, step, source) for step in steps}
        for source in report["sources"]
    }
    shown = [step for step in steps if any(lost[source][step] for source in lost)]
    kinds = {step: f"c{number % 10}" for number, step in enumerate(shown)}
    columns = [Column("source", number=False), Column("of its characters", number=False),
               Column("kept"), *(Column(step, "lost to") for step in shown)]  # fmt: skip
    rows: list[list[Cell]] = []
    for source, losses in lost.items():
        read = max(report["sources"][source]["characters_in"], 1)
        shares = {step: losses[step] / read for step in shown}
        kept = 1 - sum(shares.values()) if report["sources"][source]["characters_in"] else 0.0
        said = ", ".join(f"{share(part)} {step}" for step, part in shares.items() if part)
        whole = bar(
            [("kept", kept), *((kinds[step], part) for step, part in shares.items())],
            f"{share(kept)} kept" + (f"; lost to {said}" if said else ""),
        )
        rows.append([source, whole, kept, *shares.values()])
    entries = [("kept", "kept"), *((kind, step) for step, kind in kinds.items())]
    return joined([legend(entries), table(columns, rows)])


def _lost(report: Report, step: str, source: str) -> int:
    tally = report["steps"][step].get(source)
    return tally["characters_in"] - tally["characters_out"] if tally else 0


def _found(report: Report) -> Markup:
    columns = [Column("source", number=False)]
    columns += [Column(title, group) for group, title, *_ in _FOUND]
    rows: list[list[Cell]] = [
        [source, *(_count(report, step, event, source) for _, _, step, event in _FOUND)]
        for source in report["sources"]
    ]
    totals = [sum(int(row[i]) for row in rows) for i in range(1, len(columns))]
    return table(columns, [*rows, ["all", *totals]], total=True)


def _count(report: Report, step: str, event: str | None, source: str) -> int:
    tally = report["steps"].get(step, {}).get(source)
    if tally is None:
        return 0
    counted = sum(tally["dropped"].values()) if event is None else tally["events"].get(event, 0)
    return int(counted)


def _reasons(report: Report) -> Markup:
    rows: list[tuple[str, str, str, int, int, int]] = [
        (step, reason, source, count, tally["characters_dropped"][reason], tally["documents_in"])
        for step, tallies in report["steps"].items()
        for source, tally in tallies.items()
        for reason, count in tally["dropped"].items()
    ]
    if not rows:
        return element("p", "None was.")
    order = list(report["steps"])
    rows.sort(key=lambda row: (order.index(row[0]), -row[3], row[1], row[2]))
    columns = [
        Column("step", number=False), Column("reason", number=False),
        Column("source", number=False), Column("documents"), Column("of the source's"),
        Column("characters"),
    ]  # fmt: skip
    cells: list[list[Cell]] = [
        [step, _reason(reason), source, count, count / max(came, 1), characters]
        for step, reason, source, count, characters, came in rows
    ]
    total = [sum(row[i] for row in rows if isinstance(row[i], int)) for i in (3, 4)]  # type: ignore[misc]
    return table(columns, [*cells, ["all", "", "", total[0], "", total[1]]], total=True)


def _reason(reason: str) -> Markup:
    words = in_words(reason)
    if words == reason:
        return element("span", reason)
    return joined([element("span", words), Markup(" "), element("code", reason)])


def _steps(report: Report) -> list[Markup]:
    sections = []
    for step, tallies in report["steps"].items():
        columns = [
            Column("source", number=False), Column("in", "documents"),
            Column("dropped", "documents"), Column("out", "documents"),
            Column("in", "characters"), Column("dropped", "characters"),
            Column("taken out", "characters"), Column("out", "characters"),
        ]  # fmt: skip
        rows: list[list[Cell]] = [
            [
                source, t["documents_in"], sum(t["dropped"].values()), t["documents_out"],
                t["characters_in"], sum(t["characters_dropped"].values()),
                t["characters_removed"], t["characters_out"],
            ]
            for source, t in tallies.items()
        ]  # fmt: skip
        sections.append(
            element(
                "section",
                element("h3", step),
                element("p", f"Takes out: {_SUMMARIES[step]}.{_off(report, step)}", class_="said"),
                table(columns, rows),
                *_events(tallies),
                *_examples(report, step),
                id=f"step-{step}",
            )
        )
    return sections


def _off(report: Report, step: str) -> str:
    off = [source for source in report["sources"] if source not in report["steps"][step]]
    return f" Off for {', '.join(off)}." if off and report["complete"] else ""


def _events(tallies: dict[str, Any]) -> list[Markup]:
    events = Counter[str]()
    for tally in tallies.values():
        events.update(tally["events"])
    if not events:
        return []
    columns = [
        Column("counted", number=False), *(Column(source) for source in tallies), Column("all"),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [in_words(event), *(int(t["events"].get(event, 0)) for t in tallies.values()), count]
        for event, count in sorted(events.items(), key=lambda item: (-item[1], item[0]))
    ]
    return [table(columns, rows)]


def _examples(report: Report, step: str) -> list[Markup]:
    examples = [example for example in report["examples"] if example["step"] == step]
    if not examples:
        return []
    shown = [element("summary", f"Examples of what was dropped ({len(examples)})")]
    for example in examples:
        heading = [_reason(example["reason"]), Markup(" · "), element("code", example["id"])]
        if example["title"]:
            heading += [Markup(" · "), element("cite", element("bdi", example["title"]))]
        excerpt = [element("blockquote", element("bdi", example["excerpt"]))]
        shown += [element("p", *heading), *(excerpt if example["excerpt"] else [])]
    return [element("details", *shown)]
