"""Speed of turning texts into ids and into shards, beside Hugging Face tokenizers and datatrove.

    python benchmarks/tokenize_speed.py TEXTS... [--tokenizer cria] [--megabytes 4] [--bursts 5]
                                        [--processes 1] [--separator LINE]

All sides get the same documents and the same vocabulary and take turns, in bursts; each begins
anew, with an empty memory for words; a tokenizer is opened before its time is taken. A speed is
megabytes of UTF-8 a second of processor time, all threads and processes together: that of one core,
whatever else the machine does. Shown are medians, the median ratio of Puna's speed to another's in
the same burst, and how many documents have Puna's ids.

The first rows only make ids. The last two write files: datatrove's DocumentTokenizer step, and
Puna's shards with their checksums, by --processes processes, whose start counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before tokenizers is imported: one core each

import numpy as np
import sentencepiece
import tokenizers

from puna.commands.models import named_vocabulary
from puna.data.manifest import token_dtype
from puna.data.shards import open_shards
from puna.data.text import documents
from puna.data.tokenize import write_shards
from puna.data.words import WordTokenizer
from puna.tokenizer import Vocabulary
from puna.tokenizer.json_file import write_json
from puna.tokenizer.sentencepiece_model import write_model

Rows = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokenizer", default="cria")
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--separator")
    args = parser.parse_args()

    vocabulary = named_vocabulary(args.tokenizer)
    texts = first(
        (text for path in args.texts for text in documents(path, separator=args.separator)),
        args.megabytes * 1e6,
    )
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} documents, {size:.1f} MB, {len(vocabulary)} pieces")
    with tempfile.TemporaryDirectory() as folder:
        sides = list_sides(texts, vocabulary, Path(folder), args.processes)
        # Once before, for what a library does at its first use.
        found = {name: side.rows(side.open()()) for name, side in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.bursts):
            for name, side in sides.items():
                run = side.open()
                begin = processor_seconds()
                run()
                seconds[name].append(processor_seconds() - begin)
    print(f"{'':28}MB/s a core   Puna is faster by   same ids")
    for name, taken in seconds.items():
        ours = seconds["puna, ids" if "ids" in name else "puna, files"]
        ratio = statistics.median(b / a for a, b in zip(ours, taken, strict=True))
        same = sum(a == b for a, b in zip(found["puna, ids"], found[name], strict=True))
        speed = size / statistics.median(taken)
        print(f"{name:28}{speed:11.2f}{ratio:20.2f}{same / len(texts):11.0%}")


@dataclass(frozen=True)
class Side:
    """`open()` gives what is timed; `rows` makes the ids of each text out of its result."""

    open: Callable[[], Callable[[], Any]]
    rows: Callable[[Any], Rows]


def list_sides(
    texts: list[str], vocabulary: Vocabulary, folder: Path, processes: int
) -> dict[str, Side]:
    model, converted = write_model(vocabulary), write_json(vocabulary).decode()
    (folder / "tokenizer.json").write_text(converted)
    number = itertools.count()

    def puna_ids() -> Callable[[], Any]:
        encode = WordTokenizer(vocabulary).encode
        return lambda: [encode(text) for text in texts]

    def sentencepiece_ids() -> Callable[[], Any]:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        return lambda: processor.encode(texts, num_threads=1)

    def huggingface_ids(values: str) -> Callable[[], Any]:
        encode = tokenizers.Tokenizer.from_str(values).encode_batch_fast
        return lambda: [row.ids for row in encode(texts, add_special_tokens=False)]

    def puna_files() -> Callable[[], Any]:
        out = folder / str(next(number))

        def run() -> Path:
            write_shards(
                texts, vocabulary, out, source="texts", licence="unknown", num_processes=processes
            )
            return out

        return run

    def lists(rows: list[Any]) -> Rows:
        return [list(map(int, row)) for row in rows]

    sides = {
        "puna, ids": Side(puna_ids, lists),
        "sentencepiece, ids": Side(sentencepiece_ids, lists),
        "tokenizers, ids": Side(lambda: huggingface_ids(converted), lists),
        "tokenizers by words, ids": Side(lambda: huggingface_ids(by_words(converted)), lists),
        "puna, files": Side(puna_files, shard_rows),
    }
    try:
        from datatrove.data import Document
        from datatrove.pipeline.tokens import DocumentTokenizer
        from loguru import logger
    except ImportError:
        print("datatrove is not installed: its step is not shown", file=sys.stderr)
        return sides
    logger.remove()

    def datatrove_files() -> Callable[[], Any]:
        out = folder / str(next(number))
        path = str(folder / "tokenizer.json")
        step = DocumentTokenizer(str(out), path, shuffle_documents=False)
        step.tokenizer.no_padding()  # opens it

        def run() -> Path:
            step.run(Document(text, str(place)) for place, text in enumerate(texts))
            return out

        return run

    def datatrove_rows(out: Path) -> Rows:
        (path,) = out.glob("*.ds")
        ids = np.fromfile(path, token_dtype(len(vocabulary)))
        rows = rows_of(ids, np.fromfile(f"{path}.index", "<u8"))
        return [row[row[0] == vocabulary.bos_id :] for row in rows]  # the file's own template

    return sides | {"datatrove, files": Side(datatrove_files, datatrove_rows)}


def by_words(converted: str) -> str:
    """A tokenizer.json that cuts at each space first, which Hugging Face's library remembers."""
    values = json.loads(converted)
    values["normalizer"] = None
    values["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True,
    }  # fmt: skip
    return json.dumps(values)


def shard_rows(folder: Path) -> Rows:
    """The documents of new shards without BOS and EOS."""
    shards = open_shards(folder)
    rows: Rows = []
    for shard in shards.manifest.shards:
        rows += rows_of(shards.tokens(shard), shards.ends(shard))
    return [row[1:-1] for row in rows]


def rows_of(ids: np.ndarray, ends: np.ndarray) -> Rows:
    return [row.tolist() for row in np.split(ids, ends[:-1].astype(np.int64))]


def first(texts: Iterable[str], size: float) -> list[str]:
    """Texts until they have `size` bytes of UTF-8."""
    taken: list[str] = []
    for text in texts:
        if size <= 0:
            break
        taken.append(text)
        size -= len(text.encode())
    return taken


def processor_seconds() -> float:
    """Of this process and of its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
