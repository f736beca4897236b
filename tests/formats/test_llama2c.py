"""llama2.c files, laid out here by hand as its export.py does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.formats import llama2c, open_checkpoint, rotary, save_checkpoint
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.tokenizer import PieceType, Tokenizer
from puna.tokenizer.sentencepiece_model import write_model
from tests.formats.conftest import (
    assert_same,
    flipped,
    make_checkpoint,
    make_vocabulary,
    truncated,
)

Weights = dict[str, NDArray[np.float32]]
ATTENTION = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


def weights_of(checkpoint: Checkpoint) -> Weights:
    """In Meta's rotary layout, as llama2.c has them."""
    tensors = rotary.interleaved(checkpoint.tensors, checkpoint.config)
    return {name: tensor.read_float32() for name, tensor in tensors.items()}


def layers(weights: Weights, *parts: str, count: int = 2) -> list[NDArray[np.float32]]:
    return [weights[f"layers.{i}.{part}.weight"] for part in parts for i in range(count)]


def numbers(checkpoint: Checkpoint, *, signed: bool) -> tuple[int, ...]:
    c = checkpoint.config
    vocab_size = -c.vocab_size if signed and not c.tied else c.vocab_size
    heads = (c.num_layers, c.num_heads, c.num_kv_heads)
    return (c.dim, c.ffn_dim, *heads, vocab_size, c.context_length)


