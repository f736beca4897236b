"""Hugging Face folders: against transformers and the safetensors library, in both directions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
import torch
import yaml

from puna.formats import huggingface, open_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.names import HUGGINGFACE
from puna.formats.safetensors_file import read_safetensors
from tests.formats.conftest import (
    CHAT_TEMPLATE,
    assert_same,
    assert_same_tensors,
    flipped,
    make_checkpoint,
    make_vocabulary,
    truncated,
)
from tests.samples import transformers_network

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM


def weights_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Hugging Face's names -> tensors."""
    return {
        HUGGINGFACE.foreign(name): torch.from_numpy(tensor.read().copy()).view(DTYPES[tensor.dtype])
        for name, tensor in checkpoint.tensors.items()
    }


def model_of(checkpoint: Checkpoint, dtype: str = "f32") -> Any:
    """transformers' own model with the checkpoint's weights, computing in `dtype`."""
    config = checkpoint.config
    model = transformers_network(config).to(DTYPES[dtype])
    model.load_state_dict(weights_of(checkpoint), strict=not config.tied)
    return model


@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_transformers_loads_what_is_written(
    tmp_path: Path, dtype: str, tied: bool, shard_bytes: int
) -> None:
    checkpoint = make_checkpoint(dtype, tied=tied, rope_theta=50000.0, norm_eps=1e-6)
    seen: list[str] = []
    huggingface.write(
        checkpoint, tmp_path / "a", on_tensor=seen.append, max_shard_bytes=shard_bytes
    )
    assert seen == list(checkpoint.tensors)
    sharded = (tmp_path / "a" / "model.safetensors.index.json").exists()
    assert sharded == (shard_bytes < 10**9)
    model, info = LlamaForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == DTYPES[dtype]
    assert model.config.rope_parameters["rope_theta"] == 50000.0
    assert model.config.rms_norm_eps == 1e-6
    state = model.state_dict()
    for name, weight in weights_of(checkpoint).items():
        assert torch.equal(state[name], weight), name
    tokens = torch.tensor([[1, 300, 5, 319]])
    with torch.no_grad():
        ours = model.float()(tokens).logits
        theirs = model_of(checkpoint)(tokens).logits
    assert torch.equal(ours, theirs)


def test_transformers_tokenizes_alike(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    huggingface.write(checkpoint, tmp_path / "a")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "a")
    rust = tokenizers.Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    ours = checkpoint.tokenizer()
    for text in ("the llama is at the well", "two  spaces", "naïve 羊驼\n", "", "  two before"):
        assert rust.encode(text).ids == ours.encode(text, bos=True)
        assert theirs(text)["input_ids"] == ours.encode(text, bos=True)
    assert theirs.chat_template == CHAT_TEMPLATE
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)


@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_reads_what_transformers_saves(
    tmp_path: Path, dtype: str, tied: bool, shard_size: str
) -> None:
    checkpoint = make_checkpoint(dtype, tied=tied, rope_theta=50000.0)
    model_of(checkpoint, dtype).save_pretrained(tmp_path / "a", max_shard_size=shard_size)
    again = open_checkpoint(tmp_path / "a")
    assert again.format == "huggingface" and again.vocabulary is None
    assert_same_tensors(again.tensors, checkpoint.tensors)
    assert again.config == checkpoint.config


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_pickled_weights(tmp_path: Path, sharded: bool) -> None:
    """`pytorch_model.bin`, as older repositories have, with the buffers of their exports."""
    checkpoint = make_checkpoint("f16", context_length=2048)
    weights = weights_of(checkpoint)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    half = list(weights)[: len(weights) // 2]
    if sharded:
        names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
        torch.save({n: w for n, w in weights.items() if n in half}, tmp_path / names[0])
        torch.save({n: w for n, w in weights.items() if n not in half}, tmp_path / names[1])
        index = {"weight_map": {name: names[name not in half] for name in weights}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 320,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = open_checkpoint(tmp_path)
    assert_same_tensors(again.tensors, checkpoint.tensors)
    assert again.config == checkpoint.config


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_safetensors_library_both_ways(tmp_path: Path, dtype: str) -> None:
    checkpoint = make_checkpoint(dtype)
    weights = weights_of(checkpoint)
    huggingface.write(checkpoint, tmp_path / "a")
    loaded = safetensors.torch.load_file(tmp_path / "a" / "model.safetensors")
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    safetensors.torch.save_file(weights, tmp_path / "b.safetensors", metadata={"format": "pt"})
    tensors, metadata = read_safetensors(tmp_path / "b.safetensors")
    assert metadata == {"format": "pt"}
    for name, tensor in tensors.items():
        raw = torch.from_numpy(tensor.read().copy()).view(DTYPES[dtype])
        assert torch.equal(raw, weights[name]), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_round_trip(tmp_path: Path, dtype: str, tied: bool) -> None:
    checkpoint = make_checkpoint(dtype, tied=tied, num_kv_heads=4)
    huggingface.write(checkpoint, tmp_path / "a", max_shard_bytes=100_000)
    again = open_checkpoint(tmp_path / "a")
    assert_same(again, checkpoint)
    assert again.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("license", ["apache-2.0", "", 'odd: "quoted" # text', "Lizenz für alle"])
@pytest.mark.parametrize("name", ["Tiny", "", "a: b"])
def test_name_and_licence_travel_in_the_model_card(tmp_path: Path, name: str, license: str) -> None:
    checkpoint = replace(make_checkpoint(), name=name, license=license)
    huggingface.write(checkpoint, tmp_path / "a")
    again = open_checkpoint(tmp_path / "a")
    assert (again.name, again.license) == (name, license)
    card = tmp_path / "a" / "README.md"
    assert card.exists() == bool(name or license)
    if card.exists():
        front = card.read_text(encoding="utf-8").split("---\n")[1]
        expected = {"license": license, "model_name": name}
        assert yaml.safe_load(front) == {key: text for key, text in expected.items() if text}


def test_cards_of_others(tmp_path: Path) -> None:
    huggingface.write(replace(make_checkpoint(), name="", license=""), tmp_path / "a")
    for text, license in [
        ("---\nlanguage:\n- en\nlicense: llama2\ntags: [x]\n---\n# license: no\n", "llama2"),
        ("---\nlicense: 'other'\n---\n", "other"),
        ("---\ntags:\n  license: nested\n---\n", ""),
        ("---\nx: y\n---\nlicense: below\n", ""),
        ("# Title\nlicense: no head\n", ""),
        ("\xff\0", ""),
    ]:
        (tmp_path / "a" / "README.md").write_bytes(text.encode("latin-1"))
        assert open_checkpoint(tmp_path / "a").license == license


def test_generation_starts_and_stops_as_the_vocabulary_says(tmp_path: Path) -> None:
    vocabulary = make_vocabulary()
    swapped = replace(vocabulary, bos_id=2, eos_id=1)
    checkpoint = replace(make_checkpoint(), load_vocabulary=lambda: swapped)
    huggingface.write(checkpoint, tmp_path / "a")
    theirs = GenerationConfig.from_pretrained(tmp_path / "a")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (2, 1)
    assert open_checkpoint(tmp_path / "a").vocabulary == swapped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 32}, "head_dim"),
        ({"hidden_size": None}, "dim must be int"),
        ({"hidden_size": "64"}, "dim must be int"),
        ({"vocab_size": 100}, r"safetensors: tok_embeddings.weight \(byte 40\): has shape"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"num_hidden_layers": 3}, "lacks layers.2"),
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"max_position_embeddings": -1}, "context_length must be positive"),
        ({"tie_word_embeddings": 3}, "tied must be bool"),
        ({"rms_norm_eps": float("nan")}, "norm_eps must be positive"),
    ],
)
def test_wrong_configs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    huggingface.write(make_checkpoint(), tmp_path / "a")
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(tmp_path / "a")
    assert str(tmp_path) in str(caught.value)


