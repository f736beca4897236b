"""The loader: exact, resumable anywhere, and the same for any number of ranks."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.data.loader import Loader
from puna.data.prefetch import Prefetched
from puna.data.shards import ShardSet, ShardWriter, join_shards, open_shards
from puna.data.windows import Windows
from puna.tokenizer import Vocabulary
from puna.tokenizer.vocabulary import padded

CONTEXT = 8
RANKS = (1, 2, 3, 4, 8)
SIZES = {"web": 700, "books": 311, "facts": 64}  # tokens, with those that part documents


def build(folder: Path, vocabulary: Vocabulary, *, max_tokens: int = 50) -> ShardSet:
    """Sources in which each id stands once, in documents of many lengths."""
    large = padded(vocabulary, 4096)
    generator = random.Random(5)
    next_id = 500
    for source, size in SIZES.items():
        with ShardWriter(
            folder / source, large, source=source, licence="CC0", max_tokens_per_shard=max_tokens
        ) as writer:
            while size > 2:
                length = min(generator.choice([1, 2, 5, 30, 90]), size - 2)
                writer.add(range(next_id, next_id + length))
                next_id += length
                size -= length + 2
    join_shards(folder, list(SIZES))
    return open_shards(folder, large)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> ShardSet:
    return build(tmp_path_factory.mktemp("shards"), vocabulary)


def loader(shards: ShardSet, **changes: Any) -> Loader:
    options: dict[str, Any] = {"context_length": CONTEXT, "batch_size": 24, "seed": 7}
    return Loader(shards, **options | changes)


def stream(shards: ShardSet, source: str) -> list[int]:
    """All tokens of a source, read shard by shard."""
    own = [shard for shard in shards.manifest.shards if shard.source == source]
    return [token for shard in own for token in shards.tokens(shard).tolist()]


def test_windows_cover_a_source_and_may_span_shards(shards: ShardSet) -> None:
    for source in SIZES:
        tokens, windows = stream(shards, source), Windows(shards, source, CONTEXT)
        assert windows.num_tokens == len(tokens)
        assert len(windows) == (len(tokens) - 1) // CONTEXT
        for index in range(len(windows)):
            begin = index * CONTEXT
            assert windows[index].tolist() == tokens[begin : begin + CONTEXT + 1]
        for wrong in (-1, len(windows)):
            with pytest.raises(IndexError):
                windows[wrong]


def test_batches_do_not_depend_on_where_shards_end(
    tmp_path: Path, shards: ShardSet, vocabulary: Vocabulary
) -> None:
    few = build(tmp_path, vocabulary, max_tokens=1 << 20)
    assert len(few.manifest.shards) == 3 < len(shards.manifest.shards)
    for step in range(6):
        assert np.array_equal(loader(few).batch(step), loader(shards).batch(step))


def test_an_epoch_has_every_target_once(shards: ShardSet) -> None:
    # By default each source is as heavy as it is long: all epochs end with the same window.
    whole = loader(shards, batch_size=1)
    counts = {source: len(Windows(shards, source, CONTEXT)) for source in SIZES}
    epoch = sum(counts.values())
    assert whole.counts(epoch) == counts and whole.counts(3 * epoch) == {
        source: 3 * count for source, count in counts.items()
    }
    orders = []
    for number in range(3):
        rows = [whole.batch(number * epoch + step)[0] for step in range(epoch)]
        orders.append([int(row[0]) for row in rows])
        targets = Counter(token for row in rows for token in row[1:].tolist())
        expected: Counter[int] = Counter()
        for source, count in counts.items():
            expected.update(stream(shards, source)[1 : count * CONTEXT + 1])
        assert targets == expected
    assert orders[0] != orders[1] != orders[2]


def test_the_mix_is_exact_at_every_step(shards: ShardSet) -> None:
    mix = {"web": 0.5, "books": 0.3, "facts": 0.2}  # facts are up-sampled
    mixed = loader(shards, mix=mix)
    sources = {token: source for source in SIZES for token in stream(shards, source) if token > 2}
    seen: Counter[str] = Counter()
    for step in range(60):
        assert mixed.counts(step) == {source: seen[source] for source in SIZES}
        for row in mixed.batch(step):
            (source,) = {sources[token] for token in row.tolist() if token > 2}
            seen[source] += 1
        for source, weight in mix.items():
            assert abs(seen[source] - Fraction(str(weight)) * 24 * (step + 1)) < 2
    assert seen == {"web": 720, "books": 432, "facts": 288}
    assert loader(shards, mix=mix | {"web": 0}).sources == ("books", "facts")


def test_a_source_keeps_its_order_in_every_mix(shards: ShardSet) -> None:
    def of_books(mix: dict[str, float]) -> list[int]:
        mixed = loader(shards, mix=mix)
        places = map(mixed.place, range(600))
        return [index for source, index in places if source == "books"][:100]

    assert of_books({"web": 1, "books": 1, "facts": 1}) == of_books(
        {"web": 0, "books": 5, "facts": 2}
    )


def test_ranks_share_the_batch_of_one(shards: ShardSet) -> None:
    alone = loader(shards)
    for num_ranks in RANKS:
        ranks = [loader(shards, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        for step in (0, 1, 17, 100_000):
            shares = [rank.batch(step) for rank in ranks]
            assert {len(share) for share in shares} == {24 // num_ranks}
            assert np.array_equal(np.concatenate(shares), alone.batch(step))


def test_resumed_anywhere_with_other_ranks_nothing_is_repeated_or_skipped(
    shards: ShardSet,
) -> None:
    generator = random.Random(3)
    expected = [loader(shards).batch(step) for step in range(30)]
    for _ in range(8):
        found: list[Any] = []
        while len(found) < 30:  # a run of some steps, then a new start with another layout
            num_ranks = generator.choice(RANKS)
            ranks = [loader(shards, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
            for _ in range(generator.randrange(1, 9)):
                step = len(found)
                found.append(np.concatenate([rank.batch(step) for rank in ranks]))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=False))
    # Within the epoch, the steps together draw each window once.
    whole = loader(shards)
    epoch = sum(len(Windows(shards, source, CONTEXT)) for source in SIZES)
    assert len({whole.place(number) for number in range(epoch)}) == epoch


def test_a_change_of_batch_size_goes_on_where_it_was(shards: ShardSet) -> None:
    constant = loader(shards, batch_size=8)
    changed = loader(shards, batch_size=[(0, 8), (3, 24), (5, 16)], rank=1, num_ranks=2)
    other = loader(shards, batch_size=[(0, 8), (3, 24), (5, 16)], rank=0, num_ranks=2)
    rows = np.concatenate([constant.batch(step) for step in range(13)])
    at = 0
    for step, size in enumerate([8, 8, 8, 24, 24, 16]):
        both = np.concatenate([other.batch(step), changed.batch(step)])
        assert np.array_equal(both, rows[at : at + size])
        at += size
    assert sum(changed.counts(6).values()) == at


def test_ranks_over_which_earlier_batches_do_not_divide(shards: ShardSet) -> None:
    sizes = [(0, 9), (3, 24)]
    more = [loader(shards, batch_size=sizes, rank=rank, num_ranks=4) for rank in range(4)]
    both = np.concatenate([rank.batch(4) for rank in more])
    assert np.array_equal(both, loader(shards, batch_size=sizes).batch(4))
    with pytest.raises(ValueError, match=r"9 windows .from step 2 on. does not divide over 4"):
        more[0].batch(2)


def test_held_out_windows_are_the_last_of_each_source_and_hidden(shards: ShardSet) -> None:
    hiding = loader(shards, num_held_out=3)
    hidden = set()
    for source, windows in hiding.held_out().items():
        every = Windows(shards, source, CONTEXT)
        last = range(len(every) - 3, len(every))
        assert windows.tolist() == [every[index].tolist() for index in last]
        hidden |= {(source, index) for index in last}
    trained = {hiding.place(number) for number in range(400)}
    assert len(trained) == 132 - 9 and not trained & hidden
    nothing = loader(shards).held_out()
    assert {source: rows.shape for source, rows in nothing.items()} == dict.fromkeys(
        SIZES, (0, CONTEXT + 1)
    )


def test_seeds_differ(shards: ShardSet) -> None:
    first, again = loader(shards).batch(0), loader(shards).batch(0)
    assert np.array_equal(first, again) and first.dtype == np.int64
    assert not np.array_equal(first, loader(shards, seed=8).batch(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "must be positive"),
        ({"num_ranks": 5}, "24 windows .* does not divide over 5 ranks"),
        ({"batch_size": [(0, 24), (9, 25)], "num_ranks": 2}, "25 windows .from step 9 on"),
        ({"rank": 2, "num_ranks": 2}, "rank 2 is not one of 2"),
        ({"batch_size": []}, "from step 0 on"),
        ({"batch_size": [(1, 8)]}, "from step 0 on"),
        ({"batch_size": [(0, 8), (0, 9)]}, "from step 0 on"),
        ({"batch_size": 200}, "132 windows of 8 to train on; a batch needs 200"),
        ({"num_held_out": 7}, "source facts has 7 windows of 8, and 7 are held out"),
        ({"mix": {"web": 1, "books": 1}}, "says nothing of facts"),
        ({"mix": {"web": 1, "code": 1, "books": 1, "facts": 1}}, "no such source as code"),
        ({"mix": {"web": 0, "books": 0, "facts": 0}}, "leaves out every source"),
        ({"mix": {"web": -1, "books": 0, "facts": 0}}, "weight of web is -1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(
    shards: ShardSet, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loader(shards, **changes)


def test_no_documents_at_all(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with ShardWriter(tmp_path / "none", vocabulary, source="s", licence="l"):
        pass
    with pytest.raises(ValueError, match="no documents"):
        loader(open_shards(tmp_path / "none"))


def test_another_vocabulary(shards: ShardSet, vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="another vocabulary"):
        open_shards(shards.folder, replace(padded(vocabulary, 4096), add_space_prefix=False))


def test_prefetching_changes_nothing(shards: ShardSet) -> None:
    plain = loader(shards)
    ahead = Prefetched(loader(shards).batch, depth=3)
    for step in (0, 1, 2, 3, 9, 10, 4, 4, 5):
        assert np.array_equal(ahead(step), plain.batch(step))
    ahead.close()


def test_prefetching_is_ahead_and_raises_at_its_step() -> None:
    made: list[int] = []
    third = threading.Event()

    def make(step: int) -> int:
        if step == 4:
            raise ValueError("shard 4 is corrupt")
        made.append(step)
        if step == 2:
            third.set()
        return step

    ahead = Prefetched(make, depth=2)
    assert ahead(0) == 0
    assert third.wait(10)  # made without having been asked for
    assert made == [0, 1, 2]
    assert [ahead(step) for step in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="shard 4 is corrupt"):
        ahead(4)
    ahead.close()
