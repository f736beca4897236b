"""Shapes of models: exact sizes, presets, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from puna.config import PRESETS, ModelConfig, ffn_dim, preset
from puna.model import empty
from tests.samples import small_config

# Llama 2's from the paper's released weights; 34B's in both readings; LLaMA 1's.
NUM_PARAMETERS = {
    "7b": 6_738_415_616,
    "13b": 13_015_864_320,
    "34b": 32_528_943_616,
    "34b-gqa": 33_743_970_304,
    "70b": 68_976_648_192,
    "llama1-7b": 6_738_415_616,
    "llama1-13b": 13_015_864_320,
    "llama1-33b": 32_528_943_616,
    "llama1-65b": 65_285_660_672,
}


@pytest.mark.parametrize(("name", "expected"), NUM_PARAMETERS.items())
def test_num_parameters_is_that_of_the_release(name: str, expected: int) -> None:
    assert preset(name).num_parameters == expected


@pytest.mark.parametrize("name", PRESETS)
def test_the_network_has_the_shapes_that_the_config_says(name: str) -> None:
    config = preset(name)
    weights = dict(empty(config).named_parameters())
    assert {key: tuple(w.shape) for key, w in weights.items()} == config.tensor_shapes()
    assert sum(weight.numel() for weight in weights.values()) == config.num_parameters
    assert all(weight.is_meta for weight in weights.values())


def test_presets_of_the_published_tables() -> None:
    for name, kv_heads in {"7b": 32, "13b": 40, "34b": 52, "34b-gqa": 8, "70b": 8}.items():
        config = preset(name)
        assert config.num_kv_heads == kv_heads and config.head_dim == 128
        assert (config.context_length, config.norm_eps) == (4096, 1e-5)
        assert (config.vocab_size, config.rope_theta, config.tied) == (32000, 10000.0, False)
    for name, eps in {"7b": 1e-6, "13b": 1e-6, "33b": 1e-6, "65b": 1e-5}.items():
        config = preset(f"llama1-{name}")
        assert (config.context_length, config.norm_eps) == (2048, eps)
        assert config.num_kv_heads == config.num_heads


@pytest.mark.parametrize(
    ("dim", "options", "expected"),
    [
        (4096, {}, 11008),
        (5120, {}, 13824),
        (6656, {}, 17920),
        (8192, {}, 22016),
        (8192, {"multiple_of": 4096, "multiplier": 1.3}, 28672),
    ],
)
def test_ffn_dim_is_that_of_the_releases(dim: int, options: dict[str, Any], expected: int) -> None:
    assert ffn_dim(dim, **options) == expected


def test_dict_round_trip() -> None:
    config = small_config(tied=True, rope_theta=5e5)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_from_dict_names_unknown_and_missing_keys() -> None:
    values = small_config().to_dict()
    with pytest.raises(ValueError, match="n_heads"):
        ModelConfig.from_dict(values | {"n_heads": 4})
    del values["ffn_dim"]
    with pytest.raises(ValueError, match="ffn_dim"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be positive"),
        ({"num_layers": -1}, "num_layers must be positive"),
        ({"dim": "32"}, "dim must be int"),
        ({"dim": 32.0}, "dim must be int"),
        ({"num_layers": True}, "num_layers must be int"),
        ({"tied": 1}, "tied must be bool"),
        ({"norm_eps": float("nan")}, "norm_eps must be positive"),
        ({"rope_theta": float("inf")}, "rope_theta must be positive"),
        ({"dim": 34}, "does not divide into 4 heads"),
        ({"dim": 12}, "head dimension 3 is odd"),
        ({"num_kv_heads": 3}, "cannot share 3"),
        ({"num_kv_heads": 8}, "cannot share 8"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_config_is_frozen_and_presets_are_named() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_config().dim = 64  # type: ignore[misc]
    with pytest.raises(ValueError, match="no preset '8b'; there are: tiny"):
        preset("8b")
