"""What each step can be told, with its defaults. 0 turns a threshold off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What every step has: it can be switched off."""

    enabled: bool = True

    @property
    def is_on(self) -> bool:
        return self.enabled


@dataclass(frozen=True, slots=True)
class Boilerplate(StepSettings):
    """What a kind of source has around its text; `unwrap` joins lines that were cut at a width."""

    unwrap: bool = True


@dataclass(frozen=True, slots=True)
class Language(StepSettings):
    """ISO 639-1 codes of what stays, and how sure the detector must be of it."""

    languages: tuple[str, ...] = ("en",)
    min_probability: float = 0.5
    sample_characters: int = 6000  # looked at: a third each of the begin, the middle and the end

    def __post_init__(self) -> None:
        _share("min_probability", self.min_probability)
        if not self.languages:
            raise ValueError("language: languages is empty; nothing would stay")


@dataclass(frozen=True, slots=True)
class Gopher(StepSettings):
    """The quality and repetition rules of Gopher (arXiv 2112.11446, appendix A)."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: int = 3
    max_mean_word_length: int = 10
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2
    repetition: bool = True


@dataclass(frozen=True, slots=True)
class C4(StepSettings):
    """The rules of C4 (jmlr.org/papers/v21/20-074): lines without an end and more are taken out."""

    min_sentences: int = 5
    min_words_per_line: int = 3
    end_punctuation: bool = True
    citations: bool = True
    curly_bracket: bool = True
    lorem_ipsum: bool = True
    javascript: bool = True
    policy: bool = True


@dataclass(frozen=True, slots=True)
class Personal(StepSettings):
    """Personal information: what is replaced, and how much of it drops a document.

    The replacements are addresses that are reserved for examples (RFC 2606, RFC 5737, 555-0100).
    """

    emails: bool = True
    phones: bool = True
    ips: bool = True
    email_replacement: str = "email@example.com"
    phone_replacement: str = "555-0100"
    ip_replacement: str = "192.0.2.1"
    max_per_1000_words: float = 20.0  # of a document with at least `min_found`
    min_found: int = 5


@dataclass(frozen=True, slots=True)
class Sites(StepSettings):
    """How much personal information drops a site: a url's host, or a source without urls."""

    max_per_1000_words: float = 10.0
    min_found: int = 50  # that many in all, lest one page speak for a site


@dataclass(frozen=True, slots=True)
class Exact(StepSettings):
    """Documents of the same text, wherever they lie: the first listed source keeps its own."""


@dataclass(frozen=True, slots=True)
class Minhash(StepSettings):
    """Near-duplicates by word n-grams; alike with probability 1 - (1 - s^hashes)^buckets."""

    ngram: int = 5
    buckets: int = 14
    hashes_per_bucket: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.ngram, self.buckets, self.hashes_per_bucket) < 1:
            raise ValueError("minhash: ngram, buckets and hashes_per_bucket must be 1 or more")


@dataclass(frozen=True, slots=True)
class Decontaminate(StepSettings):
    """What is also in evaluation sets: its paragraphs are cut, a document full of it is dropped.

    `evaluation` holds files or folders; without any, the step is off. A sentence of `min_ngram`
    to `ngram` words counts as a whole.
    """

    evaluation: tuple[str, ...] = ()
    ngram: int = 13
    min_ngram: int = 10
    max_share: float = 0.2  # of a document's words in cut paragraphs before all of it goes

    @property
    def is_on(self) -> bool:
        return self.enabled and bool(self.evaluation)

    def __post_init__(self) -> None:
        _share("max_share", self.max_share)
        if not 2 <= self.min_ngram <= self.ngram:
            raise ValueError("decontaminate: min_ngram must be from 2 to ngram")


STEP_SETTINGS: dict[str, type[StepSettings]] = {
    "boilerplate": Boilerplate,
    "language": Language,
    "gopher": Gopher,
    "c4": C4,
    "personal": Personal,
    "sites": Sites,
    "exact": Exact,
    "minhash": Minhash,
    "decontaminate": Decontaminate,
}


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, not {value}")
