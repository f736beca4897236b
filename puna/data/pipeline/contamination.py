"""Decontamination: what the corpus shares with evaluation sets is cut out of it.

By overlap of 13-grams, as in GPT-3 (arXiv 2005.14165, appendix C). Dropping a whole book for one
quotation would be much, so the paragraphs that hold the overlap are cut, and a document is dropped
only where they are a good part of it.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from numpy.typing import NDArray

from puna.data.ngrams import HashSet, ngram_hashes
from puna.data.pipeline.config import Source
from puna.data.pipeline.measured import Dropped
from puna.data.pipeline.readers import suffix_of
from puna.data.pipeline.settings import Decontaminate
from puna.data.pipeline.word_hashes import WORD, WordHashes
from puna.data.text import documents, records

_NO_DATA = ("readme", "licence", "license")
_WORDS = 1 << 16  # hashed at once


def evaluation_files(settings: Decontaminate, folder: Path) -> list[tuple[str, Path]]:
    """(name of the set, file): a set is a folder below a given one, or a file in it."""
    found: list[tuple[str, Path]] = []
    for given in settings.evaluation:
        path = folder / given
        if path.is_file():
            found.append((path.name.partition(".")[0], path))
            continue
        if not path.is_dir():
            raise ValueError(f"no evaluation sets at {path}")
        for file in sorted(path.rglob("*")):
            parts = file.relative_to(path).parts
            if suffix_of(file) in _STRINGS and not file.name.lower().startswith(_NO_DATA):
                found.append((parts[0] if len(parts) > 1 else file.name.partition(".")[0], file))
    if settings.evaluation and not found:
        raise ValueError(f"no .jsonl, .json, .csv or .txt in {', '.join(settings.evaluation)}")
    return found


class IndexEvaluation(PipelineStep):
    """Writes the n-grams of all evaluation sets, sorted by hash (one task)."""

    type, name = "🦠 - DECONTAMINATE", "index"

    def __init__(self, settings: Decontaminate, root: Path, folder: Path) -> None:
        super().__init__()
        self.settings, self.root, self.folder = settings, root, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        files = evaluation_files(self.settings, self.root)
        sets = sorted({name for name, _ in files})
        grams = _Grams(self.settings.min_ngram, self.settings.ngram)
        for name, path in files:
            number = sets.index(name)
            for text in _STRINGS[suffix_of(path)](path):
                grams.add(text, number)
        self.folder.mkdir(parents=True, exist_ok=True)
        for n, hashes, numbers in grams.all():
            values, first = np.unique(hashes, return_index=True)
            np.save(self.folder / f"hashes-{n}.npy", values)
            np.save(self.folder / f"sets-{n}.npy", numbers[first])
        (self.folder / "sets.json").write_text(json.dumps(sets))
        yield from ()


class _Grams:
    """The n-grams of many texts, and the set that each is of: `longest` words, or all of a text
    that has fewer, if it has `shortest`.

    Sets ask a hundred questions of one passage: a text that came before adds nothing. Thousands
    are hashed at once.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest, self.longest = shortest, longest
        self._seen: set[bytes] = set()
        self._hashes = WordHashes()
        self._words: list[str] = []
        self._lengths: list[int] = []  # in words, of the texts that wait
        self._numbers: list[int] = []
        self._found: dict[int, list[tuple[NDArray[np.uint64], NDArray[np.uint16]]]] = {}

    def add(self, text: str, number: int) -> None:
        words = WORD.findall(text)
        if len(words) < self.shortest:
            return
        digest = xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
        if digest in self._seen:
            return
        self._seen.add(digest)
        self._words += words
        self._lengths.append(len(words))
        self._numbers.append(number)
        if len(self._words) > _WORDS:
            self._hash()

    def all(self) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.uint16]]]:
        """(n, hashes, numbers of their sets), in the order in which they were added."""
        self._hash()
        for n, found in sorted(self._found.items()):
            hashes, numbers = zip(*found, strict=True)
            yield n, np.concatenate(hashes), np.concatenate(numbers)

    def _hash(self) -> None:
        lengths = np.array(self._lengths, np.int64)
        words = self._hashes.of(self._words)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # to its text's end
        of_text = np.repeat(np.minimum(lengths, self.longest), lengths)
        numbers = np.repeat(np.array(self._numbers, np.uint16), lengths)
        for n in range(self.shortest, self.longest + 1):
            (begins,) = np.nonzero((of_text == n) & (left >= n))
            if len(begins):
                found = (ngram_hashes(words, n)[begins], numbers[begins])
                self._found.setdefault(n, []).append(found)
        self._words, self._lengths, self._numbers = [], [], []


