"""Fine-tuning: what its loss counts, one small run of the command, resumed, and told off."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from puna.attention import causal
from puna.chat import LLAMA2_TEMPLATE, Message, encode_dialog
from puna.commands.sft import sft as command
from puna.data.dialogs import EncodedDialogs
from puna.data.packing import Packs
from puna.formats import open_checkpoint
from puna.formats.network import load_model
from puna.heads import next_token_logits
from puna.plan.layout import Layout, usual_batch
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.checkpoints import checkpoint_path, steps_saved
from puna.train.log import Record, read_log
from puna.train.pretrain import pretrain
from puna.train.schedule import steps_for
from puna.train.sft import read_data, run_config, sft
from tests.train.runs import losses, weights
from tests.train.sft_runs import new_run, write_dialogs

TINY = ["--dtype", "fp32", "--context-length", "64", "--batch-size", "6", "--micro-batch-size", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    run = new_run(tmp_path_factory.mktemp("sft"), vocabulary)
    assert sft(run)
    return run


def test_the_loss_is_of_answers_alone(finished: Path, vocabulary: Vocabulary) -> None:
    """The first step's loss, dialog by dialog in a plain loop over the start's weights."""
    start = load_model(open_checkpoint(Path(run_config(finished).start)))
    tokenizer = Tokenizer(vocabulary)
    stage_batch = _first_batch(finished)
    total, count, positions = 0.0, 0, 0
    lines = (finished.parent / "data.jsonl").read_text().splitlines()
    for line in lines:
        messages = json.loads(line)["messages"]
        dialog = [Message(each["role"], each["content"]) for each in messages]
        encoded = encode_dialog(tokenizer, dialog)
        ids = torch.tensor([encoded.ids])
        if tuple(encoded.ids[:-1]) not in stage_batch:
            continue
        mask = torch.tensor([encoded.loss_mask])
        if messages[1].get("weight") == 0:  # the first answer: until the second turn's BOS
            mask[:, : encoded.ids.index(tokenizer.bos_id, 1)] = False
        with torch.no_grad():
            hidden = start(ids, torch.arange(ids.shape[1])[None], causal)
        logits = next_token_logits(start, hidden)[0, :-1].detach()
        each = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        total += each[mask[0, 1:]].sum().item()
        count += int(mask[0, 1:].sum())
        positions += len(encoded.ids) - 1
    first = read_log(finished / "log.jsonl")[0]
    assert positions == first["tokens"] > count > 50
    assert total / count == pytest.approx(first["loss"], abs=1e-5)


def _first_batch(run: Path) -> set[tuple[int, ...]]:
    """The inputs of the dialogs in the first batch."""
    dialogs = EncodedDialogs.load(run / "dialogs", 420)
    batch = Packs(dialogs, context_length=64, batch_size=8, seed=3).batch(0)
    return {
        tuple(ids[documents == number].tolist())
        for ids, _, documents in batch
        for number in range(1, documents.max() + 1)
    }


def test_it_learns_and_chats(finished: Path) -> None:
    found = losses(finished)
    assert found[6] < found[1] - 0.3
    last = read_log(finished / "log.jsonl")[-1]
    assert last["held_out_loss"] < found[1]
    path = checkpoint_path(finished, 6)
    assert open_checkpoint(path).chat_template == LLAMA2_TEMPLATE


def test_interrupted_and_resumed_is_bit_identical(
    tmp_path: Path, vocabulary: Vocabulary, finished: Path
) -> None:
    run = new_run(tmp_path, vocabulary)

    def interrupt(record: Record) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert not sft(run, on_record=interrupt)
    assert steps_saved(run) == [2, 3]
    # What the run began from is not needed any more.
    for file in (tmp_path / "start").iterdir():
        file.unlink()
    assert sft(run)
    assert losses(run) == losses(finished)
    assert weights(checkpoint_path(run, 6)) == weights(checkpoint_path(finished, 6))


def test_the_command_on_the_shipped_model(tmp_path: Path) -> None:
    data = write_dialogs(tmp_path / "data.jsonl", 12)
    run = tmp_path / "run"
    options = [*TINY, "--epochs", "0.9", "--keep-checkpoints", "1", "--checkpoint-every", "1"]
    done = CliRunner().invoke(command, [str(data), "--out", str(run), *options])
    assert done.exit_code == 0, done.output
    assert "try it: puna chat --model" in done.output
    config = run_config(run)
    assert config.start == "cria" and config.settings.final_fraction == 0.1
    assert config.settings.steps >= 2 and steps_saved(run) == [config.settings.steps]
    assert open_checkpoint(run).chat_template == LLAMA2_TEMPLATE
    again = CliRunner().invoke(command, ["--out", str(run), "--resume", "--epochs", "3"])
    assert "leave out epochs" in str(again.exception)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    data = write_dialogs(tmp_path / "data.jsonl", 24)
    with open(data, "a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "Alone."}]}) + "\n")
    options = [str(data), "--dry-run", "--context-length", "64", "--held-out", "4"]
    done = CliRunner().invoke(command, [*options, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["dialogs"] + found["held_out"] <= 24 and found["held_out"] == 4
    assert found["learned_tokens"] < found["tokens"]
    (reason,) = (key for key in found["skipped"] if "nobody answers" in key)
    assert found["skipped"][reason] == 1
    shown = CliRunner().invoke(command, options)
    assert "nobody answers" in shown.output and "warm-up" in shown.output
    assert list(tmp_path.iterdir()) == [data]


def test_held_out_dialogs_are_not_trained_on(tmp_path: Path, vocabulary: Vocabulary) -> None:
    data = write_dialogs(tmp_path / "data.jsonl", 20)
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text(data.read_text() * 2)
    read = [Tokenizer(vocabulary)]
    found = read_data([doubled], *read, context_length=64, seed=1, num_held_out=5)
    assert len(found.held_out) == 5
    trained = {found.trained[n][0].tobytes() for n in range(len(found.trained))}
    assert not any(found.held_out[n][0].tobytes() in trained for n in range(5))
    assert found.skipped.counts["skipped: the same dialog is held out"] >= 3
    other = write_dialogs(tmp_path / "other.jsonl", 3)
    apart = read_data([doubled], *read, context_length=64, seed=1, held_out_paths=[other])
    assert len(apart.held_out) == 3


def test_a_usual_batch_divides_over_the_ranks() -> None:
    assert usual_batch(Layout.parse(""), 1000, 64) == 64
    assert usual_batch(Layout.parse(""), 9, 64) == 9
    assert usual_batch(Layout.parse("fsdp=2"), 9, 64) == 8
    assert usual_batch(Layout.parse("dp=3 tp=2"), 1000, 64) == 63
    assert usual_batch(Layout.parse("fsdp=2 pp=2"), 1, 64) == 4  # which is refused as too large


def test_steps_of_epochs() -> None:
    assert steps_for(2, 100, 64) == 4  # 3.125, and the last batch is whole
    assert steps_for(0.5, 128, 64) == 1
    assert steps_for(0.01, 10, 5) == 1
    for epochs, batch_size in ((math.nan, 5), (math.inf, 5), (0, 5), (1, 0)):
        with pytest.raises(ValueError, match="must be"):
            steps_for(epochs, 10, batch_size)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "give at least one file"),
        (["DATA", "--batch-size", "100"], "a batch of 100 needs more"),
        (["DATA", "--context-length", "1024"], "a window of 1024 tokens"),
        (["DATA", "--held-out", "3", "--held-out-data", "DATA"], "leave out --held-out"),
        (["DATA", "--held-out", "99"], "99 dialogs cannot be held out of"),
        (["DATA", "--context-length", "8"], "no dialog to train on in data.jsonl: 24 dialogs"),
        (["DATA", "--model", "nothing"], "no such file or folder: nothing"),
        (["absent.jsonl"], "no such text file: absent.jsonl"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, options: list[str], problem: str) -> None:
    data = write_dialogs(tmp_path / "data.jsonl", 24)
    given = [str(data) if option == "DATA" else option for option in options]
    done = CliRunner().invoke(command, [*given, "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, ValueError) and problem in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_another_stage_or_start_is_refused(
    tmp_path: Path, vocabulary: Vocabulary, finished: Path
) -> None:
    with pytest.raises(ValueError, match="not the config of a run of pretrain, but of sft"):
        pretrain(finished)
    run = new_run(tmp_path, vocabulary)
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace(str(tmp_path / "start"), "cria"))
    with pytest.raises(ValueError, match="cria is not the model"):
        sft(run)
