"""`puna pretrain` with recipes: end to end, planned, and told what does not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from puna.commands.pretrain import pretrain as command
from puna.config import preset
from puna.formats import open_checkpoint
from puna.recipes import RECIPES
from puna.tokenizer import Vocabulary
from puna.train.checkpoints import checkpoint_path, steps_saved
from puna.train.log import read_log
from puna.train.pretrain import run_config
from tests.recipes.corpora import MIX, new_corpus

SMALL = ["--context-length", "16", "--no-compile", "--held-out", "2", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    return new_corpus(tmp_path_factory.mktemp("made") / "corpus", vocabulary)


def puna(*arguments: object) -> None:
    command.main([str(argument) for argument in arguments], standalone_mode=False)


def test_tiny_on_a_corpus(tmp_path: Path, corpus: Path, vocabulary: Vocabulary) -> None:
    out = tmp_path / "run"
    # The recipe's model has cria's 4096 pieces; a model that is named has the corpus's.
    with pytest.raises(ValueError, match=r"recipe tiny has a vocabulary of 4096 pieces, .* 420"):
        puna(corpus, "--recipe", "tiny", "--out", out, *SMALL, "--steps", 2)
    assert not out.exists()
    puna(corpus, "--recipe", "tiny", "--out", out, *SMALL, "--steps", 2, "--model", "tiny")
    config, tiny = run_config(out), RECIPES["tiny"]()
    shape = dataclasses.replace(preset("tiny"), vocab_size=420, context_length=16)
    settings = dataclasses.replace(
        tiny.settings, steps=2, warmup_steps=0, compile=False, dtype="fp32"
    )
    assert config == dataclasses.replace(
        tiny, model=shape, settings=settings, held_out_windows=2, mix=MIX,
        shards=str(corpus / "tokens"),
    )  # fmt: skip
    assert steps_saved(out) == [2]
    record = read_log(out / "log.jsonl")[-1]
    assert record["tokens"] == 2 * 16 * 16
    assert set(record["held_out_loss_by_source"]) == {"web", "books"}
    opened = open_checkpoint(checkpoint_path(out, 2))
    assert opened.config == shape and opened.vocabulary.pieces == vocabulary.pieces
    assert not (out / "data").exists()


def test_the_dial_on_a_corpus(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "run"
    options = ["--size", "1M", "--tokens", "1k", "--mix", "web=1,books=0", "--batch-size", "2"]
    puna(corpus / "tokens", *options, "--out", out, *SMALL)
    config = run_config(out)
    assert 0.9e6 < config.model.num_parameters < 1.1e6
    assert config.settings.steps == 32 and config.model.context_length == 16
    assert config.mix == {"web": 1.0, "books": 0.0}
    assert read_log(out / "log.jsonl")[-1]["tokens"] == 1024


def plain(text: str) -> str:
    return " ".join(text.split())


def test_a_plan_writes_nothing(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    puna(corpus, "--model", "tiny", "--recipe", "tiny", "--dry-run", *SMALL)
    printed = plain(capsys.readouterr().out)
    for words in (
        "vocabulary 420, tied", "8,847,360 (", "34,560, 100 of them warm-up",
        "16 windows of 16 = 256 tokens", "every 90 steps, 12 kept", "books 75.0%, web 25.0%",
    ):  # fmt: skip
        assert words in printed, words
    puna("--size", "350M", "--dry-run")
    printed = plain(capsys.readouterr().out)
    assert "346,064,640" in printed and "vocabulary 32000" in printed
    puna("--recipe", "tiny", "--parallel", "fsdp=2", "--dry-run")  # without torchrun, too
    printed = plain(capsys.readouterr().out)
    assert "fsdp=2: 2 processes on cpu, 8 windows" in printed and "working" in printed
    puna("--tokens", "10M", "--model", "small", "--dry-run")
    assert "10,010,624 (" in plain(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "7b"], "recipe 7b has a vocabulary of 32000 pieces, and the tokenizer 420"),
        (["--recipe", "7b", "--model", "7b", "--parallel", ""], "finds no GPU"),
        (["--recipe", "7b", "--model", "7b"], "'dp=128 fsdp=8' is for 1024 processes, and there"),
        (["--recipe", "70b", "--batch-size", "1024"], "1000 or 2000 would"),
        (["--recipe", "cria", "--tokenizer", "cria"], "makes corpus and tokenizer"),
        (["--size", "1M", "--recipe", "tiny"], "leave out --recipe"),
        (["--size", "1M", "--model", "tiny"], "leave out --model"),
        (["--size", "2M", "--tokenizer", "cria"], "another vocabulary"),
        (["--tokens", "1M", "--model", "tiny", "--steps", "3"], "leave out one of them"),
        (["--size", "5M", "--dry-run"], "windows of 512 to train on; a batch needs"),
        (["--recipe", "tiny", "--model", "tiny", "--context-length", "16", "--mix", "web=1"],
         "says nothing of books"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_first(
    tmp_path: Path, corpus: Path, monkeypatch: Any, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=words):
        puna(corpus, "--out", tmp_path / "run", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_mix_that_the_corpus_does_not_have(tmp_path: Path, vocabulary: Vocabulary) -> None:
    folder = new_corpus(tmp_path / "corpus", vocabulary, lines=60)
    (folder / "tokens" / "mix.json").write_text(json.dumps({"web": 1.0}))
    with pytest.raises(ValueError, match="only one has books"):
        puna(folder, "--out", tmp_path / "run", "--recipe", "tiny", "--model", "tiny")