def test_wrong_indexes(tmp_path: Path) -> None:
    huggingface.write(make_checkpoint(), tmp_path / "a", max_shard_bytes=40_000)
    index = tmp_path / "a" / "model.safetensors.index.json"
    for content, message in [
        ("{}", "has no weight_map"),
        ("[]", r"\(byte 0\): it is not valid JSON: there is no object"),
        ("{", r"\(byte 1\): it is not valid JSON: a key is expected"),
        ('{"é": 1, "é": 2}', r"\(byte 10\): it is not valid JSON: the key .é. stands twice"),
        ('{"weight_map": {"a": 1, "a": 2}}', r"\(byte 15\).*stands twice"),
        ('{"x": "\\ud800"}', "surrogate"),
        ('{"weight_map": {"x": "../a/model.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"x": "/etc/passwd"}}', "outside its folder"),
        ('{"weight_map": {"x": 3}}', "outside its folder"),
        ('{"weight_map": {"x": "none.safetensors"}}', "lacks the shard none.safetensors"),
        ("[" * 100_000, "not valid JSON"),
        ("[" * 100_001, "more values than is plausible"),
        ('{"x": ' + "[" * 90_000, "not valid JSON"),
    ]:
        index.write_text(content)
        with pytest.raises(ValueError, match=message):
            open_checkpoint(tmp_path / "a")
    index.unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        open_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("names", [{"x": 3, "y": "z"}, {"x": ["y"]}])
def test_indexes_of_other_things_than_names(tmp_path: Path, names: dict[str, Any]) -> None:
    huggingface.write(make_checkpoint(), tmp_path / "a", max_shard_bytes=40_000)
    index = tmp_path / "a" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match="outside its folder"):
        open_checkpoint(tmp_path / "a")


def test_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --dtype"):
        huggingface.write(make_checkpoint("q8_0"), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_damage_is_a_value_error(
    tmp_path: Path, reads: Callable[[Path, Path, bytes], bool]
) -> None:
    folder = tmp_path / "a"
    huggingface.write(make_checkpoint("f16"), folder)
    for name, size in [("model.safetensors", 2500), ("config.json", 10**9)]:
        file = folder / name
        data = file.read_bytes()
        cuts = [cut for cut in truncated(data) if cut.strip() != data.strip()]
        assert not any(reads(folder, file, cut) for cut in cuts)
        for damaged in flipped(data, 0, min(size, len(data)), 400):
            reads(folder, file, damaged)
        file.unlink()
        file.write_bytes(data)
    (folder / "tokenizer.model").unlink()
    file = folder / "tokenizer.json"
    data = file.read_bytes()
    for damaged in (*truncated(data, 20), *flipped(data, 0, len(data), 60)):
        reads(folder, file, damaged)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 62]}},
        {"x": {"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]}},
        {"x": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"x": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}},
        {"x": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}},
        {"x": {"shape": [4], "data_offsets": [0, 16]}},
        {"x": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
        {"x": [1, 2]},
        {"x": None},
        {"__metadata__": None},
        [],
        3,
    ],
)
def test_absurd_safetensors_headers(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        read_safetensors(path)
