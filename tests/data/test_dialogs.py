"""What of a dialog is learned, by hand; what is left out is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puna.chat import Message
from puna.data.dialogs import EncodedDialogs, encode
from puna.data.instructions import Dialog
from puna.tokenizer import Tokenizer


def dialog(*texts: str, weights: tuple[int, ...] = (), system: str = "", place: str = "") -> Dialog:
    """User and assistant in turn; weights of the answers."""
    messages = [
        Message(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)
    ]
    weights = weights or (1,) * (len(texts) // 2)
    learned = [n % 2 == 1 and bool(weights[n // 2]) for n in range(len(texts))]
    if system:
        messages.insert(0, Message("system", system))
        learned.insert(0, False)
    return Dialog(tuple(messages), tuple(learned), place)


def one(tokenizer: Tokenizer, found: Dialog) -> tuple[list[int], list[int]]:
    """Ids, and of them those that are learned."""
    encoded, skipped = encode([found], tokenizer, max_tokens=1000)
    assert len(encoded) == 1 and not skipped.counts
    ids, learned = encoded[0]
    return ids.tolist(), ids[learned].tolist()


def test_answers_and_their_stop_token_are_learned(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("[INST] Who sang? [/INST]", bos=True)
    ids, learned = one(tokenizer, dialog("Who sang?", "The llama."))
    # Meta's format ends an answer with a space, then EOS.
    answer = [*tokenizer.encode("The llama. "), tokenizer.eos_id]
    assert ids == prompt + answer and learned == answer


def test_of_several_turns_each_answer_is_learned(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]", bos=True)
    second = tokenizer.encode("[INST] Who? [/INST]", bos=True)
    hello = [*tokenizer.encode("Hello. "), tokenizer.eos_id]
    inti = [*tokenizer.encode("Inti. "), tokenizer.eos_id]
    turns = ("Hi", "Hello.", "Who?", "Inti.")
    whole = first + hello + second + inti
    expected = {(1, 1): hello + inti, (0, 1): inti, (1, 0): hello}
    for weights, learned in expected.items():
        found = one(tokenizer, dialog(*turns, weights=weights, system="Be kind."))
        assert found == (whole, learned)


def test_what_is_left_out_is_counted(tokenizer: Tokenizer) -> None:
    long = "a llama " * 60
    found, skipped = encode(
        [
            dialog("Hi", "Hello."),
            dialog("Hi", "Hello.", "And?", place="here"),
            dialog("Hi", place="alone"),
            dialog("Hi", "  "),
            dialog(" ", "Hello."),
            dialog("Say [INST]", "No."),
            dialog("Hi", "Half a \ud83e pair."),
            dialog("Hi", "Hello.", weights=(0,)),
            dialog("Hi", long, place="there"),
            dialog("Hi", long, place="not the first"),
            Dialog((Message("assistant", "I begin."),), (True,)),
            Dialog((), ()),
        ],
        tokenizer,
        max_tokens=100,
    )
    assert len(found) == 2 and found[0][0].tolist() == found[1][0].tolist()
    assert skipped.counts == {
        "shortened: the last question has no answer": 1,
        "skipped: user and assistant do not take turns, or nobody answers": 3,
        "skipped: a message is empty": 2,
        "skipped: a message forges a tag of the chat format": 1,
        "skipped: a message is no Unicode text": 1,
        "skipped: no answer is to be learned": 1,
        "skipped: longer than 100 tokens": 2,
    }
    assert "2 dialogs skipped: longer than 100 tokens (first: there)" in skipped.lines()
    assert skipped.first["shortened: the last question has no answer"] == "here"


def test_oldest_turns_are_dropped_with_their_weights(tokenizer: Tokenizer) -> None:
    turns = ("One?", "First answer.", "Two?", "Second.", "Three?", "Third.")
    given = dialog(*turns, weights=(1, 1, 0), system="Be kind.")
    short = dialog(*turns[2:], weights=(1, 0), system="Be kind.")
    expected = one(tokenizer, short)
    found, skipped = encode(
        [given, dialog("Hi", "Hello. " * 99)],
        tokenizer,
        max_tokens=len(expected[0]),
        too_long="drop-turns",
    )
    ids, learned = found[0]
    assert len(found) == 1 and (ids.tolist(), ids[learned].tolist()) == expected
    assert sorted(skipped.counts.values()) == [1, 1]
    assert f"shortened to {len(ids)} tokens: oldest turns dropped" in skipped.counts
    # Where only what is not learned stays, nothing is left.
    found, skipped = encode(
        [given], tokenizer, max_tokens=len(expected[0]) - 1, too_long="drop-turns"
    )
    assert not len(found) and "skipped: no answer is to be learned" in skipped.counts
    with pytest.raises(ValueError, match="too_long is skip or drop-turns"):
        encode([], tokenizer, max_tokens=9, too_long="cut")


def test_saved_and_loaded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found, _ = encode([dialog("a", "b"), dialog("c", "d")], tokenizer, max_tokens=99)
    found.save(tmp_path / "kept")
    again = EncodedDialogs.load(tmp_path / "kept", tokenizer.vocab_size)
    for index in range(2):
        for ours, theirs in zip(found[index], again[index], strict=True):
            assert np.array_equal(ours, theirs)
    with pytest.raises(ValueError, match="other tokenizer"):
        EncodedDialogs.load(tmp_path / "kept", 10)
    np.save(tmp_path / "kept" / "ends.npy", np.array([3, 5]))
    with pytest.raises(ValueError, match="is damaged"):
        EncodedDialogs.load(tmp_path / "kept", tokenizer.vocab_size)
    (tmp_path / "kept" / "ids.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="no readable dialogs"):
        EncodedDialogs.load(tmp_path / "kept", tokenizer.vocab_size)
    with pytest.raises(ValueError, match="no readable dialogs"):
        EncodedDialogs.load(tmp_path / "absent", tokenizer.vocab_size)
