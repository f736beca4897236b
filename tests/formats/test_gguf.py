"""GGUF: against the `gguf` package's reader, writer and quantizer."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest

from puna.formats import gguf, open_checkpoint, save_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.names import GGUF
from puna.formats.vocabularies import load_vocabulary
from puna.quantize.storage import STORAGE, convert
from puna.tokenizer import PieceType, Tokenizer
from tests.formats.conftest import (
    CHAT_TEMPLATE,
    assert_same,
    flipped,
    make_checkpoint,
    make_vocabulary,
    truncated,
)

QUANTIZED = reference.GGMLQuantizationType
TYPES = {"f32": QUANTIZED.F32, "f16": QUANTIZED.F16, "bf16": QUANTIZED.BF16, "q8_0": QUANTIZED.Q8_0}


def permuted(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, `permute`: Hugging Face's rows -> GGUF's."""
    heads = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def llama_cpp_rows(checkpoint: Checkpoint, name: str) -> np.ndarray:
    rows = checkpoint.tensors[name].read()
    if name.endswith("wq.weight"):
        return permuted(rows, checkpoint.config.num_heads)
    return permuted(rows, checkpoint.config.num_kv_heads) if name.endswith("wk.weight") else rows


def write_reference(
    checkpoint: Checkpoint,
    path: Path,
    skip: tuple[str, ...] = (),
    split_max_tensors: int = 0,
    **extra: Any,
) -> None:
    """The file that the `gguf` package makes of a checkpoint; `skip` are keys left out."""
    config = checkpoint.config
    writer = reference.GGUFWriter(path, "llama", split_max_tensors=split_max_tensors)
    for key, add, value in [
        ("context_length", writer.add_context_length, config.context_length),
        ("embedding_length", writer.add_embedding_length, config.dim),
        ("block_count", writer.add_block_count, config.num_layers),
        ("feed_forward_length", writer.add_feed_forward_length, config.ffn_dim),
        ("head_count", writer.add_head_count, config.num_heads),
        ("head_count_kv", writer.add_head_count_kv, config.num_kv_heads),
        ("rms_epsilon", writer.add_layer_norm_rms_eps, config.norm_eps),
        ("freq_base", writer.add_rope_freq_base, config.rope_theta),
        ("dimension_count", writer.add_rope_dimension_count, config.head_dim),
    ]:
        if key not in skip:
            add(value)
    if "tokenizer" not in skip:
        vocabulary = make_vocabulary()
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(vocabulary.pieces))
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_token_types([int(kind) for kind in vocabulary.types])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_name("Tiny")
    for key, (method, value) in extra.items():
        getattr(writer, f"add_{method}")(key.replace("__", "."), value)
    for name, tensor in checkpoint.tensors.items():
        rows = llama_cpp_rows(checkpoint, name)
        if tensor.dtype in ("f32", "f16"):
            rows = rows.view(tensor.dtype.replace("f", "float"))
            writer.add_tensor(GGUF.foreign(name), rows)
        else:
            writer.add_tensor(GGUF.foreign(name), rows, raw_dtype=TYPES[tensor.dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_reads_what_the_gguf_package_writes(
    tmp_path: Path, dtype: str, version: int, tied: bool
) -> None:
    checkpoint = make_checkpoint("f32", tied=tied, rope_theta=1e6)
    tensors = {n: t.converted(dtype) if len(t.shape) == 2 else t
               for n, t in checkpoint.tensors.items()}  # fmt: skip
    checkpoint = Checkpoint("test", Path("a"), checkpoint.config, tensors, make_vocabulary)
    path = tmp_path / "a.gguf"
    write_reference(checkpoint, path)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", version)  # 2 and 3 differ in nothing on little-endian machines
    path.write_bytes(data)
    again = open_checkpoint(path)
    assert again.format == "gguf"
    assert (again.name, again.chat_template) == ("Tiny", CHAT_TEMPLATE)
    assert_same(again, checkpoint)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_the_gguf_package_reads_what_is_written(tmp_path: Path, dtype: str) -> None:
    checkpoint = make_checkpoint()
    path = tmp_path / "a.gguf"
    assert save_checkpoint(checkpoint, path, "gguf", dtype=dtype) == []
    reader = reference.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    file_type = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}[dtype]
    assert reference.LlamaFileType(file_type).name.endswith(dtype.upper())
    vocabulary = make_vocabulary()
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        "general.file_type": file_type,
        "general.quantization_version": reference.GGML_QUANT_VERSION,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.vocab_size": 320,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(vocabulary.pieces),
        "tokenizer.ggml.scores": list(vocabulary.scores),
        "tokenizer.ggml.token_type": [int(kind) for kind in vocabulary.types],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    assert expected.items() <= fields.items()
    assert len(reader.tensors) == len(checkpoint.tensors)
    for tensor in reader.tensors:
        name = GGUF.canonical(tensor.name)
        assert name is not None
        shape = checkpoint.tensors[name].shape
        assert tuple(tensor.shape)[::-1] == shape
        wanted = dtype if len(shape) == 2 else "f32"  # norms stay F32
        assert tensor.tensor_type == TYPES[wanted]
        floats = llama_cpp_rows(checkpoint, name).view(np.float32)
        rows = reference.quants.quantize(floats, TYPES[wanted])
        assert np.ascontiguousarray(tensor.data).tobytes() == rows.tobytes(), name


def test_q8_0_is_bit_identical_to_the_gguf_package() -> None:
    generator = np.random.default_rng(0)
    floats = generator.standard_normal((512, 256), dtype=np.float32)
    floats *= np.exp(generator.uniform(-20, 6, (512, 1))).astype(np.float32)
    floats[3, :64] = 0
    floats[4, :32] = np.float32(127) * np.sign(floats[4, :32])
    floats[5, :32] = np.linspace(-127, 127, 32) + 0.5  # ties
    ours = STORAGE["q8_0"].quantize(floats)
    theirs = reference.quants.quantize(floats, QUANTIZED.Q8_0)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        STORAGE["q8_0"].dequantize(ours), reference.quants.dequantize(theirs, QUANTIZED.Q8_0)
    )
    bf16 = reference.quants.quantize(floats, QUANTIZED.BF16)
    np.testing.assert_array_equal(convert(floats.view(np.uint8), "f32", "bf16"), bf16)


