"""GPTQ folders: against codes put into words by plain loops, and what other libraries read."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from puna.formats import gptq, huggingface
from puna.formats.checkpoint import Checkpoint
from puna.formats.errors import FormatError
from puna.formats.gptq_layer import packed
from puna.formats.gptq_write import losses, write
from puna.quantize.packing import BITS
from puna.quantize.rounding import round_to_nearest
from tests.formats.conftest import CHAT_TEMPLATE, assert_well_said, make_checkpoint
from tests.formats.gptq_folders import CONFIG, Made, make_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoConfig, AutoTokenizer

WQ = "model.layers.0.self_attn.q_proj"


def assert_layers(checkpoint: Checkpoint, layers: dict[str, Made]) -> None:
    """The integers and what they stand for, of every layer."""
    for name, made in layers.items():
        tensor = checkpoint.tensors[name]
        assert tensor.packed is not None
        grouped = tensor.packed.read()
        np.testing.assert_array_equal(grouped.codes, made.codes.T, err_msg=name)
        np.testing.assert_array_equal(grouped.zeros, made.zeros.T, err_msg=name)
        np.testing.assert_array_equal(grouped.scales, made.scales.T, err_msg=name)
        np.testing.assert_array_equal(grouped.groups, made.groups, err_msg=name)
        np.testing.assert_array_equal(tensor.read_float32(), made.weight(), err_msg=name)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", BITS)
def test_reads_what_loops_packed(
    tmp_path: Path, bits: int, group_size: int, act_order: bool
) -> None:
    """128 does not divide the 192 inputs of the last matrix: its last group is smaller."""
    for version, symmetric in [("v1", True), ("v2", True), ("v1", False), ("v2", False)]:
        layers, tensors = make_folder(
            tmp_path, bits=bits, group_size=group_size, act_order=act_order, version=version,
            symmetric=symmetric,
            settings={"checkpoint_format": "gptq" if version == "v1" else "gptq_v2"},
        )  # fmt: skip
        assert gptq.detect(tmp_path)
        checkpoint = gptq.read(tmp_path)
        assert checkpoint.config == CONFIG and checkpoint.notes == ()
        assert_layers(checkpoint, layers)
        assert all(grouped_of(checkpoint, name).symmetric == symmetric for name in layers)
        embedding = checkpoint.tensors["tok_embeddings.weight"]
        assert embedding.dtype == "f16" and embedding.packed is None
        theirs = tensors["model.embed_tokens.weight"]
        np.testing.assert_array_equal(embedding.read().view(np.float16), theirs)


def grouped_of(checkpoint: Checkpoint, name: str) -> Any:
    stored = checkpoint.tensors[name].packed
    assert stored is not None
    return stored.read()


def test_sizes_and_labels(tmp_path: Path) -> None:
    _, tensors = make_folder(tmp_path, bits=3, act_order=True)
    checkpoint = gptq.read(tmp_path)
    floats = sum(a.nbytes for n, a in tensors.items() if n.endswith(".weight"))
    everything = sum(array.nbytes for array in tensors.values())
    assert checkpoint.dtype_bytes() == {
        "gptq-3bit-32g-actorder": everything - floats, "f16": floats,
    }  # fmt: skip


def test_without_g_idx_groups_are_in_order(tmp_path: Path) -> None:
    layers, _ = make_folder(tmp_path, drop="g_idx")
    assert_layers(gptq.read(tmp_path), layers)
    layers, _ = make_folder(tmp_path, drop="g_idx", group_size=-1, settings={"desc_act": True})
    assert_layers(gptq.read(tmp_path), layers)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("bits", BITS)
def test_symmetric_zero_points_say_their_version(tmp_path: Path, bits: int, version: str) -> None:
    """What checkpoint_format says does not matter then."""
    for said in (None, "gptq", "gptq_v2"):
        settings = {"checkpoint_format": said, "sym": None}
        layers, _ = make_folder(tmp_path, bits=bits, version=version, settings=settings)
        checkpoint = gptq.read(tmp_path)
        assert_layers(checkpoint, layers)
        wrong = said == {"v1": "gptq_v2", "v2": "gptq"}[version]
        assert ["they were believed" in note for note in checkpoint.notes] == [True] * wrong


def test_asymmetric_zero_points_are_taken_at_the_files_word(tmp_path: Path) -> None:
    layers, _ = make_folder(tmp_path, symmetric=False, version="v1")
    checkpoint = gptq.read(tmp_path)
    assert "v1 was assumed" in checkpoint.notes[0]
    assert_layers(checkpoint, layers)
    assert_layers(gptq.read(tmp_path, zero_points="v1"), layers)
    layers, _ = make_folder(tmp_path, symmetric=False, version="v2")
    checkpoint = gptq.read(tmp_path, zero_points="v2")
    assert checkpoint.notes == ()
    assert_layers(checkpoint, layers)
    with pytest.raises(ValueError, match="zero points are v1 or v2, not 'v3'"):
        gptq.read(tmp_path, zero_points="v3")


@pytest.mark.parametrize("bits", BITS)
def test_v1_zero_of_the_largest_code_is_0(tmp_path: Path, bits: int) -> None:
    layers, tensors = make_folder(tmp_path, bits=bits, symmetric=False, version="v1")
    made = layers["layers.0.attention.wq.weight"]
    assert made.zeros[0, 0] == 0
    assert tensors[f"{WQ}.qzeros"][0, 0] & (2**bits - 1) == 2**bits - 1
    assert grouped_of(gptq.read(tmp_path), "layers.0.attention.wq.weight").zeros[0, 0] == 0


def test_settings_in_config_json(tmp_path: Path) -> None:
    """As transformers writes them, with no quantize_config.json."""
    layers, _ = make_folder(tmp_path, bits=8, group_size=64)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 8, "group_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "quantize_config.json").unlink()
    assert gptq.detect(tmp_path)
    assert_layers(gptq.read(tmp_path), layers)
    config["quantization_config"]["bits"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="5 bits are not supported") as caught:
        gptq.read(tmp_path)
    assert caught.value.path.name == "config.json" and caught.value.offset > 0


def test_plain_folders_are_not_gptq(tmp_path: Path) -> None:
    huggingface.write(make_checkpoint(), tmp_path / "a")
    assert not gptq.detect(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{")
    assert not gptq.detect(tmp_path / "a") and not gptq.detect(tmp_path / "none")


@pytest.mark.parametrize(
    "file_name",
    ["gptq_model-4bit-32g.safetensors", "Llama-2-GPTQ.safetensors", "base.safetensors"],
)
def test_names_of_weights(tmp_path: Path, file_name: str) -> None:
    settings = {"model_file_base_name": "base"}
    layers, _ = make_folder(tmp_path, file_name=file_name, settings=settings)
    assert_layers(gptq.read(tmp_path), layers)
    (tmp_path / file_name).rename(tmp_path / "some.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=r"which file is meant: other.safetensors, some.safe"):
        gptq.read(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FormatError, match=r"holds no .safetensors"):
        gptq.read(tmp_path)


def test_shards(tmp_path: Path) -> None:
    """The parts of a layer may lie in two files."""
    layers, tensors = make_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, half in enumerate([names[::2], names[1::2]]):
        file_name = f"gptq_model-4bit-32g-0000{number}.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in half}, tmp_path / file_name)
        index |= dict.fromkeys(half, file_name)
    file = tmp_path / "gptq_model-4bit-32g.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": index}))
    assert_layers(gptq.read(tmp_path), layers)


@pytest.mark.parametrize("file_name", ["llama-7b-4bit-32g.pt", "pytorch_model.bin"])
def test_pickled_weights(tmp_path: Path, file_name: str) -> None:
    layers, tensors = make_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({n: torch.from_numpy(a) for n, a in tensors.items()}, tmp_path / file_name)
    assert_layers(gptq.read(tmp_path), layers)


def test_what_old_files_hold_besides(tmp_path: Path) -> None:
    """Biases of zeros, as AutoGPTQ gave every layer, and rotary buffers."""
    extra = {f"{WQ}.bias": np.array([0.0, -0.0] * 64, np.float16)}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    layers, _ = make_folder(tmp_path, extra=extra)
    checkpoint = gptq.read(tmp_path)
    assert_layers(checkpoint, layers)
    for wrong, problem in [(np.ones(128), "it is not zero"), (np.zeros(64), "the outputs are 128")]:
        make_folder(tmp_path, extra={f"{WQ}.bias": wrong.astype(np.float16)})
        with pytest.raises(FormatError, match=f"q_proj.bias .*{problem}"):
            gptq.read(tmp_path)


def test_layers_left_as_floats(tmp_path: Path) -> None:
    plain = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float16)
    layers, _ = make_folder(tmp_path, extra={f"{WQ}.weight": plain}, drop="none")
    with pytest.raises(FormatError, match=r"q_proj.qweight .*a plain weight beside it"):
        gptq.read(tmp_path)
    _, tensors = make_folder(tmp_path)
    tensors = {n: a for n, a in tensors.items() if not n.startswith(WQ)} | {f"{WQ}.weight": plain}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    del layers["layers.0.attention.wq.weight"]
    checkpoint = gptq.read(tmp_path)
    assert_layers(checkpoint, layers)
    tensor = checkpoint.tensors["layers.0.attention.wq.weight"]
    assert tensor.packed is None and tensor.dtype == "f16"


def test_scales_of_other_types(tmp_path: Path) -> None:
    layers, tensors = make_folder(tmp_path)
    wide = tensors[f"{WQ}.scales"].astype(np.float32)
    make_folder(tmp_path, extra={f"{WQ}.scales": wide * np.float32(1.00001)})
    checkpoint = gptq.read(tmp_path)
    assert checkpoint.notes == ("scales are rounded to float16, which GPTQ computes with",)
    assert_layers(checkpoint, layers)
    make_folder(tmp_path, extra={f"{WQ}.scales": wide * np.float32(1e7)})
    checkpoint = gptq.read(tmp_path)
    with pytest.raises(FormatError, match=r"q_proj.scales .*too large for float16"):
        checkpoint.tensors["layers.0.attention.wq.weight"].read()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quant_method": "awq"}, "quantized by 'awq'; known is 'gptq'"),
        ({"quant_method": "bitsandbytes"}, "quantized by 'bitsandbytes'"),
        ({"quant_method": ["gptq"]}, r"quantized by \['gptq'\]"),
        ({"w_bit": 4, "q_group_size": 128}, "quantized by 'awq'"),
        ({"is_marlin_format": True}, "Marlin's own layout"),
        ({"checkpoint_format": "marlin"}, "layout 'marlin' is not supported; gptq and gptq_v2 are"),
        ({"checkpoint_format": ["gptq"]}, "layout .* is not supported"),
        ({"pack_dtype": "int16"}, "words of 'int16'"),
        ({"bits": 5}, "5 bits are not supported; 2, 3, 4, 8 are"),
        ({"bits": "4"}, "'4' bits"),
        ({"bits": True}, "True bits"),
        ({"bits": None}, "None bits"),
        ({"group_size": 0}, "positive number or -1, not 0"),
        ({"group_size": -2}, "not -2"),
        ({"group_size": 32.0}, "not 32.0"),
        ({"desc_act": "yes"}, "must be true or false"),
        ({"model_file_base_name": "../other"}, "no name of a file"),
        ({"model_file_base_name": 3}, "no name of a file"),
        ({"bits": 8}, "has shape|do not fill"),
        ({"bits": 3}, "has shape|do not fill"),
        ({"group_size": 64}, r"inputs of 4 bits with group_size 64 need \("),
        ({"group_size": 10**30}, r"need \(1, "),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    make_folder(tmp_path, settings=settings)
    assert gptq.detect(tmp_path)
    with pytest.raises(FormatError, match=problem) as caught:
        gptq.read(tmp_path)
    assert_well_said(caught.value, tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "problem"),
    [
        ("qweight", lambda a: a.reshape(-1), "not two dimensions"),
        ("qweight", lambda a: a.astype(np.int64), "it is I64, not I32"),
        ("qweight", lambda a: a[:, :100].copy(), "do not fill its shape"),
        ("qweight", lambda a: a[:-1], r"shape .*; 128 outputs and 120 inputs"),
        ("qzeros", lambda a: a.astype(np.float32), "it is F32, not I32"),
        ("qzeros", lambda a: a.T.copy(), r"need \(4, 16\)"),
        ("scales", lambda a: a.astype(np.int32), "it is I32, not F32 or F16 or BF16"),
        ("scales", lambda a: a[:2].copy(), r"need \(4, 128\)"),
        ("g_idx", lambda a: a[:64].copy(), r"need \(128,\)"),
        ("g_idx", lambda a: a.astype(np.int64), "it is I64"),
    ],
)
def test_wrong_parts(tmp_path: Path, part: str, change: Callable[..., Any], problem: str) -> None:
    _, tensors = make_folder(tmp_path)
    array = change(tensors[f"{WQ}.{part}"])
    make_folder(tmp_path, extra={f"{WQ}.{part}": np.ascontiguousarray(array)})
    with pytest.raises(FormatError, match=problem) as caught:
        gptq.read(tmp_path)
    assert caught.value.field.startswith(WQ) and caught.value.offset > 0
    assert_well_said(caught.value, tmp_path)


@pytest.mark.parametrize("part", ["qzeros", "scales", "g_idx"])
def test_missing_parts(tmp_path: Path, part: str) -> None:
    make_folder(tmp_path, act_order=True, drop=f"q_proj.{part}")
    with pytest.raises(FormatError, match=f"q_proj.qweight .*there is no {part} beside it"):
        gptq.read(tmp_path)


def test_missing_layers(tmp_path: Path) -> None:
    make_folder(tmp_path, drop="q_proj.qweight")
    with pytest.raises(FormatError, match=r"q_proj.g_idx .*it is I32"):
        gptq.read(tmp_path)
    _, tensors = make_folder(tmp_path)
    plain = {n: a for n, a in tensors.items() if n.endswith(".weight")}
    safetensors.numpy.save_file(plain, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="no tensor is quantized"):
        gptq.read(tmp_path)


@pytest.mark.parametrize("wrong", [-1, 4, 2**31 - 1])
def test_groups_that_there_are_not(tmp_path: Path, wrong: int) -> None:
    layers, _ = make_folder(tmp_path, act_order=True)
    groups = layers["layers.0.attention.wq.weight"].groups.astype(np.int32)
    groups[77] = wrong
    make_folder(tmp_path, act_order=True, extra={f"{WQ}.g_idx": groups})
    checkpoint = gptq.read(tmp_path)
    with pytest.raises(FormatError, match=f"q_proj.g_idx .*input 77 is of group {wrong}; there"):
        checkpoint.tensors["layers.0.attention.wq.weight"].read()


def test_damage_is_a_format_error(tmp_path: Path) -> None:
    make_folder(tmp_path, act_order=True, symmetric=False, bits=3)
    generator = random.Random(0)
    for name, size in [("model.safetensors", 3000), ("quantize_config.json", 100)]:
        whole = (tmp_path / name).read_bytes()
        for _ in range(200):
            at, byte = generator.randrange(min(size, len(whole))), generator.randrange(256)
            cut = generator.randrange(len(whole)) if generator.random() < 0.1 else len(whole)
            damaged = (whole[:at] + bytes([byte]) + whole[at + 1 :])[:cut]
            (tmp_path / name).write_bytes(damaged)
            try:
                for tensor in gptq.read(tmp_path).tensors.values():
                    tensor.read()
            except FormatError as error:
                assert_well_said(error, tmp_path)
        (tmp_path / name).write_bytes(whole)


# ---- writing ----


def written(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    return {n: a for file in files for n, a in safetensors.numpy.load_file(file).items()}


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("bits", BITS)
def test_integers_are_written_as_they_were(
    tmp_path: Path, bits: int, group_size: int, symmetric: bool, act_order: bool
) -> None:
    layers, tensors = make_folder(
        tmp_path / "a", bits=bits, group_size=group_size, symmetric=symmetric,
        act_order=act_order,
    )  # fmt: skip
    checkpoint = gptq.read(tmp_path / "a")
    assert losses(checkpoint) == []
    seen: list[str] = []
    write(checkpoint, tmp_path / "b", zero_points="v1", on_tensor=seen.append)
    assert seen == list(checkpoint.tensors)
    again = written(tmp_path / "b")
    assert set(again) == set(tensors)
    for name, array in tensors.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    settings = json.loads((tmp_path / "b" / "quantize_config.json").read_text())
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["quantization_config"] == settings
    # A whole row in one group has no order, and two groups may by chance lie as neighbours do.
    assert settings["desc_act"] == (act_order and group_size != -1)
    assert (settings["bits"], settings["group_size"]) == (bits, group_size)
    assert (settings["sym"], settings["checkpoint_format"]) == (symmetric, "gptq")
    write(checkpoint, tmp_path / "c", zero_points="v2")
    assert (
        json.loads((tmp_path / "c" / "config.json").read_text())["quantization_config"][
            "checkpoint_format"
        ]
        == "gptq_v2"
    )
    assert_layers(gptq.read(tmp_path / "c"), layers)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, 32), (4, 32), (8, -1)])
def test_floats_are_rounded(tmp_path: Path, bits: int, group_size: int, symmetric: bool) -> None:
    source = make_checkpoint("bf16")
    options = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    write(source, tmp_path / "a", **options)
    groups = "whole rows" if group_size == -1 else f"groups of {group_size}"
    assert losses(source, **options) == [
        f"14 tensors are rounded to the nearest of {bits} bits in {groups}; "
        "puna quantize loses less"
    ]
    again = gptq.read(tmp_path / "a")
    assert again.config == source.config and again.vocabulary == source.vocabulary
    assert (again.name, again.license) == (source.name, source.license)
    assert again.chat_template == CHAT_TEMPLATE and again.notes == ()
    for name, tensor in source.tensors.items():
        if name.startswith("layers.") and len(tensor.shape) == 2:
            expected = round_to_nearest(tensor.read_float32(), bits, group_size, symmetric)
            np.testing.assert_array_equal(
                again.tensors[name].read_float32(), expected.dequantize(), err_msg=name
            )
        else:
            assert again.tensors[name].dtype == "bf16"
            np.testing.assert_array_equal(again.tensors[name].read(), tensor.read())
    settings = json.loads((tmp_path / "a" / "quantize_config.json").read_text())
    assert settings["sym"] == symmetric and not settings["desc_act"]
    # v1 cannot say to all readers that a zero is 0.
    assert settings["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")


def test_other_kinds_of_gptq_are_rounded_again(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", bits=8)
    checkpoint = gptq.read(tmp_path / "a")
    for options in ({"bits": 4}, {"group_size": 64}):
        notes = losses(checkpoint, **options)
        assert "7 tensors are rounded" in notes[0] and "7 of them were GPTQ" in notes[1]
        write(checkpoint, tmp_path / "b", overwrite=True, **options)
        label = "gptq-4bit-32g" if "bits" in options else "gptq-8bit-64g"
        assert label in gptq.read(tmp_path / "b").dtype_bytes()


def test_what_comes_from_memory(tmp_path: Path) -> None:
    """Integers that no file held, as quantizing makes them, and a head of integers."""
    source = make_checkpoint("f16")
    tensors = dict(source.tensors)
    for name in ("layers.0.attention.wq.weight", "output.weight"):
        shape = tensors[name].shape
        grouped = round_to_nearest(tensors[name].read_float32(), 4, 32, symmetric=False)
        parts = packed(lambda grouped=grouped: grouped, shape, 4, 32, False)
        tensors[name] = replace(tensors[name], packed=parts)
    source = replace(source, tensors=tensors)
    notes = losses(source)
    assert notes[0].startswith("13 tensors are rounded to the nearest of 4 bits in groups of 32")
    assert notes[1:] == ["output.weight was gptq-4bit-32g and is stored as f16"]
    write(source, tmp_path / "a")
    again = grouped_of(gptq.read(tmp_path / "a"), "layers.0.attention.wq.weight")
    expected = tensors["layers.0.attention.wq.weight"].packed.read()
    np.testing.assert_array_equal(again.codes, expected.codes)
    np.testing.assert_array_equal(again.zeros, expected.zeros)


def test_shards_are_written(tmp_path: Path) -> None:
    layers, tensors = make_folder(tmp_path / "a")
    write(gptq.read(tmp_path / "a"), tmp_path / "b", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    assert len(set(index["weight_map"].values())) > 3
    assert_layers(gptq.read(tmp_path / "b"), layers)


def test_transformers_reads_config_and_tokenizer(tmp_path: Path) -> None:
    write(make_checkpoint("f16"), tmp_path / "a", group_size=32)
    config = AutoConfig.from_pretrained(tmp_path / "a")
    assert config.quantization_config["quant_method"] == "gptq"
    assert config.quantization_config["bits"] == 4 and config.dtype == torch.float16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("options", "changes", "problem"),
    [
        ({"group_size": 64}, {}, "w2.weight has 96 inputs, which groups of 64 do not divide"),
        ({}, {}, "wq.weight has 64 inputs, which groups of 128 do not divide"),
        ({"group_size": -1}, {"ffn_dim": 80}, "w1.weight is 80 by 64: GPTQ files hold multiples"),
        ({"bits": 5}, {}, "hold 2, 3, 4, 8 bits, not 5"),
        ({"bits": 0}, {}, "not 0"),
        ({"group_size": 0}, {}, "positive or -1, not 0"),
        ({"group_size": 32, "zero_points": "v3"}, {}, "v1 or v2, not 'v3'"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, options: dict[str, Any], changes: dict[str, int], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        write(make_checkpoint("f16", **changes), tmp_path / "a", **options)
    assert not list(tmp_path.iterdir())


def test_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tok_embeddings.weight as q8_0; give --dtype f16"):
        write(make_checkpoint("q8_0"), tmp_path / "a", group_size=32)
    assert not list(tmp_path.iterdir())
