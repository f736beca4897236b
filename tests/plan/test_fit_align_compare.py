"""What fits, what alignment takes, and plans side by side."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.commands.plan_fit import gpus_here
from puna.config import PRESETS, preset
from puna.engine.loading import SMALL_MODEL
from puna.plan import machine
from puna.plan.align import STAGES, Stage, Work, generation_seconds, make_rig, plan_align
from puna.plan.compare import compare, read_plan
from puna.plan.fit import fit, training_speed
from puna.plan.hardware import DEVICES, Cluster, device
from puna.plan.machine import Machine, Pace
from puna.plan.serve import Setting, speed
from puna.plan.weights import weights

PACE = Pace(50e9, 100e9, {"q4_0": 2.0, "f16": 1.5}, {"q4_0": 1.0, "f16": 0.8}, 2e-6, 20e-6)
ONE = replace(PACE, bandwidth=30e9)
HERE = Machine("A CPU", 2, 16e9, 32e6, 1e11, 1e12, {1: ONE, 2: PACE}, measured="today")


def test_the_best_format_that_fits_is_found() -> None:
    rows = fit(device("rtx-4090"))
    by_model = {name: [row.format for row in rows if row.model == name] for name in PRESETS}
    assert by_model["7b"] == ["bf16", "int8", "int4"]
    assert by_model["13b"] == ["int8", "int4"]
    assert by_model["70b"] == [None]
    speeds = [row.each for row in rows if row.model == "7b"]
    assert speeds == sorted(speeds)


def test_training_needs_its_state() -> None:
    assert training_speed(preset("7b"), device("a100-80g"), 1) is None
    speed_of_two = training_speed(preset("7b"), device("a100-80g"), 2)
    assert speed_of_two is not None and speed_of_two > 0


def test_gpus_are_known_by_what_they_call_themselves() -> None:
    listed = "NVIDIA A100-SXM4-80GB, 81920\nNVIDIA A100-SXM4-80GB, 81920\nNVIDIA L4, 23034\n"
    found = gpus_here(listed)
    assert [(row.name, count) for row, count in found] == [("a100-80g", 2), ("l4", 1)]
    assert found[1][0].memory == pytest.approx(22.5, abs=0.1)
    assert gpus_here("") == []
    with pytest.raises(ValueError, match="no 'Voodoo 2'"):
        gpus_here("Voodoo 2, 12\n")


def test_a_machine_is_a_device_that_comes_back_from_its_file(tmp_path: Path) -> None:
    assert machine.load(machine.save(HERE, tmp_path).parent) == HERE
    assert HERE.device.bandwidth == 50 and HERE.device.kind == "cpu"
    (tmp_path / machine.FILE).write_text("[]")
    with pytest.raises(ValueError, match="puna plan calibrate"):
        machine.load(tmp_path)
    with pytest.raises(ValueError, match="not measured yet"):
        machine.load(tmp_path / "nowhere")


def test_small_models_run_on_one_thread_from_the_cache() -> None:
    assert machine.SMALL_MODEL == SMALL_MODEL
    small, large = preset("tiny"), preset("1b")
    for config, form, bandwidth in ((small, "q4_0", 2.0 * 100e9), (large, "f16", 0.8 * 50e9)):
        stored = weights(config, form)
        engine = HERE.engine(config, stored)
        assert engine.bandwidth_share * 50e9 == pytest.approx(bandwidth)
        each = speed(Setting(config, stored, HERE.device, 1, 16, 16, engine=engine), 1, 0).each
        besides = 20e-6 + config.num_layers * 2e-6
        assert 1 / each == pytest.approx(stored.read / bandwidth + besides)


def test_between_cache_and_memory_the_size_decides() -> None:
    stored = weights(preset("tiny"), "f16")
    size = stored.read
    rates = [machine.read_rate(PACE, stored, size / f) for f in (0.25, 0.5, 1, 2, 4)]
    assert rates == pytest.approx([150e9, 150e9, 2 / (1 / 150e9 + 1 / 40e9), 40e9, 40e9])


RIG = make_rig(preset("70b"), Cluster(device("a100-80g"), 64), training=323)


def test_stages_by_hand() -> None:
    work = Work(examples=1000, example_tokens=500, epochs=2, comparisons=100, comparison_tokens=50)
    sft, reward = plan_align(RIG, work, ("sft", "reward"))
    assert sft.each == pytest.approx(1000 * 500 * 2 / (323 * 64))
    assert reward.each == pytest.approx(2 * 100 * 50 / (323 * 64)) and reward.times == 2
    (ppo,) = plan_align(RIG, Work(batch=512, prompt=100, answer=100), ("ppo",))
    assert ppo.parts["training"] == pytest.approx(512 * 200 / (323 * 64))
    assert ppo.parts["scoring"] == pytest.approx(4 / 3 * ppo.parts["training"])
    assert ppo.gpu_hours == pytest.approx(300 * ppo.each * 64 / 3600)


def test_generation_decodes_what_the_serve_model_says() -> None:
    config = preset("70b")
    assert RIG.ways == 2
    stored = weights(config, "bf16")
    setting = Setting(config, stored, device("a100-80g"), 2, 200, 100)
    seconds = generation_seconds(RIG, 32, 100, 100)
    decoding = 100 / speed(setting, 1, 150).each
    gathered = stored.total / (8 * 25e9)
    assert decoding + gathered < seconds < decoding + gathered + 0.5


def test_models_of_ppo_that_do_not_fit_are_refused() -> None:
    rig = make_rig(preset("70b"), Cluster(device("a100-80g"), 16), 323)
    assert [stage.name for stage in plan_align(rig, Work(), ("sft", "reward"))] == ["sft", "reward"]
    with pytest.raises(ValueError, match="use 20 or more"):
        plan_align(rig, Work())
    with pytest.raises(ValueError, match="4096 of the model's context"):
        plan_align(RIG, Work(prompt=4000), ("rejection-sampling",))
    with pytest.raises(ValueError, match="no stage 'dance'"):
        plan_align(RIG, Work(), ("dance",))
    with pytest.raises(ValueError, match="epochs must be positive"):
        Work(epochs=0)


def test_models_of_short_contexts_are_aligned_too() -> None:
    for name in ("tiny", "llama1-65b"):
        rig = make_rig(preset(name), Cluster(device("a100-80g"), 64), 100)
        assert plan_align(rig, Work(prompt=200, answer=200))[-1].gpu_hours > 0


REQUESTS = given(
    model=st.sampled_from(list(PRESETS)),
    gpu=st.sampled_from(list(DEVICES)),
    count=st.integers(-1, 5000),
    training=st.floats(-1, 1e6) | st.just(math.nan),
    numbers=st.lists(st.integers(0, 10**7), min_size=9, max_size=9),
    dialog=st.tuples(st.integers(0, 3000), st.integers(0, 3000)),
)


def a_plan_or_a_refusal(
    model: str, gpu: str, count: int, training: float, numbers: list[int], dialog: tuple[int, int]
) -> None:
    try:
        work = Work(*numbers, *dialog)
        rig = make_rig(preset(model), Cluster(device(gpu), count), training)
        stages = plan_align(rig, work)
    except ValueError as refused:
        assert str(refused)
        return
    assert [stage.name for stage in stages] == list(STAGES)
    assert all(0 < stage.gpu_hours < math.inf for stage in stages)


test_any_alignment_gets_a_plan_or_a_refusal = settings(
    max_examples=200, deadline=None, derandomize=True
)(REQUESTS(a_plan_or_a_refusal))
test_ten_thousand_alignments = pytest.mark.slow(
    settings(max_examples=10_000, deadline=None)(REQUESTS(a_plan_or_a_refusal))
)


def test_plans_are_compared_by_the_fields_that_differ(tmp_path: Path) -> None:
    stage = Stage("ppo", {"generation": 2.0}, 3, 4)
    first = {"kind": "align", "days": 10.0, "name": "a", "same": 1, "stages": [stage.to_dict()]}
    other = {**first, "days": 5.0, "name": "b", "extra": None}
    lines = {line.field: line for line in compare([first, other])}
    assert set(lines) == {"days", "name"}
    assert lines["days"].ratios == (1.0, 0.5)
    assert lines["name"].ratios == (None, None)
    every = {line.field for line in compare([first, other], all_fields=True)}
    assert "stages.ppo.parts.generation" in every
    with pytest.raises(ValueError, match="different kinds"):
        compare([first, {"kind": "serve"}])
    with pytest.raises(ValueError, match="two or more"):
        compare([first])
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(first))
    assert read_plan(path) == first
    for text, problem in (("{", "not JSON"), ("[]", "is no plan"), ("{}", "is no plan")):
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            read_plan(path)
