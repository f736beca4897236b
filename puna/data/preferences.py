"""Comparisons of two answers, out of files of several forms; what cannot be used is counted.

A file is `.jsonl` (also `.zst`, `.gz`), or `.json` with one list of records.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from puna.chat import TAGS, Message
from puna.data.text import is_broken, records

# How much better the chosen answer is (Llama 2, section 3.2.1); the last also means "unsure".
RATINGS = ("significantly_better", "better", "slightly_better", "negligibly_better")
TIE, EQUAL, EMPTY = "ties", "equal answers", "empty answers"
APART = "dialogs that differ before the last answer"
TURNS = "dialogs whose turns are out of order"
TAGGED = "texts with a tag of the chat format"
BROKEN = "texts that are no Unicode"
UNSAFE = "unsafe answers preferred to safe ones"

_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")

Record = dict[str, Any]


class UnusableError(Exception):
    """A record that is right and no comparison to learn from; its text is what to count it as."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, a dialog that ends with the user.

    `rating` is one of `RATINGS`, None where nobody gave one; `chosen_safe` and `rejected_safe`
    whether the answers are safe, None where nobody said.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    rating: str | None = None
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None

    def dialogs(self) -> tuple[list[Message], list[Message]]:
        """The dialogs with the chosen and with the rejected answer."""
        chosen, rejected = (Message("assistant", text) for text in (self.chosen, self.rejected))
        return [*self.prompt, chosen], [*self.prompt, rejected]

    def to_record(self) -> Record:
        """In the form that `puna compare` writes too."""
        record: Record = {
            "prompt": [{"role": each.role, "content": each.content} for each in self.prompt],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }
        for name in ("rating", "chosen_safe", "rejected_safe"):
            if (value := getattr(self, name)) is not None:
                record[name] = value
        return record


@dataclass(frozen=True, slots=True)
class Form:
    """A row of the table. `read` gives a record's comparisons, an `UnusableError` for each that is
    none, and raises ValueError or KeyError for a record that is wrong.
    """

    looks_like: str
    detect: Callable[[Record], bool]
    read: Callable[[Record], Iterable[Comparison | UnusableError]]


def read_comparisons(
    path: Path, *, form: str | None = None
) -> tuple[list[Comparison], Counter[str]]:
    """The comparisons of a file, and how many it has besides of each kind that is of no use.

    `form` is one of `FORMS`, by default the first that the first record has. ValueError, with the
    record, for what is of no such form, a rating that is none, and a file without comparisons.
    """
    if form is not None and form not in FORMS:
        raise ValueError(f"no form {form!r} of comparisons; there are: {', '.join(FORMS)}")
    found: list[Comparison] = []
    skipped: Counter[str] = Counter()
    for number, record in enumerate(_records(path), start=1):
        where = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: it is no object with named fields")
        form = form or _form_of(record, where)
        try:
            for each in FORMS[form].read(record):
                try:
                    found.append(_checked(each))
                except UnusableError as reason:
                    skipped[str(reason)] += 1
        except UnusableError as reason:
            skipped[str(reason)] += 1
        except KeyError as error:
            raise ValueError(f"{where}: it lacks {error}, which the form {form} has") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not found:
        reasons = "; ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise ValueError(f"{path} has no comparison to learn from ({reasons or 'it is empty'})")
    return found, skipped


def _records(path: Path) -> Iterator[Any]:
    if path.suffix != ".json":
        yield from records(path)
        return
    try:
        whole = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not valid JSON") from None
    if not isinstance(whole, list):
        raise ValueError(f"{path}: a .json file of comparisons is one list of records")
    yield from whole


def _form_of(record: Record, where: str) -> str:
    for name, form in FORMS.items():
        if form.detect(record):
            return name
    known = "; ".join(f"{name} ({form.looks_like})" for name, form in FORMS.items())
    raise ValueError(f"{where}: a comparison of no known form; known are {known}")


def _checked(found: Comparison | UnusableError) -> Comparison:
    """What every form's comparisons have to be. `UnusableError` where one is not."""
    if isinstance(found, UnusableError):
        raise found
    chosen, rejected = found.chosen.strip(), found.rejected.strip()
    if not chosen or not rejected:
        raise UnusableError(EMPTY)
    if chosen == rejected:
        raise UnusableError(EQUAL)
    turns = [each.role for each in found.prompt]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise UnusableError(TURNS)
    texts = [*(each.content for each in found.prompt), found.chosen, found.rejected]
    if any(tag in text for tag in TAGS for text in texts):
        raise UnusableError(TAGGED)
    if any(map(is_broken, texts)):
        raise UnusableError(BROKEN)
    if found.chosen_safe is False and found.rejected_safe:
        raise UnusableError(UNSAFE)  # as the paper leaves them out (section 3.2.1)
    return found


def _conversational(record: Record) -> Iterator[Comparison | UnusableError]:
    """Ours, and TRL's: messages, or plain texts of one turn; the prompt may be left to be found."""
    prompt = _messages(record, "prompt") if "prompt" in record else []
    chosen, rejected = (_messages(record, key) for key in ("chosen", "rejected"))
    if not prompt:
        shared = len(chosen) - 1
        if chosen[:shared] != rejected[:shared] or len(chosen) != len(rejected):
            raise UnusableError(APART)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if [each.role for each in answer] != ["assistant"]:
            raise ValueError(f"{key} is to be one message of the assistant, after the prompt")
    yield Comparison(
        tuple(prompt),
        chosen[0].content,
        rejected[0].content,
        _rating(record),
        _flag(record, "chosen_safe"),
        _flag(record, "rejected_safe"),
    )


