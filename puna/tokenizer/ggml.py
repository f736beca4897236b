"""The vocabulary inside a GGML file: per piece u32 length, bytes, f32 score.

As llama.cpp's convert.py wrote it in 2023: the word mark is a space, control pieces are empty, the
unknown piece is `" ⁇ "`, and ids 3 to 258 are single raw bytes. What kind a piece was, and how
text is prepared for it, is not written down.
"""

from __future__ import annotations

import math
import struct

from puna.tokenizer.vocabulary import SPACE, PieceType, Vocabulary, VocabularyError, byte_piece

_NAMES = ("<unk>", "<s>", "</s>")  # of ids 0, 1 and 2, whatever the file says there
_FIRST_BYTE = len(_NAMES)
_PAST_BYTES = _FIRST_BYTE + 256
_SPACES_SCORE = -1e9
_ALL_BYTES = [bytes([value]) for value in range(256)]


def read_pieces(data: bytes, num_pieces: int, *, has_scores: bool = True) -> Vocabulary | None:
    """Parses `num_pieces` pieces; None if all are empty: the file came without a tokenizer.

    Without scores (the first GGML files), pieces get those that Llama's have: less with each id,
    and least for runs of spaces. Raises VocabularyError, its offset within `data`, for damage.
    """
    texts: list[bytes] = []
    places: list[int] = []
    scores: list[float] = []
    at = 0
    for token in range(num_pieces):
        places.append(at)
        if len(data) - at < 4:
            raise VocabularyError(f"it ends before piece {token} of {num_pieces}", offset=at)
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
        if at + 4 * has_scores > len(data):
            problem = f"piece {token} claims {length} bytes, more than there are"
            raise VocabularyError(problem, offset=places[-1])
        texts.append(data[at - length : at])
        if has_scores:
            scores.append(struct.unpack_from("<f", data, at)[0])
            at += 4
        else:
            scores.append(_usual_score(token, texts[-1]))
        if not math.isfinite(scores[-1]):
            raise VocabularyError(f"piece {token} has a score that is no number", offset=at - 4)
    if not any(texts):
        return None
    has_bytes = texts[_FIRST_BYTE:_PAST_BYTES] == _ALL_BYTES
    pieces, types = [], []
    for token, text in enumerate(texts):
        try:
            piece, kind = _piece(token, text, has_bytes)
        except UnicodeDecodeError:
            problem = f"piece {token} is not UTF-8: {text[:40]!r}"
            raise VocabularyError(problem, offset=places[token]) from None
        pieces.append(piece)
        types.append(kind)
    return Vocabulary(tuple(pieces), tuple(scores), tuple(types))


def _usual_score(token: int, text: bytes) -> float:
    return -float(token) if text.strip(b" ") else _SPACES_SCORE


def _piece(token: int, text: bytes, has_bytes: bool) -> tuple[str, PieceType]:
    if token < len(_NAMES):
        return _NAMES[token], PieceType.CONTROL if token else PieceType.UNKNOWN
    if not text:
        return f"<control_{token}>", PieceType.CONTROL
    if has_bytes and token < _PAST_BYTES:
        return byte_piece(text[0]), PieceType.BYTE
    return text.decode().replace(" ", SPACE), PieceType.NORMAL


def write_pieces(vocabulary: Vocabulary | None, num_pieces: int) -> bytes:
    """The bytes of `num_pieces` pieces, empty ones where there are no more.

    Raises ValueError for a vocabulary whose ids or rules are not those that the format implies.
    """
    if vocabulary is None:
        return struct.pack("<If", 0, 0.0) * num_pieces
    _check_implied(vocabulary)
    out = bytearray()
    for token, (score, kind) in enumerate(zip(vocabulary.scores, vocabulary.types, strict=True)):
        # An unused piece is never encoded; with its text it would be, as a plain one.
        text = b"" if kind == PieceType.UNUSED else vocabulary.piece_bytes(token)
        out += struct.pack("<I", len(text)) + text + struct.pack("<f", score)
    return bytes(out) + struct.pack("<If", 0, 0.0) * (num_pieces - len(vocabulary))


def _check_implied(vocabulary: Vocabulary) -> None:
    if (vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id) != (0, 1, 2):
        raise ValueError(
            f"this tokenizer's unk, BOS and EOS are {vocabulary.unk_id}, {vocabulary.bos_id} and "
            f"{vocabulary.eos_id}; in a GGML file they are 0, 1 and 2"
        )
    if vocabulary.charsmap or vocabulary.remove_extra_spaces or not vocabulary.add_space_prefix:
        raise ValueError("this tokenizer prepares text in a way that a GGML file cannot say")
    byte_ids = [i for i, kind in enumerate(vocabulary.types) if kind == PieceType.BYTE]
    values = [vocabulary.piece_bytes(i) for i in byte_ids]
    if byte_ids and (byte_ids[0] != _FIRST_BYTE or values != _ALL_BYTES
                     or byte_ids[-1] != _PAST_BYTES - 1):  # fmt: skip
        raise ValueError("this tokenizer's bytes are not its ids 3 to 258, as in a GGML file")
