"""llama2.c's `tokN.bin`: i32 longest piece, then per piece f32 score, i32 length, bytes, to EOF."""

from __future__ import annotations

import struct

from puna.tokenizer.vocabulary import (
    MAX_PIECES,
    SPACE,
    PieceType,
    Vocabulary,
    VocabularyError,
    byte_piece,
)

_FIRST_BYTE = 3  # ids 0, 1, 2 are unk, BOS, EOS; then come the 256 bytes
_PAST_BYTES = _FIRST_BYTE + 256
_SPECIAL = {
    0: (PieceType.UNKNOWN, "<unk>"),
    1: (PieceType.CONTROL, "<s>"),
    2: (PieceType.CONTROL, "</s>"),
}


def read_bin(data: bytes) -> Vocabulary:
    """Parses a `tokN.bin`; VocabularyError if it is damaged."""
    if len(data) < 4:
        raise VocabularyError("the file is truncated", "longest piece")
    pieces: list[str] = []
    scores: list[float] = []
    types: list[PieceType] = []
    at = 4
    while at < len(data):
        token = len(pieces)
        if token == MAX_PIECES:
            raise VocabularyError("so many pieces are not plausible", f"piece {token}", at)
        if len(data) - at < 8:
            raise VocabularyError("the file is truncated", f"piece {token}", at)
        score, length = struct.unpack_from("<fi", data, at)
        if not 0 < length <= len(data) - at - 8:
            raise VocabularyError(f"it has length {length}", f"piece {token}", at)
        raw = data[at + 8 : at + 8 + length]
        try:
            kind, text = _piece(token, raw.decode())
        except UnicodeDecodeError:
            problem = f"it is not UTF-8: {raw[:40]!r}"
            raise VocabularyError(problem, f"piece {token}", at) from None
        if kind == PieceType.BYTE and text != byte_piece(token - _FIRST_BYTE):
            raise VocabularyError(f"{text!r} is not a byte", f"piece {token}", at)
        pieces.append(text)
        scores.append(score)
        types.append(kind)
        at += 8 + length
    return Vocabulary(tuple(pieces), tuple(scores), tuple(types))


def _piece(token: int, text: str) -> tuple[PieceType, str]:
    if token in _SPECIAL:
        return _SPECIAL[token]
    if token < _PAST_BYTES:
        return PieceType.BYTE, text
    return PieceType.NORMAL, text.replace(" ", SPACE)


def write_bin(vocabulary: Vocabulary) -> bytes:
    """The `tokenizer.bin` that run.c reads; ValueError for a vocabulary that it cannot say."""
    expected = [_SPECIAL[token][0] for token in range(_FIRST_BYTE)] + [PieceType.BYTE] * 256
    expected += [PieceType.NORMAL] * (len(vocabulary) - _PAST_BYTES)
    prepared = vocabulary.charsmap or vocabulary.remove_extra_spaces
    ids = (vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id)
    if list(vocabulary.types) != expected or ids != (0, 1, 2) or prepared:
        raise ValueError(
            "llama2.c's tokenizer has unk, BOS and EOS at 0, 1 and 2, then the 256 bytes, then "
            "plain pieces, and takes text as it is; this one differs"
        )
    if not vocabulary.add_space_prefix:
        raise ValueError("llama2.c puts a space before every text; this tokenizer does not")
    texts = [piece.replace(SPACE, " ").encode() for piece in vocabulary.pieces]
    texts[1:_FIRST_BYTE] = (b"\n<s>\n", b"\n</s>\n")  # as its tokenizer.py writes them
    out = bytearray(struct.pack("<i", max(map(len, texts))))
    for text, score in zip(texts, vocabulary.scores, strict=True):
        out += struct.pack("<fi", score, len(text)) + text
    return bytes(out)