def version_0(checkpoint: Checkpoint) -> bytes:
    w, c = weights_of(checkpoint), checkpoint.config
    tables = np.full((2, c.context_length, c.head_dim // 2), np.nan, np.float32)
    parts = [w["tok_embeddings.weight"]]
    parts += [*layers(w, "attention_norm"), *layers(w, *ATTENTION)]
    parts += [*layers(w, "ffn_norm"), *layers(w, *FEED_FORWARD), w["norm.weight"], tables]
    parts += [] if c.tied else [w["output.weight"]]
    header = struct.pack("<7i", *numbers(checkpoint, signed=True))
    return header + b"".join(part.tobytes() for part in parts)


def later_header(checkpoint: Checkpoint, version: int, group: bytes = b"") -> bytes:
    header = struct.pack("<Ii", 0x616B3432, version)
    header += struct.pack("<7iB", *numbers(checkpoint, signed=False), checkpoint.config.tied)
    return (header + group).ljust(256, b"\0")


def later_parts(checkpoint: Checkpoint) -> tuple[list[NDArray[np.float32]], ...]:
    """Norms, matrices, in the order of versions 1 and 2."""
    w = weights_of(checkpoint)
    norms = [*layers(w, "attention_norm", "ffn_norm"), w["norm.weight"]]
    matrices = [w["tok_embeddings.weight"], *layers(w, *ATTENTION, *FEED_FORWARD)]
    return norms, matrices + ([] if checkpoint.config.tied else [w["output.weight"]])


def version_1(checkpoint: Checkpoint) -> bytes:
    norms, matrices = later_parts(checkpoint)
    body = b"".join(part.tobytes() for part in (*norms, *matrices))
    return later_header(checkpoint, 1) + body


def version_2(checkpoint: Checkpoint, group_size: int) -> bytes:
    norms, matrices = later_parts(checkpoint)
    out = later_header(checkpoint, 2, struct.pack("<i", group_size))
    out += b"".join(norm.tobytes() for norm in norms)
    for matrix in matrices:
        groups = matrix.reshape(-1, group_size)
        scale = np.abs(groups).max(axis=1, keepdims=True) / 127
        out += np.round(groups / scale).astype(np.int8).tobytes()
        out += scale.astype(np.float32).tobytes()
    return out


BY_VERSION: dict[int, Callable[[Checkpoint], bytes]] = {
    0: version_0,
    1: version_1,
    2: lambda checkpoint: version_2(checkpoint, 32),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_reads_every_version(tmp_path: Path, version: int, tied: bool) -> None:
    checkpoint = make_checkpoint(tied=tied)
    path = tmp_path / "model.bin"
    path.write_bytes(BY_VERSION[version](checkpoint))
    again = open_checkpoint(path)
    assert again.format == "llama2c"
    assert again.config == checkpoint.config
    assert again.vocabulary is None
    assert len(again.notes) == (2 if version == 2 else 1)
    assert list(again.tensors) != [] and set(again.tensors) == set(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        expected, actual = tensor.read_float32(), again.tensors[name].read_float32()
        # Half a step of the largest of the 32 in a group.
        near = np.abs(expected).max() / 127 if version == 2 and expected.ndim == 2 else 0
        np.testing.assert_allclose(actual, expected, rtol=0, atol=near)


@pytest.mark.parametrize("group_size", [1, 64, 128, 2048])
def test_groups_run_over_the_flattened_matrix(tmp_path: Path, group_size: int) -> None:
    """So that one may span rows: 2048 is all of `wk`."""
    checkpoint = make_checkpoint()
    path = tmp_path / "model.bin"
    path.write_bytes(version_2(checkpoint, group_size))
    tensor = open_checkpoint(path).tensors["layers.1.feed_forward.w2.weight"]
    groups = checkpoint.tensors["layers.1.feed_forward.w2.weight"].read_float32()
    groups = groups.reshape(-1, group_size)
    scale = (np.abs(groups).max(axis=1, keepdims=True) / 127).astype(np.float32)
    expected = np.round(groups / scale) * scale
    np.testing.assert_array_equal(tensor.read_float32(), expected.reshape(64, 96))


@pytest.mark.parametrize("name", ["tok320.bin", "tokenizer.bin", "tokenizer.model"])
def test_the_tokenizer_lies_beside(tmp_path: Path, name: str) -> None:
    vocabulary = make_vocabulary()
    data = struct.pack("<i", 5)
    for piece, score in zip(vocabulary.pieces, vocabulary.scores, strict=True):
        raw = piece.replace("▁", " ").encode()
        data += struct.pack("<fi", score, len(raw)) + raw
    (tmp_path / name).write_bytes(write_model(vocabulary) if name.endswith("model") else data)
    (tmp_path / "model.bin").write_bytes(version_0(make_checkpoint()))
    assert open_checkpoint(tmp_path / "model.bin").vocabulary == vocabulary


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("value", [0, -1, 1 << 25, (1 << 31) - 1, -(1 << 31)])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_absurd_counts(tmp_path: Path, version: int, number: int, value: int) -> None:
    checkpoint = make_checkpoint()
    data = bytearray(BY_VERSION[version](checkpoint))
    at = 4 * number + (8 if version else 0)
    data[at : at + 4] = struct.pack("<i", value)
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.bin"):
        open_checkpoint(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (4, struct.pack("<i", 3), r"version \(byte 4\): llama2.c version 3; known are 0, 1 and 2"),
        (36, b"\2", r"shared classifier \(byte 36\): it is 2"),
        (37, struct.pack("<i", 0), r"group size \(byte 37\): groups of 0"),
        (37, struct.pack("<i", -32), "groups of -32"),
        (37, struct.pack("<i", 96), "does not divide into groups of 96"),
        (37, struct.pack("<i", 64), "is too long"),
        (36, b"\1", "is too long"),
    ],
)
def test_wrong_headers(tmp_path: Path, at: int, new: bytes, message: str) -> None:
    data = bytearray(version_2(make_checkpoint(), 32))
    data[at : at + len(new)] = new
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "model.bin")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_damage_is_a_value_error(
    tmp_path: Path, reads: Callable[[Path, Path, bytes], bool], version: int
) -> None:
    path = tmp_path / "model.bin"
    data = BY_VERSION[version](make_checkpoint())
    path.write_bytes(data)
    assert not any(reads(path, path, cut) for cut in truncated(data))
    for longer in (data + b"\0", data + data):
        assert not reads(path, path, longer)
    for damaged in flipped(data, 0, 64, 200):
        reads(path, path, damaged)


def run_c(data: bytes) -> tuple[tuple[int, ...], Weights]:
    """run.c's `read_checkpoint` and `memory_map_weights`: the numbers, and the weights by part."""
    dim, hidden, layers, heads, kv_heads, signed_vocab, seq_len = struct.unpack_from("<7i", data)
    head, vocab_size = dim // heads, abs(signed_vocab)
    floats = np.frombuffer(data, np.float32, offset=28)
    at = 0

    def take(*shape: int) -> NDArray[np.float32]:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return floats[at - count : at].reshape(shape)

    weights = {"tok_embeddings": take(vocab_size, dim), "attention_norm": take(layers, dim)}
    weights["attention.wq"] = take(layers, heads * head, dim)
    weights["attention.wk"] = take(layers, kv_heads * head, dim)
    weights["attention.wv"] = take(layers, kv_heads * head, dim)
    weights["attention.wo"] = take(layers, dim, heads * head)
    weights["ffn_norm"] = take(layers, dim)
    weights["feed_forward.w1"] = take(layers, hidden, dim)
    weights["feed_forward.w2"] = take(layers, dim, hidden)
    weights["feed_forward.w3"] = take(layers, hidden, dim)
    weights["norm"] = take(dim)
    weights["cos"], weights["sin"] = take(seq_len, head // 2), take(seq_len, head // 2)
    if signed_vocab < 0:
        weights["output"] = take(vocab_size, dim)
    assert at == len(floats)
    return (dim, hidden, layers, heads, kv_heads, signed_vocab, seq_len), weights


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_run_c_reads_what_is_written(tmp_path: Path, dtype: str, tied: bool) -> None:
    checkpoint = make_checkpoint(dtype, tied=tied)
    path = tmp_path / "model.bin"
    seen: list[str] = []
    llama2c.write(checkpoint, path, on_tensor=seen.append)
    assert sorted(seen) == sorted(checkpoint.tensors)
    read, weights = run_c(path.read_bytes())
    assert read == numbers(checkpoint, signed=True)
    for name, expected in weights_of(checkpoint).items():
        part = name.removesuffix(".weight")
        if part.startswith("layers."):
            _, layer, rest = part.split(".", 2)
            actual = weights[rest][int(layer)]
        else:
            actual = weights[part]
        np.testing.assert_array_equal(actual, expected, err_msg=name)
    # freqs_cis of llama2.c's model.py, worked out one number at a time.
    for position, pair in ((0, 0), (1, 0), (5, 3), (63, 7)):
        angle = position * 10000.0 ** (-2 * pair / 16)
        assert weights["cos"][position, pair] == pytest.approx(np.cos(angle), abs=1e-6)
        assert weights["sin"][position, pair] == pytest.approx(np.sin(angle), abs=1e-6)
    assert_same(open_checkpoint(path), replace(checkpoint, tensors=as_f32(checkpoint)))


def as_f32(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    return {name: tensor.converted("f32") for name, tensor in checkpoint.tensors.items()}


def test_the_stories_model_is_written_as_it_was(shared: Path, tmp_path: Path) -> None:
    """Down to the byte, but for the rotary tables, which run.c ignores, and their last digit."""
    folder = shared / "weights" / "stories260K"
    checkpoint = open_checkpoint(folder / "stories260K.bin")
    assert save_checkpoint(checkpoint, tmp_path / "a.bin", "llama2c") == []
    ours, theirs = ((path / name).read_bytes() for path, name in
                    ((tmp_path, "a.bin"), (folder, "stories260K.bin")))  # fmt: skip
    tables = 2 * 512 * 4 * 4  # at the end, as the head is tied
    assert ours[:-tables] == theirs[:-tables] and len(ours) == len(theirs)
    rotary_tables = [np.frombuffer(data[-tables:], np.float32) for data in (ours, theirs)]
    np.testing.assert_allclose(*rotary_tables, rtol=0, atol=1e-4)
    tokens = (tmp_path / "tokenizer.bin").read_bytes()
    assert tokens == (folder / "tok512.bin").read_bytes()


def test_padding_rows_get_pieces(tmp_path: Path) -> None:
    """run.c reads as many pieces as the embedding has rows."""
    checkpoint = make_checkpoint(vocab_size=384)
    llama2c.write(checkpoint, tmp_path / "a.bin")
    vocabulary = open_checkpoint(tmp_path / "a.bin").vocabulary
    assert vocabulary is not None and len(vocabulary) == 384
    assert vocabulary.pieces[:320] == make_vocabulary().pieces
    text = "the llama [PAD320]"
    assert Tokenizer(vocabulary).encode(text) == Tokenizer(make_vocabulary()).encode(text)


def test_another_models_tokenizer_is_not_replaced(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    llama2c.write(checkpoint, tmp_path / "a.bin")
    llama2c.write(checkpoint, tmp_path / "b.bin")  # whose tokenizer is the same
    (tmp_path / "tokenizer.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"tokenizer\.bin is another model's"):
        llama2c.write(checkpoint, tmp_path / "c.bin")
    assert not (tmp_path / "c.bin").exists()
    llama2c.write(replace(checkpoint, load_vocabulary=lambda: None), tmp_path / "c.bin")
    assert (tmp_path / "tokenizer.bin").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_space_prefix": False}, "puts a space before every text"),
        ({"remove_extra_spaces": True}, "takes text as it is"),
        ({"bos_id": 2}, "at 0, 1 and 2"),
        ({"types": (*make_vocabulary().types[:-1], PieceType.CONTROL)}, "plain pieces"),
    ],
)
def test_vocabularies_that_llama2c_cannot_say(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    vocabulary = replace(make_vocabulary(), **changes)
    checkpoint = replace(make_checkpoint(), load_vocabulary=lambda: vocabulary)
    with pytest.raises(ValueError, match=message):
        llama2c.write(checkpoint, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(norm_eps=1e-6, rope_theta=1e6)
    notes = save_checkpoint(checkpoint, tmp_path / "a.bin", "llama2c")
    assert notes[-2:] == [
        "the norm epsilon 1e-06 is lost: run.c computes with 1e-05",
        "the rotary base 1e+06 is lost: run.c computes with 10000",
    ]
    lost = {note.split(" is lost")[0] for note in notes}
    assert {"the chat template", "the license", "the name"} <= lost
    assert llama2c.losses(make_checkpoint()) == []


def test_other_bins_are_not_taken_for_llama2c(tmp_path: Path) -> None:
    for content in (b"", b"short", b"PK\3\4" + bytes(400), b"\x80\x02}q" + bytes(400)):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(ValueError, match="no known format"):
            open_checkpoint(tmp_path / "a.bin")


def test_stories260k(shared: Path) -> None:
    path = shared / "weights" / "stories260K" / "stories260K.bin"
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert (config.dim, config.ffn_dim, config.num_layers) == (64, 172, 5)
    assert (config.num_heads, config.num_kv_heads, config.vocab_size) == (8, 4, 512)
    assert config.tied
    assert checkpoint.vocabulary is not None and len(checkpoint.vocabulary) == 512
    data = path.read_bytes()
    at = 28

    def take(*shape: int) -> NDArray[np.float32]:
        nonlocal at
        count = int(np.prod(shape))
        values = struct.unpack_from(f"<{count}f", data, at)
        at += 4 * count
        return np.array(values, np.float32).reshape(shape)

    def unrotated(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
        """transformers' `permute`, in numpy."""
        pairs = rows.reshape(num_heads, 4, 2, 64)
        return pairs.transpose(0, 2, 1, 3).reshape(rows.shape)

    expected = {"tok_embeddings.weight": take(512, 64)}
    for name, *shape in [
        ("attention_norm", 64),
        ("attention.wq", 64, 64), ("attention.wk", 32, 64), ("attention.wv", 32, 64),
        ("attention.wo", 64, 64), ("ffn_norm", 64),
        ("feed_forward.w1", 172, 64), ("feed_forward.w2", 64, 172), ("feed_forward.w3", 172, 64),
    ]:  # fmt: skip
        for layer in range(5):
            rows = take(*shape)
            if name.endswith(("wq", "wk")):
                rows = unrotated(rows, shape[0] // 8)
            expected[f"layers.{layer}.{name}.weight"] = rows
    expected["norm.weight"] = take(64)
    assert set(expected) == set(checkpoint.tensors)
    for name, rows in expected.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].read_float32(), rows, err_msg=name)
