"""Checkpoints: as model folders, how many are kept, and what happens to damaged ones."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch

from puna.attention import causal
from puna.formats import open_checkpoint
from puna.formats.network import load_model
from puna.heads import next_token_logits
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.checkpoints import checkpoint_path, steps_saved
from puna.train.log import Record
from puna.train.pretrain import pretrain
from tests.samples import AWKWARD, positions_like
from tests.train.runs import losses, new_run, newest, run_config, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    run = new_run(tmp_path_factory.mktemp("finished"), vocabulary, run_config(keep_checkpoints=3))
    assert pretrain(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_checkpoint_loads_in_transformers(finished: Path, tokenizer: Tokenizer) -> None:
    path = checkpoint_path(finished, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

        theirs, report = LlamaForCausalLM.from_pretrained(path, output_loading_info=True)
        their_tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    checkpoint = open_checkpoint(finished)
    assert checkpoint.path == path and newest(finished)[0] == path
    ours = load_model(checkpoint)
    tokens = torch.tensor([tokenizer.encode("The old llama walked over 12 stones", bos=True)])
    with torch.inference_mode():
        logits = next_token_logits(ours, ours(tokens, positions_like(tokens), causal))
        torch.testing.assert_close(logits, theirs(tokens).logits, rtol=0, atol=1e-5)
    for text in AWKWARD[:-1]:
        expected = checkpoint.tokenizer().encode(text, bos=True)
        assert their_tokenizer(text).input_ids == expected == tokenizer.encode(text, bos=True)


def test_only_the_newest_are_kept(finished: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    assert steps_saved(finished) == [6, 9, 12]
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {
        "step-00000006", "step-00000009", "step-00000012"
    }  # fmt: skip
    run = new_run(tmp_path, vocabulary, run_config(keep_checkpoints=1, checkpoint_every=5))
    seen: list[list[int]] = []
    assert pretrain(run, on_record=lambda record: seen.append(steps_saved(run)))
    assert seen == [[]] * 5 + [[5]] * 5 + [[10]] * 2
    assert steps_saved(run) == [12]


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "zeroed":
        path.write_bytes(bytes(len(data)))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["cut", "emptied", "zeroed", "lost"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "config.json", "checkpoint.json"]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    run: Path, finished: Path, name: str, how: str
) -> None:
    damage(checkpoint_path(run, 12) / name, how)
    path, state = newest(run)
    assert path == checkpoint_path(run, 9)
    assert (state.step, state.tokens) == (9, 9 * 64)
    if name == "model.safetensors":
        starts: list[int] = []
        assert pretrain(run, on_start=starts.append) and starts == [9]
        assert losses(run) == losses(finished)
        assert weights(checkpoint_path(run, 12)) == weights(checkpoint_path(finished, 12))


def test_a_checkpoint_without_some_moments_is_damaged(run: Path) -> None:
    path = checkpoint_path(run, 12) / "optimizer.safetensors"
    data = path.read_bytes()
    assert data.count(b'"exp_avg.norm.weight"') == 1
    path.write_bytes(data.replace(b'"exp_avg.norm.weight"', b'"exp_avg.gone.weight"'))
    assert newest(run)[1].step == 9


def test_no_checkpoint_that_is_whole(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in steps_saved(run):
        damage(checkpoint_path(run, step) / "model.safetensors", "cut")
    with pytest.raises(ValueError, match=r"no checkpoint to resume from: .*step-00000012/model"):
        pretrain(run)
    notes = capsys.readouterr().err.splitlines()
    assert [note.split()[1] for note in notes] == [f"step-{step:08}" for step in (12, 9, 6)]
    with pytest.raises(ValueError, match="holds no config"):
        pretrain(tmp_path / "nothing")


def test_a_damaged_checkpoint_does_not_outlive_the_good_one(run: Path) -> None:
    """Falling back, then stopping before the damaged step, must leave what was just saved."""
    config = run / "config.json"
    config.write_text(config.read_text().replace('"keep_checkpoints": 3', '"keep_checkpoints": 1'))
    damage(checkpoint_path(run, 12) / "checkpoint.json", "cut")

    def stop(record: Record) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert not pretrain(run, on_record=stop)
    assert steps_saved(run) == [10]
    assert newest(run)[1].step == 10


def test_a_half_written_checkpoint_is_not_seen(run: Path) -> None:
    folder = run / "checkpoints"
    shutil.copytree(checkpoint_path(run, 12), folder / ".step-00000015.abc.partial")
    assert steps_saved(run) == [6, 9, 12]
    assert newest(run)[1].step == 12
