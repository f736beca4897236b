"""The scripts that put pretraining beside n-grams and beside transformers, on a small run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from puna.data.loader import Loader
from puna.data.shards import open_shards
from puna.evaluate.kneser_ney import KneserNey
from puna.formats import huggingface
from puna.formats.network import as_checkpoint
from puna.model import Llama, initialize
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.loop import read_log
from puna.train.pretrain import pretrain
from tests.train.runs import MODEL, SETTINGS, new_run, run_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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
    """12 steps with a checkpoint at each third, in fp32."""
    folder = tmp_path_factory.mktemp("measured")
    run = new_run(folder, vocabulary, run_config(keep_checkpoints=9, eval_every=3))
    assert pretrain(run)
    return run


@pytest.fixture(scope="module")
def loader(run: Path) -> Loader:
    return Loader(
        open_shards(run / "data"),
        context_length=MODEL.context_length,
        batch_size=4,
        seed=3,
        num_held_out=3,
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
    first = int((windows == tokenizer.bos_id).any(axis=1).argmax())
    kept = windows[first if windows[first, 0] == tokenizer.bos_id else first + 1 :]
    kept = kept if len(kept) else windows
    (size,) = (each["bytes"] for each in found["held_out"].values())
    # As decoding tells: what a window adds to its first token alone.
    assert size == sum(
        len(tokenizer.decode(row).encode()) - len(tokenizer.decode(row[:1]).encode())
        for row in kept.tolist()
    )
    assert [point["step"] for point in found["points"]] == [3, 6, 9, 12]
    for point in found["points"]:
        bits = {side: next(iter(v.values())) for side, v in point["bits_per_byte"].items()}
        trained = np.concatenate([loader.batch(step) for step in range(point["step"])])
        assert point["tokens"] == trained[:, 1:].size
        nats = -KneserNey(trained, MODEL.vocab_size).logprobs(kept).sum()
        assert bits["n-gram"] == pytest.approx(nats / math.log(2) / size)
        assert f"{bits['network']:.3f}" in shown
    if len(kept) == len(windows):
        told = [r["held_out_loss"] for r in read_log(run / "log.jsonl") if "held_out_loss" in r]
        in_bits = [loss * kept[:, 1:].size / math.log(2) / size for loss in told]
        assert [
            next(iter(point["bits_per_byte"]["network"].values())) for point in found["points"]
        ] == pytest.approx(in_bits, rel=1e-5)
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


def test_a_run_that_holds_nothing_out_is_refused(
    run: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = script("beside_kneser_ney")
    monkeypatch.setattr(sys, "argv", ["beside_kneser_ney", str(run.parent)])
    with pytest.raises(SystemExit, match="is not a run"):
        beside.main()
    monkeypatch.setattr(sys, "argv", ["beside_kneser_ney", str(run), "--sources", "poems"])
    with pytest.raises(SystemExit, match="the run has no source poems; it has text.txt"):
        beside.main()


@pytest.fixture(scope="module")
def job(loader: Loader, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> object:
    training = script("beside_transformers_training")
    network = Llama(MODEL)
    initialize(network, torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("twin") / "first"
    huggingface.write(as_checkpoint(network, folder, vocabulary), folder)
    return training.Job(loader, vocabulary, network, SETTINGS, folder, 4)


def test_the_twin_begins_equal_to_rounding(job: object) -> None:
    training = sys.modules["beside_transformers_training"]
    ours, theirs = training.puna_side(job), training.transformers_side(job, dtype="fp32")
    assert ours.held_out() == pytest.approx(theirs.held_out(), rel=1e-6)
    for number in range(training.EQUAL_STEPS):
        rate = job.rate(number)  # type: ignore[attr-defined]
        assert ours.step(number, rate) == pytest.approx(theirs.step(number, rate), rel=1e-5)
    assert ours.held_out() == pytest.approx(theirs.held_out(), rel=1e-6)


def test_perturbed_weights_part_by_little_and_grow(job: object) -> None:
    training = sys.modules["beside_transformers_training"]
    ours, other = training.puna_side(job), training.puna_side(job, noise=1e-4, seed=1)
    first = abs(ours.held_out() - other.held_out())
    assert 0 < first < 1e-3


def test_the_sides_take_turns(
    job: object, loader: Loader, capsys: pytest.CaptureFixture[str]
) -> None:
    training = sys.modules["beside_transformers_training"]
    args = training.parser().parse_args(
        ["speed", "-", "--bursts", "1", "--burst-steps", "1", "--batch-size", "4", "--no-compile"]
    )
    found = training.speed(args, job)
    assert all(len(side["tokens_per_second"]) == 1 for side in found["sides"].values())
    assert "puna, bf16" in capsys.readouterr().out


def test_the_twin_tells_noise(job: object, capsys: pytest.CaptureFixture[str]) -> None:
    training = sys.modules["beside_transformers_training"]
    arguments = ["twin", "-", "--steps", "6", "--perturbed", "1", "--noise", "1e-3"]
    found = training.twin(training.parser().parse_args(arguments), job)
    assert found["equal_within_noise"]  # of a thousandth
    assert len(found["losses"]["transformers"]) == 6
    assert "equal within noise" in capsys.readouterr().out
    settings = dataclasses.replace(job.settings, weight_decay=10.0)  # type: ignore[attr-defined]
    other = dataclasses.replace(job, settings=settings)  # type: ignore[type-var]
    theirs = training.transformers_side(job, dtype="fp32")
    ours = training.puna_side(other)
    for number in range(3):
        theirs.step(number, 1e-2), ours.step(number, 1e-2)
    assert abs(ours.held_out() - theirs.held_out()) > 1e-4
