"""Which replica is asked, what of a second answer is new, and sums: without Ray."""

from __future__ import annotations

import pickle
from itertools import count

import pytest

from puna.engine.async_llm import EngineStoppedError
from puna.engine.output import Completion, Delta, RequestOutput
from puna.engine.params import SamplingParams
from puna.engine.prompts import EncodedPrompt
from puna.engine.sampling import TokenLogprobs
from puna.engine.statistics import Statistics
from puna.serve.replicas.affinity import Affinity, chosen, prefix_keys
from puna.serve.replicas.delivered import Delivered, total
from puna.serve.replicas.worker import Job

PROMPT = list(range(100, 148))  # three pages


def test_prompts_that_begin_alike_share_keys() -> None:
    keys = prefix_keys(PROMPT)
    assert len(keys) == 3
    assert prefix_keys(PROMPT[:47]) == keys[:2]
    assert prefix_keys(PROMPT[:32] + [5] * 16)[:2] == keys[:2]
    assert prefix_keys(PROMPT[:32] + [5] * 16)[2] != keys[2]
    assert not set(keys) & set(prefix_keys([5, *PROMPT[1:]]))
    assert prefix_keys(PROMPT[:15]) == []


def test_an_adapter_has_keys_of_its_own() -> None:
    long = "x" * 100  # longer than what a key of BLAKE2 may be
    names = [None, "a", "b", long + "a", long + "b"]
    keys = [key for name in names for key in prefix_keys(PROMPT, name)]
    assert len(set(keys)) == len(keys) == 15


def test_ids_that_no_model_has_are_no_prefix() -> None:
    assert prefix_keys([2**40] * 32) == []


@pytest.mark.parametrize(
    ("pages", "requests", "expected"),
    [
        ({}, {"a": 1, "b": 0}, "b"),  # nobody has it: the least busy
        ({}, {"a": 1, "b": 1}, "a"),  # equal: the first
        ({"a": 3}, {"a": 0, "b": 0}, "a"),
        ({"a": 3, "b": 1}, {"a": 2, "b": 0}, "a"),  # a little busier: still
        ({"a": 3}, {"a": 3, "b": 0}, "b"),  # much busier
        ({"a": 3}, {"a": 12, "b": 5}, "a"),
        ({"a": 3}, {"a": 13, "b": 5}, "b"),
        ({"a": 3, "b": 2}, {"a": 9, "b": 1, "c": 0}, "b"),  # second best, and free
        ({"a": 3, "b": 3}, {"a": 2, "b": 1}, "b"),  # both: the less busy
        ({"gone": 3}, {"a": 0}, "a"),
    ],
)
def test_the_choice(pages: dict[str, int], requests: dict[str, int], expected: str) -> None:
    assert chosen(pages, requests) == expected


def test_a_prompt_goes_where_its_beginning_went() -> None:
    affinity, number = Affinity(), count()

    def ask(tokens: list[int]) -> str:
        request = str(next(number))
        replica = affinity.choose(request, prefix_keys(tokens), ["a", "b"])
        affinity.end(request)
        return replica

    others = [[n] * 48 for n in range(10)]
    first = [ask(tokens) for tokens in others]
    assert first == ["a", "b"] * 5  # in turn
    assert [ask([*tokens, 7, 7]) for tokens in others] == first


def test_a_busy_replica_passes_on_and_both_have_it() -> None:
    affinity, keys = Affinity(), prefix_keys(PROMPT)
    went = [affinity.choose(str(n), keys, ["a", "b"]) for n in range(8)]
    assert went == ["a", "a", "a", "b", "b", "b", "a", "b"]


def test_where_a_request_went_in_the_end_counts() -> None:
    affinity, keys = Affinity(), prefix_keys(PROMPT)
    assert affinity.choose("1", keys, ["a", "b"]) == "a"
    affinity.give("1", keys, "b")
    affinity.end("1")
    affinity.forget("a")
    assert affinity.choose("2", keys, ["a", "b"]) == "b"


def test_a_request_that_is_asked_again_counts_once() -> None:
    affinity = Affinity()
    for _ in range(5):
        affinity.choose("again", [], ["a"])
    affinity.choose("2", [], ["a", "b"])
    assert affinity.choose("3", prefix_keys(PROMPT), ["a", "b"]) in "ab"
    affinity.end("again")
    assert affinity.choose("4", [], ["a", "b"]) == "a"


