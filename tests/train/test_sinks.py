"""TensorBoard and W&B: what was written is read back, a resumed run goes on with it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from puna.train.sinks import chosen, opened, scalars

RECORDS: list[dict[str, Any]] = [
    {"step": step, "loss": 5.0 - step, "held_out_loss_by_source": {"books": step / 2}, "why": "x"}
    for step in range(1, 6)
]


def absent(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is None or spec.origin is None


def test_scalars_of_a_record() -> None:
    record = {"step": 3, "loss": 2.5, "statistics": {"weight": {"layers.0": 1}}, "note": "x"}
    assert scalars(record) == {"loss": 2.5, "statistics/weight/layers.0": 1}


@pytest.mark.skipif(absent("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_is_read_back_and_goes_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened(tmp_path, chosen(tmp_path, {"tensorboard": ""})) as (begin, write):
        begin(0)
        for record in RECORDS[:4]:
            write(record)
    # Resumed from a checkpoint of step 2, not asked for again: what came after it comes anew.
    with opened(tmp_path, chosen(tmp_path, {})) as (begin, write):
        begin(2)
        for record in RECORDS[2:]:
            write(record | {"loss": 100.0 + record["step"]})
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "held_out_loss_by_source/books"}
    events = [(event.step, event.value) for event in found.Scalars("loss")]
    assert events == [(1, 4.0), (2, 3.0), (3, 103.0), (4, 104.0), (5, 105.0)]
    books = found.Scalars("held_out_loss_by_source/books")
    assert [event.value for event in books] == [0.5, 1.0, 1.5, 2.0, 2.5]


@pytest.mark.skipif(absent("wandb"), reason="wandb is not installed")
def test_wandb_offline_goes_on_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "config.json").write_text('{"batch_size": 4}')
    for asked in ({"wandb": "llamas"}, {}):
        with opened(tmp_path, chosen(tmp_path, asked)) as (begin, write):
            begin(0)
            write(RECORDS[0])
    saved = json.loads((tmp_path / "wandb.json").read_text())
    assert saved["project"] == "llamas"
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{saved['id']}/run-{saved['id']}.wandb"))
    assert len(files) >= 1
    assert b"held_out_loss_by_source/books" in files[0].read_bytes()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"--{name} needs {name}; install it by: pip install"):
        chosen(tmp_path, {name: ""})
    assert chosen(tmp_path, {}) == {}
    # A run that has one needs it too.
    (tmp_path / {"tensorboard": "tensorboard", "wandb": "wandb.json"}[name]).touch()
    with pytest.raises(ValueError, match=f"--{name} needs {name}"):
        chosen(tmp_path, {})


def test_a_folder_called_wandb_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="pip install wandb"):
        chosen(tmp_path, {"wandb": ""})


def test_without_sinks_nothing_is_written(tmp_path: Path) -> None:
    with opened(tmp_path, chosen(tmp_path, {})) as (begin, write):
        begin(0)
        write(RECORDS[0])
    assert not list(tmp_path.iterdir())
