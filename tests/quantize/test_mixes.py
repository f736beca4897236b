"""The mixes against what llama.cpp's rules give for Llama 2's own shapes, worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from puna.config import PRESETS, ModelConfig
from puna.quantize.mixes import ALIASES, MIXES, mix_name, storage_types


def counted(config: ModelConfig, name: str, **options: bool) -> dict[str, Counter[str]]:
    """Part of a layer -> how many of its matrices have which type."""
    counts: dict[str, Counter[str]] = {}
    for tensor, dtype in storage_types(config, name, **options)[0].items():
        part = tensor.removesuffix(".weight").rpartition(".")[2]
        counts.setdefault(part, Counter())[dtype] += 1
    return counts


def test_q4_k_m_of_the_7b() -> None:
    """Layers 0-3, 28-31 and every third between (6, 9, ... 27) have more bits: 16 of 32."""
    counts = counted(PRESETS["7b"], "q4_k_m")
    assert counts["wv"] == counts["w2"] == {"q6_k": 16, "q4_k": 16}
    assert counts["output"] == {"q6_k": 1}
    for part in ("wq", "wk", "wo", "w1", "w3"):
        assert counts[part] == {"q4_k": 32}
    assert counts["tok_embeddings"] == {"q4_k": 1}
    more = [layer for layer in range(32)
            if storage_types(PRESETS["7b"], "q4_k_m")[0][f"layers.{layer}.attention.wv.weight"]
            == "q6_k"]  # fmt: skip
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_the_70b_keeps_more_of_its_shared_values() -> None:
    assert counted(PRESETS["70b"], "q4_k_s")["wv"] == {"q5_k": 80}
    assert counted(PRESETS["70b"], "q4_k_m")["wv"] == {"q6_k": 40, "q5_k": 40}
    assert counted(PRESETS["70b"], "q2_k")["wv"] == {"q5_k": 80}  # q4_k for grouped queries, then
    assert counted(PRESETS["llama1-65b"], "q4_k_s")["wv"] == {"q5_k": 4, "q4_k": 76}


@pytest.mark.parametrize(
    ("name", "wv", "wo", "w2"),
    [
        ("q2_k", {"q3_k": 32}, {"q3_k": 32}, {"q3_k": 32}),
        ("q2_k_s", {"q2_k": 32}, {"q2_k": 32}, {"q4_k": 4, "q2_k": 28}),
        ("q3_k_s", {"q3_k": 32}, {"q3_k": 32}, {"q3_k": 32}),
        ("q3_k_m", {"q5_k": 2, "q4_k": 30}, {"q4_k": 32}, {"q5_k": 2, "q4_k": 30}),
        ("q3_k_l", {"q5_k": 32}, {"q5_k": 32}, {"q5_k": 32}),
        ("q4_k_s", {"q5_k": 4, "q4_k": 28}, {"q4_k": 32}, {"q5_k": 4, "q4_k": 28}),
        ("q5_k_s", {"q5_k": 32}, {"q5_k": 32}, {"q5_k": 32}),
        ("q5_k_m", {"q6_k": 16, "q5_k": 16}, {"q5_k": 32}, {"q6_k": 16, "q5_k": 16}),
        ("q6_k", {"q6_k": 32}, {"q6_k": 32}, {"q6_k": 32}),
        ("q4_0", {"q4_0": 32}, {"q4_0": 32}, {"q4_0": 32}),
    ],
)
def test_each_mix_of_the_7b(
    name: str, wv: dict[str, int], wo: dict[str, int], w2: dict[str, int]
) -> None:
    counts = counted(PRESETS["7b"], name)
    assert (counts["wv"], counts["wo"], counts["w2"]) == (wv, wo, w2)
    assert counts["output"] == {"q6_k": 1}


def test_importance_guards_the_first_layers_of_two_mixes() -> None:
    assert counted(PRESETS["7b"], "q4_0", importance=True)["w2"] == {"q4_1": 4, "q4_0": 28}
    assert counted(PRESETS["7b"], "q5_0", importance=True)["w2"] == {"q5_1": 4, "q5_0": 28}
    for name in set(MIXES) - {"q4_0", "q5_0"}:
        plain = storage_types(PRESETS["7b"], name)
        assert storage_types(PRESETS["7b"], name, importance=True) == plain


def test_a_tied_embedding_is_the_output() -> None:
    assert counted(PRESETS["tiny"], "q4_k_m")["tok_embeddings"] == {"q6_k": 1}
    assert counted(PRESETS["tiny"], "q8_0")["tok_embeddings"] == {"q8_0": 1}


@pytest.mark.parametrize("name", MIXES)
def test_pure_is_one_type(name: str) -> None:
    dtypes, notes = storage_types(PRESETS["7b"], name, pure=True)
    assert set(dtypes.values()) == {MIXES[name].base}
    assert notes == []


@pytest.mark.parametrize(
    ("base", "columns", "got"),
    [
        ("q2_k", 320, "q4_0"),
        ("q3_k_s", 320, "q4_0"),
        ("q4_k_s", 320, "q5_0"),
        ("q5_k_s", 320, "q5_1"),
        ("q6_k", 320, "q8_0"),
        ("q4_k_s", 172, "f16"),
        ("q8_0", 172, "f16"),
        ("q8_0", 320, "q8_0"),
    ],
)
def test_rows_that_blocks_do_not_fill(base: str, columns: int, got: str) -> None:
    config = ModelConfig(256, 16, 4, 4, columns)
    dtypes, notes = storage_types(config, base, pure=True)
    assert dtypes["layers.7.feed_forward.w2.weight"] == got
    assert dtypes["layers.7.feed_forward.w1.weight"] == MIXES[base].base
    told = f"16 tensors have rows of {columns} numbers"
    assert any(told in note and got in note for note in notes) == (got != MIXES[base].base)


def test_names() -> None:
    assert [mix_name(name) for name in ("q4_k", "q4_k_m", "f16")] == ["q4_k_m", "q4_k_m", "f16"]
    assert set(ALIASES.values()) <= set(MIXES)
    with pytest.raises(ValueError, match=r"'q4_k_xl'.*q4_k_m"):
        mix_name("q4_k_xl")
