"""llama2.c's `tokN.bin`: i32 longest piece, then per piece f32 score, i32 length, bytes, to EOF."""

from __future__ import annotations

import struct

from puna.tokenizer.vocabulary import SPACE, PieceType, Vocabulary, byte_piece

_FIRST_BYTE = 3  # ids 0, 1, 2 are unk, BOS, EOS; then come the 256 bytes
_SPECIAL = {
    0: (PieceType.UNKNOWN, "<unk>"),
    1: (PieceType.CONTROL, "<s>"),
    2: (PieceType.CONTROL, "</s>"),
}


def read_bin(data: bytes) -> Vocabulary:
    """Parses a `tokN.bin`; ValueError if it is damaged."""
    if len(data) < 4:
        raise ValueError("llama2.c tokenizer is truncated")
    pieces: list[str] = []
    scores: list[float] = []
    types: list[PieceType] = []
    at = 4
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError("llama2.c tokenizer is truncated")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 < length <= len(data) - at:
            raise ValueError(f"llama2.c tokenizer: piece {len(pieces)} has length {length}")
        text = _decode(data[at : at + length], len(pieces))
        at += length
        token = len(pieces)
        if token in _SPECIAL:
            kind, text = _SPECIAL[token]
        elif token < _FIRST_BYTE + 256:
            kind = PieceType.BYTE
            if text != byte_piece(token - _FIRST_BYTE):
                raise ValueError(f"llama2.c tokenizer: id {token} is '{text}', not a byte")
        else:
            kind, text = PieceType.NORMAL, text.replace(" ", SPACE)
        pieces.append(text)
        scores.append(score)
        types.append(kind)
    return Vocabulary(tuple(pieces), tuple(scores), tuple(types))


def _decode(raw: bytes, token: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"llama2.c tokenizer: piece {token} is not UTF-8: {raw!r}") from None
