"""Serving: by hand on simple devices, against a search, and any request at all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.config import PRESETS, ModelConfig, preset
from puna.plan.counts import forward_flops
from puna.plan.hardware import DEVICES, Cluster, Device, DoesNotFitError, device
from puna.plan.network import Group
from puna.plan.serve import (
    Engine,
    Setting,
    best_batch,
    first_token_seconds,
    speed,
    users_at,
)
from puna.plan.serve_plan import plan_serve
from puna.plan.weights import KV_TYPES, STORAGE, kv_bytes, weights

IDEAL = Engine(1.0, 1.0, 0.0, 0.0)
A100 = device("a100-80g")


def setting(model: str = "7b", form: str = "bf16", **changes: object) -> Setting:
    config = preset(model)
    return replace(Setting(config, weights(config, form), A100, engine=IDEAL), **changes)


def test_one_sequence_reads_its_weights_keys_and_values() -> None:
    here = setting()
    read = 2 * (preset("7b").num_parameters - 32000 * 4096) + 4 * 32 * 2 * 4096
    read += 1000 * 2 * 32 * 4096 * 2 - 4 * 32 * 2 * 4096  # norms are f32
    read += 2 * (2 * 32 + 1) * 4096
    assert speed(here, 1, context=1000).each == pytest.approx(2039e9 / read)


def test_many_sequences_are_limited_by_products() -> None:
    here = setting(context=16, prompt=16)
    flops = forward_flops(preset("7b"), 16)
    assert speed(here, 4000).tokens_per_second == pytest.approx(312e12 / flops)


def test_overheads_are_those_of_layers() -> None:
    here = setting(engine=Engine(1.0, 1.0, 1e-3, 2e-3))
    plain = 1 / speed(setting(), 1).each
    assert 1 / speed(here, 1).each == pytest.approx(plain + 0.034)


def all_reduce(num_bytes: float, among: Device, ways: int) -> float:
    return Group(Cluster(among, ways), ways, 1).sum(num_bytes)


def test_sharing_a_model_divides_what_is_read_and_adds_all_reduces() -> None:
    one, four = setting(), setting(ways=4)
    reduce = all_reduce(2 * 4096, A100, 4)
    assert reduce == pytest.approx(6.6e-6 + 6 * 0.6e-6, rel=0.02)
    assert 1 / speed(four, 1).each == pytest.approx(1 / speed(one, 1).each / 4 + 64 * reduce)
    assert four.user_bytes == one.user_bytes / 4
    # of 8 heads of keys and values, 16 devices hold each twice
    wide = setting("70b", ways=16)
    assert wide.user_bytes == setting("70b", ways=8).user_bytes


def test_a_large_all_reduce_takes_what_the_link_carries() -> None:
    seconds = all_reduce(1e9, A100, 8)
    assert seconds == pytest.approx(2 * 7 / 8 * 1e9 / 231e9, rel=0.01)
    assert all_reduce(1e9, device("a800-80g"), 8) == pytest.approx(1.5 * seconds, rel=0.01)
    with pytest.raises(ValueError, match="no link to others"):
        setting(device=device("epyc-9654"), ways=2)


def test_a_prompt_is_multiplied_at_once() -> None:
    here = setting(prompt=1024)
    config = preset("7b")
    blocks = config.num_parameters - 2 * 32000 * 4096
    flops = 1024 * (2 * blocks + 4 * 32 * 4096 * 512) + 2 * 32000 * 4096
    assert first_token_seconds(here) == pytest.approx(flops / 312e12, rel=1e-6)


@pytest.mark.parametrize("form", ["bf16", "int4"])
def test_users_are_counted_as_a_search_counts_them(form: str) -> None:
    here = setting("7b", form, context=512, prompt=64)
    most = here.most_users
    assert most == math.floor(
        (0.9 * 80 * 2**30 - weights(preset("7b"), form).total) / (512 * kv_bytes(preset("7b")))
    )
    for each in (5.0, 30.0, 80.0, 1e9):
        fast = [n for n in range(1, most + 1) if speed(here, n).each >= each]
        assert users_at(here, each) == max(fast, default=0)
    best = best_batch(here)
    assert best is not None
    top = speed(here, most).tokens_per_second
    least = next(n for n in range(1, most + 1) if speed(here, n).tokens_per_second >= 0.95 * top)
    assert best.users == least


def test_the_plan_takes_the_number_of_ways_that_serves_most() -> None:
    config, stored = preset("70b"), weights(preset("70b"), "int4")
    found = plan_serve(config, stored, A100, 8, demanded=20)
    by_ways = [plan_serve(config, stored, A100, 8, demanded=20, ways=n) for n in (1, 2, 4, 8)]
    assert found.users_at_speed == max(plan.users_at_speed for plan in by_ways)
    assert found.replicas * found.ways == 8


def test_so_many_devices_give_so_many_users_their_speed() -> None:
    config, stored = preset("7b"), weights(preset("7b"), "bf16")
    small = plan_serve(config, stored, A100, 1, users=200, demanded=20)
    assert small.wanted is None and small.devices_wanted is not None
    enough = plan_serve(
        config, stored, A100, small.devices_wanted, users=200, demanded=20, ways=small.ways
    )
    assert enough.wanted is not None and enough.wanted.each >= 20
    fewer = small.devices_wanted - small.ways
    short = plan_serve(config, stored, A100, fewer, users=200, demanded=20, ways=small.ways)
    assert short.wanted is None or short.wanted.each < 20


def test_a_refusal_says_by_how_much_and_what_would_fit() -> None:
    config = preset("70b")
    with pytest.raises(DoesNotFitError, match=r"62\.0 GB more") as refused:
        plan_serve(config, weights(config, "bf16"), A100)
    assert "--format int8" in str(refused.value) and "--gpus 2" in str(refused.value)
    assert plan_serve(config, weights(config, "int8"), A100).most_users >= 1
    assert plan_serve(config, weights(config, "bf16"), A100, 2).most_users >= 1
    small = device("rtx-4090")
    with pytest.raises(DoesNotFitError, match="--context 2048") as refused:
        plan_serve(preset("34b-gqa"), weights(preset("34b-gqa"), "int4"),
                   replace(small, memory=19.5, link=0))  # fmt: skip
    assert "--gpus" not in str(refused.value)


CONFIGS = st.builds(
    lambda heads, groups, width, layers, ffn, vocab: ModelConfig(
        heads * groups * width * 2, layers, heads * groups, heads, ffn, vocab_size=vocab
    ),
    st.integers(1, 16), st.integers(1, 8), st.integers(1, 128), st.integers(1, 130),
    st.integers(1, 60_000), st.integers(1, 200_000),
)  # fmt: skip


def any_request(test: object, examples: int) -> object:
    request = given(
        config=st.sampled_from(list(PRESETS.values())) | CONFIGS,
        form=st.sampled_from(list(STORAGE)),
        gpu=st.sampled_from(list(DEVICES)),
        devices=st.integers(-1, 4000),
        context=st.none() | st.integers(-1, 10_000),
        prompt=st.none() | st.integers(-1, 10_000),
        kv_type=st.sampled_from(list(KV_TYPES)),
        ways=st.none() | st.integers(1, 16),
        demanded=st.floats(allow_nan=True, allow_infinity=True),
        users=st.none() | st.integers(-1, 10**9),
    )
    return settings(max_examples=examples, deadline=None, derandomize=True)(request(test))  # type: ignore[operator]


def plan_or_refuse(config, form, gpu, devices, demanded, **options) -> None:  # type: ignore[no-untyped-def]
    try:
        found = plan_serve(
            config, weights(config, form), device(gpu), devices, demanded=demanded, **options
        )
    except ValueError as refused:
        assert len(str(refused)) > 15 and "\n" not in str(refused)
        return
    assert found.most_users >= found.replicas
    assert 0 <= found.users_at_speed <= found.most_users
    assert found.alone.each >= found.best.each > 0
    assert found.weight_bytes + found.user_bytes <= 0.9 * found.memory_bytes * (1 + 1e-9)
    assert all(
        math.isfinite(value)
        for value in (found.alone.each, found.best.tokens_per_second, found.first_token_seconds)
    )


test_any_request_gets_a_plan_or_a_refusal = any_request(plan_or_refuse, 200)
test_ten_thousand_requests = pytest.mark.slow(any_request(plan_or_refuse, 10_000))
