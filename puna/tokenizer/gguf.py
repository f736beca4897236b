"""The vocabulary in a GGUF file's metadata (`tokenizer.ggml.*`), read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.tokenizer.vocabulary import MAX_PIECES, PieceType, Vocabulary, VocabularyError

PREFIX = "tokenizer.ggml."
_KINDS = {int(kind): kind for kind in PieceType}


def read_metadata(metadata: Mapping[str, Any], most: int = MAX_PIECES) -> Vocabulary:
    """`tokenizer.ggml.*` keys -> Vocabulary of `most` pieces or fewer.

    Arrays may be of any kind that has a length and can be iterated. Raises VocabularyError, its
    field the key, for damage and for another kind of tokenizer than Llama's.
    """
    if not any(key.startswith(PREFIX) for key in metadata):
        raise VocabularyError("the GGUF file holds no tokenizer", PREFIX + "model")
    model = metadata.get(PREFIX + "model")
    if model != "llama":
        problem = f"the tokenizer is {model!r}, not 'llama', SentencePiece's BPE"
        raise VocabularyError(problem, PREFIX + "model")
    pieces = tuple(_array(metadata, "tokens", most))
    for number, piece in enumerate(pieces):
        if not isinstance(piece, str):
            raise VocabularyError(f"piece {number} is no text", PREFIX + "tokens")
    scores = tuple(map(float, _numbers(metadata, "scores", len(pieces))))
    kinds = _numbers(metadata, "token_type", len(pieces))
    if odd := [kind for kind in kinds if kind not in _KINDS]:
        raise VocabularyError(f"there is no piece type {odd[0]}", PREFIX + "token_type")
    types = tuple(_KINDS[kind] for kind in kinds)
    unk_id = _number(metadata, "unknown_token_id", 0)
    return Vocabulary(
        pieces,
        scores,
        types,
        unk_id=types.index(PieceType.UNKNOWN) if PieceType.UNKNOWN in types else unk_id,
        bos_id=_number(metadata, "bos_token_id", 1),
        eos_id=_number(metadata, "eos_token_id", 2),
        add_space_prefix=bool(_number(metadata, "add_space_prefix", 1)),
    )


def _array(metadata: Mapping[str, Any], name: str, most: int) -> Any:
    values = metadata.get(PREFIX + name)
    if values is None:
        raise VocabularyError("the file lacks this key", PREFIX + name)
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise VocabularyError("it is no array", PREFIX + name)
    if len(values) > most:
        raise VocabularyError(f"it has {len(values)} items, more than {most}", PREFIX + name)
    return values


def _numbers(metadata: Mapping[str, Any], name: str, count: int) -> list[Any]:
    values = _array(metadata, name, count)
    if len(values) < count:
        raise VocabularyError(f"it has {len(values)} items, not {count}", PREFIX + name)
    numbers = values.tolist() if hasattr(values, "tolist") else list(values)
    if not all(isinstance(number, int | float) for number in numbers):
        raise VocabularyError("it holds something else than numbers", PREFIX + name)
    return numbers


def _number(metadata: Mapping[str, Any], name: str, default: int) -> int:
    value = metadata.get(PREFIX + name, default)
    if not isinstance(value, int):
        raise VocabularyError(f"{value!r} is no integer", PREFIX + name)
    return value


def write_metadata(vocabulary: Vocabulary) -> dict[str, Any]:
    """The keys that llama.cpp reads; ValueError where the vocabulary normalises text."""
    if vocabulary.charsmap or vocabulary.remove_extra_spaces:
        raise ValueError("this tokenizer normalises text, which GGUF's llama tokenizer cannot say")
    return {
        PREFIX + "model": "llama",
        PREFIX + "pre": "default",
        PREFIX + "tokens": list(vocabulary.pieces),
        PREFIX + "scores": [float(score) for score in vocabulary.scores],
        PREFIX + "token_type": [int(kind) for kind in vocabulary.types],
        PREFIX + "bos_token_id": vocabulary.bos_id,
        PREFIX + "eos_token_id": vocabulary.eos_id,
        PREFIX + "unknown_token_id": vocabulary.unk_id,
        PREFIX + "add_bos_token": True,
        PREFIX + "add_eos_token": False,
        PREFIX + "add_space_prefix": vocabulary.add_space_prefix,
    }
