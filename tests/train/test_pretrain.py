"""Pretraining against transformers and torch.optim, in pieces, killed and resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from puna.attention import causal
from puna.commands.models import named_vocabulary
from puna.data.loader import Loader
from puna.data.shards import ShardWriter, join_shards, open_shards
from puna.data.tokenize import write_shards
from puna.formats import open_checkpoint
from puna.formats.network import load_model
from puna.heads import next_token_logits
from puna.model import Llama, initialize
from puna.tokenizer import Tokenizer, Vocabulary
from puna.tokenizer.sentencepiece_model import read_model, write_model
from puna.train import window_loss
from puna.train.checkpoints import checkpoint_path, steps_saved
from puna.train.guard import DivergedError
from puna.train.log import Record, read_log
from puna.train.loop import Settings
from puna.train.pretrain import PretrainConfig, prepare, pretrain
from puna.train.pretrain import run_config as read_config
from puna.train.schedule import cosine
from tests.samples import story_lines, transformers_twin
from tests.train.runs import MODEL, first_batches, losses, new_run, newest, run_config, weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """A run of 12 steps that nothing disturbed."""
    run = new_run(tmp_path_factory.mktemp("finished"), vocabulary, run_config())
    assert pretrain(run)
    return run


def reference_losses(run: Path, settings: Settings) -> list[float]:
    """Plain transformers and torch.optim.AdamW on the run's batches, from the same weights."""
    model = Llama(MODEL)
    initialize(model, torch.Generator().manual_seed(3))
    twin = transformers_twin(model).train()
    optimizer = torch.optim.AdamW(
        twin.parameters(), lr=0.0, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1, foreach=False
    )
    found = []
    for step, batch in enumerate(first_batches(run, settings.steps)):
        logits = twin(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        found.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = cosine(
                step, peak=1e-2, warmup=5, total=settings.steps, final_fraction=0.1
            )
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_the_first_50_losses_equal_transformers_and_adamw(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    config = run_config(micro_batch_size=2, steps=50, warmup_steps=5, checkpoint_every=100)
    run = new_run(tmp_path, vocabulary, config)
    assert pretrain(run)
    found = list(losses(run).values())
    assert found == pytest.approx(reference_losses(run, config.settings), abs=1e-4)
    assert found[0] > 5.5 and found[-1] < 3  # it did learn
    assert max(record["grad_norm"] for record in read_log(run / "log.jsonl")) > 1  # it was clipped


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_accumulated_pieces_equal_one_batch(
    tmp_path: Path, vocabulary: Vocabulary, finished: Path, micro_batch_size: int
) -> None:
    run = new_run(tmp_path, vocabulary, run_config(micro_batch_size=micro_batch_size))
    assert pretrain(run)
    assert losses(run) == pytest.approx(losses(finished), abs=1e-5)
    held_out = [read_log(path / "log.jsonl")[-1]["held_out_loss"] for path in (run, finished)]
    assert held_out[0] == pytest.approx(held_out[1], abs=1e-5)


def test_what_the_log_says(finished: Path) -> None:
    records = read_log(finished / "log.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["tokens"] for record in records] == [64 * step for step in range(1, 13)]
    assert [r["learning_rate"] for r in records[:3]] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert records[-1]["learning_rate"] == pytest.approx(1e-3)
    assert [("held_out_loss" in record) for record in records] == [False] * 11 + [True]
    assert all(record["tokens_per_second"] > 0 for record in records)


def test_evaluation_at_intervals_changes_nothing(
    tmp_path: Path, vocabulary: Vocabulary, finished: Path
) -> None:
    run = new_run(tmp_path, vocabulary, run_config(eval_every=5))
    assert pretrain(run)
    found = {
        r["step"]: r["held_out_loss"] for r in read_log(run / "log.jsonl") if "held_out_loss" in r
    }
    assert list(found) == [5, 10, 12] and found[12] < found[5]
    assert losses(run) == losses(finished)


def test_held_out_loss_is_the_mean_over_held_out_tokens(finished: Path) -> None:
    shards = open_shards(finished / "data")
    tokens = shards.tokens(shards.manifest.shards[0])
    num_windows = (len(tokens) - 1) // 16
    starts = [16 * index for index in range(num_windows - 3, num_windows)]
    batch = torch.stack([torch.from_numpy(tokens[s : s + 17].astype("int64")) for s in starts])
    twin = transformers_twin(load_model(open_checkpoint(finished)))
    with torch.inference_mode():
        logits = twin(batch[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item()
    assert read_log(finished / "log.jsonl")[-1]["held_out_loss"] == pytest.approx(
        expected, abs=1e-5
    )


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(
    tmp_path: Path, vocabulary: Vocabulary, finished: Path
) -> None:
    run = new_run(tmp_path, vocabulary, run_config(dtype="bf16"))
    assert pretrain(run)
    found, exact = losses(run), losses(finished)
    assert found != exact and found == pytest.approx(exact, abs=0.05)
    assert set(open_checkpoint(run).dtype_bytes()) == {"f32"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_bit_identical(
    tmp_path: Path, vocabulary: Vocabulary, finished: Path, number: signal.Signals
) -> None:
    run = new_run(tmp_path, vocabulary, run_config())

    def interrupt(record: Record) -> None:
        if record["step"] in (2, 7):
            os.kill(os.getpid(), number)

    previous = signal.getsignal(number)
    starts: list[int] = []
    assert not pretrain(run, on_start=starts.append, on_record=interrupt)
    assert steps_saved(run) == [2] and list(losses(run)) == [1, 2]
    assert not pretrain(run, on_start=starts.append, on_record=interrupt)
    assert steps_saved(run) == [6, 7]
    assert pretrain(run, on_start=starts.append, on_record=lambda record: None)
    assert starts == [0, 2, 7]
    assert signal.getsignal(number) == previous
    assert losses(run) == losses(finished)
    assert weights(checkpoint_path(run, 12)) == weights(checkpoint_path(finished, 12))
    # A finished run has nothing left to do.
    assert pretrain(run) and losses(run) == losses(finished)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, vocabulary: Vocabulary) -> None:
    run = new_run(tmp_path, vocabulary, run_config())

    def interrupt_twice(record: Record) -> None:
        for _ in range(2 if record["step"] == 4 else 0):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(run, on_record=interrupt_twice)
    assert steps_saved(run) == [3]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from puna.train.pretrain import pretrain
torch.set_num_threads(1)
def on_record(record):
    if record["step"] == 8:
        os.kill(os.getpid(), signal.SIGKILL)
pretrain(Path(sys.argv[1]), on_record=on_record)
"""


def test_killed_between_checkpoints_and_resumed(
    tmp_path: Path, vocabulary: Vocabulary, finished: Path
) -> None:
    run = new_run(tmp_path, vocabulary, run_config())
    killed = subprocess.run([sys.executable, "-c", KILLED, run], cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert list(losses(run)) == list(range(1, 9)) and steps_saved(run) == [3, 6]
    # The kill may also have cut the line it was writing.
    with open(run / "log.jsonl", "a") as log:
        log.write('{"step": 9, "lo')
    starts: list[int] = []
    assert pretrain(run, on_start=starts.append)
    assert starts == [6]
    assert losses(run) == losses(finished)
    assert weights(checkpoint_path(run, 12)) == weights(checkpoint_path(finished, 12))


def test_the_log_is_trimmed_before_anything_is_added(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    run = new_run(tmp_path, vocabulary, run_config())

    def stop(step: int) -> Callable[[Record], None]:
        def on_record(record: Record) -> None:
            if record["step"] == step:
                raise RuntimeError("the power went")

        return on_record

    with pytest.raises(RuntimeError):
        pretrain(run, on_record=stop(5))
    assert list(losses(run)) == [1, 2, 3, 4, 5]
    with pytest.raises(RuntimeError):
        pretrain(run, on_record=stop(4))
    assert list(losses(run)) == [1, 2, 3, 4]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_leaves_the_last_checkpoint(
    tmp_path: Path,
    vocabulary: Vocabulary,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    run = new_run(tmp_path, vocabulary, run_config(max_skips=0, max_rollbacks=0))
    true_loss, calls = window_loss.next_token_loss_sum, 0

    def diverging(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = true_loss(logits, targets)
        if calls < 6:
            return loss
        # The root of 0 is 0, and its slope is infinite.
        return loss * float("nan") if where == "loss" else loss + (loss - loss).sqrt()

    monkeypatch.setattr(window_loss, "next_token_loss_sum", diverging)
    seen: list[int] = []
    with pytest.raises(DivergedError, match="The last checkpoint is kept"):
        pretrain(run, on_record=lambda record: seen.append(record["step"]))
    assert issubclass(DivergedError, ValueError)
    assert seen == list(losses(run)) == [1, 2, 3, 4, 5]
    assert steps_saved(run) == [3]
    path, state = newest(run)
    assert state.step == 3 and path == checkpoint_path(run, 3)
    monkeypatch.undo()
    assert pretrain(run) and losses(run) == losses(finished)


@pytest.fixture
def mixed(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    """A run on a folder of shards of two sources, with a mix and a document mask."""
    folder, encode = tmp_path / "shards", Tokenizer(vocabulary).encode
    stories = story_lines(300)
    for source, texts in (("web", stories[:250]), ("books", stories[250:])):
        with ShardWriter(folder / source, vocabulary, source=source, licence="CC0-1.0") as writer:
            for text in texts:
                writer.add(encode(text))
    join_shards(folder, ["web", "books"])
    config = dataclasses.replace(
        run_config(), mix={"web": 0.25, "books": 0.75}, document_mask=True, shards=str(folder)
    )
    prepare(tmp_path / "run", config, [], vocabulary)
    return tmp_path / "run"


def test_a_mix_of_shards_is_followed_and_resumed(mixed: Path) -> None:
    config = read_config(mixed)
    loader = Loader(
        open_shards(mixed.parent / "shards"),
        context_length=16, batch_size=4, seed=3, mix=config.mix, num_held_out=3,
    )  # fmt: skip
    assert loader.counts(12) == {"web": 12, "books": 36}

    def interrupt(record: Record) -> None:
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    assert not pretrain(mixed, on_record=interrupt)
    assert pretrain(mixed)
    again = mixed.parent / "again"
    prepare(again, config, [], read_model((mixed / "tokenizer.model").read_bytes()))
    assert pretrain(again) and losses(again) == losses(mixed)
    record = read_log(mixed / "log.jsonl")[-1]
    by_source = record["held_out_loss_by_source"]
    assert list(by_source) == ["web", "books"] and by_source["web"] != by_source["books"]
    assert record["held_out_loss"] == pytest.approx(sum(by_source.values()) / 2)
    model, total = load_model(open_checkpoint(mixed)), 0.0
    for row in loader.held_out()["books"]:
        total += sum(document_losses(model, torch.from_numpy(row)))
    assert by_source["books"] == pytest.approx(total / 48, abs=1e-5)


def document_losses(model: Llama, row: torch.Tensor) -> list[float]:
    """Sum of the loss over each document of a window, which is run alone."""
    starts = [0, *[at for at in range(1, 16) if row[at] == 1], 16]
    found = []
    for begin, end in itertools.pairwise(starts):
        tokens, targets = row[None, begin:end], row[begin + 1 : end + 1]
        with torch.no_grad():
            hidden = model(tokens, torch.arange(end - begin)[None], causal)
            logits = next_token_logits(model, hidden)
        found.append(F.cross_entropy(logits[0], targets, reduction="sum").item())
    return found


def test_a_corrupt_shard_is_named(mixed: Path) -> None:
    path = mixed.parent / "shards" / "books" / "00000.tokens"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"books.00000\.tokens is corrupt"):
        pretrain(mixed)
    path.write_bytes(raw[:-8])
    with pytest.raises(ValueError, match=r"books.00000\.tokens has .* bytes"):
        pretrain(mixed)
    assert steps_saved(mixed) == []


def test_nothing_is_left_of_a_run_whose_shards_are_corrupt(tmp_path: Path) -> None:
    from puna.commands.pretrain import pretrain as command

    shards, out = tmp_path / "shards", tmp_path / "run"
    write_shards(story_lines(60), named_vocabulary("cria"), shards, source="a", licence="CC0")
    path = shards / "00000.tokens"
    path.write_bytes(bytes(8) + path.read_bytes()[8:])
    asked = [str(shards), "--out", str(out), "--context-length", "16", "--steps", "1"]
    with pytest.raises(ValueError, match=r"00000\.tokens is corrupt"):
        command.main(asked, standalone_mode=False)
    assert list(tmp_path.iterdir()) == [shards]


def test_shards_of_another_vocabulary(mixed: Path, vocabulary: Vocabulary) -> None:
    other = dataclasses.replace(vocabulary, add_space_prefix=False)
    with pytest.raises(ValueError, match="another vocabulary"):
        prepare(mixed.parent / "other", read_config(mixed), [], other)
    (mixed / "tokenizer.model").write_bytes(write_model(other))
    with pytest.raises(ValueError, match="another vocabulary"):
        pretrain(mixed)


def test_config_round_trip_and_what_is_refused(finished: Path) -> None:
    config = read_config(finished)
    assert config == run_config()
    values = json.loads((finished / "config.json").read_text())
    assert values == config.to_dict() and values["stage"] == "pretrain"
    wrong: list[dict[str, Any]] = [
        values | {"stage": "sft"},
        values | {"colour": "red"},
        values | {"settings": values["settings"] | {"momentum": 1}},
        values | {"model": values["model"] | {"n_heads": 1}},
        {key: value for key, value in values.items() if key != "batch_size"},
    ]
    for case in wrong:
        with pytest.raises(ValueError):
            PretrainConfig.from_dict(case)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4, "micro_batch_size": 3}, "no multiple of micro_batch_size 3"),
        ({"micro_batch_size": 0}, "no multiple"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"held_out_windows": -1}, "held_out_windows must be 0 or more"),
        ({"settings": {"dtype": "fp8"}}, "bf16 or fp32"),
        ({"settings": {"steps": 0}}, "steps must be positive"),
        ({"settings": {"learning_rate": float("nan")}}, "learning_rate must be 0 or more"),
        ({"settings": {"keep_checkpoints": 0}}, "keep_checkpoints must be positive"),
        ({"settings": {"warmup_steps": 13}}, "between 0 and 12 steps"),
    ],
    ids=str,
)
def test_senseless_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    config = run_config()
    with pytest.raises(ValueError, match=message):
        if "settings" in changes:
            dataclasses.replace(config.settings, **changes["settings"])
        else:
            dataclasses.replace(config, **changes)


def test_prepare_leaves_nothing_behind_where_it_fails(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Too short.")
    with pytest.raises(ValueError, match="a batch needs 4"):
        prepare(tmp_path / "run", run_config(), [text], vocabulary)
    other = dataclasses.replace(run_config(), model=dataclasses.replace(MODEL, vocab_size=421))
    with pytest.raises(ValueError, match="421 rows for a tokenizer of 420"):
        prepare(tmp_path / "run", other, [text], vocabulary)
    with pytest.raises(ValueError, match="no such text file"):
        prepare(tmp_path / "run", run_config(), [tmp_path / "none.txt"], vocabulary)
    assert list(tmp_path.iterdir()) == [text]
    with pytest.raises(ValueError, match="is not a run"):
        pretrain(tmp_path)


def test_prepare_does_not_touch_a_run(finished: Path, vocabulary: Vocabulary) -> None:
    before = sorted(finished.rglob("*"))
    with pytest.raises(ValueError, match="exists already"):
        prepare(finished, run_config(), [finished / "text.txt"], vocabulary)
    assert sorted(finished.rglob("*")) == before
