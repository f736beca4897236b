"""SentencePiece's `tokenizer.model`: a protobuf `ModelProto`, read and written field by field.

Field numbers are those of sentencepiece_model.proto. The library only ever sees a model that was
written here from a checked `Vocabulary`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from puna.tokenizer.vocabulary import MAX_PIECES, PieceType, Vocabulary, VocabularyError

_BPE = 2  # TrainerSpec.model_type
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types
_KINDS = {int(kind): kind for kind in PieceType}
_SCORE, _SCORE_KEY = struct.Struct("<Bf"), 2 << 3 | _FIXED32
_BYTE = [bytes([value]) for value in range(0x80)]
_BAD = "this is not a SentencePiece model (bad protobuf)"


# A field's varint or payload, and the bytes of the file where field and payload start.
_Field = tuple[int | bytes, int, int]
_Message = dict[int, _Field]


def read_model(data: bytes) -> Vocabulary:
    """Parses a `tokenizer.model`.

    Raises VocabularyError if it is damaged or not of Llama's kind (BPE).
    """
    pieces: list[str] = []
    scores: list[float] = []
    types: list[PieceType] = []
    trainer: _Message = {}
    normalizer: _Message = {}
    for number, field in _fields(data):
        if number == 1:
            name = f"piece {len(pieces)}"
            if len(pieces) == MAX_PIECES:
                raise VocabularyError("so many pieces are not plausible", name, field[1])
            text, score, kind = _piece(field, name)
            pieces.append(text)
            scores.append(score)
            types.append(kind)
        elif number == 2:
            trainer = _message(field, "trainer_spec")
        elif number == 3:
            normalizer = _message(field, "normalizer_spec")
    if _number(trainer, 3, 1, "model_type") != _BPE:
        problem = "the tokenizer is not a byte-pair (BPE) model, which Llama's is"
        raise VocabularyError(problem, "model_type", trainer[3][1] if 3 in trainer else 0)
    return Vocabulary(
        pieces=tuple(pieces),
        scores=tuple(scores),
        types=tuple(types),
        unk_id=_number(trainer, 40, 0, "unk_id"),
        bos_id=_number(trainer, 41, 1, "bos_id"),
        eos_id=_number(trainer, 42, 2, "eos_id"),
        add_space_prefix=bool(_number(normalizer, 3, 1, "add_dummy_prefix")),
        remove_extra_spaces=bool(_number(normalizer, 4, 1, "remove_extra_whitespaces")),
        charsmap=_payload(normalizer.get(2, (b"", 0, 0)), "precompiled_charsmap"),
    )


def _piece(field: _Field, name: str) -> tuple[str, float, PieceType]:
    message = _message(field, name)
    raw = _payload(message.get(1, (b"", 0, 0)), name)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise VocabularyError(f"it is not UTF-8: {raw[:40]!r}", name, field[1]) from None
    if not text:
        raise VocabularyError("it is empty", name, field[1])
    score = _payload(message.get(2, (bytes(4), 0, 0)), name)
    if len(score) != 4:
        raise VocabularyError("its score is no number", name, field[1])
    kind = _number(message, 3, int(PieceType.NORMAL), name)
    if kind not in _KINDS:
        raise VocabularyError(f"it is of unknown type {kind}", name, field[1])
    return text, struct.unpack("<f", score)[0], _KINDS[kind]


def write_model(vocabulary: Vocabulary) -> bytes:
    """The `tokenizer.model` of a vocabulary, as SentencePiece itself reads it."""
    out = bytearray()
    for piece, score, kind in zip(
        vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True
    ):
        body = _field(1, piece.encode()) + _SCORE.pack(_SCORE_KEY, score)
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


def _message(field: _Field, name: str) -> _Message:
    return dict(_fields(_payload(field, name), field[2]))


def _payload(field: _Field, name: str) -> bytes:
    value, at, _ = field
    if isinstance(value, int):
        raise VocabularyError("it is a number, where bytes are expected", name, at)
    return value


def _number(message: _Message, key: int, default: int, name: str) -> int:
    if key not in message:
        return default
    value, at, _ = message[key]
    if isinstance(value, bytes):
        raise VocabularyError("it is no number", name, at)
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes, begin: int = 0) -> Iterator[tuple[int, _Field]]:
    """Protobuf message, which stands at byte `begin` of the file -> (field number, field)."""
    at = 0
    while at < len(data):
        place = begin + at
        key, at = _varint(data, at, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at, place)
            yield number, (value, place, place)
            continue
        if wire == _BYTES:
            length, at = _varint(data, at, place)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise VocabularyError(_BAD, f"field {number}", place)
        if length > len(data) - at:
            raise VocabularyError("the SentencePiece model is truncated", f"field {number}", place)
        yield number, (data[at : at + length], place, begin + at)
        at += length


def _varint(data: bytes, at: int, place: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:  # as most are
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise VocabularyError("the SentencePiece model is truncated", "field", place)
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value & ((1 << 64) - 1), at
    raise VocabularyError(_BAD, "field", place)


def _encode_varint(value: int) -> bytes:
    if value <= 0x7F:  # as most are
        return _BYTE[value]
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
