"""`Vocabulary`: what every tokenizer file of a Llama holds, whatever the file's format."""

from __future__ import annotations

import enum
from dataclasses import dataclass

SPACE = "▁"  # SentencePiece's word mark, U+2581
MAX_PIECES = 1 << 22


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
    compiled text normalisation, empty for Llama's identity. Raises ValueError when inconsistent.
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
            raise ValueError(f"a vocabulary of {size} pieces is not plausible")
        if len(self.scores) != size or len(self.types) != size:
            raise ValueError(
                f"{size} pieces, but {len(self.scores)} scores and {len(self.types)} types"
            )
        for name in ("unk_id", "bos_id", "eos_id"):
            if not 0 <= getattr(self, name) < size:
                raise ValueError(f"{name} {getattr(self, name)} is outside {size} pieces")
        unknown = [i for i, kind in enumerate(self.types) if kind == PieceType.UNKNOWN]
        if unknown != [self.unk_id]:
            raise ValueError(f"exactly one unknown piece is needed, at {self.unk_id}: {unknown}")
        num_bytes = sum(kind == PieceType.BYTE for kind in self.types)
        if num_bytes not in (0, 256):
            raise ValueError(f"{num_bytes} byte pieces; byte fallback needs all 256")
        if not all(self.pieces):
            raise ValueError(f"piece {self.pieces.index('')} is empty")

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


def byte_piece(value: int) -> str:
    return f"<0x{value:02X}>"


def byte_value(piece: str) -> int:
    """Of the piece `<0x41>`, 65; ValueError for anything else."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return int(piece[3:5], 16)
    raise ValueError(f"'{piece}' is not a byte piece such as <0x41>")