def test_q8_0_just_below_a_tie() -> None:
    floats = np.zeros((1, 32), np.float32)
    floats[0, :2] = 127, np.nextafter(np.float32(0.5), np.float32(0))
    theirs = reference.quants.quantize(floats, QUANTIZED.Q8_0)
    np.testing.assert_array_equal(STORAGE["q8_0"].quantize(floats), theirs)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_round_trip(tmp_path: Path, dtype: str, tied: bool) -> None:
    path = tmp_path / "a.gguf"
    checkpoint = make_checkpoint(tied=tied, rope_theta=12345.5, norm_eps=1e-6)
    save_checkpoint(checkpoint, path, "gguf", dtype=dtype)
    first = open_checkpoint(path)
    assert first.config == checkpoint.config
    assert (first.name, first.license) == ("Tiny", "apache-2.0")
    seen: list[str] = []
    save_checkpoint(first, tmp_path / "b.gguf", "gguf", on_tensor=seen.append)
    assert seen == list(checkpoint.tensors)
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
    assert_same(open_checkpoint(tmp_path / "b.gguf"), first)


def test_missing_keys_have_defaults(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(num_kv_heads=4)
    path = tmp_path / "a.gguf"
    write_reference(checkpoint, path, ("head_count_kv", "freq_base", "tokenizer"))
    again = open_checkpoint(path)
    assert again.config == checkpoint.config
    assert again.vocabulary is None and again.chat_template is None
    neutral = {"llama__rope__scaling__type": ("string", "none"), "split__count": ("uint16", 1)}
    write_reference(checkpoint, path, (), **neutral, llama__expert_count=("uint32", 0))
    assert open_checkpoint(path).config == checkpoint.config


@pytest.mark.parametrize(
    ("skip", "key", "kind"),
    [
        ("block_count", "llama.block_count", kind)
        for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
    ]
    + [
        (name, key, kind)
        for name, key in (
            ("rms_epsilon", "llama.attention.layer_norm_rms_epsilon"),
            ("freq_base", "llama.rope.freq_base"),
        )
        for kind in ("float32", "float64")
    ],
)
def test_numbers_of_every_width(tmp_path: Path, skip: str, key: str, kind: str) -> None:
    checkpoint = make_checkpoint(rope_theta=12345.678, norm_eps=1e-6)
    value = {"block_count": 2, "rms_epsilon": 1e-6, "freq_base": 12345.678}[skip]
    write_reference(checkpoint, tmp_path / "a.gguf", (skip,), **{key: (kind, value)})
    assert open_checkpoint(tmp_path / "a.gguf").config == checkpoint.config


@pytest.mark.parametrize("name", gguf.FILE_TYPES)
def test_file_types_are_llama_cpps(tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint()
    gguf.write(checkpoint, tmp_path / "a.gguf", file_type=name)
    value = reference.GGUFReader(tmp_path / "a.gguf").fields["general.file_type"].contents()
    assert (
        reference.LlamaFileType(value).name == f"{'ALL' if value == 0 else 'MOSTLY'}_{name.upper()}"
    )


@pytest.mark.parametrize("dtype", STORAGE)
def test_the_file_type_of_one_storage_type(tmp_path: Path, dtype: str) -> None:
    checkpoint = make_checkpoint(dim=256, ffn_dim=256, num_layers=1)
    save_checkpoint(checkpoint, tmp_path / "a.gguf", "gguf", dtype=dtype, pure=True)
    again = open_checkpoint(tmp_path / "a.gguf")
    gguf.write(again, tmp_path / "b.gguf")  # which is not told
    for path in ("a.gguf", "b.gguf"):
        value = reference.GGUFReader(tmp_path / path).fields["general.file_type"].contents()
        name = reference.LlamaFileType(value).name.lower().split("_", 1)[1]
        assert name in (dtype, f"{dtype}_s"), path


@pytest.mark.parametrize(
    ("skip", "extra", "message"),
    [
        (
            (),
            {"split__count": ("uint16", 3)},
            r"split.count \(byte 7665\): the file is one of 3 parts",
        ),
        ((), {"llama__rope__scaling__type": ("string", "yarn")}, "scaling.type = 'yarn'"),
        ((), {"llama__rope__scaling__factor": ("float32", 2.0)}, "scaling.factor = 2.0"),
        ((), {"llama__rope__scale_linear": ("float32", 4.0)}, "scale_linear = 4.0"),
        ((), {"llama__expert_count": ("uint32", 8)}, "expert_count = 8"),
        (
            (),
            {"llama__attention__key_length": ("uint32", 32)},
            r"key_length \(byte \d+\): 32 is not supported",
        ),
        (("dimension_count",), {"llama__rope__dimension_count": ("uint32", 8)}, "16 dimensions"),
        (("block_count",), {}, "lacks the keys llama.block_count"),
        (("block_count",), {"llama__block_count": ("uint32", 1 << 30)}, "1073741824 layers"),
        (("block_count",), {"llama__block_count": ("uint32", 1)}, "holds layers.1"),
        (("block_count",), {"llama__block_count": ("string", "2")}, "num_layers must be int"),
        (("head_count",), {"llama__attention__head_count": ("array", [4, 4])}, "must be int"),
        (("rms_epsilon", "embedding_length"), {}, "embedding_length, llama.attention.layer_norm"),
    ],
)
def test_what_is_not_supported(
    tmp_path: Path, skip: tuple[str, ...], extra: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.gguf"
    write_reference(make_checkpoint(), path, skip, **extra)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_other_ggufs(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = reference.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba'"):
        open_checkpoint(path)
    writer = reference.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="only a tokenizer"):
        open_checkpoint(path)
    checkpoint = make_checkpoint()
    factors = {"rope_freqs.weight": checkpoint.tensors["norm.weight"]}
    with open(path, "wb") as file:
        gguf.write_gguf(
            file,
            gguf._metadata(checkpoint),
            {GGUF.foreign(name): t for name, t in checkpoint.tensors.items()} | factors,
        )
    with pytest.raises(ValueError, match="scales its rotary frequencies"):
        open_checkpoint(path)


def test_padding_rows_get_pieces(tmp_path: Path) -> None:
    """llama.cpp wants as many tokens as the embedding has rows."""
    path = tmp_path / "a.gguf"
    checkpoint = make_checkpoint(vocab_size=384)
    gguf.write(checkpoint, path)
    vocabulary = open_checkpoint(path).vocabulary
    assert vocabulary is not None and len(vocabulary) == 384
    assert vocabulary.pieces[:320] == make_vocabulary().pieces
    assert vocabulary.pieces[320:322] == ("[PAD320]", "[PAD321]")
    assert set(vocabulary.types[320:]) == {PieceType.UNUSED}
    text = "the llama [PAD320]"
    assert Tokenizer(vocabulary).encode(text) == Tokenizer(make_vocabulary()).encode(text)


def test_damage_is_a_value_error(
    tmp_path: Path, reads: Callable[[Path, Path, bytes], bool]
) -> None:
    path = tmp_path / "a.gguf"
    save_checkpoint(make_checkpoint(), path, "gguf", dtype="q8_0")
    data = path.read_bytes()
    assert not any(reads(path, path, cut) for cut in truncated(data))
    for begin, end in ((0, 1200), (0, 20_000), (9_000, 16_000)):
        for damaged in flipped(data, begin, end, 200, seed=begin + end):
            reads(path, path, damaged)


def test_the_shared_vocabulary_encodes_as_llama_cpp(shared: Path) -> None:
    path = shared / "tokenizer" / "ggml-vocab-llama-spm.gguf"
    tokenizer = Tokenizer(load_vocabulary(path))
    texts = path.with_name(path.name + ".inp").read_bytes().decode()
    cases = texts.split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(cases) == 47
    for text, line in zip(cases, lines, strict=True):
        assert tokenizer.encode(text) == [int(token) for token in line.split()], repr(text)
