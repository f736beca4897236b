"""Token shards: what is written is read, and what is damaged is named."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.data.manifest import MANIFEST, read_manifest, token_dtype, vocabulary_hash
from puna.data.shards import ShardWriter, join_shards, open_shards
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import write_model
from puna.tokenizer.vocabulary import padded

DOCUMENTS = [[5, 6, 7], [8], [9, 10], [11] * 40, [12, 13]]


def write(
    folder: Path, vocabulary: Vocabulary, documents: Sequence[Any] = DOCUMENTS, **options: Any
) -> None:
    options = {"source": "books", "licence": "CC0-1.0", "max_tokens_per_shard": 10} | options
    with ShardWriter(folder, vocabulary, **options) as writer:
        for ids in documents:
            writer.add(ids)
        assert writer.num_documents == sum(map(bool, documents))


def read(folder: Path, vocabulary: Vocabulary) -> list[list[int]]:
    """The documents of a folder with their BOS and EOS, by the index of each shard."""
    shards = open_shards(folder, vocabulary)
    found = []
    for shard in shards.manifest.shards:
        shards.verify(shard)
        ends = shards.ends(shard).tolist()
        tokens = shards.tokens(shard).tolist()
        found += [tokens[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        assert ends[-1] == len(tokens)
    return found


def test_documents_are_read_as_written(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "a", vocabulary)
    assert read(tmp_path / "a", vocabulary) == [[1, *ids, 2] for ids in DOCUMENTS]
    manifest = read_manifest(tmp_path / "a")
    # No document is split: a shard ends before 10 tokens, or after one that is longer.
    assert [shard.num_tokens for shard in manifest.shards] == [8, 4, 42, 4]
    assert [shard.num_documents for shard in manifest.shards] == [2, 1, 1, 1]
    assert (manifest.num_tokens, manifest.num_documents, manifest.vocab_size) == (58, 5, 420)
    assert manifest.vocabulary == hashlib.sha256(write_model(vocabulary)).hexdigest()
    assert manifest.sources == ("books",)
    for shard in manifest.shards:
        raw = (tmp_path / "a" / shard.file).read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (shard.num_bytes, shard.sha256)
        assert shard.licence == "CC0-1.0"


@pytest.mark.parametrize(("size", "dtype"), [(420, "<u2"), (1 << 16, "<u2"), (65537, "<u4")])
def test_ids_take_what_their_vocabulary_needs(
    tmp_path: Path, vocabulary: Vocabulary, size: int, dtype: str
) -> None:
    assert token_dtype(size) == np.dtype(dtype)
    large = padded(vocabulary, size)
    write(tmp_path / "a", large, [[size - 1, 0]])
    assert read(tmp_path / "a", large) == [[1, size - 1, 0, 2]]
    for wrong in ([size], [-1]):
        with pytest.raises(ValueError, match=rf"document 0 of books has ids .* has {size} pieces"):
            write(tmp_path / "b", large, [wrong])
    for control in (large.bos_id, large.eos_id):
        with pytest.raises(ValueError, match="document 0 of books holds BOS or EOS"):
            write(tmp_path / "b", large, [[5, control, 6]])
    for odd in ([0.5], [[1, 2]], ["a"]):
        with pytest.raises(ValueError, match="a row of ids"):
            write(tmp_path / "b", large, [odd])
    assert not (tmp_path / "b").exists()


def test_empty_documents_are_left_out_and_counted(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "a", vocabulary, [[], [7], []])
    assert read(tmp_path / "a", vocabulary) == [[1, 7, 2]]
    assert read_manifest(tmp_path / "a").num_empty_documents == 2
    write(tmp_path / "b", vocabulary, [[]])
    assert read(tmp_path / "b", vocabulary) == []


def test_a_failure_leaves_nothing(tmp_path: Path, vocabulary: Vocabulary) -> None:
    def failing() -> Any:
        yield from DOCUMENTS
        raise OSError("no space left")

    kept = tmp_path / "a" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with (
        pytest.raises(OSError, match="no space"),
        ShardWriter(kept.parent, vocabulary, source="s", licence="l") as writer,
    ):
        for ids in failing():
            writer.add(ids)
    assert list(kept.parent.iterdir()) == [kept]
    with pytest.raises(ValueError, match="holds no shards"):
        open_shards(kept.parent)
    # A writer that was killed leaves shards without a manifest, which the next one clears away.
    (kept.parent / "00077.tokens").write_bytes(b"unfinished")
    write(kept.parent, vocabulary)
    assert not (kept.parent / "00077.tokens").exists() and kept.exists()
    with pytest.raises(ValueError, match="holds shards already"):
        write(kept.parent, vocabulary)
    assert len(read(kept.parent, vocabulary)) == len(DOCUMENTS)
    with pytest.raises(ValueError, match="must be positive"):
        write(tmp_path / "b", vocabulary, max_tokens_per_shard=0)


def test_parts_are_joined_in_their_order(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "b", vocabulary, [[7], []], source="web")
    write(tmp_path / "a", vocabulary, [[8]], source="books")
    write(tmp_path / "none", vocabulary, [])
    joined = join_shards(tmp_path, ["b", "a", "none"])
    assert joined == read_manifest(tmp_path)
    assert read(tmp_path, vocabulary) == [[1, 7, 2], [1, 8, 2]]
    assert [shard.file for shard in joined.shards] == ["b/00000.tokens", "a/00000.tokens"]
    assert joined.sources == ("web", "books") and joined.num_empty_documents == 1
    write(tmp_path / "other", replace(vocabulary, add_space_prefix=False))
    with pytest.raises(ValueError, match=r"another vocabulary than .*a"):
        join_shards(tmp_path, ["a", "other"])
    with pytest.raises(ValueError, match="no shards to join"):
        join_shards(tmp_path, [])


def test_another_vocabulary_is_refused(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "a", vocabulary)
    other = replace(vocabulary, scores=tuple(reversed(vocabulary.scores)))
    assert vocabulary_hash(other) != vocabulary_hash(vocabulary)
    with pytest.raises(ValueError, match=r"a was tokenized with another vocabulary \(of 420"):
        open_shards(tmp_path / "a", other)


def test_a_damaged_shard_is_named(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "a", vocabulary)
    path = tmp_path / "a" / "00002.tokens"
    raw = bytearray(path.read_bytes())
    raw[33] ^= 4
    path.write_bytes(raw)
    shards = open_shards(tmp_path / "a", vocabulary)
    good, bad = shards.manifest.shards[1], shards.manifest.shards[2]
    shards.verify(good)
    with pytest.raises(ValueError, match=r"00002\.tokens is corrupt"):
        shards.verify(bad)
    with pytest.raises(ValueError, match=r"00002\.tokens is corrupt"):
        shards.verify_all()
    heard: list[tuple[int, int]] = []
    shards.verify_all(rank=1, num_ranks=2, on_shard=lambda *count: heard.append(count))
    share = len(shards.manifest.shards[1::2])
    assert heard == [(done, share) for done in range(share)]
    with pytest.raises(ValueError, match=r"00002\.tokens is corrupt"):
        shards.verify_all(rank=0, num_ranks=2)
    path.write_bytes(raw[:-1])
    for opening in (lambda: open_shards(tmp_path / "a"), lambda: shards.tokens(bad)):
        with pytest.raises(ValueError, match=r"00002\.tokens has 95 bytes, .* says 96;"):
            opening()
    path.unlink()
    with pytest.raises(ValueError, match=r"00002\.tokens is missing"):
        open_shards(tmp_path / "a")


def _shard(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return values | {"shards": [values["shards"][0] | changes]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: [],
        lambda values: values | {"version": 2},
        lambda values: values | {"colour": "red"},
        lambda values: values | {"vocab_size": 70000},
        lambda values: values | {"vocab_size": "420"},
        lambda values: values | {"shards": [3]},
        lambda values: _shard(values, num_tokens=-8),
        lambda values: _shard(values, num_tokens=1 << 60),
        lambda values: _shard(values, num_documents=True),
        lambda values: _shard(values, num_documents=9),
        lambda values: _shard(values, num_bytes=8),
        lambda values: _shard(values, file="../a/00000.tokens"),
        lambda values: _shard(values, file="/etc/passwd"),
        lambda values: _shard(values, file=7),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, vocabulary: Vocabulary, damage: Any) -> None:
    write(tmp_path / "a", vocabulary)
    path = tmp_path / "a" / MANIFEST
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_shards(tmp_path / "a")


MAPPED = """
import resource, sys
from pathlib import Path
from puna.data.loader import Loader
from puna.data.shards import open_shards
shards = open_shards(Path(sys.argv[1]))
(shard,) = shards.manifest.shards
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens, ends = shards.tokens(shard), shards.ends(shard)
assert len(tokens) == 2_000_000_000 and tokens[::50_000_000].sum() == 0 and ends[0] == 0
loader = Loader(shards, context_length=4096, batch_size=64, seed=0)
assert loader.batch(10**9).sum() == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_shard_is_mapped_not_read(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "a", vocabulary, [[7]])
    path = tmp_path / "a" / MANIFEST
    values = json.loads(path.read_text())
    values = _shard(values, num_tokens=2_000_000_000, num_bytes=4_000_000_008)
    path.write_text(json.dumps(values))
    with open(tmp_path / "a" / "00000.tokens", "wb") as file:
        file.truncate(4_000_000_008)  # sparse: takes no disk
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, tmp_path / "a"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50_000  # KiB
