"""Fine-tuning in several processes gives the losses of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.chat import LLAMA2_TEMPLATE
from puna.formats import open_checkpoint
from puna.tokenizer import Vocabulary
from puna.train.log import read_log
from puna.train.sft import sft
from tests.parallel.pool import Pool
from tests.train.runs import losses
from tests.train.sft_runs import new_run, trained_by_ranks


def test_layouts_train_as_one_process(tmp_path: Path, vocabulary: Vocabulary, four: Pool) -> None:
    single = new_run(tmp_path, vocabulary, name="single")
    assert sft(single)
    last = read_log(single / "log.jsonl")[-1]
    for layout in ("fsdp=2 cp=2", "tp=2 pp=2"):
        run = new_run(tmp_path, vocabulary, name=layout)
        four.run(trained_by_ranks, run, layout, timeout=250)
        assert losses(run) == pytest.approx(losses(single), abs=1e-5)
        found = read_log(run / "log.jsonl")[-1]
        assert found["tokens"] == last["tokens"]
        assert found["held_out_loss"] == pytest.approx(last["held_out_loss"], abs=1e-5)
        assert open_checkpoint(run).chat_template == LLAMA2_TEMPLATE
