"""The steps that look at one document at a time: boilerplate, language, quality."""

from __future__ import annotations

from functools import cache
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import (
    C4QualityFilter,
    GopherQualityFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter

from puna.data.pipeline.config import Source
from puna.data.pipeline.kinds import KINDS
from puna.data.pipeline.measured import Dropped
from puna.data.pipeline.repetition import Repetition
from puna.data.pipeline.settings import C4, Boilerplate, Gopher, Language
from puna.data.pipeline.words import Words


class StripBoilerplate(BaseFilter):
    """Keeps what its kind of source has to say; nothing left drops the document."""

    name = "boilerplate"

    def __init__(self, kind: str, unwrap: bool, dropped: Dropped) -> None:
        super().__init__(dropped)
        self.kind, self.unwrap = kind, unwrap

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        strip = KINDS[self.kind].strip
        if strip is None:
            return True
        text = strip(document.text, self.unwrap)
        if not text.strip():
            return False, "only boilerplate"
        characters = _ink(document.text) - _ink(text)
        self.stat_update("characters of boilerplate", value=characters)
        if characters:  # a book whose lines were only joined had none
            self.stat_update("documents with boilerplate")
        document.text = text
        return True


def _ink(text: str) -> int:
    """Characters that are no white space: joining lines takes none of them away."""
    return len("".join(text.split()))


class LanguageFilter(BaseFilter):
    """py3langid's guess over a sample of the document; its model comes with the package."""

    name = "language"

    def __init__(self, settings: Language, dropped: Dropped) -> None:
        super().__init__(dropped)
        self.settings = settings

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        sample = _sample(document.text, self.settings.sample_characters)
        language, probability = _identifier().classify(sample)
        document.metadata["language"] = language
        if language not in self.settings.languages:
            return False, f"language {language}"
        if probability < self.settings.min_probability:
            return False, f"language {language}, but not sure"
        return True


@cache  # half a second to unpack, for every task of a process
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _sample(text: str, size: int) -> str:
    if len(text) <= size:
        return text
    third, middle = size // 3, len(text) // 2
    return " ".join((text[:third], text[middle : middle + third], text[-third:]))


class Several(PipelineStep):
    """datatrove steps in a row that count as one."""

    type, name = "🔗 - SEVERAL", "several"

    def __init__(self, steps: list[PipelineStep]) -> None:
        super().__init__()
        self.steps = steps

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for step in self.steps:
            data = step.run(data, rank, world_size)
        return data


def boilerplate_step(settings: Boilerplate, dropped: Dropped, source: Source) -> PipelineStep:
    return StripBoilerplate(source.kind, settings.unwrap, dropped)


def language_step(settings: Language, dropped: Dropped, source: Source) -> PipelineStep:
    return LanguageFilter(settings, dropped)


def gopher_step(settings: Gopher, dropped: Dropped, source: Source) -> PipelineStep:
    """Gopher's rules, datatrove's or equal to them; 0 turns one off in both."""
    quality = GopherQualityFilter(
        min_doc_words=settings.min_words,
        max_doc_words=settings.max_words,
        min_avg_word_length=settings.min_mean_word_length,
        max_avg_word_length=settings.max_mean_word_length,
        max_symbol_word_ratio=settings.max_symbols_per_word,
        max_bullet_lines_ratio=settings.max_bullet_lines,
        max_ellipsis_lines_ratio=settings.max_ellipsis_lines,
        max_non_alpha_words_ratio=settings.min_alphabetic_words,
        min_stop_words=settings.min_stop_words,
        exclusion_writer=dropped,
        language=Words(),
    )
    if not settings.repetition:
        return quality
    return Several([Repetition(exclusion_writer=dropped, language=Words()), quality])


def c4_step(settings: C4, dropped: Dropped, source: Source) -> PipelineStep:
    return C4QualityFilter(
        exclusion_writer=dropped,
        remove_citations=settings.citations,
        filter_no_terminal_punct=settings.end_punctuation,
        min_num_sentences=settings.min_sentences,
        min_words_per_line=settings.min_words_per_line,
        filter_lorem_ipsum=settings.lorem_ipsum,
        filter_javascript=settings.javascript,
        filter_curly_bracket=settings.curly_bracket,
        filter_policy=settings.policy,
        language=Words(),
    )
