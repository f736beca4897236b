"""What is done faster than datatrove does it, or by many at once, gives what the slow way gives."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.filters import GopherRepetitionFilter

from puna.data.ngrams import HashSet, ngram_hashes
from puna.data.pipeline.contamination import IndexEvaluation
from puna.data.pipeline.duplicates import minhash_signatures
from puna.data.pipeline.repetition import Repetition
from puna.data.pipeline.settings import Decontaminate, Minhash
from puna.data.pipeline.word_hashes import WORD, WordHashes
from puna.data.pipeline.words import Words
from tests.data.corpus import FRENCH, GERMAN, prose, web

ODD = [
    "",
    "\n\n",
    "one",
    "one one",
    "a b c d e",
    "Ça va où? naïve ÅNGSTRÖM 12,5 １２ 3.5.7 x\u0301 \u0301 ",
    "a\u2003b\u00a0c\x1cd\u0301 é \u0301  e\u2028f g h \u200bi",
    "ab c ab c abc a bc abc " * 9,  # the same letters in other words
    "🦙 llama " * 30,
]


def texts() -> list[str]:
    """Prose, what is odd, and texts that repeat themselves more or less."""
    pick = random.Random(1)
    made = [prose(seed, 6) for seed in range(20)] + [page["text"] for page in web()]
    for number in range(160):
        vocabulary = [f"w{i}" * (1 + i % 4) for i in range(pick.choice((2, 5, 20, 60, 200)))]
        words = pick.choices(vocabulary, k=pick.randrange(1, 300))
        for _ in range(pick.randrange(8)):  # some of it again
            begin, length = pick.randrange(len(words)), pick.randrange(1, 15)
            at = pick.randrange(len(words))
            words[at:at] = words[begin : begin + length]
        made.append(pick.choice((" ", " ", "\n", "\n\n", ", ")).join(words))
        if number % 7 == 0:
            made.append(f"{made[-1]}\n\n{made[-2]}\n{prose(number)}")
    return [*made, *ODD, GERMAN, FRENCH]


def test_repetition_is_datatroves() -> None:
    ours, theirs = Repetition(language=Words()), GopherRepetitionFilter(language=Words())
    decisions = [ours.filter(Document(text, "x")) for text in texts()]
    assert decisions == [theirs.filter(Document(text, "x")) for text in texts()]
    reasons = {decision[1] for decision in decisions if isinstance(decision, tuple)}
    assert {"top_2_gram", "top_3_gram", "top_4_gram", "dup_line_frac", "dup_para_frac"} <= reasons
    assert {f"duplicated_{n}_n_grams" for n in (5, 6, 7)} <= reasons


def test_each_rule_of_repetition_is_datatroves() -> None:
    """Alone, and at a limit that many texts are near: a character more or less decides."""
    some = texts()[::4]
    alone = {"dup_line_frac": 0, "dup_para_frac": 0, "dup_line_char_frac": 0,
             "dup_para_char_frac": 0}  # fmt: skip
    drops = 0
    for rule, n in [("top_n_grams", n) for n in (2, 3, 4)] + [
        ("dup_n_grams", 5 + i) for i in range(6)
    ]:
        rules = alone | {"top_n_grams": (), "dup_n_grams": ()} | {rule: ((n, 0.03),)}
        ours = Repetition(**rules, language=Words())
        theirs = GopherRepetitionFilter(**rules, language=Words())
        for text in some:
            decision = theirs.filter(Document(text, "x"))
            assert ours.filter(Document(text, "x")) == decision
            drops += decision is not True
    assert len(some) < drops < 8 * len(some)


@pytest.mark.parametrize("ngram", [1, 5])
def test_signatures_are_datatroves(tmp_path: Path, ngram: int) -> None:
    ours = minhash_signatures(Minhash(ngram=ngram), tmp_path)
    for text in texts():
        shingles, theirs = ours.get_shingles(text), MinhashDedupSignature.get_shingles(ours, text)
        assert shingles.dtype == theirs.dtype and np.array_equal(shingles, theirs)
        if shingles.size:
            signature = MinhashDedupSignature.get_signature(ours, shingles)
            assert ours.get_signature(shingles) == signature
    many = np.random.default_rng(1).integers(0, 1 << 64, (20_000, 1), dtype=np.uint64)
    assert ours.get_signature(many) == MinhashDedupSignature.get_signature(ours, many)
    a, b = (int(values[0, 0]) | 1 for values in ours.parameters)
    ours._parameters = tuple(np.full((1, ours.num_hashes), v, np.uint64) for v in (a, b))
    prime = (1 << 61) - 1  # a hash that is permuted to it is permuted to 0
    edge = np.array([[(prime - b) * pow(a, -1, 1 << 64) % (1 << 64)]], np.uint64)
    assert ours.get_signature(edge)[0][0] == 0
    assert ours.get_signature(edge) == MinhashDedupSignature.get_signature(ours, edge)


def test_a_set_of_hashes_finds_what_it_holds() -> None:
    some = np.random.default_rng(1).integers(0, 1 << 64, 5_000, dtype=np.uint64)
    values, asked = np.unique(some[:3_000]), some[1_000:]
    at, where = HashSet(values).find(asked)
    assert at.tolist() == list(range(2_000))
    assert np.array_equal(values[where], asked[at])
    nothing = HashSet(values[:0]).find(asked)
    assert [len(found) for found in nothing] == [0, 0]
    assert [len(found) for found in HashSet(values).find(asked[:0])] == [0, 0]
    ends = np.array([0, (1 << 64) - 1], np.uint64)
    assert HashSet(ends).find(ends[::-1])[1].tolist() == [1, 0]
    assert [len(found) for found in HashSet(ends[:1]).find(ends[:1] + np.uint64(1))] == [0, 0]


def test_the_evaluation_index_is_that_of_one_text_at_a_time(tmp_path: Path) -> None:
    settings = Decontaminate(evaluation=("eval",), ngram=6, min_ngram=4)
    (tmp_path / "eval").mkdir()
    of_set = {
        "a": [prose(1), "too short", "just these four words", "", prose(2)],
        "b": [prose(3), prose(1), "these are five words here", "just these four words"],
        "c": [prose(4, 9000)],  # more than is hashed at once
        "d": [prose(5), "Just THESE four words"],
    }
    for name, lines in of_set.items():
        (tmp_path / "eval" / f"{name}.txt").write_text("\n".join(lines))
    list(IndexEvaluation(settings, tmp_path, tmp_path / "index").run())
    hashes = WordHashes()
    expected: dict[int, dict[int, int]] = {4: {}, 5: {}, 6: {}}
    for number, lines in enumerate(of_set.values()):
        for line in lines:
            words = hashes.of(WORD.findall(line))
            if (n := min(len(words), 6)) >= 4:
                for gram in ngram_hashes(words, n).tolist():
                    expected[n].setdefault(gram, number)
    for n, known in expected.items():
        values = np.load(tmp_path / "index" / f"hashes-{n}.npy").tolist()
        numbers = np.load(tmp_path / "index" / f"sets-{n}.npy").tolist()
        assert values == sorted(known)
        assert numbers == [known[value] for value in values]
    assert [len(expected[n]) for n in (4, 5)] == [1, 1]
