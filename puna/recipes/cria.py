"""The model that ships with Puna: its corpus, tokenizer and run, made again from public text.

Only text whose licence allows it: TinyStories (CDLA-Sharing-1.0), fairy tales and children's books
from Project Gutenberg (public domain in the US), facts from The World Factbook (CC0). Stories and
facts also stand as dialogs in Llama 2's turn format, so that the model answers in `puna chat`.
Everything here is *ours*; the paper has no model this small.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.chat import open_turn_text
from puna.config import preset
from puna.data.text import documents, records
from puna.recipes.tasks.countries import factbook_text
from puna.tokenizer import Vocabulary
from puna.tokenizer.train import train as train_tokenizer
from puna.train.loop import Settings
from puna.train.pretrain import PretrainConfig

STORY_REPEATS = 5  # times each story stands in the corpus plainly, and again as a dialog
FACT_REPEATS = 24
BOOK_CHARACTERS = 27_000_000

_AUTHORS = (
    "Grimm, Jacob", "Potter, Beatrix", "Andersen, H. C. (Hans Christian)", "Carroll, Lewis",
    "Baum, L. Frank (Lyman Frank)", "Barrie, J. M. (James Matthew)", "Lang, Andrew",
)  # fmt: skip
_SUBJECTS = (
    "dog", "cat", "bird", "bear", "rabbit", "fish", "frog", "duck", "horse", "mouse", "lion",
    "monkey", "ball", "car", "boat", "train", "tree", "flower", "garden", "park", "beach",
    "lake", "forest", "castle", "princess", "king", "robot", "doll", "toy", "kite", "bike",
    "cake", "cookie", "apple", "butterfly", "bee", "ant", "snake", "dragon", "fairy", "wizard",
    "farmer", "doctor", "teacher", "truck", "airplane", "rain", "snow", "moon", "star", "hat",
    "dress", "book", "picture", "puzzle", "box", "key", "door", "house", "bridge", "rock",
    "river", "spider",
)  # fmt: skip
_ASK_STORY = (
    "Tell me a story about {}.", "Write a story about {}.", "Can you tell me a story about {}?",
    "Please tell me about {}.", "I want a story about {}.",
)  # fmt: skip
_ASK_ANY = ("Tell me a story.", "Write a short story.", "Hello! Please tell me a story.")
_GUTENBERG_START = re.compile(r"\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG[^\n]*\n")
_GUTENBERG_END = re.compile(r"\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG|End of (?:the )?Project")


def config() -> PretrainConfig:
    """The run: 16.4M tokens; docs/cria.md says how long it took."""
    settings = Settings(
        steps=2000,
        learning_rate=2e-3,
        warmup_steps=100,
        eval_every=200,
        checkpoint_every=200,
        compile=True,
    )
    return PretrainConfig(
        model=preset("tiny"),
        settings=settings,
        batch_size=16,
        micro_batch_size=8,
        seed=1,
        held_out_windows=64,
    )


def build_corpus(sources: Path, path: Path, *, seed: int = 1) -> None:
    """Writes the corpus as `.jsonl`, its documents in a seeded order.

    `sources` holds tinystories-sample.txt, gutenberg-*.jsonl.zst and factbook.jsonl.zst.
    """
    generator = random.Random(seed)
    stories = list(documents(sources / "tinystories-sample.txt", separator="<|endoftext|>"))
    corpus = stories * STORY_REPEATS
    corpus += [_story_dialog(s, generator) for s in stories * STORY_REPEATS]
    facts = [
        fact for country in records(sources / "factbook.jsonl.zst") for fact in _facts(country)
    ]
    corpus += [_dialog(*fact) for fact in facts * FACT_REPEATS]
    corpus += _books(sources)
    generator.shuffle(corpus)
    with open(path, "w", encoding="utf-8") as file:
        for text in corpus:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def tokenizer(corpus: Path) -> Vocabulary:
    """A vocabulary of 4096 pieces from every fourth document of the corpus."""
    texts = (text for number, text in enumerate(documents(corpus)) if number % 4 == 0)
    return train_tokenizer(texts, vocab_size=preset("tiny").vocab_size)


def _dialog(question: str, answer: str) -> str:
    return f"{open_turn_text(question)} {answer} "


def _story_dialog(story: str, generator: random.Random) -> str:
    words = Counter(re.findall(r"[a-z]+", story.lower()))
    about = [f"an {s}" if s[0] in "aeiou" else f"a {s}" for s in _SUBJECTS if words[s] > 1]
    named = re.findall(r"(little \w+|\w+) (?:named|called) ([A-Z][a-z]+)", story)
    about += [f"a {who} named {name}" for who, name in named[:1]]
    if not about:
        return _dialog(generator.choice(_ASK_ANY), story)
    return _dialog(generator.choice(_ASK_STORY).format(generator.choice(about)), story)


def _facts(country: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Questions and answers about one country."""
    facts = country["facts"]
    name = factbook_text(facts, "Government", "Country name", "conventional short form")
    if not name or name == "none" or len(name) > 40:
        return
    capital = factbook_text(facts, "Government", "Capital", "name").split(" (")[0].split(";")[0]
    if capital and len(capital) < 40:
        yield f"What is the capital of {name}?", f"The capital of {name} is {capital}."
        yield f"{capital} is the capital of which country?", f"{capital} is the capital of {name}."
    location = factbook_text(facts, "Geography", "Location").split(";")[0]
    if location and len(location) < 160 and ":" not in location:
        yield f"Where is {name}?", f"{name} is in {location[0].upper()}{location[1:]}."
    languages = factbook_text(facts, "People and Society", "Languages", "Languages")
    language = re.match(r"[A-Z][a-z]+", languages)
    if language:
        answer = f"People in {name} speak {language[0]}."
        yield f"What language do people speak in {name}?", answer


def _books(sources: Path) -> list[str]:
    """Chapters' worth of the chosen authors' books, by author in the order of `_AUTHORS`."""
    by_author: dict[str, list[str]] = {author: [] for author in _AUTHORS}
    seen: set[str] = set()
    for path in sorted(sources.glob("gutenberg-*.jsonl.zst")):
        for book in records(path):
            title = book["title"].lower()[:24]  # editions of one book differ after that
            if book["author"] in by_author and title not in seen:
                seen.add(title)
                by_author[book["author"]] += _pieces(_body(book["text"]))
    taken, size = [], 0
    for piece in (piece for author in _AUTHORS for piece in by_author[author]):
        if size < BOOK_CHARACTERS:
            taken.append(piece)
            size += len(piece)
    return taken


def _body(text: str) -> str:
    """A book without Project Gutenberg's header and footer, one line a paragraph."""
    text = text.replace("\r\n", "\n")
    if start := _GUTENBERG_START.search(text):
        text = text[start.end() :]
    if end := _GUTENBERG_END.search(text, len(text) // 2):
        text = text[: end.start()]
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    prose = (p for p in paragraphs if len(p) > 40 and "Gutenberg" not in p and p[-1] in ".!?\"'”’")
    return "\n".join(p.replace("_", "") for p in prose)


def _pieces(text: str, size: int = 6000) -> Iterator[str]:
    """A book cut at paragraphs into pieces of about `size` characters."""
    piece: list[str] = []
    for paragraph in text.split("\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) > size:
            yield "\n".join(piece)
            piece = []
    if piece:
        yield "\n".join(piece)