class Decontaminated(BaseFilter):
    """Cuts the paragraphs that share an n-gram with an evaluation set."""

    name = "decontaminate"

    def __init__(self, settings: Decontaminate, folder: Path, dropped: Dropped) -> None:
        super().__init__(dropped)
        self.settings, self.folder = settings, folder
        self._hashes = WordHashes()
        self._sets: list[str] = []
        self._index: dict[int, tuple[HashSet, NDArray[np.uint16]]] = {}

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        if not self._sets:
            self._load()
        text = document.text
        bad, counts = self._overlap(self._hashes.of(WORD.findall(text)))
        if not counts:
            return True
        ends = np.array([match.end() for match in WORD.finditer(text)])
        kept, cut_words, cut = [], 0, 0
        begin = first = 0
        for paragraph in text.split("\n"):
            last = int(np.searchsorted(ends, begin + len(paragraph), side="right"))
            if bad[first:last].any():
                cut_words += last - first
                cut += 1
            else:
                kept.append(paragraph)
            begin, first = begin + len(paragraph) + 1, last
        for name in counts:
            self.stat_update(f"documents with {name}")
        if cut_words > self.settings.max_share * len(ends):
            return False, f"contaminated by {counts.most_common(1)[0][0]}"
        self.stat_update("paragraphs cut", value=cut)
        self.stat_update("documents cut")
        document.text = "\n".join(kept)
        return True

    def _load(self) -> None:
        self._sets = json.loads((self.folder / "sets.json").read_text())
        for n in range(self.settings.min_ngram, self.settings.ngram + 1):
            path = self.folder / f"hashes-{n}.npy"
            if path.exists():
                sets = np.load(self.folder / f"sets-{n}.npy", mmap_mode="r")
                self._index[n] = (HashSet(np.load(path, mmap_mode="r")), sets)

    def _overlap(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], Counter[str]]:
        """Which words stand in a shared n-gram, and how many n-grams each set shares."""
        bad = np.zeros(len(words), bool)
        counts: Counter[str] = Counter()
        for n, (known, sets) in self._index.items():
            for hit, where in zip(*known.find(ngram_hashes(words, n)), strict=True):
                bad[hit : hit + n] = True
                counts[self._sets[int(sets[where])]] += 1
        return bad, counts


def decontaminate_step(
    folder: Path, settings: Decontaminate, dropped: Dropped, source: Source
) -> PipelineStep:
    return Decontaminated(settings, folder, dropped)


def _leaves(value: Any) -> Iterator[str]:
    """Every string in a JSON value: questions, passages, choices, answers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)


def _of_jsonl(path: Path) -> Iterator[str]:
    for record in records(path):
        yield from _leaves(record)


def _of_json(path: Path) -> Iterator[str]:
    try:
        yield from _leaves(json.loads(path.read_text(encoding="utf-8-sig")))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None


def _of_csv(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.reader(file):
            yield from row


def _of_txt(path: Path) -> Iterator[str]:
    for text in documents(path):
        yield from text.replace("\\n", "\n").split("\n")


_STRINGS = {".jsonl": _of_jsonl, ".json": _of_json, ".csv": _of_csv, ".txt": _of_txt}
