"""The spans that are found are those of the definition, applied to every pair of places."""

from __future__ import annotations

import numpy as np
import pytest

import puna.evaluate.contamination.overlap as overlap
from puna.evaluate.contamination.overlap import BUDGET, SEED, Overlap

BOS, EOS = 1, 2


def naive(samples: list[list[int]], documents: list[list[int]], length: int) -> list[list[bool]]:
    """Which tokens are contaminated: each place of a sample against each place of the text."""
    found = [[False] * len(sample) for sample in samples]
    for sample, marks in zip(samples, found, strict=True):
        for document in documents:
            for i in range(len(sample)):
                for j in range(len(document)):
                    span = span_at(sample[i:], document[j:])
                    if span >= length:
                        marks[i : i + span] = [True] * span
    return found


def span_at(ours: list[int], theirs: list[int]) -> int:
    if len(ours) < SEED or ours[:SEED] != theirs[:SEED]:
        return 0
    span, missed = SEED, 0
    for place, (x, y) in enumerate(zip(ours[SEED:], theirs[SEED:], strict=False), SEED + 1):
        missed += x != y
        if missed > BUDGET:
            break
        if x == y:
            span = place
    return span


def joined(documents: list[list[int]]) -> np.ndarray:
    return np.array([i for document in documents for i in (BOS, *document, EOS)], np.uint16)


def found(samples: list[list[int]], documents: list[list[int]], length: int) -> list[list[bool]]:
    known = Overlap(samples, (BOS, EOS))
    known.scan(joined(documents))
    flat = known.contaminated(length)
    return [list(map(bool, part)) for part in np.split(flat, known.bounds[1:-1])]


@pytest.mark.parametrize("seed", range(4))
def test_as_the_naive_search(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few different tokens, so that much is the same by chance; chunks and batches are cut up."""
    monkeypatch.setattr(overlap, "_TOKENS", 37)
    monkeypatch.setattr(overlap, "_PAIRS", 5)
    rng = np.random.default_rng(seed)
    documents = [rng.integers(3, 5 + seed, n).tolist() for n in (90, 12, 150, 1)]
    samples = [rng.integers(3, 5 + seed, n).tolist() for n in (40, 9, 10, 0, 60)]
    for _ in range(3):  # what is copied, with some tokens exchanged
        sample = documents[2][int(rng.integers(60)) :][:50]
        for place in rng.integers(12, 50, 5):
            sample[place] = 99
        samples.append(rng.integers(3, 9, 5).tolist() + sample)
    for length in (10, 11, 20, 40):
        assert found(samples, documents, length) == naive(samples, documents, length)
    assert any(map(any, naive(samples, documents, 20)))


def test_by_hand() -> None:
    document = list(range(100, 160))
    sample = [*range(3, 8), *range(110, 130), 5, *range(131, 135), 5, 5, 5, 138, 5, 5]
    # Ten the same, then 130 differs, 135 to 137 differ, 138 is the same, what follows is not.
    (marks,) = found([sample], [document], 10)
    assert marks == [False] * 5 + [True] * 29 + [False] * 2
    assert found([sample], [document], 29) == [marks]
    assert not any(found([sample], [document], 30)[0])


def test_documents_are_apart() -> None:
    sample = list(range(10, 30))
    assert found([sample], [sample[:10], sample[10:]], 10) == [[True] * 20]  # each half is there
    assert found([sample], [sample[:9], sample[9:18]], 10) == [[False] * 20]
    # A mismatch is no way over the end of a document.
    assert found([sample], [sample[:10], sample[12:]], 11) == [[False] * 20]


def test_samples_are_apart() -> None:
    text = list(range(10, 30))
    assert found([text[:9], text[9:18]], [text], 10) == [[False] * 9] * 2
    # What stands before a sample's span is another sample, though the text has it there too.
    assert found([text[:5], text[5:16]], [text], 10) == [[False] * 5, [True] * 11]


def test_shares() -> None:
    known = Overlap([[*range(10, 20), *range(50, 60)], [], [3, 4]], (BOS, EOS))
    known.scan(joined([list(range(10, 20))]))
    assert known.shares(10).tolist() == [0.5, 0.0, 0.0]
    assert known.shares(11).tolist() == [0.0, 0.0, 0.0]
    assert Overlap([], (BOS, EOS)).shares(10).tolist() == []


def test_several_texts_and_what_was_read() -> None:
    sample, read = list(range(10, 40)), list[int]()
    known = Overlap([sample], (BOS, EOS))
    for part in (sample[:15], sample[20:]):
        known.scan(joined([part]), read.append)
    assert known.contaminated(10).tolist() == [True] * 15 + [False] * 5 + [True] * 10
    assert sum(read) == 15 + 10 + 4


def test_a_sample_has_no_bos() -> None:
    with pytest.raises(ValueError, match="holds BOS or EOS"):
        Overlap([[1, 5, 6]], (BOS, EOS))
