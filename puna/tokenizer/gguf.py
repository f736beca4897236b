"""The vocabulary in a GGUF file's metadata (`tokenizer.ggml.*`), read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.tokenizer.vocabulary import PieceType, Vocabulary

_PREFIX = "tokenizer.ggml."


def read_metadata(metadata: Mapping[str, Any]) -> Vocabulary:
    """`tokenizer.ggml.*` keys -> Vocabulary; ValueError for another kind than Llama's."""
    values = {k.removeprefix(_PREFIX): v for k, v in metadata.items() if k.startswith(_PREFIX)}
    if not values:
        raise ValueError("the GGUF file holds no tokenizer")
    if values.get("model") != "llama":
        raise ValueError(f"its tokenizer is '{values.get('model')}', not Llama's SentencePiece BPE")
    try:
        pieces = tuple(values["tokens"])
        scores = tuple(float(score) for score in values["scores"])
        types = tuple(PieceType(kind) for kind in values["token_type"])
        unk_id = int(values.get("unknown_token_id", 0))
        bos_id = int(values.get("bos_token_id", 1))
        eos_id = int(values.get("eos_token_id", 2))
    except KeyError as error:
        raise ValueError(f"its metadata lacks {_PREFIX}{error.args[0]}") from None
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its tokenizer metadata is damaged") from None
    if not all(isinstance(piece, str) for piece in pieces):
        raise ValueError("its tokenizer metadata is damaged")
    if PieceType.UNKNOWN in types:
        unk_id = types.index(PieceType.UNKNOWN)
    return Vocabulary(
        pieces,
        scores,
        types,
        unk_id=unk_id,
        bos_id=bos_id,
        eos_id=eos_id,
        add_space_prefix=bool(values.get("add_space_prefix", True)),
    )


def write_metadata(vocabulary: Vocabulary) -> dict[str, Any]:
    """The keys that llama.cpp reads; ValueError where the vocabulary normalises text."""
    if vocabulary.charsmap or vocabulary.remove_extra_spaces:
        raise ValueError("this tokenizer normalises text, which GGUF's llama tokenizer cannot say")
    return {
        _PREFIX + "model": "llama",
        _PREFIX + "pre": "default",
        _PREFIX + "tokens": list(vocabulary.pieces),
        _PREFIX + "scores": [float(score) for score in vocabulary.scores],
        _PREFIX + "token_type": [int(kind) for kind in vocabulary.types],
        _PREFIX + "bos_token_id": vocabulary.bos_id,
        _PREFIX + "eos_token_id": vocabulary.eos_id,
        _PREFIX + "unknown_token_id": vocabulary.unk_id,
        _PREFIX + "add_bos_token": True,
        _PREFIX + "add_eos_token": False,
        _PREFIX + "add_space_prefix": vocabulary.add_space_prefix,
    }
