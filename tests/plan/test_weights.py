"""Bytes by format, against the tables of `puna.quantize` and the engine."""

from __future__ import annotations

import pytest
import torch

from puna.commands.plan_shared import weights_of
from puna.config import PRESETS, ModelConfig, preset
from puna.engine.memory import kv_bytes as engine_kv_bytes
from puna.engine.memory import quantized_bytes
from puna.plan.weights import KV_TYPES, STORAGE, kv_bytes, types_of, weights
from puna.quantize import mixes
from puna.quantize.schemes import SCHEMES
from puna.quantize.storage import STORAGE as STORED


def test_every_storage_type_has_the_bytes_that_quantize_stores() -> None:
    assert set(STORED) <= set(STORAGE)
    for name, kind in STORED.items():
        assert STORAGE[name].num_bytes((3, 5, 512)) == kind.num_bytes((3, 5, 512)), name


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_has_the_bytes_that_are_packed(name: str) -> None:
    kind = SCHEMES[name]
    packed = kind.pack(torch.randn(6, 256), kind.group_size)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in packed.values())
    assert STORAGE[name].num_bytes((6, 256)) == num_bytes


@pytest.mark.parametrize("name", ["q4_0", "q4_k_m", "q2_k", "q8_0", "f16", "q3_k_l"])
@pytest.mark.parametrize("model", ["7b", "70b", "tiny"])
def test_mixes_have_the_bytes_of_their_file(model: str, name: str) -> None:
    assert weights_of(preset(model), name).total == quantized_bytes(preset(model), name)


def test_parameters_are_exact() -> None:
    for config in PRESETS.values():
        assert weights(config, "f32").total == 4 * config.num_parameters


def test_an_embedding_is_looked_up_unless_it_is_the_head() -> None:
    config = preset("7b")
    stored = weights(config, "bf16")
    assert stored.total - stored.read == 2 * 32000 * 4096
    assert stored.num_read == config.num_parameters - 32000 * 4096
    tied = weights(preset("tiny"), "q8_0")
    assert tied.read == tied.total


def test_schemes_leave_embedding_and_head() -> None:
    types = types_of(preset("7b"), "int4")
    assert types["output.weight"] == types["tok_embeddings.weight"] == "bf16"
    assert types["layers.3.attention.wq.weight"] == "int4"


@pytest.mark.parametrize("name", KV_TYPES)
def test_keys_and_values_have_the_engines_bytes(name: str) -> None:
    for model in ("7b", "70b"):
        config = preset(model)
        assert 16 * kv_bytes(config, name) == engine_kv_bytes(config, 16, name)


def test_what_cannot_be_stored_is_refused() -> None:
    odd = ModelConfig(288, 2, 6, 6, 768)
    with pytest.raises(ValueError, match="multiples of 256, not 288"):
        weights(odd, "q4_k")
    assert weights_of(odd, "q4_k_m").total == quantized_bytes(odd, "q4_k_m")
    with pytest.raises(ValueError, match="no format 'q9'"):
        weights_of(odd, "q9")
    with pytest.raises(ValueError, match="no format 'q9'"):
        weights(odd, "q9")
    with pytest.raises(ValueError, match="no type of keys"):
        kv_bytes(odd, "f64")
    assert set(mixes.NAMES) >= {"q4_k_m"}
