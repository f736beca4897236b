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
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from numpy.typing import NDArray

from puna.data.pipeline.config import Source
from puna.data.pipeline.measured import Dropped
from puna.data.pipeline.ngrams import WORD, WordHashes, ngram_hashes
from puna.data.pipeline.readers import suffix_of
from puna.data.pipeline.settings import Decontaminate
from puna.data.text import documents, records

_NO_DATA = ("readme", "licence", "license")


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
        hashes = WordHashes()
        lengths = range(self.settings.min_ngram, self.settings.ngram + 1)
        grams: dict[int, list[NDArray[np.uint64]]] = {n: [] for n in lengths}
        numbers: dict[int, list[NDArray[np.uint16]]] = {n: [] for n in lengths}
        for name, path in files:
            for text in _STRINGS[suffix_of(path)](path):
                words = hashes.of(WORD.findall(text))
                n = min(len(words), self.settings.ngram)
                if n >= self.settings.min_ngram:
                    found = ngram_hashes(words, n)
                    grams[n].append(found)
                    numbers[n].append(np.full(len(found), sets.index(name), np.uint16))
        self.folder.mkdir(parents=True, exist_ok=True)
        for n in lengths:
            if grams[n]:
                values, first = np.unique(np.concatenate(grams[n]), return_index=True)
                np.save(self.folder / f"hashes-{n}.npy", values)
                np.save(self.folder / f"sets-{n}.npy", np.concatenate(numbers[n])[first])
        (self.folder / "sets.json").write_text(json.dumps(sets))
        yield from ()


class Decontaminated(BaseFilter):
    """Cuts the paragraphs that share an n-gram with an evaluation set."""

    name = "decontaminate"

    def __init__(self, settings: Decontaminate, folder: Path, dropped: Dropped) -> None:
        super().__init__(dropped)
        self.settings, self.folder = settings, folder
        self._hashes = WordHashes()
        self._sets: list[str] = []
        self._index: dict[int, tuple[NDArray[np.uint64], NDArray[np.uint16]]] = {}

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        if not self._sets:
            self._load()
        text = document.text
        matches = list(WORD.finditer(text))
        bad, counts = self._overlap(self._hashes.of(match[0] for match in matches))
        if not counts:
            return True
        ends = np.array([match.end() for match in matches])
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
        if cut_words > self.settings.max_share * len(matches):
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
                self._index[n] = (np.load(path, mmap_mode="r"), sets)

    def _overlap(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], Counter[str]]:
        """Which words stand in a shared n-gram, and how many n-grams each set shares."""
        bad = np.zeros(len(words), bool)
        counts: Counter[str] = Counter()
        for n, (known, sets) in self._index.items():
            grams = ngram_hashes(words, n)
            at = np.searchsorted(known, grams)
            at[at == len(known)] = 0
            (hits,) = np.nonzero(known[at] == grams)
            for hit in hits:
                bad[hit : hit + n] = True
                counts[self._sets[int(sets[at[hit]])]] += 1
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
