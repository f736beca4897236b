"""DPO: log-probabilities against a plain loop, no change of mind at first, and what it learns."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from puna.attention import causal
from puna.chat import encode_dialog
from puna.cli import puna
from puna.data.pairs import encode_pairs
from puna.data.preferences import read_comparisons
from puna.formats import open_checkpoint
from puna.formats.network import load_model
from puna.heads import next_token_logits
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.checkpoints import checkpoint_path
from puna.train.log import read_log
from puna.train.loop import Settings
from puna.train.preferences.dpo import DPO, DPOConfig, answer_logprobs, reference_of, with_reference
from tests.samples import positions_like, random_model
from tests.train.preferences.runs import MODEL, write_pairs, write_start
from tests.train.runs import losses


def test_log_probabilities_equal_a_plain_loop(tmp_path: Path, tokenizer: Tokenizer) -> None:
    given, _ = read_comparisons(write_pairs(tmp_path / "a.jsonl", 5))
    encoded, _ = encode_pairs(given, tokenizer, max_tokens=96)
    network = random_model(MODEL)
    with torch.no_grad():
        batch = torch.from_numpy(encoded.rows(range(5)))
        found = answer_logprobs(network, network, batch)
        for row, each in zip(found, given, strict=True):
            for value, dialog in zip(row.tolist(), each.dialogs(), strict=True):
                said = encode_dialog(tokenizer, dialog)
                ids = torch.tensor([said.ids])
                logits = next_token_logits(network, network(ids, positions_like(ids), causal))[0]
                expected = sum(
                    logits[place - 1].double().log_softmax(-1)[said.ids[place]].item()
                    for place in range(1, len(said.ids))
                    if said.loss_mask[place]
                )
                assert value == pytest.approx(expected, rel=1e-5)
    kept = with_reference(encoded, network, dtype="fp32", micro_batch_size=2)
    again = reference_of(torch.from_numpy(kept.rows(range(5))))
    torch.testing.assert_close(again, found.double(), rtol=1e-5, atol=0)


def test_at_first_the_policy_is_the_reference(tmp_path: Path, tokenizer: Tokenizer) -> None:
    given, _ = read_comparisons(write_pairs(tmp_path / "a.jsonl", 6))
    encoded, _ = encode_pairs(given, tokenizer, max_tokens=96)
    network = random_model(MODEL)
    kept = with_reference(encoded, network, dtype="fp32", micro_batch_size=4)
    stage = DPO(lambda step: kept.rows(range(6)), kept, 3, beta=0.5)
    total = sum(stage.loss(network, network, piece).item() for piece in stage.micro_batches(0))
    assert total == pytest.approx(6 * math.log(2), rel=1e-5)


def test_the_command_trains_resumes_and_chats(tmp_path: Path, vocabulary: Vocabulary) -> None:
    start, own = write_start(tmp_path / "start", vocabulary), write_pairs(tmp_path / "a.jsonl", 60)
    given = ["dpo", str(own), "--model", str(start), "--held-out", "20", "--batch-size", "8"]
    given += ["--dtype", "fp32", "--learning-rate", "5e-3", "--epochs", "2", "--eval-every", "5"]
    given += ["--checkpoint-every", "4"]
    shown = CliRunner().invoke(puna, [*given, "--dry-run", "--json"], catch_exceptions=False)
    assert json.loads(shown.stdout)["run"]["settings"]["steps"] == 10
    run = tmp_path / "run"
    done = CliRunner().invoke(puna, [*given, "--out", str(run)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert f"try it: puna chat --model {checkpoint_path(run, 10)}" in done.stderr
    records = read_log(run / "log.jsonl")
    assert records[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    last = records[-1]
    assert last["held_out_accuracy"] > 0.9 and last["held_out_margin"] > 0.1
    assert json.loads((run / "agreement.json").read_text())["held_out"]["pairs"] == 20
    checkpoint = open_checkpoint(run)
    assert checkpoint.heads == () and checkpoint.config == MODEL and checkpoint.chat_template
    # The policy itself moved, as its log says.
    comparisons, _ = read_comparisons(own)
    encoded, _ = encode_pairs(comparisons, checkpoint.tokenizer(), max_tokens=96)
    batch = torch.from_numpy(encoded.rows(range(60)))
    old, new = (load_model(open_checkpoint(path)) for path in (start, run))
    with torch.no_grad():
        change = answer_logprobs(new, new, batch) - answer_logprobs(old, old, batch)
    assert (change[:, 0] > change[:, 1]).float().mean() > 0.9

    # Without its last checkpoint it goes on from the one before, to the same end.
    before = losses(run)
    shutil.rmtree(checkpoint_path(run, 10))
    again = CliRunner().invoke(puna, ["dpo", "--out", str(run), "--resume"], catch_exceptions=False)
    assert again.exit_code == 0 and losses(run) == before


def test_configs_that_cannot_be() -> None:
    settings = Settings(steps=4, warmup_steps=1)
    with pytest.raises(ValueError, match="beta must be positive, not 0"):
        DPOConfig(MODEL, settings, 8, 4, beta=0)
    with pytest.raises(ValueError, match="stages on pairs can be cut by dp and fsdp alone"):
        DPOConfig(MODEL, Settings(steps=4, warmup_steps=1, parallel="cp=2"), 8, 4)
