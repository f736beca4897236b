"""Hugging Face's `tokenizer.json`, for the byte-pair models that came from SentencePiece."""

from __future__ import annotations

import json
from typing import Any

from puna.tokenizer.vocabulary import (
    SPACE,
    PieceType,
    Vocabulary,
    VocabularyError,
    byte_piece,
)


def read_json(data: bytes) -> Vocabulary:
    """Parses a `tokenizer.json`.

    The file has merges where SentencePiece has scores: a piece's score is minus the rank of the
    first merge that makes it. Raises VocabularyError for other kinds of tokenizer (GPT-2's
    byte-level BPE, WordPiece, Unigram), which no Llama 1 or 2 uses.
    """
    try:
        root = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise VocabularyError("the file is not UTF-8", "JSON", error.start) from None
    except json.JSONDecodeError as error:
        at = len(error.doc[: error.pos].encode())
        raise VocabularyError(f"the file is not valid JSON: {error.msg}", "JSON", at) from None
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"the file is not valid JSON: {error}", "JSON") from None
    try:
        return _vocabulary(root)
    except (KeyError, TypeError, AttributeError):
        raise VocabularyError("it is damaged or not a byte-pair tokenizer", "model") from None


def _vocabulary(root: dict[str, Any]) -> Vocabulary:
    model = root["model"]
    vocab: dict[str, int] = {**model["vocab"]}  # a TypeError unless it is an object
    merges = [_merge(item) for item in model["merges"]]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        problem = "it is not a SentencePiece-style BPE with byte fallback, as Llama 2's is"
        raise VocabularyError(problem, "model")
    added = {item["content"]: item for item in root.get("added_tokens") or []}
    for piece, item in added.items():
        vocab.setdefault(piece, item["id"])
    size = len(vocab)
    if not all(type(token) is int for token in vocab.values()) or (
        sorted(vocab.values()) != list(range(size))
    ):
        raise VocabularyError("the ids are not 0, 1, 2, ...", "vocab")
    pieces = tuple(sorted(vocab, key=vocab.__getitem__))
    try:
        "".join(pieces).encode()
    except UnicodeEncodeError:
        raise VocabularyError("a piece holds half a surrogate pair", "vocab") from None
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    unk_id = vocab.get(model.get("unk_token") or "<unk>", 0)
    byte_ids = {vocab[byte_piece(b)] for b in range(256) if byte_piece(b) in vocab}
    types = []
    for token, piece in enumerate(pieces):
        if token == unk_id:
            types.append(PieceType.UNKNOWN)
        elif token in byte_ids:
            types.append(PieceType.BYTE)
        elif piece in added:
            special = added[piece].get("special")
            types.append(PieceType.CONTROL if special else PieceType.USER_DEFINED)
        else:
            types.append(PieceType.NORMAL)
    scores = tuple(
        float(-ranks.get(piece, len(ranks))) if kind == PieceType.NORMAL else 0.0
        for piece, kind in zip(pieces, types, strict=True)
    )
    return Vocabulary(
        pieces,
        scores,
        tuple(types),
        unk_id=unk_id,
        bos_id=vocab.get("<s>", 1),
        eos_id=vocab.get("</s>", 2),
        add_space_prefix=_adds_space(root),
    )


def write_json(vocabulary: Vocabulary) -> bytes:
    """The `tokenizer.json` of a vocabulary, as Hugging Face converts Llama's `tokenizer.model`."""
    if vocabulary.charsmap or vocabulary.remove_extra_spaces:
        raise ValueError("this tokenizer normalises text, which tokenizer.json cannot say here")
    special = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED)
    added = [
        {
            "id": token,
            "content": vocabulary.pieces[token],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != PieceType.USER_DEFINED,
        }
        for token, kind in enumerate(vocabulary.types)
        if kind in special
    ]
    prepend = [{"type": "Prepend", "prepend": SPACE}] if vocabulary.add_space_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend else []
    bos = vocabulary.pieces[vocabulary.bos_id]
    root = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *prepend,
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocabulary.pieces[vocabulary.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: token for token, piece in enumerate(vocabulary.pieces)},
            "merges": _merges(vocabulary),
        },
    }
    return json.dumps(root, ensure_ascii=False, indent=1).encode()


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Every pair of pieces that makes a piece, best score first."""
    scores = {
        piece: score
        for piece, score, kind in zip(
            vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True
        )
        if kind == PieceType.NORMAL
    }
    order = {piece: token for token, piece in enumerate(vocabulary.pieces)}
    found = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, order[piece], order[left], order[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def _merge(item: Any) -> tuple[str, str]:
    parts = item.split(" ") if isinstance(item, str) else item
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise VocabularyError(f"{item!r} is not a merge of two pieces", "merges")
    return parts[0], parts[1]


def _adds_space(root: dict[str, Any]) -> bool:
    normalizer = json.dumps(root.get("normalizer") or {})
    metaspace = root.get("pre_tokenizer") or {}
    return '"Prepend"' in normalizer or metaspace.get("prepend_scheme") in ("first", "always")
