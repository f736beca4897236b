"""Files damaged in every way that tests/fuzz knows: a model that reads, or a FormatError.

The long run is `python -m tests.fuzz --cases 100000`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puna.formats import llama2c
from puna.formats.files import DataFile
from puna.quantize.block_type import Bytes
from tests.fuzz.cases import Model
from tests.fuzz.seeds import SEEDS

CASES = 60  # of each kind of model


@pytest.mark.parametrize("name", SEEDS)
def test_damage_is_a_format_error_in_bounded_memory(name: str, tmp_path: Path) -> None:
    model = Model(name, tmp_path)
    whole = model.attempt()
    assert (whole.refusal, whole.offence) == ("", "")
    outcomes = [model.run(seed=1, index=index) for index in range(CASES)]
    assert [outcome.offence for outcome in outcomes if outcome.offence] == []
    assert sum(not outcome.refusal for outcome in outcomes) > 0
    assert sum(bool(outcome.refusal) for outcome in outcomes) > CASES // 3
    assert model.attempt() == whole or not model.attempt().offence


def test_the_same_number_is_the_same_case(tmp_path: Path) -> None:
    refusals = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        model = Model("llama2c-v1", folder)
        outcomes = [model.run(seed=2, index=index) for index in range(30)]
        refusals.append([o.refusal.removeprefix(str(folder)) for o in outcomes])
    assert refusals[0] == refusals[1]
    assert len(set(refusals[0])) > 10


def test_what_must_not_happen_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("llama2c-v0", tmp_path)
    read = DataFile.read

    def greedy(file: DataFile, begin: int, end: int, field: str = "data") -> Bytes:
        assert np.ones(10_000_000, np.uint8).all()
        return read(file, begin, end, field)

    def vague(path: Path) -> None:
        raise ValueError("something is wrong")

    monkeypatch.setattr(DataFile, "read", greedy)
    assert "bytes were allocated" in model.attempt().offence
    monkeypatch.setattr(DataFile, "read", read)
    assert model.attempt().offence == ""
    monkeypatch.setattr(llama2c, "_check_size", vague)
    assert "TypeError" in model.attempt().offence
