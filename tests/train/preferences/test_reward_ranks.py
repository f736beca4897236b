"""A reward model by two ranks: the losses and answers of one process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from puna.formats import open_checkpoint
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.log import read_log
from puna.train.loop import Settings
from puna.train.preferences.pair_data import read_pairs
from puna.train.preferences.reward import RewardConfig, prepare, reward
from tests.train.preferences.runs import MODEL, write_pairs, write_start

ROOT = Path(__file__).parents[3]
SETTINGS = Settings(steps=4, learning_rate=1e-2, warmup_steps=1, dtype="fp32", checkpoint_every=4)
CODE = "import sys, torch; from pathlib import Path; "
CODE += "from puna.train.preferences.reward import reward; "
CODE += "torch.set_num_threads(1); assert reward(Path(sys.argv[1]))"


@pytest.mark.parametrize("layout", ["fsdp=2", pytest.param("dp=2", marks=pytest.mark.slow)])
def test_two_ranks_train_the_same_model(
    tmp_path: Path, vocabulary: Vocabulary, layout: str
) -> None:
    start, path = write_start(tmp_path / "start", vocabulary), write_pairs(tmp_path / "a.jsonl", 50)
    data = read_pairs([path], Tokenizer(vocabulary), max_tokens=96, seed=0, num_held_out=14)
    runs = {}
    for name, parallel in (("one", ""), ("two", layout)):
        settings = replace(SETTINGS, parallel=parallel)
        config = RewardConfig(
            replace(MODEL, tied=True), settings, 8, 4, seed=1, kind="safety", start=str(start)
        )
        runs[name] = tmp_path / name
        prepare(runs[name], config, data.trained, data.held_out, vocabulary)
    assert reward(runs["one"])
    script = tmp_path / "train.py"
    script.write_text(CODE)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), str(runs["two"])],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    one, two = (read_log(run / "log.jsonl") for run in runs.values())
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "grad_norm", "tokens"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), key
    for key in ("held_out_loss", "held_out_accuracy"):
        assert one[-1][key] == pytest.approx(two[-1][key], rel=1e-4)
    assert two[-1]["held_out"]["pairs"] == one[-1]["held_out"]["pairs"]
    checkpoint = open_checkpoint(runs["two"])
    assert checkpoint.format == "sharded" and checkpoint.heads == ("score", "safety")
