"""Trains a Llama tokenizer: SentencePiece BPE, digits split, byte fallback, identity text.

Llama 2 (arXiv 2307.09288, section 2.2): "all numbers are split into individual digits, and bytes
decompose unknown UTF-8 characters"; 32k entries.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import sentencepiece

from puna.tokenizer.sentencepiece_model import read_model
from puna.tokenizer.vocabulary import Vocabulary

_MAX_SENTENCE = 4192  # bytes; SentencePiece drops longer lines whole, so they are cut before


def train(texts: Iterable[str], *, vocab_size: int = 32000, num_threads: int = 2) -> Vocabulary:
    """Learns `vocab_size` pieces (specials and 256 bytes included) from `texts`, line by line.

    Raises ValueError where the text is too little for the size asked for.
    """
    if vocab_size < 300:
        raise ValueError(
            f"vocab_size {vocab_size} leaves no room beside 256 bytes; use 300 or more"
        )
    model = io.BytesIO()
    failures: list[BaseException] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_remembering(_sentences(texts), failures),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9995,
            unk_surface=" ⁇ ",
            num_threads=num_threads,
            max_sentence_length=_MAX_SENTENCE,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        reason = str(error).split("] ")[-1].strip() or "no text"
        raise ValueError(f"tokenizer training failed: {reason}") from None
    return read_model(model.getvalue())


def _remembering(sentences: Iterator[bytes], failures: list[BaseException]) -> Iterator[bytes]:
    """The same sentences; what goes wrong in them is kept, as the library makes it unreadable."""
    try:
        yield from sentences
    except (Exception, KeyboardInterrupt) as error:
        failures.append(error)
        raise


def _sentences(texts: Iterable[str]) -> Iterator[bytes]:
    step = _MAX_SENTENCE // 4  # no character takes more than four bytes
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), step):
                if line[start : start + step].strip():
                    yield line[start : start + step].encode()
