"""Reward models: what a run learns, that it goes on alike, and what is asked of the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner

from puna.attention import causal
from puna.chat import Message, encode_dialog
from puna.cli import puna
from puna.commands.pairs import PairOptions
from puna.commands.train_options import TrainOptions
from puna.data.pairs import EncodedPairs, encode_pairs
from puna.data.preferences import Comparison, read_comparisons
from puna.engine.llm import LLM
from puna.formats import huggingface, open_checkpoint
from puna.formats.network import as_checkpoint, load_model
from puna.heads import attach, scalar
from puna.plan.layout import Layout
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.checkpoints import checkpoint_path, steps_saved
from puna.train.log import read_log
from puna.train.loop import Settings
from puna.train.preferences.losses import MARGINS
from puna.train.preferences.pair_data import read_pairs
from puna.train.preferences.reward import (
    Reward,
    RewardConfig,
    last_states,
    prepare,
    reward,
    warmup_steps,
)
from puna.train.scoring import open_scorer
from tests.samples import positions_like, random_model
from tests.train.preferences.runs import MODEL, write_pairs, write_start
from tests.train.runs import losses

SETTINGS = Settings(
    steps=12, learning_rate=2e-2, warmup_steps=2, dtype="fp32", checkpoint_every=4, eval_every=6
)


def new_run(folder: Path, vocabulary: Vocabulary, **changes: Any) -> Path:
    start = write_start(folder / "start", vocabulary)
    fields = {"chosen_safe": True, "rejected_safe": False} if changes.get("kind") else {}
    path = write_pairs(folder / "pairs.jsonl", 60, **fields)
    data = read_pairs([path], Tokenizer(vocabulary), max_tokens=96, seed=0, num_held_out=20)
    config = RewardConfig(
        replace(MODEL, tied=True), SETTINGS, 8, 4, seed=1, start=str(start), **changes
    )
    prepare(folder / "run", config, data.trained, data.held_out, vocabulary)
    return folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    run = new_run(tmp_path_factory.mktemp("reward"), vocabulary, kind="safety")
    assert reward(run)
    return run


def test_it_learns_what_is_preferred_and_what_is_safe(finished: Path) -> None:
    asked = [record for record in read_log(finished / "log.jsonl") if "held_out" in record]
    assert [record["step"] for record in asked] == [6, 12]
    last = asked[-1]
    assert last["held_out_accuracy"] == last["held_out"]["accuracy"] > 0.9
    assert last["held_out_safety_accuracy"] > 0.9
    ratings = last["held_out"]["by_rating"]
    assert sum(group["pairs"] for group in ratings.values()) == 20 and len(ratings) == 4
    checkpoint = open_checkpoint(finished)
    assert checkpoint.heads == ("score", "safety")
    assert checkpoint.config.tied and "output.weight" not in checkpoint.tensors
    # Tokens are what went through the network, not pairs.
    assert last["tokens"] > 12 * 8 * 2 * 10


def test_a_stopped_run_goes_on_alike(
    finished: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    run = new_run(tmp_path, vocabulary, kind="safety")

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reward(run, on_record=stop)
    assert steps_saved(run) == [4]
    starts: list[int] = []
    assert reward(run, on_start=starts.append) and starts == [4]
    assert losses(run) == losses(finished)


@pytest.mark.parametrize("margin", MARGINS)
def test_the_loss_equals_a_plain_loop(tmp_path: Path, tokenizer: Tokenizer, margin: str) -> None:
    given, _ = read_comparisons(write_pairs(tmp_path / "a.jsonl", 6, chosen_safe=True))
    # One answer to a prompt is in two comparisons, and is run once.
    given.append(Comparison(given[0].prompt, given[0].rejected, "No.", None, None, False))
    encoded, _ = encode_pairs(given, tokenizer, max_tokens=96)
    network = random_model(MODEL)
    attach(network, "score", "safety")
    with torch.no_grad():
        for head in ("score", "safety"):
            network.get_submodule(head).get_parameter("weight").normal_(
                generator=torch.Generator().manual_seed(len(head))
            )
    stage = Reward(lambda step: encoded.rows(range(7)), encoded, 4, margin, safety_weight=0.5)
    pieces = stage.micro_batches(0)
    assert [stage.num_tokens(piece) for piece in pieces] == [4, 3]
    found = sum(stage.loss(network, network, piece).item() for piece in pieces)

    def asked(dialog: list[Message], head: str) -> float:
        ids = torch.tensor([encode_dialog(tokenizer, dialog).ids])
        return scalar(network, head, network(ids, positions_like(ids), causal)[0, -1]).item()

    expected = 0.0
    sizes = {"significantly_better": 0, "better": 1, "slightly_better": 2, "negligibly_better": 3}
    for each in given:
        m = 0.0 if each.rating is None else MARGINS[margin][sizes[each.rating]]
        chosen, rejected = each.dialogs()
        difference = torch.tensor(asked(chosen, "score") - asked(rejected, "score") - m).double()
        expected -= difference.sigmoid().log().item()
        for dialog, safe in ((chosen, each.chosen_safe), (rejected, each.rejected_safe)):
            if safe is not None:
                p = torch.tensor(asked(dialog, "safety")).double().sigmoid().item()
                expected -= 0.5 / 2 * torch.tensor(p if safe else 1 - p).double().log().item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_same_dialog_is_run_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    given, _ = read_comparisons(write_pairs(tmp_path / "a.jsonl", 2))
    encoded, _ = encode_pairs([given[0], given[0], given[1]], tokenizer, max_tokens=96)
    network, seen = random_model(MODEL), []

    def model(ids: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(len(ids))
        return network(ids, *others)

    states = last_states(model, torch.from_numpy(encoded.rows(range(3))))
    assert seen == [4] and states.shape == (3, 2, 32)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_scores_are_the_training_networks(finished: Path, tmp_path: Path) -> None:
    scorer = open_scorer(finished)
    checkpoint = open_checkpoint(finished)
    tokenizer, network = checkpoint.tokenizer(), load_model(checkpoint)
    given, _ = read_comparisons(write_pairs(tmp_path / "a.jsonl", 20, seed=5))
    dialogs = [dialog for each in given for dialog in each.dialogs()]
    encoded, _ = encode_pairs(given, tokenizer, max_tokens=96)
    hidden = last_states(network, torch.from_numpy(encoded.rows(range(20))))
    expected = scalar(network, "score", hidden).flatten().tolist()
    assert scorer.score(dialogs) == pytest.approx(expected, abs=1e-5)
    assert scorer.score_ids([encoded.dialog(n).tolist() for n in range(40)]) == pytest.approx(
        expected, abs=1e-5
    )
    safety = scalar(network, "safety", hidden).sigmoid().flatten().tolist()
    assert scorer.safety(dialogs) == pytest.approx(safety, abs=1e-5)
    assert scorer(dialogs[:1]) == pytest.approx(expected[:1], abs=1e-5)
    assert scorer.score([]) == []


def test_what_cannot_be_scored(finished: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    ask, answer = Message("user", "Who?"), Message("assistant", "A llama.")
    scorer = open_scorer(finished, vocabulary=vocabulary)
    with pytest.raises(ValueError, match="to end with the assistant"):
        scorer.score([[ask]])
    long = [ask, Message("assistant", "A llama. " * 99)]
    assert scorer.fits([ask, answer]) and not scorer.fits(long)
    with pytest.raises(ValueError, match=r"tokens cannot be scored: .* has a context of 96"):
        scorer.score([long])
    other = replace(vocabulary, pieces=(*vocabulary.pieces[:-1], "other"))
    with pytest.raises(ValueError, match="is a reward model of another vocabulary"):
        open_scorer(finished, vocabulary=other)
    start = write_start(tmp_path / "start", vocabulary)
    with pytest.raises(ValueError, match="is no reward model: it has no score head"):
        open_scorer(start)
    network = random_model(MODEL)
    attach(network, "score")
    with torch.no_grad():
        network.get_submodule("score").get_parameter("weight").fill_(torch.nan)
    huggingface.write(as_checkpoint(network, tmp_path, vocabulary), tmp_path / "broken")
    broken = open_scorer(tmp_path / "broken")
    with pytest.raises(ValueError, match="gives 2 scores that are no number: it is broken"):
        broken.score([[ask, answer]] * 2)
    with pytest.raises(ValueError, match="has no safety head; it is a model of helpfulness"):
        broken.safety([[ask, answer]])


def test_a_reward_model_does_not_speak(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a reward model: it scores answers and gives none"):
        LLM(finished)
    pairs, prompts = write_pairs(tmp_path / "a.jsonl", 20), tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "A story?"}]}\n')
    dialogs = tmp_path / "dialogs.jsonl"
    dialogs.write_text('{"prompt": "A story?", "response": "The old llama."}\n')
    start, out = ["--model", str(finished)], ["--out", str(tmp_path / "run")]
    ppo = ["ppo", "--prompts", str(prompts), "--reward", str(finished)]
    for command in (["dpo", str(pairs)], ["sft", str(dialogs)], ppo):
        done = CliRunner().invoke(puna, [*command, *start, *out])
        assert "is a reward model" in str(done.exception) and not (tmp_path / "run").exists()


def test_a_usual_batch_of_pairs_divides_over_the_ranks(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    found = read_pairs(
        [write_pairs(tmp_path / "a.jsonl", 13)], tokenizer, max_tokens=96, seed=0, num_held_out=0
    )
    pairs = PairOptions((), "", None, 1, None, None, ())
    sizes = {layout: Layout.parse(layout) for layout in ("", "fsdp=2", "dp=2 fsdp=3")}
    nothing_said = cast(TrainOptions, SimpleNamespace(batch_size=None))
    assert [pairs.batch_size(nothing_said, found, 512, each) for each in sizes.values()] == [
        13, 12, 12,
    ]  # fmt: skip
    assert pairs.batch_size(nothing_said, found, 8, sizes["fsdp=2"]) == 8
    none = cast(TrainOptions, SimpleNamespace(batch_size=0))
    assert pairs.batch_size(none, found, 512, sizes[""]) == 0  # which the config refuses


def test_configs_that_cannot_be() -> None:
    base = (MODEL, SETTINGS, 8, 4)
    with pytest.raises(ValueError, match="kind is helpfulness or safety, not 'x'"):
        RewardConfig(*base, kind="x")
    with pytest.raises(ValueError, match="margin is none, small, large, not 'x'"):
        RewardConfig(*base, margin="x")
    with pytest.raises(ValueError, match="stages on pairs can be cut by dp and fsdp alone"):
        RewardConfig(MODEL, replace(SETTINGS, parallel="tp=2"), 8, 4)
    assert [warmup_steps(steps) for steps in (2, 60, 1000)] == [2, 5, 30]


def test_the_command(tmp_path: Path, vocabulary: Vocabulary) -> None:
    start = write_start(tmp_path / "start", vocabulary)
    own = write_pairs(tmp_path / "own.jsonl", 45)
    other = write_pairs(tmp_path / "other.jsonl", 30, seed=9)
    given = ["reward", str(own), "--other", str(other), "--model", str(start)]
    given += ["--kind", "safety", "--batch-size", "8", "--held-out", "9", "--dtype", "fp32"]
    shown = CliRunner().invoke(puna, [*given, "--dry-run", "--json"], catch_exceptions=False)
    facts = json.loads(shown.stdout)
    assert (facts["pairs"], facts["others"], facts["held_out"]) == (39, 4, 10)
    assert facts["run"]["settings"]["warmup_steps"] == facts["run"]["settings"]["steps"] == 5
    assert "The run" in CliRunner().invoke(puna, [*given, "--dry-run"]).stdout
    run = tmp_path / "run"
    trained = CliRunner().invoke(puna, [*given, "--out", str(run)], catch_exceptions=False)
    assert trained.exit_code == 0, trained.stderr
    assert f"try it: puna reward {own} --evaluate {checkpoint_path(run, 5)}" in trained.stderr
    for name in ("loss.png", "agreement.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    saved = json.loads((run / "agreement.json").read_text())
    assert saved["step"] == 5 and saved["held_out"]["pairs"] == 10
    again = CliRunner().invoke(puna, ["reward", "--out", str(run), "--resume"])
    assert again.exit_code == 0, again.stderr

    asked = ["reward", str(own), str(other), "--evaluate", str(run)]
    asked += ["--evaluate", str(checkpoint_path(run, 5))]
    rows = json.loads(CliRunner().invoke(puna, [*asked, "--json"], catch_exceptions=False).stdout)
    assert [row["pairs"] for row in rows] == [45, 45, 30, 30]
    assert all(0 <= row["accuracy"] <= 1 and row["left_out"] == {} for row in rows)
    table = CliRunner().invoke(puna, asked, env={"COLUMNS": "200"}).stdout
    assert "own.jsonl" in table and "slightly better" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no comparisons; give at least one file"),
        (["{own}", "--batch-size", "90"], "there are 18 pairs to train on; a batch of 90 needs"),
        (["{own}", "--held-out", "20"], "20 comparisons cannot be held out of 20"),
        (["{own}", "--context-length", "1000"], "the model's context has 96"),
        (["{own}", "--context-length", "12"], "no pair to train on: 20 longer than the context"),
        (["{own}", "--held-out", "2", "--held-out-data", "{own}"], "leave out --held-out"),
        (["{own}", "--evaluate", "{start}"], "is no reward model"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, vocabulary: Vocabulary, arguments: list[str], words: str
) -> None:
    places = {"own": write_pairs(tmp_path / "own.jsonl", 20), "start": tmp_path / "start"}
    write_start(places["start"], vocabulary)
    said = [argument.format(**places) for argument in arguments]
    result = CliRunner().invoke(
        puna, ["reward", *said, "--model", str(places["start"]), "--out", str(tmp_path / "run")]
    )
    assert isinstance(result.exception, ValueError) and words in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_pairs_of_held_out_prompts_are_not_trained_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    own = write_pairs(tmp_path / "own.jsonl", 20)
    few = write_pairs(tmp_path / "few.jsonl", 6, seed=3)
    data = read_pairs([own], tokenizer, max_tokens=96, seed=0, held_out_paths=[few])
    assert isinstance(data.trained, EncodedPairs)
    assert (len(data.trained), len(data.held_out)) == (14, 6)
    assert data.counts == {"prompts that are held out": 6}
    assert data.lines() == ["6 prompts that are held out"]
