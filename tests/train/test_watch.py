"""What is seen of a run: operations, MFU, memory, statistics of layers, profiles."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.model import Llama, initialize
from puna.plan.counts import flops_per_token
from puna.tokenizer import Vocabulary
from puna.train import watch
from puna.train.log import read_log
from puna.train.loop import Settings, make_optimizer, optimizer_step
from puna.train.losses import perplexity
from puna.train.pretrain import pretrain
from puna.train.profile import Profile, Window
from puna.train.single import Single
from puna.train.statistics import groups, layer_order
from tests.parallel.layouts import BATCH, CLIP, CONFIG, Windows
from tests.parallel.pool import Pool
from tests.train import statistics_in_layouts
from tests.train.runs import MODEL, losses, new_run, run_config
from tests.train.statistics_in_layouts import LAYOUTS, STEPS, watched

ROOT = Path(__file__).parents[2]


def test_what_a_record_says(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = []

    def peak(name: str, kind: str) -> float | None:
        kinds.append((name, kind))
        return 0.25

    monkeypatch.setattr(watch, "peak_tflops", peak)
    run = new_run(tmp_path, vocabulary, run_config(steps=3, eval_every=2, statistics_every=2))
    assert pretrain(run)
    records = read_log(run / "log.jsonl")
    assert kinds == [("cpu", "fp32")]
    for record in records:
        speed = record["tokens_per_second"]
        assert record["tflops"] == pytest.approx(speed * flops_per_token(MODEL) / 1e12)
        assert record["mfu"] == pytest.approx(record["tflops"] / 0.25)
        assert 1e7 < record["memory"] < 1e11
        assert list(record["seconds"]) == ["data", "passes", "update"]
        assert sum(record["seconds"].values()) == pytest.approx(64 / speed)
    assert ["statistics" in record for record in records] == [False, True, False]
    assert records[1]["held_out_perplexity"] == perplexity(records[1]["held_out_loss"])


def test_looking_changes_nothing(tmp_path: Path, vocabulary: Vocabulary) -> None:
    plain = new_run(tmp_path / "plain", vocabulary, run_config(steps=3))
    seen = new_run(tmp_path / "seen", vocabulary, run_config(steps=3, statistics_every=1))
    assert pretrain(plain) and pretrain(seen, profile=Window(2))
    assert losses(plain) == losses(seen)
    assert "mfu" not in read_log(plain / "log.jsonl")[0]  # of a CPU the peak is not known


def single() -> Single:
    network = Llama(CONFIG)
    initialize(network, torch.Generator().manual_seed(1))
    network.double()
    stage = Windows(BATCH)
    return Single(network, stage, Settings(steps=STEPS, warmup_steps=0, dtype="fp32"))


def by_hand() -> dict[str, dict[str, float]]:
    """Statistics of the second step, from copies of everything."""
    trainee, stage = single(), Windows(BATCH)
    optimizer = make_optimizer(trainee.network, Settings(steps=STEPS, warmup_steps=0))
    sums: dict[str, dict[str, float]] = {"gradient": {}, "weight": {}, "update": {}}
    for step in range(2):
        batches = stage.micro_batches(step)
        tokens = sum(stage.num_tokens(batch) for batch in batches)
        weights = dict(trainee.network.named_parameters())
        if step == 1:
            trainee.accumulate(batches, tokens)
            before = {n: (w.detach().clone(), w.grad.clone()) for n, w in weights.items()}  # type: ignore[union-attr]
            trainee.network.zero_grad()
        optimizer_step(trainee, optimizer, batches, tokens, rate=1e-2, grad_clip=CLIP)
    for name, weight in weights.items():
        old, gradient = before[name]
        for group in groups(name):
            for kind, x in (("gradient", gradient), ("weight", weight), ("update", weight - old)):
                sums[kind][group] = sums[kind].get(group, 0.0) + float((x.detach() ** 2).sum())
    found = {kind: {g: s**0.5 for g, s in values.items()} for kind, values in sums.items()}
    found["update"] = {g: u / found["weight"][g] for g, u in found["update"].items()}
    return found


def test_statistics_equal_plain_loops() -> None:
    found, expected = watched(single(), Windows(BATCH)), by_hand()
    assert found["grad_norm"] > CLIP  # gradients are of before clipping
    assert list(found["statistics"]) == ["gradient", "weight", "update"]
    for kind, values in expected.items():
        assert found["statistics"][kind] == pytest.approx(values, rel=1e-5)
    # Layers make up the whole, kinds of matrix all layers.
    gradient = found["statistics"]["gradient"]
    layers, kinds = layer_order(gradient)
    assert layers == ["tok_embeddings", *(f"layers.{i}" for i in range(4)), "norm", "output"]
    whole = sum(gradient[name] ** 2 for name in layers)
    assert whole == pytest.approx(found["grad_norm"] ** 2, rel=1e-4)
    inner = sum(gradient[f"layers.{i}"] ** 2 for i in range(4))
    assert sum(gradient[name] ** 2 for name in kinds) == pytest.approx(inner, rel=1e-4)


def test_statistics_are_the_same_in_every_layout(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    with Pool(2) as pool:
        pool.run(statistics_in_layouts.main, file, timeout=250)
    found: dict[str, Any] = json.loads(file.read_text())
    expected = watched(single(), Windows(BATCH))
    assert list(found) == list(LAYOUTS)
    for layout, record in found.items():
        for kind, values in expected["statistics"].items():
            assert record["statistics"][kind] == pytest.approx(values, rel=1e-5), layout
        speed = record["tokens_per_second"]
        assert record["tflops"] == pytest.approx(speed * flops_per_token(CONFIG) / 2 / 1e12)


def test_a_profile_of_some_steps(tmp_path: Path, vocabulary: Vocabulary) -> None:
    run = new_run(tmp_path, vocabulary, run_config(steps=4))
    assert pretrain(run, profile=Window.parse("2:2"))
    table = (run / "profile" / "steps-2-3.txt").read_text()
    assert "aten::mm" in table and "# of Calls" in table
    with gzip.open(run / "profile" / "steps-2-3.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert {"aten::_fused_adamw_", "aten::mm"} <= {event["name"] for event in events}


def test_a_profile_that_the_end_cuts_off(tmp_path: Path) -> None:
    profile = Profile(tmp_path, Window(2, 5))
    for step in (1, 2, 3):
        profile.begin(step)
        torch.ones(3).sum()
        profile.end()
    assert not list(tmp_path.iterdir())
    profile.close()
    profile.close()
    assert {path.name for path in tmp_path.iterdir()} == {"steps-2-3.txt", "steps-2-3.json.gz"}


@pytest.mark.parametrize("text", ["", "0", "3:", "3:0", "1:2:3", "-1", "two"])
def test_windows_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="--profile is a step and perhaps a number"):
        Window.parse(text)


def test_windows() -> None:
    assert Window.parse("7") == Window(7, 1) and Window.parse("7:3").last == 9
    with pytest.raises(ValueError, match="the run ends after step 6"):
        Window(7).check(6)
    assert perplexity(0.0) == 1 and perplexity(1e4) == float("inf")
