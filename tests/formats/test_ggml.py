"""GGML: against a reader and a writer made here from llama.cpp's convert.py of July 2023."""

from __future__ import annotations

import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from puna.config import preset
from puna.formats import ggml, open_checkpoint, save_checkpoint
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.formats.vocabularies import load_vocabulary
from puna.quantize.storage import STORAGE
from puna.tokenizer import PieceType, Tokenizer
from puna.tokenizer.ggml import read_pieces, write_pieces
from puna.tokenizer.sentencepiece_model import read_model, write_model
from tests.formats.conftest import (
    assert_same,
    assert_same_tensors,
    flipped,
    make_checkpoint,
    make_vocabulary,
    truncated,
)

TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8,
    "q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14,
}  # fmt: skip
MAGICS = {"ggml": (b"ggml",), "ggmf": (b"ggmf", 1)} | {f"ggjt{n}": (b"ggjt", n) for n in (1, 2, 3)}
ORDER = (
    "attention.wq", "attention.wk", "attention.wv", "attention.wo", "attention_norm",
    "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "ffn_norm",
)  # fmt: skip


def sentencepiece_tokens(model: bytes) -> list[tuple[bytes, float]]:
    """(text, score) of each piece, as `SentencePieceVocab.sentencepiece_tokens` gave them."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    out = []
    for i in range(processor.vocab_size()):
        piece = processor.id_to_piece(i)
        if processor.is_unknown(i):
            text = " \u2047 ".encode()
        elif processor.is_control(i):
            text = b""
        elif processor.is_byte(i):
            text = struct.pack("B", int(piece[3:-1], 16))
        else:
            text = piece.replace("\u2581", " ").encode()
        out.append((text, processor.get_score(i)))
    return out


def interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """convert.py's `permute`: Hugging Face's rows -> GGML's."""
    heads = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def ggml_rows(checkpoint: Checkpoint, name: str) -> np.ndarray:
    rows = checkpoint.tensors[name].read()
    if name.endswith("wq.weight"):
        return interleaved(rows, checkpoint.config.num_heads)
    return interleaved(rows, checkpoint.config.num_kv_heads) if "wk." in name else rows


def write_reference(checkpoint: Checkpoint, version: str = "ggjt3", n_mult: int = 32) -> bytes:
    """`OutputFile.write_all`, for each version of the format."""
    config = checkpoint.config
    magic, *number = MAGICS[version]
    out = bytearray(magic[::-1] + struct.pack(f"<{len(number)}i", *number))
    out += struct.pack(
        "<7i", config.vocab_size, config.dim, n_mult, config.num_heads, config.num_layers,
        config.dim // config.num_heads, 1,
    )  # fmt: skip
    for text, score in sentencepiece_tokens(write_model(make_vocabulary())):
        out += struct.pack("<i", len(text)) + text
        out += b"" if version == "ggml" else struct.pack("<f", score)
    names = ["tok_embeddings", "norm", "output"]
    names += [f"layers.{layer}.{part}" for layer in range(config.num_layers) for part in ORDER]
    for name in (f"{name}.weight" for name in names):
        tensor = checkpoint.tensors[name]
        shape, raw_name = tensor.shape, name.encode()
        out += struct.pack("<3i", len(shape), len(raw_name), TYPES[tensor.dtype])
        out += struct.pack(f"<{len(shape)}i", *shape[::-1]) + raw_name
        if version.startswith("ggjt"):
            out += bytes(-len(out) % 32)
        out += ggml_rows(checkpoint, name).tobytes()
    return bytes(out)


def read_reference(data: bytes) -> tuple[dict[str, int], list[tuple[bytes, float]], dict[str, Any]]:
    """Header, pieces and {name: (type, ne, offset, bytes)}, as llama.cpp's file loader did."""
    assert struct.unpack_from("<4sI", data) == (b"tjgg", 3)
    keys = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
    header = dict(zip(keys, struct.unpack_from("<7I", data, 8), strict=True))
    at = 36
    pieces = []
    for _ in range(header["n_vocab"]):
        (length,) = struct.unpack_from("<I", data, at)
        text, at = data[at + 4 : at + 4 + length], at + 4 + length
        pieces.append((text, struct.unpack_from("<f", data, at)[0]))
        at += 4
    sizes = {TYPES[name]: (STORAGE[name].block_size, STORAGE[name].block_bytes) for name in TYPES}
    tensors = {}
    while at < len(data):
        n_dims, length, kind = struct.unpack_from("<3I", data, at)
        ne = struct.unpack_from(f"<{n_dims}I", data, at + 12)
        at += 12 + 4 * n_dims
        name = data[at : at + length].decode()
        at += length
        at += -at & 31
        block, size = sizes[kind]
        count = int(np.prod(ne)) // block * size
        tensors[name] = (kind, ne, at, data[at : at + count])
        at += count
    assert at == len(data)
    return header, pieces, tensors


