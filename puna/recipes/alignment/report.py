"""The alignment as one page: what each stage gave, who wins, curves, answers before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from puna.recipes.alignment.config import AlignConfig, Values
from puna.recipes.alignment.loop import Done, num_stages
from puna.recipes.alignment.measure import ANSWERS, TEMPERATURES, read_answers, read_dialogs
from puna.report.markup import Markup, element, joined
from puna.report.page import figures, page, picture, section
from puna.report.tables import Cell, Column, table

_SHOWN = 12  # dialogs of which answers are shown


def report(out: Path, config: AlignConfig, done: Sequence[Done]) -> str:
    """The page of what is done so far."""
    count = num_stages(config)
    models = [each for each in done if (each.folder / ANSWERS).is_file()]
    parts = [
        element("h1", out.resolve().name),
        _state(len(done), count),
        _summary(config, done, models),
        section("Versions", "Each stage in its order, what came of it, and the time it took.",
                _stages(done)),
    ]  # fmt: skip
    if any("gold" in each.figures for each in models):
        parts += [
            section("Gold score", "The mean share of what a program checks that answers to the "
                    "held-out tasks meet, ± its standard error; in brackets the share that meets "
                    "everything.", _gold(models)),
            section("By kind of task", "The share of sampled answers that meets everything, with "
                    "Wilson's 95 % interval.", _by_kind(models)),
        ]  # fmt: skip
    if any("wins" in each.figures for each in models):
        parts.append(
            section("Against the version before", "How often the new answer is the better one, "
                    "where they differ, with Wilson's 95 % interval.", _wins(models))
        )  # fmt: skip
    parts += [_pictures(each) for each in done]
    if models:
        parts.append(_answers(models))
    return page(f"{out.resolve().name}: an alignment", *parts)


def _state(done: int, all_: int) -> Markup:
    if done == all_:
        return Markup("")
    said = f" {done} of {all_} stages are done; the same command goes on with it."
    return element(
        "p", element("strong", "This alignment is not finished."), said, class_="warning"
    )


def _summary(config: AlignConfig, done: Sequence[Done], models: Sequence[Done]) -> Markup:
    pairs = [
        (str(len(config.versions)), "versions"),
        (_minutes(sum(each.seconds for each in done)), "in all"),
    ]
    scored = [each for each in models if "gold" in each.figures]
    if scored:
        first, last = (each.figures["gold"]["sampled"]["mean"] for each in (scored[0], scored[-1]))
        pairs.append((f"{first:.3f} → {last:.3f}", "gold score, first to last"))
    return figures(pairs)


def _stages(done: Sequence[Done]) -> Markup:
    columns = [
        Column("version", number=False), Column("stage", number=False), Column("time"),
        Column("what came of it", number=False),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [each.version, each.name, _minutes(each.seconds), _in_words(each.figures)] for each in done
    ]
    return table(columns, rows)


def _in_words(values: Values) -> str:
    """Plain figures of a stage, in its own words; tables are told elsewhere."""
    plain = {k: v for k, v in values.items() if isinstance(v, int | float | str)}
    return ", ".join(
        f"{name.replace('_', ' ')} {value:,.4g}"
        if not isinstance(value, str)
        else f"{name} {value}"
        for name, value in plain.items()
    )


def _gold(models: Sequence[Done]) -> Markup:
    columns = [Column("model", number=False), *(Column(name) for name in TEMPERATURES)]
    rows: list[list[Cell]] = []
    for each in models:
        found = each.figures.get("gold")
        if found:
            cells = [
                f"{found[name]['mean']:.3f} ± {found[name]['error']:.3f} "
                f"({found[name]['passed']:.0%})"
                for name in TEMPERATURES
            ]
            rows.append([_name(each), *cells])
    return table(columns, rows)


def _by_kind(models: Sequence[Done]) -> Markup:
    found = [(each, each.figures["gold"]["sampled"]) for each in models if "gold" in each.figures]
    rows: list[list[Cell]] = []
    for place, first in enumerate(found[0][1]["rows"]):
        cells = [_interval(values["rows"][place], "passed") for _, values in found]
        rows.append([f"{first['kind']}, {first['subjects']}", first["count"], *cells])
    for place, first in enumerate(found[0][1]["safety"]):
        cells = [_interval(values["safety"][place], "rate") for _, values in found]
        rows.append([first["name"], first["count"], *cells])
    columns = [Column("tasks", number=False), Column("count")]
    return table([*columns, *(Column(_name(each)) for each, _ in found)], rows)


def _wins(models: Sequence[Done]) -> Markup:
    columns = [
        Column("model", number=False), Column("answers", number=False), Column("won"),
        Column("lost"), Column("tied"), Column("win rate"),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for each in models:
        for name, found in each.figures.get("wins", {}).items():
            cells = [found["won"], found["lost"], found["tied"], _interval(found, "rate")]
            rows.append([_name(each), name, *cells])
    return table(columns, rows)


def _interval(values: Values, name: str) -> str:
    return f"{values[name]:.1%} ({values['low']:.0%} to {values['high']:.0%})"


def _pictures(done: Done) -> Markup:
    """Every picture of the stage's folder, by name."""
    found = sorted(done.folder.glob("*.png")) + sorted(done.folder.glob("run*/*.png"))
    if not found:
        return Markup("")
    shown = [picture(path, f"{_name(done)}: {path.stem}") for path in found]
    details = element("details", element("summary", f"{len(found)} pictures"), *shown)
    return section(_name(done), "", details)


def _answers(models: Sequence[Done]) -> Markup:
    """What each model says to the same prompts, as it would rather say it."""
    dialogs = read_dialogs(models[0].folder)
    step = max(1, len(dialogs) // _SHOWN)
    said = [(each, read_answers(each.folder)["greedy"]) for each in models]
    parts = []
    for number in range(0, len(dialogs), step)[:_SHOWN]:
        prompt = "\n".join(f"{m['role']}: {m['content']}" for m in dialogs[number])
        rows: list[list[Cell]] = [[_name(each), texts[number]] for each, texts in said]
        columns = [Column("model", number=False), Column("answer", number=False)]
        parts.append(joined([element("h3", prompt), table(columns, rows)]))
    return section("Answers", "To held-out prompts, by the likeliest words.", *parts)


def _name(done: Done) -> str:
    return done.version if done.name == "model" else f"{done.version} {done.name}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