def test_a_dead_replica_is_forgotten() -> None:
    affinity, keys = Affinity(), prefix_keys(PROMPT)
    assert affinity.choose("1", keys, ["a", "b"]) == "a"
    affinity.forget("a")
    # It comes again under the same name: nothing is there, and nothing runs.
    assert affinity.choose("2", [], ["b", "a"]) == "b"
    assert affinity.choose("3", keys, ["b", "a"]) == "a"


def test_what_is_remembered_is_bounded() -> None:
    affinity = Affinity(max_keys=4)
    affinity.choose("1", prefix_keys(PROMPT), ["a"])
    affinity.choose("2", prefix_keys([5] * 48), ["b"])
    for request in "12":
        affinity.end(request)
    # Of the older one the first page is left.
    assert affinity.choose("3", prefix_keys(PROMPT), ["b", "a"]) == "a"


def delta(text: str, index: int = 0, reason: str | None = None) -> Delta:
    """A token for each two characters, with log-probabilities; the last may have one."""
    tokens = tuple(ord(char) for char in text[::2])
    logprobs = tuple(TokenLogprobs(token, -1.0, 1, ()) for token in tokens)
    return Delta(index, text, tokens, logprobs, reason)


def rests(delivered: Delivered, *deltas: Delta) -> list[Delta | None]:
    delivered.again()
    return [delivered.rest(each) for each in deltas]


def test_what_was_told_is_not_told_again() -> None:
    delivered = Delivered()
    first = [delta("aabb"), delta("xx", 1), delta("cc")]
    assert rests(delivered, *first) == first
    # The same, but for where its parts begin and end.
    assert rests(delivered, delta("aa"), delta("bbccdd"), delta("xxyy", 1)) == [
        None, delta("dd"), delta("yy", 1),
    ]  # fmt: skip
    assert rests(delivered, delta("aabbccdd"), delta("ee")) == [None, delta("ee")]


def test_an_output_ends_once() -> None:
    delivered = Delivered()
    first = [delta("aa"), Delta(0, "", (), (), "length"), delta("xx", 1)]
    assert rests(delivered, *first) == first
    assert rests(delivered, delta("aa", reason="length"), delta("xxyy", 1, "stop")) == [
        None, delta("yy", 1, "stop"),
    ]  # fmt: skip


def test_text_that_was_held_back_comes_with_its_token() -> None:
    delivered = Delivered()
    held = Delta(0, "", (1, 2))
    assert rests(delivered, held) == [held]
    assert rests(delivered, Delta(0, "abc", (1, 2, 3))) == [Delta(0, "abc", (3,))]
    assert rests(delivered, held, Delta(0, "abc", (3,)), Delta(0, "", ())) == [None] * 3


@pytest.mark.parametrize("other", [Delta(0, "aa", (1,)), Delta(0, "ab", (97,))])
def test_another_answer_is_no_continuation(other: Delta) -> None:
    delivered = Delivered()
    assert rests(delivered, delta("aa")) == [delta("aa")]
    with pytest.raises(EngineStoppedError, match="goes on differently"):
        rests(delivered, other)


def test_statistics_of_the_dead_count_as_work_done() -> None:
    living, dead = (
        Statistics(1, 2, 10, 3, 100, 50, 1, 7, 5),
        Statistics(4, 4, 10, 9, 30, 8, 2, 2, 1),
    )
    assert total([living], [living, dead]) == Statistics(1, 2, 10, 3, 130, 58, 3, 9, 6)
    assert total([], []) == Statistics(*[0] * 9)


def test_what_goes_between_processes_can() -> None:
    params = SamplingParams(seed=3, stop=("x",), logit_bias={1: 2.0}, json_schema={"type": "null"})
    logprobs = TokenLogprobs(1, -0.5, 1, ((1, -0.5),))
    for each in (
        Job(EncodedPrompt([1, 2], "a", True, ("b",)), params, "adapter"),
        Delta(0, "a", (1,), (logprobs,), "stop"),
        RequestOutput("a", [1], [Completion(0, "b", [2], [logprobs])], [None], 16),
    ):
        assert pickle.loads(pickle.dumps(each)) == each
