"""Pairs as token ids: what a batch holds, in which order, what does not fit; mixes and folds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from puna.chat import Message, encode_dialog
from puna.data import pairs as rows
from puna.data.pairs import EncodedPairs, PairBatches, encode_pairs, trimmed
from puna.data.preference_mix import folds, mixed, split_by_prompt
from puna.data.preferences import Comparison
from puna.tokenizer import Tokenizer


def comparison(number: int, answer: str = "A llama.", **facts: object) -> Comparison:
    prompt = (Message("user", f"Who is {number}?"),)
    return Comparison(prompt, answer, f"Nobody {'at all ' * (number % 3)}.", **facts)  # type: ignore[arg-type]


def test_a_row_holds_a_dialog_and_what_was_said_of_it(tokenizer: Tokenizer) -> None:
    given = [
        comparison(1, rating="slightly_better", chosen_safe=True, rejected_safe=False),
        comparison(2),
    ]
    encoded, counts = encode_pairs(given, tokenizer, max_tokens=64)
    assert len(encoded) == 2 and not counts
    batch = encoded.rows([0, 1])
    for pair, each in zip(batch, given, strict=True):
        for row, dialog in zip(pair, each.dialogs(), strict=True):
            expected = encode_dialog(tokenizer, dialog)
            length = row[rows.LENGTH]
            assert row[rows.HEADER :][:length].tolist() == expected.ids
            assert row[rows.HEADER + length - 1] == tokenizer.vocabulary.eos_id
            assert not row[rows.HEADER + length :].any()
            begin = row[rows.ANSWER]
            assert expected.loss_mask == [n >= begin for n in range(length)]
    assert batch[:, 0, rows.RATING].tolist() == [2, -1]
    assert batch[:, :, rows.SAFE].tolist() == [[1, 0], [-1, -1]]
    assert batch.shape[2] == rows.HEADER + batch[:, :, rows.LENGTH].max()


def test_long_dialogs_lose_their_oldest_turns(tokenizer: Tokenizer) -> None:
    turns = [Message("user", "The first question."), Message("assistant", "Its answer."),
             Message("user", "The second?")]  # fmt: skip
    long = Comparison(tuple(turns), "Yes. " * 6, "No.")
    whole, counts = encode_pairs([long], tokenizer, max_tokens=200)
    assert not counts
    length = len(whole.dialog(0))
    short, counts = encode_pairs([long], tokenizer, max_tokens=length - 1)
    assert counts == {rows.SHORTENED: 1}
    last = [turns[2], Message("assistant", "No.")]
    assert short.dialog(1).tolist() == encode_dialog(tokenizer, last).ids
    none, counts = encode_pairs([long], tokenizer, max_tokens=10)
    assert counts == {rows.TOO_LONG: 1} and len(none) == 0 and none.pieces(4) == []
    # Where the answer begins is of the last one, not of those in the prompt.
    ids, begin = whole.dialog(1), whole.answers[1]
    assert tokenizer.decode(ids[begin:-1].tolist()).strip() == "No."


def test_saved_and_damaged(tmp_path: Path, tokenizer: Tokenizer) -> None:
    encoded, _ = encode_pairs(map(comparison, range(5)), tokenizer, max_tokens=64)
    reference = np.linspace(-40, -1, 10).reshape(5, 2)
    for number, pairs in enumerate((encoded, encoded.with_reference(reference))):
        pairs.save(tmp_path / f"{number}")
        again = EncodedPairs.load(tmp_path / f"{number}", 420)
        assert np.array_equal(again.rows(range(5)), pairs.rows(range(5)))
    bits = again.rows([3])[0, :, rows.REFERENCE]
    assert np.array_equal(bits.view(np.float64), reference[3])
    with pytest.raises(ValueError, match="ids that are none of 30: other tokenizer"):
        EncodedPairs.load(tmp_path / "0", 30)
    np.save(tmp_path / "0" / "answers.npy", again.answers * 0)
    with pytest.raises(ValueError, match="ends do not fit their answers"):
        EncodedPairs.load(tmp_path / "0", 420)
    np.save(tmp_path / "0" / "facts.npy", again.facts[:4])
    with pytest.raises(ValueError, match="files do not fit each other"):
        EncodedPairs.load(tmp_path / "0", 420)
    (tmp_path / "1" / "ids.npy").unlink()
    with pytest.raises(ValueError, match="holds no readable pairs"):
        EncodedPairs.load(tmp_path / "1", 420)


def test_batches_are_each_pair_once_and_prompts_together(tokenizer: Tokenizer) -> None:
    given = [comparison(number // 3, f"A llama {number}.") for number in range(24)]
    encoded, _ = encode_pairs(given, tokenizer, max_tokens=64)

    def ids(batch: np.ndarray) -> list[bytes]:  # type: ignore[type-arg]
        return [row[rows.HEADER :][: row[rows.LENGTH]].tobytes() for row in batch[:, 0]]

    batches = PairBatches(encoded, batch_size=6, seed=1)
    epochs = [[ids(batches.batch(step)) for step in range(at, at + 4)] for at in (0, 4)]
    everything = Counter(encoded.dialog(2 * n).astype(np.int64).tobytes() for n in range(24))
    for epoch in epochs:
        assert Counter(each for batch in epoch for each in batch) == everything
    assert epochs[0] != epochs[1] and ids(batches.batch(2)) == epochs[0][2]
    # Two prompts of three pairs are a batch.
    assert all(np.unique(encoded.prompts[encoded.groups[n]]).size == 1 for n in range(8))
    prompts = {row: int(p) for row, p in zip(everything, encoded.prompts, strict=True)}
    assert [len({prompts[row] for row in batch}) for batch in epochs[0]] == [2] * 4
    # Ranks have shares of the same batch.
    halves = [PairBatches(encoded, batch_size=6, seed=1, rank=r, num_ranks=2) for r in (0, 1)]
    for step in range(3):
        shared = [row for half in halves for row in ids(half.batch(step))]
        assert Counter(shared) == Counter(ids(batches.batch(step)))


def test_pieces_have_no_more_padding_than_they_need(tokenizer: Tokenizer) -> None:
    given = [comparison(number, "A llama. " * (number % 4 + 1)) for number in range(12)]
    encoded, _ = encode_pairs(given, tokenizer, max_tokens=90)
    pieces = trimmed(PairBatches(encoded, batch_size=12, seed=0).batch(0), 4)
    assert [len(piece) for piece in pieces] == [4, 4, 4]
    lengths = [piece[:, :, rows.LENGTH].max() for piece in pieces]
    assert [piece.shape[2] - rows.HEADER for piece in pieces] == lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    found = [piece.shape for piece in encoded.pieces(5)]
    assert [shape[0] for shape in found] == [5, 5, 2]


def test_the_papers_mixes() -> None:
    own, others = [comparison(n) for n in range(90)], [comparison(n) for n in range(100, 300)]
    helpful = mixed("helpfulness", own, others, seed=0)
    assert helpful[:90] == own and len(helpful) == 180
    drawn = helpful[90:]
    assert len(set(drawn)) == 90 and set(drawn) <= set(others)
    assert drawn != mixed("helpfulness", own, others, seed=1)[90:]
    safety = mixed("safety", own, others, seed=0)
    assert len(safety) == 100  # 90 and 10 of a hundred
    assert len(mixed("helpfulness", own, others[:7], seed=0)) == 97
    with pytest.raises(ValueError, match="no kind 'x' of reward model; there are: helpfulness"):
        mixed("x", own, others, seed=0)


def test_a_prompt_is_on_one_side() -> None:
    given = [comparison(number // 6, f"{number}") for number in range(60)]
    rest, held_out = split_by_prompt(given, 14, seed=3)
    assert len(held_out) == 18 and len(rest) == 42  # whole prompts
    assert not {each.prompt for each in rest} & {each.prompt for each in held_out}
    assert held_out != split_by_prompt(given, 14, seed=4)[1]
    assert split_by_prompt(given, 0, seed=3) == (given, [])
    parts = folds(given, 4, seed=0)
    assert sorted(each.chosen for part in parts for each in part) == sorted(
        each.chosen for each in given
    )
    assert [len(part) for part in parts] == [18, 18, 12, 12]
    prompts = [{each.prompt for each in part} for part in parts]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 10
