"""The dial over many sizes: always a run that can be, near what was asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.commands.recipes import Count
from puna.config import ffn_dim, preset
from puna.plan.layout import Layout, check_model
from puna.recipes.dial import dial, scaled, shape
from puna.recipes.plan import plan
from puna.train.pretrain import PretrainConfig


def sizes(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(least), math.log(most)).map(math.exp)


def check(config: PretrainConfig, size: float) -> None:
    model = config.model
    assert abs(model.num_parameters / size - 1) <= 0.1
    assert model.dim % model.num_heads == 0 and model.num_heads % model.num_kv_heads == 0
    assert model.dim % 256 == 0 and model.ffn_dim == ffn_dim(model.dim)  # k-quants fit
    assert model.num_heads % 4 == 0 and model.head_dim in (32, 64, 128)
    if model.num_kv_heads != model.num_heads:
        assert model.num_kv_heads == 8 and size >= 20e9
    if model.num_layers >= 16:
        assert model.num_layers % 4 == 0
    check_model(Layout(tp=4), model)
    batch = config.last_batch_size
    assert batch & (batch - 1) == 0 and batch % config.micro_batch_size == 0
    assert config.micro_batch_size * model.context_length <= 8192
    assert 0 < config.settings.learning_rate < 3e-3
    assert PretrainConfig.from_dict(config.to_dict()) == config


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes(12e6, 1e12), st.sampled_from([4096, 16_384, 32_000]))
def test_any_size_is_met(size: float, vocab_size: int) -> None:
    config = dial(vocab_size, size=size)
    check(config, size)
    seen = config.settings.steps * config.last_batch_size * config.model.context_length
    one_batch = config.last_batch_size * config.model.context_length
    assert 0 <= seen - 20 * config.model.num_parameters <= one_batch


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes(300e6, 20e12), st.one_of(st.none(), sizes(12e6, 200e9)))
def test_tokens_are_met_with_or_without_a_size(tokens: float, size: float | None) -> None:
    config = dial(32_000, size=size, tokens=tokens)
    check(config, tokens / 20 if size is None else size)
    one_batch = config.last_batch_size * config.model.context_length
    assert 0 <= config.settings.steps * one_batch - tokens < one_batch


def test_more_is_a_larger_batch_and_a_lower_rate() -> None:
    runs = [dial(32_000, size=10.0**power) for power in range(8, 13)]
    rates = [run.settings.learning_rate for run in runs]
    batches = [run.last_batch_size * run.model.context_length for run in runs]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 5
    assert batches == sorted(batches)


def test_shapes_that_are_known() -> None:
    assert shape(6.74e9, 32_000) == preset("7b")
    assert shape(13.0e9, 32_000) == preset("13b")
    assert shape(33.7e9, 32_000) == preset("34b-gqa")
    assert shape(6.2e6, 4096) == preset("tiny")


def test_the_power_laws_give_what_their_paper_has() -> None:
    # "DeepSeek LLM", table 2: its 7B (30 layers of 4096) on 2T tokens.
    config = scaled(preset("7b"), 2e12)
    assert config.settings.learning_rate == 4.2e-4
    assert config.last_batch_size == 2048  # theirs is 2304 windows of 4096
    # Below 1e17 FLOPs the rate grows no more: 0.3118 (1e17)^-0.125.
    assert scaled(preset("tiny"), 8e6).settings.learning_rate == 2.3e-3


@pytest.mark.parametrize("size", [1e3, 2e6, 6e6])
def test_a_size_that_the_vocabulary_leaves_no_room_for(size: float) -> None:
    with pytest.raises(ValueError, match=r"vocabulary of 32000 pieces; the smallest has 9,044,736"):
        dial(32_000, size=size)


def test_neither_size_nor_tokens() -> None:
    with pytest.raises(ValueError, match="needs a size or a number of tokens"):
        dial(32_000)


def test_a_dialed_run_has_a_plan() -> None:
    found = plan(dial(32_000, size=350e6))
    model = found.config.model
    assert found.state_only and found.memory.peak == 16 * model.num_parameters
    attention = 12 * model.num_layers * model.dim * model.context_length
    multiplying = model.num_parameters - 32_000 * model.dim
    assert found.flops == found.tokens * (6 * multiplying + attention)


def test_numbers_with_units() -> None:
    read = Count().convert
    for text, number in (
        ("350M", 350e6), ("1.5b", 1.5e9), ("2T", 2e12), ("40k", 4e4), ("12", 12.0),
    ):  # fmt: skip
        assert read(text, None, None) == number
    for text in ("", "M", "-3M", "1e9", "0", "nan", "3 M", "٣M"):
        with pytest.raises(Exception, match="no number such as 350M"):
            read(text, None, None)
