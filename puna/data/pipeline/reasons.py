"""Why documents are dropped and what else is counted, in words; datatrove's own are codes."""

from __future__ import annotations

import re

_REASONS = {
    "dup_para_frac": "too many paragraphs that repeat others",
    "dup_para_char_frac": "too much of it in paragraphs that repeat others",
    "dup_line_frac": "too many lines that repeat others",
    "dup_line_char_frac": "too much of it in lines that repeat others",
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short on average",
    "gopher_above_avg_threshold": "words too long on average",
    "gopher_too_many_hashes": "too many # signs",
    "gopher_too_many_ellipsis": "too many ellipses",
    "gopher_too_many_bullets": "nearly all lines are bullets",
    "gopher_too_many_end_ellipsis": "too many lines end in an ellipsis",
    "gopher_below_alpha_threshold": "too many words without a letter",
    "gopher_enough_stop_words": "too few of English's commonest words",
    "lorem_ipsum": "lorem ipsum in it",
    "curly_bracket": "a curly bracket in it",
    "too_few_sentences": "too few sentences",
    "line-total": "lines looked at",
    "line-kept": "lines kept",
    "line-filter-too_long_word": "lines taken out: a word too long",
    "line-filter-no_terminal_punc": "lines taken out: no end of a sentence",
    "line-filter-too_few_words": "lines taken out: too few words",
    "line-filter-javascript": "lines taken out: about JavaScript",
    "line-filter-policy": "lines taken out: about policies and cookies",
}
_NUMBERED = (
    (re.compile(r"top_(\d+)_gram"), "too much of it is one sequence of {} words"),
    (
        re.compile(r"duplicated_(\d+)_n_grams"),
        "too much of it in repeats of {} words",
    ),
)


def in_words(reason: str) -> str:
    """What a reason or a count of a step means; one that speaks for itself stays as it is."""
    if reason in _REASONS:
        return _REASONS[reason]
    for pattern, words in _NUMBERED:
        if match := pattern.fullmatch(reason):
            return words.format(match[1])
    return reason
