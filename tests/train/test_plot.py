"""Pictures of a run's log."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from puna.train.plot import _amount, _round_numbers, held_out, plot_loss, plot_statistics, smooth


def write_log(run: Path, num_steps: int, **more: Any) -> list[dict[str, Any]]:
    run.mkdir()
    records = [
        {"step": s, "loss": 2 + 5 / s, "learning_rate": 1e-3, "grad_norm": 1 / s, "tokens": 64 * s}
        | more
        for s in range(1, num_steps + 1)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize("num_steps", [1, 2, 150])
@pytest.mark.parametrize("sources", [None, {"books": 3.0, "web": 2.5}])
def test_losses_are_drawn(tmp_path: Path, num_steps: int, sources: dict[str, float] | None) -> None:
    more: dict[str, Any] = {"held_out_loss": 2.75}
    if sources:
        more["held_out_loss_by_source"] = sources
    records = write_log(tmp_path / "run", num_steps, **more)
    found = held_out(records)
    assert list(found) == (["books", "web"] if sources else [""])
    assert found["books" if sources else ""][0] == (1, 3.0 if sources else 2.75)
    assert plot_loss(tmp_path / "run") == tmp_path / "run" / "loss.png"
    assert is_picture(tmp_path / "run" / "loss.png")
    assert {path.suffix for path in (tmp_path / "run").iterdir()} == {".jsonl", ".png"}


@pytest.mark.parametrize("num_steps", [1, 7])
def test_statistics_are_drawn(tmp_path: Path, num_steps: int) -> None:
    values = {"tok_embeddings": 1.0, "layers.0": 0.5, "attention.wq": 0.0, "attention_norm": 2.0}
    statistics = dict.fromkeys(("gradient", "weight", "update"), values)
    write_log(tmp_path / "run", num_steps, statistics=statistics)
    picture = plot_statistics(tmp_path / "run")
    assert picture is not None and is_picture(picture)


def test_no_statistics_no_picture(tmp_path: Path) -> None:
    write_log(tmp_path / "run", 3)
    assert plot_statistics(tmp_path / "run") is None


def test_numbers_on_the_axes() -> None:
    assert [_amount(n) for n in (0, 500, 2_500, 3e6, 1.5e9, 2e12)] == [
        "0", "500", "2.5K", "3M", "1.5B", "2T",
    ]  # fmt: skip
    assert _round_numbers(8, 600) == [10, 20, 50, 100, 200, 500]
    assert _round_numbers(3, 3.3) == pytest.approx([3, 3.07, 3.15, 3.22, 3.3])


def test_smoothing_begins_at_the_first_value() -> None:
    assert smooth([4.0]) == [4.0]
    assert smooth([1.0, 4.0], 0.5) == pytest.approx([1.0, 3.0])
    assert math.isclose(smooth([2.0] * 50)[-1], 2.0)
