"""`Vocabulary`: what every tokenizer file of a Llama holds, whatever the file's format."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from puna.tokenizer.charsmap import charsmap_problem

SPACE = "▁"  # SentencePiece's word mark, U+2581
MAX_PIECES = 1 << 22
_PADDING_SCORE = -10000.0


class VocabularyError(ValueError):
    """A tokenizer file that cannot be read: `field` of it at byte `offset` is the problem."""

    def __init__(self, problem: str, field: str = "vocabulary", offset: int = 0) -> None:
        super().__init__(problem)
        self.field, self.offset = field, offset


class PieceType(enum.IntEnum):
    """The numbers are SentencePiece's, which GGUF's `token_type` repeats."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-pair vocabulary: id -> piece, score and type, and how text is prepared for it.

    `pieces` spell a space as U+2581 and byte n as `<0xNN>`; where two neighbouring pieces can
    merge in several ways, the merged piece of the highest score wins. `charsmap` is SentencePiece's
    compiled text normalisation, empty for Llama's identity. Raises VocabularyError where they do
    not fit together.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[PieceType, ...]
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    add_space_prefix: bool = True
    remove_extra_spaces: bool = False
    charsmap: bytes = b""

    def __post_init__(self) -> None:
        size = len(self.pieces)
        if not 0 < size <= MAX_PIECES:
            raise VocabularyError(f"a vocabulary of {size} pieces is not plausible")
        if len(self.scores) != size or len(self.types) != size:
            raise VocabularyError(
                f"{size} pieces, but {len(self.scores)} scores and {len(self.types)} types"
            )
        for name in ("unk_id", "bos_id", "eos_id"):
            if not 0 <= getattr(self, name) < size:
                raise VocabularyError(f"{name} {getattr(self, name)} is outside {size} pieces")
        unknown = [i for i, kind in enumerate(self.types) if kind == PieceType.UNKNOWN]
        if unknown != [self.unk_id]:
            raise VocabularyError(
                f"exactly one unknown piece is needed, at {self.unk_id}: {unknown}"
            )
        num_bytes = sum(kind == PieceType.BYTE for kind in self.types)
        if num_bytes not in (0, 256):
            raise VocabularyError(f"{num_bytes} byte pieces; byte fallback needs all 256")
        bytes_of = {
            p for p, kind in zip(self.pieces, self.types, strict=True) if kind == PieceType.BYTE
        }
        if bytes_of and bytes_of != {byte_piece(value) for value in range(256)}:
            raise VocabularyError("the byte pieces are not <0x00> to <0xFF>")
        if not all(map(math.isfinite, self.scores)):
            raise VocabularyError("a score is not a finite number")
        if self.charsmap and (problem := charsmap_problem(self.charsmap)):
            raise VocabularyError(f"the text normalisation is damaged: {problem}")
        if not all(self.pieces):
            raise VocabularyError(f"piece {self.pieces.index('')} is empty")

    def __len__(self) -> int:
        return len(self.pieces)

    def piece_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for; none for control ids."""
        kind = self.types[token]
        if kind == PieceType.BYTE:
            return bytes([byte_value(self.pieces[token])])
        if kind == PieceType.CONTROL:
            return b""
        if kind == PieceType.UNKNOWN:
            return " ⁇ ".encode()
        return self.pieces[token].replace(SPACE, " ").encode()


def padded(vocabulary: Vocabulary, size: int, kind: PieceType = PieceType.UNUSED) -> Vocabulary:
    """The vocabulary with a piece for each padding row of an embedding that has `size` rows."""
    added = range(len(vocabulary), size)
    return replace(
        vocabulary,
        pieces=(*vocabulary.pieces, *(f"[PAD{i}]" for i in added)),
        scores=(*vocabulary.scores, *(_PADDING_SCORE for _ in added)),
        types=(*vocabulary.types, *(kind for _ in added)),
    )


def byte_piece(value: int) -> str:
    return f"<0x{value:02X}>"


def byte_value(piece: str) -> int:
    """Of the piece `<0x41>`, 65; ValueError for anything else."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return int(piece[3:5], 16)
    raise ValueError(f"'{piece}' is not a byte piece such as <0x41>")
