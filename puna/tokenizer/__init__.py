"""Text <-> ids: one `Tokenizer` over one `Vocabulary`, whichever file it came from."""

from puna.tokenizer.tokenizer import StreamDecoder, Tokenizer
from puna.tokenizer.vocabulary import PieceType, Vocabulary

__all__ = ["PieceType", "StreamDecoder", "Tokenizer", "Vocabulary"]
