"""The loop over stages: what follows what, going on where it was, and the page of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from puna.recipes.alignment.config import AlignConfig, Data, Stage, Version
from puna.recipes.alignment.loop import (
    RESULT,
    Context,
    Done,
    Kind,
    State,
    StoppedError,
    finished,
    num_stages,
    run,
)
from puna.recipes.alignment.measure import ANSWERS, wins
from puna.recipes.alignment.report import report


class Quiet:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def training(self, title: str, run: Path, steps: int) -> Iterator[dict[str, Any]]:
        yield {}

    @contextmanager
    def counting(self, title: str, total: int | None) -> Iterator[Any]:
        yield lambda: None

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class Options:
    by: int = 1


class World:
    """Stages that count: a tuned model is the one before and a letter more."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stop_at = ""

    def tune(self, context: Context, options: Options) -> tuple[State, dict[str, Any]]:
        name = f"{context.folder.parent.name}/{context.folder.name}"
        if name == self.stop_at:
            raise StoppedError(name)
        self.ran.append(name)
        state = replace(context.state, policy=context.state.policy + "+" * options.by)
        return state, {"loss": 1.5, "seed": context.seed}

    def collect(self, context: Context, options: Options) -> tuple[State, dict[str, Any]]:
        self.ran.append(f"{context.folder.parent.name}/{context.folder.name}")
        return replace(context.state, extra=(*context.state.extra, "more.jsonl")), {}

    def kinds(self) -> dict[str, Kind]:
        return {
            "tune": Kind(self.tune, Options, is_model=True),
            "collect": Kind(self.collect, Options),
        }


def measure(context: Context, before: Path | None) -> dict[str, Any]:
    """A gold score that grows with the model, and answers that hold markup."""
    quality = context.state.policy.count("+")
    rows = [{"messages": [{"role": "user", "content": "<b>Why?</b>"}]}]
    kept = [row | {"greedy": f"<i>{quality}</i>", "sampled": str(quality)} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in kept)
    (context.folder / ANSWERS).write_text(lines)
    found = {
        "mean": quality / 10, "error": 0.01, "passed": quality / 10, "safety": [],
        "rows": [{"kind": "facts", "subjects": "known", "count": 1, "passed": quality / 10,
                  "low": 0.0, "high": 1.0}],
    }  # fmt: skip
    figures: dict[str, Any] = {"gold": {"greedy": found, "sampled": found}}
    if before is not None:
        figures["wins"] = {"sampled": wins([0.0], [1.0])}
        figures["before"] = before.name
    return figures


CONFIG = AlignConfig(
    "base",
    Data(held_out=Path("held_out.jsonl")),
    (
        Version("V1", (Stage("tune"),)),
        Version("V2", (Stage("collect"), Stage("tune", {"by": 2}), Stage("collect"))),
    ),
)


def all_of(out: Path, world: World, config: AlignConfig = CONFIG) -> list[Done]:
    return list(run(out, config, world.kinds(), Quiet(), measure))


def test_stages_hand_on_what_they_made(tmp_path: Path) -> None:
    world = World()
    done = all_of(tmp_path / "out", world)
    assert world.ran == ["V1/tune", "V2/collect", "V2/tune", "V2/collect-2"]
    assert [each.state.policy for each in done] == ["base", "base+", "base+", "base+++", "base+++"]
    assert done[-1].state.extra == ("more.jsonl", "more.jsonl")
    # The base first; each model is compared with the one before, whatever stood between.
    assert [each.figures.get("before") for each in done] == [None, "model", None, "tune", None]
    assert num_stages(CONFIG) == len(done) == 5
    seeds = {done[1].figures["seed"], done[3].figures["seed"]}
    assert len(seeds) == 2


def test_a_stopped_alignment_goes_on_where_it_was(tmp_path: Path) -> None:
    world, out = World(), tmp_path / "out"
    world.stop_at = "V2/tune"
    with pytest.raises(StoppedError):
        all_of(out, world)
    assert world.ran == ["V1/tune", "V2/collect"]
    assert len(finished(out, CONFIG)) == 3
    assert "is not finished" in report(out, CONFIG, finished(out, CONFIG))
    world.stop_at = ""
    again = all_of(out, world)
    assert world.ran == ["V1/tune", "V2/collect", "V2/tune", "V2/collect-2"]
    assert [(d.state, d.figures) for d in again] == [
        (d.state, d.figures) for d in all_of(tmp_path / "other", World())
    ]


def test_another_alignment_or_a_damaged_one_is_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "out"
    all_of(out, World())
    with pytest.raises(ValueError, match="is of another alignment"):
        all_of(out, World(), replace(CONFIG, seed=1))
    result = out / "V1" / "tune" / RESULT
    result.write_text('{"state": {}}')
    with pytest.raises(ValueError, match="is damaged; remove it"):
        all_of(out, World())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is no alignment, and not empty"):
        all_of(tmp_path / "full", World())


def test_the_page_shows_scores_wins_and_answers_as_text(tmp_path: Path) -> None:
    page = report(tmp_path / "out", CONFIG, all_of(tmp_path / "out", World()))
    assert "0.000 → 0.300" in page
    assert "loss 1.5" in page and "V2 tune" in page
    assert "&lt;i&gt;3&lt;/i&gt;" in page and "&lt;b&gt;Why?" in page
    assert "<i>3</i>" not in page and "<b>Why?" not in page
    assert "100.0% (21% to 100%)" in page  # Wilson of 1 of 1
    assert "is not finished" not in page


def test_wins() -> None:
    found = wins([0.0, 1.0, 0.5, 0.5], [1.0, 0.5, 1.0, 0.5])
    assert (found["won"], found["lost"], found["tied"]) == (2, 1, 1)
    assert found["rate"] == pytest.approx(2 / 3)
    assert found["low"] == pytest.approx(0.2077, abs=1e-4)
    assert wins([1.0], [1.0])["rate"] == 0.5
