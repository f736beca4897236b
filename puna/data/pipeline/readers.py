"""From files and hub data sets to datatrove's documents, one reader a file suffix.

A damaged file is an error that names it: datatrove's own JSONL reader would skip what it cannot
read, and take a zst file that was cut off for a whole one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.data.pipeline.kinds import KINDS
from puna.data.text import records, text_documents

if TYPE_CHECKING:
    from puna.data.pipeline.config import Source

Record = dict[str, Any]
_COMPRESSION = (".zst", ".gz")
_KEPT = ("id", "title", "author", "url", "date")  # of a record, into the document's metadata


def suffix_of(path: Path) -> str:
    """The kind of file that a name says, without its compression: `.jsonl` of `a.jsonl.zst`."""
    name = path.name
    for compression in _COMPRESSION:
        name = name.removesuffix(compression)
    return Path(name).suffix


def read_file(source: Source, path: Path) -> Iterator[tuple[str, Record]]:
    """(text, metadata) of every document of a file, empty ones too.

    ValueError names the file, and the record, that cannot be read.
    """
    kind = KINDS[source.kind]
    for number, (record, is_text) in enumerate(READERS[suffix_of(path)](path, source), start=1):
        text = record["text"] if is_text else kind.text(record, source.text_key)
        if text is None:
            raise ValueError(
                f"{path}, record {number}: no text in it (kind {source.kind}, text_key "
                f"{source.text_key!r})"
            )
        yield text, {key: record[key] for key in _KEPT if isinstance(record.get(key), str)}


def read_hub(source: Source, part: int, parts: int) -> Iterator[tuple[str, Record]]:
    """(text, metadata) of `part` of the `parts` of a hub data set, by datatrove's reader."""
    from datatrove.pipeline.readers import HuggingFaceDatasetReader

    options: dict[str, Any] = {"split": "train"} | source.hub_options
    adapter = _whole_record(source)
    with _needs_crawl(source):
        reader = HuggingFaceDatasetReader(
            source.hub, dataset_options=options, streaming=True, adapter=adapter
        )
    where = f"data set {source.hub}"
    for document in _named(reader.run(rank=part, world_size=parts), where):
        yield document.text, document.metadata


def _whole_record(source: Source) -> Callable[..., Record]:
    """datatrove's adapter: the text by the source's kind, and of the rest what is kept."""
    kind = KINDS[source.kind]

    def adapt(_: Any, record: Record, path: str, number: int | str) -> Record:
        metadata = {key: record[key] for key in _KEPT if isinstance(record.get(key), str)}
        text = kind.text(record, source.text_key)
        if text is None:
            raise ValueError(f"record {number} has no text (text_key {source.text_key!r})")
        # datatrove leaves out documents without text; ours are counted first
        return {"text": text or " ", "id": f"{path}/{number}", "metadata": metadata}

    return adapt


def _text(path: Path, source: Source) -> Iterator[tuple[Record, bool]]:
    for whole in text_documents(path, source.separator):
        for text in KINDS[source.kind].split(whole):
            yield {"text": text}, True


def _jsonl(path: Path, source: Source) -> Iterator[tuple[Record, bool]]:
    for number, record in enumerate(records(path), start=1):
        if not isinstance(record, dict):
            raise ValueError(f"{path}, record {number}: not a JSON object")
        yield record, False


def _parquet(path: Path, source: Source) -> Iterator[tuple[Record, bool]]:
    from datatrove.pipeline.readers import ParquetReader

    reader = ParquetReader(str(path.parent), adapter=_whole_record(source))
    for document in _named(reader.read_file(path.name), str(path)):
        yield {"text": document.text} | document.metadata, True


def _warc(path: Path, source: Source) -> Iterator[tuple[Record, bool]]:
    """Pages of a crawl; HTML becomes text by trafilatura, as in RefinedWeb and FineWeb."""
    from datatrove.pipeline.readers import WarcReader

    with _needs_crawl(source):
        from trafilatura import extract

        reader = WarcReader(str(path.parent))
    for document in _named(reader.read_file(path.name), str(path)):
        text = document.text
        if suffix_of(path) == ".warc":
            text = extract(text, favor_precision=True, include_comments=False) or ""
        yield {"text": text} | document.metadata, True


@contextlib.contextmanager
def _needs_crawl(source: Source) -> Iterator[None]:
    """Missing libraries of a kind of source are one line."""
    try:
        yield
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"source {source.name} needs more to be read: pip install 'puna[crawl]' ({reason})"
        ) from None


def _named(documents: Iterator[Any], where: str) -> Iterator[Any]:
    """The documents; whatever the library raises on damage becomes one line with the name."""
    while True:
        try:
            document = next(documents)
        except StopIteration:
            return
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{where} cannot be read: {reason}") from None
        yield document


READERS: dict[str, Callable[[Path, Source], Iterator[tuple[Record, bool]]]] = {
    ".txt": _text,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".warc": _warc,
    ".wet": _warc,
}
