"""`Tokenizer`: text <-> ids. BOS and EOS are ids; no text ever becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from puna.tokenizer.sentencepiece_model import write_model
from puna.tokenizer.vocabulary import PieceType, Vocabulary


class Tokenizer:
    """Encodes and decodes with one vocabulary, from whichever file that came."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import sentencepiece  # here, so that training can be measured where torch is alone

        self.vocabulary = vocabulary
        model = write_model(vocabulary)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"SentencePiece refuses the vocabulary: {error}") from None
        self._bytes = [vocabulary.piece_bytes(i) for i in range(len(vocabulary))]

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def bos_id(self) -> int:
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int:
        return self.vocabulary.eos_id

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of `text`; `bos` and `eos` add the control ids, which text cannot spell."""
        # A batch has a pool of threads made for it, even of one, which takes longer than a dialog.
        ids: list[int] = self._processor.encode(_utf8(text))
        return self._enclosed(ids, bos=bos, eos=eos)

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False, num_threads: int = 1
    ) -> list[list[int]]:
        """`encode` of many texts at once, on `num_threads` threads."""
        rows = self._processor.encode(list(map(_utf8, texts)), num_threads=num_threads)
        return [self._enclosed(row, bos=bos, eos=eos) for row in rows] if bos or eos else rows

    def _enclosed(self, ids: list[int], *, bos: bool, eos: bool) -> list[int]:
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control ids are silent, a byte that is not UTF-8 becomes U+FFFD."""
        stream = self.stream()
        return "".join([stream.push(token) for token in ids]) + stream.finish()

    def stream(self, *, strip_space: bool = True) -> StreamDecoder:
        """A decoder fed one id at a time; `strip_space` drops the prefix space of a first word."""
        strip_space = strip_space and (
            self.vocabulary.add_space_prefix or self.vocabulary.remove_extra_spaces
        )
        return StreamDecoder(self.vocabulary, self._bytes, strip_space=strip_space)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text is not valid Unicode: {error.reason}") from None


class StreamDecoder:
    """Turns ids into text as they come, holding back bytes until their character is whole."""

    def __init__(
        self, vocabulary: Vocabulary, token_bytes: list[bytes], *, strip_space: bool
    ) -> None:
        self._types = vocabulary.types
        self._bytes = token_bytes
        self._strip_space = strip_space
        self._strip_all = vocabulary.remove_extra_spaces
        self._pending = b""

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly none; ValueError for an id out of range."""
        if not 0 <= token < len(self._bytes):
            raise ValueError(f"id {token} is outside the vocabulary of {len(self._bytes)}")
        kind = self._types[token]
        if kind == PieceType.CONTROL:
            return self.finish()
        if kind == PieceType.BYTE:
            self._strip_space = False
            self._pending += self._bytes[token]
            return self._whole_characters()
        text = self._bytes[token].decode()
        if self._strip_space and kind != PieceType.UNKNOWN:
            text = text.removeprefix(" ")
        # Where extra spaces are removed, all that lead are; else the one before the first word.
        self._strip_space = self._strip_space and self._strip_all and not text
        return self.finish() + text

    def finish(self) -> str:
        """What is left: one U+FFFD for each byte that never became a character."""
        replaced = "\ufffd" * len(self._pending)
        self._pending = b""
        return replaced

    def _whole_characters(self) -> str:
        out = ""
        while self._pending:
            try:
                out += self._pending.decode()
                self._pending = b""
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    break
                out += "\ufffd"
                self._pending = self._pending[1:]
        return out
