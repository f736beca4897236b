"""Another batch size from a checkpoint on: no window is repeated or left out."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from puna.commands.pretrain import pretrain as command
from puna.tokenizer import Vocabulary
from puna.train.log import Record, read_log
from puna.train.pretrain import PretrainConfig, pretrain
from puna.train.pretrain import run_config as read_config
from puna.train.run_config import change_batch_size, with_batch_size
from tests.train.runs import losses, new_run, run_config


def stop_at(step: int) -> dict[str, Any]:
    def on_record(record: Record) -> None:
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return {"on_record": on_record}


def test_changed_twice_is_the_run_that_knew_it_before(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    run = new_run(tmp_path, vocabulary, run_config())
    assert not pretrain(run, **stop_at(5))
    command.main(
        ["--out", str(run), "--resume", "--batch-size", "6", "--micro-batch-size", "3"],
        standalone_mode=False,
    )
    history = ((0, 4), (5, 6))
    assert read_config(run).batch_sizes == history and read_config(run).micro_batch_size == 3
    planned = dataclasses.replace(run_config(), batch_size=history, micro_batch_size=2)
    whole = new_run(tmp_path / "whole", vocabulary, planned)
    assert pretrain(whole)
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)
    tokens = [record["tokens"] for record in read_log(run / "log.jsonl")]
    assert tokens == [64 * step for step in range(1, 6)] + [320 + 96 * n for n in range(1, 8)]


def test_the_change_is_from_the_newest_checkpoint_on(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    run = new_run(tmp_path, vocabulary, run_config())
    change_batch_size(run, PretrainConfig, 2)
    assert read_config(run) == run_config(2, 2)  # nothing was trained yet
    assert not pretrain(run, **stop_at(4))
    change_batch_size(run, PretrainConfig, 6)
    change_batch_size(run, PretrainConfig, 8, 4)  # nothing was trained with 6
    assert read_config(run).batch_size == ((0, 2), (4, 8))
    assert read_config(run).micro_batch_size == 4
    change_batch_size(run, PretrainConfig, None, 8)
    assert read_config(run).batch_size == ((0, 2), (4, 8))
    before = (run / "config.json").read_bytes()
    for size, words in ((0, "must be positive"), (9, "no multiple of micro_batch_size 4")):
        with pytest.raises(ValueError, match=words):
            change_batch_size(run, PretrainConfig, size, 4)
    with pytest.raises(ValueError, match="8 windows does not divide by 3"):
        change_batch_size(run, PretrainConfig, 8, parallel="fsdp=3")
    assert (run / "config.json").read_bytes() == before


def test_what_was_before_need_not_divide_over_more_ranks() -> None:
    config = with_batch_size(run_config(), 100, 24)
    wider = dataclasses.replace(
        config, settings=dataclasses.replace(config.settings, parallel="fsdp=3 dp=2")
    )
    assert wider.batch_sizes == ((0, 4), (100, 24)) and wider.last_batch_size == 24
    assert with_batch_size(wider, 100, 4 * 6).batch_sizes == wider.batch_sizes
    assert with_batch_size(config, 100, 4).batch_size == 4
    assert PretrainConfig.from_dict(wider.to_dict()) == wider


def test_a_history_that_is_none_is_refused() -> None:
    histories: list[tuple[tuple[int, int], ...]] = [
        (),
        ((1, 4),),
        ((0, 4), (0, 8)),
        ((0, 4), (9, 8), (5, 2)),
    ]
    for history in histories:
        with pytest.raises(ValueError, match="from step 0 on, in order"):
            dataclasses.replace(run_config(), batch_size=history)
    values = run_config().to_dict()
    for wrong in ([[0, 4], [5]], [[0, "many"]], "4", [4, 5], 4.0):
        with pytest.raises(ValueError):
            PretrainConfig.from_dict(values | {"batch_size": wrong})
