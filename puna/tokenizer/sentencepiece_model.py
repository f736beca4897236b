"""SentencePiece's `tokenizer.model`: a protobuf `ModelProto`, read and written field by field.

Field numbers are those of sentencepiece_model.proto. The library only ever sees a model that was
written here from a checked `Vocabulary`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from puna.tokenizer.vocabulary import PieceType, Vocabulary

_BPE = 2  # TrainerSpec.model_type
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


def read_model(data: bytes) -> Vocabulary:
    """Parses a `tokenizer.model`; ValueError if it is damaged or not of Llama's kind (BPE)."""
    pieces, scores, types = [], [], []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece: dict[int, int | bytes] = dict(_fields(value))
            pieces.append(_text(piece.get(1, b"")))
            score = piece.get(2, b"\0\0\0\0")
            if not isinstance(score, bytes) or len(score) != 4:
                raise ValueError("tokenizer.model holds a score that is no number")
            scores.append(struct.unpack("<f", score)[0])
            types.append(_piece_type(piece.get(3, PieceType.NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if trainer.get(3, 1) != _BPE:
        raise ValueError("tokenizer.model is not a byte-pair (BPE) model, which Llama's is")
    charsmap = normalizer.get(2, b"")
    return Vocabulary(
        pieces=tuple(pieces),
        scores=tuple(scores),
        types=tuple(types),
        unk_id=_signed(trainer.get(40, 0)),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
        add_space_prefix=bool(normalizer.get(3, 1)),
        remove_extra_spaces=bool(normalizer.get(4, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def write_model(vocabulary: Vocabulary) -> bytes:
    """The `tokenizer.model` of a vocabulary, as SentencePiece itself reads it."""
    out = bytearray()
    for piece, score, kind in zip(
        vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True
    ):
        body = _field(1, piece.encode()) + _float_field(2, score)
        if kind != PieceType.NORMAL:
            body += _field(3, int(kind))
        out += _field(1, body)
    trainer = _field(3, _BPE) + _field(4, len(vocabulary))
    trainer += _field(35, int(PieceType.BYTE in vocabulary.types))
    for number, name in ((40, "unk_id"), (41, "bos_id"), (42, "eos_id")):
        token = getattr(vocabulary, name)
        trainer += _field(number, token) + _field(number + 5, vocabulary.pieces[token].encode())
    trainer += _field(43, (1 << 64) - 1)  # pad_id -1: none
    out += _field(2, trainer)
    normalizer = _field(1, b"custom" if vocabulary.charsmap else b"identity")
    normalizer += _field(2, vocabulary.charsmap)
    normalizer += _field(3, int(vocabulary.add_space_prefix))
    normalizer += _field(4, int(vocabulary.remove_extra_spaces)) + _field(5, 1)
    out += _field(3, normalizer)
    return bytes(out)


def _piece_type(value: int | bytes) -> PieceType:
    try:
        return PieceType(_signed(value))
    except ValueError:
        raise ValueError(f"tokenizer.model holds a piece of unknown type {value!r}") from None


def _text(value: int | bytes) -> str:
    if not isinstance(value, bytes):
        raise ValueError("tokenizer.model holds a piece without text")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"tokenizer.model holds a piece that is not UTF-8: {value!r}") from None


def _signed(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("tokenizer.model holds an id that is no number")
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Protobuf message -> (field number, varint as int or payload as bytes)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("not a SentencePiece model (bad protobuf)")
        if length > len(data) - at:
            raise ValueError("SentencePiece model is truncated")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("SentencePiece model is truncated")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value & ((1 << 64) - 1), at
    raise ValueError("not a SentencePiece model (bad protobuf)")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _encode_varint(number << 3 | _VARINT) + _encode_varint(value)
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(value)) + value


def _float_field(number: int, value: float) -> bytes:
    return _encode_varint(number << 3 | _FIXED32) + struct.pack("<f", value)