def _messages(record: Record, key: str) -> list[Message]:
    value = record[key]
    if isinstance(value, str):
        return [Message("user" if key == "prompt" else "assistant", value)]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} is neither a text nor a list of messages")
    for each in value:
        if not isinstance(each, dict) or not all(
            isinstance(each.get(field), str) for field in ("role", "content")
        ):
            raise ValueError(f"a message of {key} has no role and content that are texts")
    return [Message(each["role"], each["content"]) for each in value]


def _rating(record: Record) -> str | None:
    rating = record.get("rating")
    if rating is not None and rating not in RATINGS:
        raise ValueError(f"the rating {rating!r} is not on the scale: {', '.join(RATINGS)}")
    return rating


def _flag(record: Record, key: str) -> bool | None:
    value = record.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key} is true or false, not {value!r}")
    return value


def _transcripts(record: Record) -> Iterator[Comparison | UnusableError]:
    """Anthropic's (arXiv 2204.05862): two transcripts, alike up to the last answer."""
    chosen, rejected = (_transcript(_text(record, key)) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise UnusableError(APART)
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise UnusableError(TURNS)
    yield Comparison(tuple(chosen[:-1]), chosen[-1].content, rejected[-1].content)


def _transcript(text: str) -> list[Message]:
    start, *parts = _SPEAKER.split(text)
    if start.strip() or not parts:
        raise ValueError("a transcript begins with 'Human:' on a line of its own")
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [Message(_ROLES[speaker], said.strip()) for speaker, said in pairs]


def _qa_feedback(record: Record, *, passages: bool = False) -> Iterator[Comparison | UnusableError]:
    """Fine-Grained RLHF's (arXiv 2306.01693): each two of four answers, in order; 0 is a tie.

    The `passages` that the question is about come before it, or are left out.
    """
    votes, question = record["preference"], _text(record, "question")
    answers = [_text(record, f"prediction {number}") for number in range(1, 5)]
    pairs = list(combinations(answers, 2))
    if not isinstance(votes, list) or len(votes) != len(pairs):
        raise ValueError(f"preference is no list of {len(pairs)} votes")
    if passages:
        read = record["passages"]
        if not isinstance(read, list) or not all(_is_texts(each) for each in read):
            raise ValueError("passages is no list of lists of texts")
        question = "\n\n".join([*map("\n".join, read), question])
    for answers_of_pair, vote in zip(pairs, votes, strict=True):
        yield _voted(question, answers_of_pair, _vote(vote))


def _qa_with_passages(record: Record) -> Iterator[Comparison | UnusableError]:
    return _qa_feedback(record, passages=True)


def _pandalm(record: Record) -> Iterator[Comparison | UnusableError]:
    """PandaLM's (arXiv 2306.05087): three people's votes; 0 is a tie.

    *Ours*: the rating says how many more are for one answer than for the other, three, two or one;
    and where one vote stands alone beside two ties, "negligibly better".
    """
    votes = [_vote(record[f"annotator{number}"]) for number in (1, 2, 3)]
    lead = votes.count(1) - votes.count(2)
    rating = RATINGS[3 - abs(lead)] if votes.count(0) < 2 else RATINGS[3]
    task = "\n\n".join(filter(None, (_text(record, "instruction"), _text(record, "input"))))
    # Answers that look like a value were parsed as one: `true`.
    answers = tuple(
        text if isinstance(text, str) else json.dumps(text)
        for text in (record["response1"], record["response2"])
    )
    yield _voted(task, answers, (lead > 0) + 2 * (lead < 0), rating)


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _vote(value: Any) -> int:
    if type(value) is not int or value not in (0, 1, 2):
        raise ValueError(f"a vote is 0, 1 or 2, not {value!r}")
    return value


def _voted(
    prompt: str, answers: Sequence[str], winner: int, rating: str | None = None
) -> Comparison | UnusableError:
    """The comparison of two answers of which number `winner` is better; 0 is a tie."""
    if winner == 0:
        return UnusableError(TIE)
    messages = (Message("user", prompt),)
    return Comparison(messages, answers[winner - 1], answers[2 - winner], rating)


def _is_transcript(record: Record) -> bool:
    return str(record.get("chosen")).startswith("\n\nHuman:")


def _has(*keys: str) -> Callable[[Record], bool]:
    return lambda record: all(key in record for key in keys)


# In order of detection.
FORMS: dict[str, Form] = {
    "transcripts": Form("chosen and rejected, '\\n\\nHuman: ...'", _is_transcript, _transcripts),
    "messages": Form("prompt, chosen, rejected", _has("chosen", "rejected"), _conversational),
    "qa-feedback": Form(
        "question, prediction 1 to 4, preference", _has("question", "preference"), _qa_feedback
    ),
    # As its annotators saw it; only by name, for a context of thousands of tokens.
    "qa-feedback-passages": Form(
        "the same with passages", _has("question", "preference", "passages"), _qa_with_passages
    ),
    "pandalm": Form("response1, response2, annotator1 to 3", _has("annotator1"), _pandalm),
}