def stored(dtype: str, **changes: Any) -> Checkpoint:
    """A checkpoint whose matrices are random bytes, in rows that the blocks of any type fill."""
    shape = {"dim": 256, "ffn_dim": 768, "num_layers": 1, "context_length": 4096} | changes
    checkpoint = make_checkpoint(**shape)
    generator = np.random.default_rng(0)

    def lazy(shape: tuple[int, ...]) -> LazyTensor:
        raw = generator.integers(0, 256, STORAGE[dtype].stored_shape(shape), np.uint8)
        return LazyTensor(shape, dtype, lambda: raw)

    matrices = {n: lazy(t.shape) for n, t in checkpoint.tensors.items() if len(t.shape) == 2}
    return replace(checkpoint, tensors={**checkpoint.tensors, **matrices})


@pytest.mark.parametrize("dtype", TYPES)
def test_reads_what_convert_py_writes(tmp_path: Path, dtype: str) -> None:
    checkpoint = stored(dtype)
    path = tmp_path / "model.bin"
    path.write_bytes(write_reference(checkpoint))
    again = open_checkpoint(path)
    assert again.format == "ggml"
    assert_same(again, checkpoint)
    assert "1e-05" in again.notes[0] and "4096" in again.notes[0] and "10000" in again.notes[0]
    assert "LLaMA 1" in again.notes[0]


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_written_reads_as_llama_cpp_did(tmp_path: Path, dtype: str) -> None:
    checkpoint = stored(dtype)
    path = tmp_path / "model.bin"
    save_checkpoint(checkpoint, path, "ggml")
    header, pieces, tensors = read_reference(path.read_bytes())
    file_types = {"q8_0": 7, "q5_0": 8, "q5_1": 9, "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18}
    assert header == {
        "n_vocab": 320, "n_embd": 256, "n_mult": 256, "n_head": 4, "n_layer": 1, "n_rot": 64,
        "ftype": file_types.get(dtype, TYPES[dtype]),
    }  # fmt: skip
    assert pieces == sentencepiece_tokens(write_model(make_vocabulary()))
    assert set(tensors) == set(checkpoint.tensors)
    for name, (kind, ne, at, data) in tensors.items():
        tensor = checkpoint.tensors[name]
        assert kind == TYPES[tensor.dtype] and ne == tensor.shape[::-1] and at % 32 == 0
        assert data == ggml_rows(checkpoint, name).tobytes(), name
    assert_same(open_checkpoint(path), checkpoint)


@pytest.mark.parametrize("version", ["ggml", "ggmf", "ggjt1", "ggjt2"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_older_versions_with_floats(tmp_path: Path, version: str, dtype: str) -> None:
    checkpoint = stored(dtype)
    path = tmp_path / "model.bin"
    path.write_bytes(write_reference(checkpoint, version))
    again = open_checkpoint(path)
    assert again.config == checkpoint.config
    assert_same_tensors(again.tensors, checkpoint.tensors)
    assert again.vocabulary is not None
    assert again.vocabulary.pieces == make_vocabulary().pieces
    assert (len(again.notes) == 2) == (version == "ggml")


@pytest.mark.parametrize(
    ("version", "dtype", "label"),
    [
        ("ggml", "q4_0", "unversioned ggml"),
        ("ggmf", "q4_1", "ggmf version 1"),
        ("ggjt1", "q5_0", "ggjt version 1"),
        ("ggjt2", "q4_0", "ggjt version 2"),
        ("ggjt2", "q8_0", "ggjt version 2"),
    ],
)
def test_older_versions_with_blocks_are_refused(
    tmp_path: Path, version: str, dtype: str, label: str
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(write_reference(stored(dtype), version))
    with pytest.raises(FormatError, match=f"is {dtype} as {label} stored it") as caught:
        ggml.read(path)
    assert caught.value.field == "tok_embeddings.weight"
    assert caught.value.offset > 36


@pytest.mark.parametrize("dtype", ["q5_0", "q5_1"])
def test_version_2_had_todays_q5(tmp_path: Path, dtype: str) -> None:
    checkpoint = stored(dtype)
    (tmp_path / "model.bin").write_bytes(write_reference(checkpoint, "ggjt2"))
    assert_same(open_checkpoint(tmp_path / "model.bin"), checkpoint)


def test_tied_heads_become_a_copy(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tied=True, context_length=4096)
    path = tmp_path / "model.bin"
    seen: list[str] = []
    notes = save_checkpoint(checkpoint, path, "ggml", on_tensor=seen.append)
    assert any("copy of the embedding" in note for note in notes)
    assert sorted(seen) == sorted(checkpoint.tensors)
    again = open_checkpoint(path)
    assert again.config == replace(checkpoint.config, tied=False)
    output = again.tensors["output.weight"].read()
    np.testing.assert_array_equal(output, checkpoint.tensors["tok_embeddings.weight"].read())


def test_llamas_vocabulary_encodes_the_same(shared: Path) -> None:
    base = shared / "tokenizer" / "ggml-vocab-llama-spm.gguf"
    texts = base.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = base.with_suffix(".gguf.out").read_text().split("\n")
    model = (shared / "tokenizer" / "tokenizer.model").read_bytes()
    pieces = sentencepiece_tokens(model)
    data = b"".join(struct.pack("<i", len(t)) + t + struct.pack("<f", s) for t, s in pieces)
    vocabulary = read_pieces(data, 32000)
    assert vocabulary == read_model(model)
    assert write_pieces(vocabulary, 32000) == data
    without = b"".join(struct.pack("<i", len(text)) + text for text, _ in pieces)
    assert len(texts) == len(lines) == 47
    for tokenizer in (
        Tokenizer(vocabulary),
        Tokenizer(read_pieces(without, 32000, has_scores=False)),
    ):
        for text, line in zip(texts, lines, strict=True):
            assert tokenizer.encode(text) == [int(number) for number in line.split()], text


def test_a_file_of_vocabulary_alone(tmp_path: Path) -> None:
    """llama.cpp's models/ggml-vocab.bin, which `write_vocab_only` made."""
    data = b"tjgg" + struct.pack("<8i", 3, 320, 0, 0, 1, 0, 0, 0)
    (tmp_path / "vocab.bin").write_bytes(data + write_pieces(make_vocabulary(), 320))
    assert ggml.read_vocabulary(tmp_path / "vocab.bin") == make_vocabulary()
    assert load_vocabulary(tmp_path / "vocab.bin") == make_vocabulary()


def test_no_tokenizer_and_padding_rows(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(vocab_size=330, context_length=4096)
    save_checkpoint(checkpoint, tmp_path / "padded.bin", "ggml")
    padded = open_checkpoint(tmp_path / "padded.bin").vocabulary
    assert padded is not None and padded.pieces[:320] == make_vocabulary().pieces
    assert set(padded.types[320:]) == {PieceType.CONTROL}
    bare = replace(checkpoint, load_vocabulary=lambda: None)
    assert "there is no tokenizer to write" in save_checkpoint(bare, tmp_path / "bare.bin", "ggml")
    assert open_checkpoint(tmp_path / "bare.bin").vocabulary is None
    with pytest.raises(FormatError, match=r"vocabulary \(byte 36\): has no pieces"):
        ggml.read_vocabulary(tmp_path / "bare.bin")


def test_pieces_that_text_must_not_spell_stay_so() -> None:
    vocabulary = make_vocabulary()
    types = (*vocabulary.types[:-2], PieceType.UNUSED, PieceType.CONTROL)
    again = read_pieces(write_pieces(replace(vocabulary, types=types), 320), 320)
    assert again is not None
    assert again.types == (*vocabulary.types[:-2], PieceType.CONTROL, PieceType.CONTROL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bos_id": 2, "eos_id": 1}, "unk, BOS and EOS are 0, 2 and 1"),
        ({"add_space_prefix": False}, "prepares text"),
        ({"remove_extra_spaces": True}, "prepares text"),
    ],
)
def test_vocabularies_that_the_format_would_change(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_pieces(replace(make_vocabulary(), **changes), 320)


def test_bytes_have_fixed_ids() -> None:
    vocabulary = make_vocabulary()
    order = [0, 1, 2, 259, *range(3, 259), *range(260, 320)]
    moved = {
        name: tuple(getattr(vocabulary, name)[i] for i in order)
        for name in ("pieces", "scores", "types")
    }
    with pytest.raises(ValueError, match="ids 3 to 258"):
        write_pieces(replace(vocabulary, **moved), 320)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-1], "piece 319 claims 2 bytes"),
        (lambda d: struct.pack("<I", 1 << 31) + d[4:], "piece 0 claims 2147483648 bytes"),
        (lambda d: d[:-5] + b"\xff" + d[-4:], "piece 319 is not UTF-8"),
        (lambda d: d[:-4] + struct.pack("<f", np.nan), "piece 319 has a score"),
    ],
)
def test_damaged_pieces(change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pieces(change(write_pieces(make_vocabulary(), 320)), 320)


def test_what_is_lost_is_said() -> None:
    plain = make_checkpoint(num_kv_heads=4, dim=64, ffn_dim=256, context_length=4096)
    assert ggml.losses(plain) == []
    changes = {"norm_eps": 1e-6, "context_length": 2048, "rope_theta": 1e6, "ffn_dim": 96}
    odd = make_checkpoint(num_kv_heads=2, tied=True, **changes)
    types = (*make_vocabulary().types[:-1], PieceType.USER_DEFINED)
    vocabulary = replace(make_vocabulary(), types=types)
    text = "\n".join(ggml.losses(odd.with_vocabulary(vocabulary)))
    for part in ("1e-06", "2048", "1e+06", "copy", "-gqa 2", "96", "1 user-defined"):
        assert part in text
    assert len(text.splitlines()) == 7


@pytest.mark.parametrize("name", ["7b", "13b", "34b", "34b-gqa", "70b", "llama1-65b", "1b", "tiny"])
def test_n_mult_gives_the_feed_forward_width(name: str) -> None:
    """llama.cpp's `n_ff`, with the multiplier that it knew the 70B to have."""
    config = preset(name)
    n_mult = ggml._multiple_of(config)
    assert n_mult == (4096 if name == "70b" else 256)
    raw = 2 * (4 * config.dim) // 3
    raw = int(np.float32(1.3) * np.float32(raw)) if name == "70b" else raw
    assert ((raw + n_mult - 1) // n_mult) * n_mult == config.ffn_dim


def test_bf16_is_refused_by_the_writer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as bf16; give --dtype f16"):
        ggml.write(make_checkpoint("bf16"), tmp_path / "model.bin")
    assert list(tmp_path.iterdir()) == []


def patched(data: bytes, at: int, layout: str, *values: int) -> bytes:
    new = struct.pack(layout, *values)
    return data[:at] + new + data[at + len(new) :]


def record(data: bytes, name: str) -> int:
    """Where the record of a matrix starts."""
    return data.index(name.encode()) - 20


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda d: patched(d, 4, "<I", 4), "version", "known are 1, 2, 3"),
        (lambda d: b"algg" + d[4:], "magic", "LoRA adapter"),
        (lambda d: patched(d, 8, "<I", 1 << 31), "n_vocab", "more than the file holds"),
        (lambda d: patched(d, 8, "<I", 319), "tensor record 0", "has a name of"),
        (lambda d: patched(d, 12, "<I", 128), "n_rot", "are not n_embd 128"),
        (lambda d: patched(d, 20, "<I", 0), "n_rot", "0 heads"),
        (lambda d: patched(d, 24, "<I", 1 << 31), "n_layer", "21 tensors are in the file"),
        (lambda d: patched(d, 24, "<I", 1), "layers.1.attention.wq.weight", "a Llama of 1 layers"),
        (lambda d: patched(d, 24, "<I", 3), "layers.2.attention_norm.weight", "is not in the file"),
        (lambda d: patched(d, 24, "<I", 0), "header", "num_layers must be positive"),
        (lambda d: patched(d, 28, "<I", 0), "n_rot", "heads of 0"),
        (lambda d: patched(d, 36, "<I", 1 << 30), "piece 0 of the vocabulary", "has a length"),
        (lambda d: patched(d, record(d, "tok_emb"), "<I", 3), "tensor record 0", "3 dimensions"),
        (lambda d: patched(d, record(d, "tok_emb") + 4, "<I", 0), "tensor record 0", "0 bytes"),
        (lambda d: patched(d, record(d, "tok_emb") + 4, "<I", 9999), "tensor record 0", "9999"),
        (lambda d: patched(d, record(d, "tok_emb") + 8, "<I", 30), "tok_embeddings.weight", "30"),
        (lambda d: patched(d, record(d, "tok_emb") + 8, "<I", 10), "tok_embeddings.weight", "q2_k"),
        (
            lambda d: patched(d, record(d, "tok_emb") + 12, "<2I", *[(1 << 32) - 1] * 2),
            "tok_embeddings.weight", "bytes of the",
        ),
        (lambda d: d.replace(b"1.attention.wv", b"1.attention.wo"), None, "in the file twice"),
        (lambda d: d.replace(b"1.attention.wv", b"1.attention.wx"), None, "is no tensor"),
        (lambda d: d.replace(b"tok_emb", b"tok_em\xff"), "tensor record 0", "not UTF-8"),
        (lambda d: d + b"\0" * 32, "tensor record 21", "0 dimensions"),
        (lambda d: d + b"\0" * 5, "tensor record 21", "takes 12 bytes of the 5"),
        (lambda d: d + d[record(d, "output.weight") :], None, "in the file twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    tmp_path: Path, change: Callable[[bytes], bytes], field: str | None, message: str
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(change(write_reference(make_checkpoint())))
    with pytest.raises(FormatError, match=re.escape(message)) as caught:
        ggml.read(path)
    assert field in (None, caught.value.field)
    assert 0 <= caught.value.offset <= path.stat().st_size
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("version", ["ggml", "ggmf", "ggjt3"])
def test_damage_is_a_value_error(
    tmp_path: Path, reads: Callable[[Path, Path, bytes], bool], version: str
) -> None:
    path = tmp_path / "model.bin"
    data = write_reference(make_checkpoint(), version)
    path.write_bytes(data)
    assert not any(reads(path, path, cut) for cut in truncated(data))
    start = data.index(b"tok_embeddings") - 20
    for damaged in (*flipped(data, 0, 200, 100), *flipped(data, start, start + 80, 100)):
        reads(path, path, damaged)


def test_every_flip_is_a_format_error_within_the_files_size(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    data = write_reference(stored("q4_0", vocab_size=320))
    spans = [(0, 120)]
    for name in ("tok_embeddings", "norm.weight", "layers.0.attention.wk", "layers.0.ffn_norm"):
        at = data.index(name.encode())
        spans.append((at - 20, at + 40))
    tracemalloc.start()
    try:
        for begin, end in spans:
            for damaged in flipped(data, begin, end, 60, seed=begin):
                path.write_bytes(damaged)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                try:
                    checkpoint = ggml.read(path)
                    for tensor in checkpoint.tensors.values():
                        tensor.read()
                    checkpoint.load_vocabulary()
                except FormatError as error:
                    assert error.field and 0 <= error.offset <= len(damaged)
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak < 2 * len(data), peak
    finally:
        tracemalloc.stop()


def test_tensors_are_read_one_at_a_time(tmp_path: Path) -> None:
    checkpoint = stored("q4_0", num_layers=4, vocab_size=330)
    path = tmp_path / "model.bin"
    reading: list[str] = []

    def watched(name: str, tensor: LazyTensor) -> LazyTensor:
        return tensor.watched(reading.append, name)

    source = replace(checkpoint, tensors={n: watched(n, t) for n, t in checkpoint.tensors.items()})
    save_checkpoint(source, path, "ggml")
    assert sorted(reading) == sorted(checkpoint.tensors)
    with pytest.raises(ValueError, match="exists already"):
        save_checkpoint(source, path, "ggml")
