"""The scripts that put pretraining beside n-grams and beside transformers, on a small run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from puna.attention import causal
from puna.data.loader import Loader
from puna.data.shards import open_shards
from puna.evaluate.kneser_ney import KneserNey
from puna.formats import huggingface, open_checkpoint
from puna.formats.network import as_checkpoint, load_model
from puna.heads import next_token_logits
from puna.model import Llama, initialize
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.checkpoints import checkpoint_path
from puna.train.pretrain import prepare, pretrain
from tests.samples import story_lines
from tests.train.runs import MODEL, SETTINGS, run_config

NUM_HELD_OUT = 12
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def decoded_bytes(tokenizer: Tokenizer, ids: list[int]) -> int:
    """Bytes of the text of some documents' ids, which may begin in the middle of one."""
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.bos_id:
            pieces.append([])
        pieces[-1].append(token)
    total = 0
    for number, piece in enumerate(pieces):
        stream = tokenizer.stream(strip_space=number > 0)
        total += len(("".join(map(stream.push, piece)) + stream.finish()).encode())
    return total


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what they import
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """12 steps in fp32 over documents of three sentences, with a checkpoint at each third step."""
    folder = tmp_path_factory.mktemp("measured")
    lines = story_lines(300)
    documents = ["\n".join(lines[at : at + 3]) for at in range(0, 300, 3)]
    (folder / "text.txt").write_text("\n***\n".join(documents), encoding="utf-8")
    config = dataclasses.replace(
        run_config(keep_checkpoints=9, eval_every=3), held_out_windows=NUM_HELD_OUT
    )
    prepare(folder / "run", config, [folder / "text.txt"], vocabulary, separator="***")
    assert pretrain(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def loader(run: Path) -> Loader:
    return Loader(
        open_shards(run / "data"),
        context_length=MODEL.context_length,
        batch_size=4,
        seed=3,
        num_held_out=NUM_HELD_OUT,
    )


def test_bits_per_byte_are_those_of_the_log_and_of_the_same_windows(
    run: Path,
    loader: Loader,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    beside = script("beside_kneser_ney")
    plot, figures = tmp_path / "plot.png", tmp_path / "found.json"
    arguments = ["beside_kneser_ney", str(run), "--plot", str(plot), "--json", str(figures)]
    monkeypatch.setattr(sys, "argv", arguments)
    beside.main()
    shown = capsys.readouterr().out
    found = json.loads(figures.read_text())

    (windows,) = loader.held_out().values()
    # The documents that begin there, without the end of the one before.
    first = int((windows == tokenizer.bos_id).any(axis=1).argmax())
    kept = windows[first + (windows[first, 0] != tokenizer.bos_id) :]
    assert 0 < len(kept) < len(windows)
    (size,) = (each["bytes"] for each in found["held_out"].values())
    # As decoding tells: what a window adds to its first token.
    assert size == sum(
        decoded_bytes(tokenizer, row) - decoded_bytes(tokenizer, row[:1]) for row in kept.tolist()
    )
    assert [point["step"] for point in found["points"]] == [3, 6, 9, 12]
    for point in found["points"]:
        bits = {side: next(iter(v.values())) for side, v in point["bits_per_byte"].items()}
        trained = np.concatenate([loader.batch(step) for step in range(point["step"])])
        assert point["tokens"] == trained[:, 1:].size
        nats = -KneserNey(trained, MODEL.vocab_size).logprobs(kept).sum()
        assert bits["n-gram"] == pytest.approx(nats / math.log(2) / size)
        network = load_model(open_checkpoint(checkpoint_path(run, point["step"])))
        tokens = torch.from_numpy(kept)
        positions = torch.arange(MODEL.context_length).expand(len(kept), -1)
        with torch.inference_mode():
            logits = next_token_logits(network, network(tokens[:, :-1], positions, causal))
        nats = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        assert bits["network"] == pytest.approx(nats.item() / math.log(2) / size, rel=1e-5)
        assert f"{bits['network']:.3f}" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_curves_cross_where_the_line_between_checkpoints_does() -> None:
    beside = script("beside_kneser_ney")

    def points(*differences: float) -> list[object]:
        return [
            beside.Point(
                step, 1000 * 4**step, {"network": {"a": 2 + d}, "n-gram": {"a": 2.0}}, [], []
            )
            for step, d in enumerate(differences)
        ]

    # Half way between 1,000 and 4,000 along the logarithm.
    assert beside.crossing(points(0.5, -0.5), "a") == pytest.approx(2000)
    assert beside.crossing(points(0.1, -0.1, 0.3, -0.1), "a") == pytest.approx(16000 * 4**0.75)
    assert beside.crossing(points(-0.1, -0.2), "a") == 1000
    assert beside.crossing(points(0.5, -0.5, 0.1), "a") is None


def test_what_is_no_run_or_source_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = script("beside_kneser_ney")
    monkeypatch.setattr(sys, "argv", ["beside_kneser_ney", str(run.parent)])
    with pytest.raises(SystemExit, match="is not a run"):
        beside.main()
    monkeypatch.setattr(sys, "argv", ["beside_kneser_ney", str(run), "--sources", "poems"])
    with pytest.raises(SystemExit, match="has no source poems; it has text"):
        beside.main()


def test_a_run_that_skipped_batches_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = script("beside_kneser_ney")
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    with open(copy / "log.jsonl", "a") as log:
        log.write('{"event": "skip", "step": 5, "num_skipped": 1}\n')
    monkeypatch.setattr(sys, "argv", ["beside_kneser_ney", str(copy)])
    with pytest.raises(SystemExit, match="skipped batches or went back"):
        beside.main()


@pytest.fixture(scope="module")
def training() -> ModuleType:
    return script("beside_transformers_training")


@pytest.fixture(scope="module")
def job(
    training: ModuleType,
    loader: Loader,
    vocabulary: Vocabulary,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    network = Llama(MODEL)
    initialize(network, torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("twin") / "first"
    huggingface.write(as_checkpoint(network, folder, vocabulary), folder)
    return training.Job(loader, vocabulary, network, SETTINGS, folder, 4)


def test_the_twin_begins_equal_to_rounding(training: ModuleType, job: Any) -> None:
    ours, theirs = training.puna_side(job), training.transformers_side(job, dtype="fp32")
    assert ours.held_out() == pytest.approx(theirs.held_out(), rel=1e-6)
    for number in range(training.EQUAL_STEPS):
        rate = job.rate(number)
        assert ours.step(number, rate) == pytest.approx(theirs.step(number, rate), rel=1e-5)
    assert ours.held_out() == pytest.approx(theirs.held_out(), rel=1e-6)


@pytest.mark.parametrize("weight_decay", [0.1, 1.0])
def test_the_twin_is_within_noise_where_it_trains_the_same(
    weight_decay: float,
    training: ModuleType,
    job: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Puna's weight decay is 0.1."""
    settings = dataclasses.replace(job.settings, weight_decay=weight_decay)
    plain = training.transformers_side
    monkeypatch.setattr(
        training,
        "transformers_side",
        lambda job, **options: plain(dataclasses.replace(job, settings=settings), **options),
    )
    arguments = ["twin", "-", "--steps", "8", "--perturbed", "2", "--noise", "1e-4"]
    found = training.twin(training.parser().parse_args(arguments), job)
    assert found["equal_within_noise"] is (weight_decay == 0.1)
    assert ("equal within noise" in capsys.readouterr().out) is found["equal_within_noise"]
    assert 0 < found["noise"] < 1e-3
    assert len(found["losses"]["transformers"]) == 8


def test_the_sides_take_turns(
    training: ModuleType, job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["speed", "-", "--bursts", "2", "--burst-steps", "1", "--no-compile"]
    found = training.speed(training.parser().parse_args(arguments), job)
    assert list(found["sides"]) == [
        "transformers, fp32", "puna, fp32", "transformers, bf16", "puna, bf16",
    ]  # fmt: skip
    assert all(len(side["tokens_per_second"]) == 2 for side in found["sides"].values())
    assert found["sides"]["transformers, fp32"]["ratio_fp32"] == 1
    assert "puna, bf16" in capsys.readouterr().out
