"""Guesses change how fast tokens come, never which."""

from __future__ import annotations

import random
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import pytest

from puna import LLM, SamplingParams
from puna.engine.engine import Engine
from puna.engine.sampling import adjusted, probabilities
from puna.engine.sequence import Sequence
from puna.engine.speculate import Asked, Drafter, DraftModel, PromptLookup
from puna.tokenizer import Tokenizer
from tests.engine.fakes import HashRunner, logits_after
from tests.engine.test_engine import alone, check, random_request, tokens_of


class Noisy:
    """Knows what follows, mostly: says it, and sometimes something else."""

    def __init__(self, tokenizer: Tokenizer, share: float) -> None:
        self._tokenizer, self._share = tokenizer, share
        self._random = random.Random(0)

    def propose(self, sequences: Many[tuple[Sequence, Asked, int]]) -> None:
        for sequence, asked, room in sequences:
            prompt = sequence.ids[: sequence.prompt_length]
            truth = alone(self._tokenizer, prompt, asked.params, sequence.order[1])
            rest = truth[len(sequence.ids) - sequence.prompt_length :]
            count = min(room, self._random.randrange(6))
            sequence.proposals = [
                token if self._random.random() < self._share else 3 for token in rest[:count]
            ]

    def forget(self, sequence: Sequence) -> None:
        """Nothing is held."""

    def clear(self) -> None:
        """Nothing is held."""


def small_engine(tokenizer: Tokenizer, drafter: Drafter | None, **options: Any) -> Engine:
    runner = HashRunner(20, 4, context=64, vocab=tokenizer.vocab_size + 12)
    return Engine(
        runner, tokenizer, drafter=drafter, **{"max_rows": 20, "max_sequences": 6} | options
    )


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_any_guesses_give_what_each_request_gives_alone(tokenizer: Tokenizer, share: float) -> None:
    generator = random.Random(3)
    engine = small_engine(tokenizer, Noisy(tokenizer, share))
    requests = []
    for _ in range(40):
        requests.append(engine.add(*random_request(generator, tokenizer.vocab_size)))
        engine.step()
        check(engine)
        if generator.random() < 0.1:
            engine.cancel(requests.pop())
    while engine.has_work:
        engine.step()
        check(engine)
    assert engine.num_proposed > 50
    assert (engine.num_accepted > 0) == (share > 0)
    for request in requests:
        for index, found in enumerate(tokens_of(request)):
            assert found == alone(tokenizer, request.prompt_token_ids, request.params, index)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_draft_model_gives_the_same_tokens(tokenizer: Tokenizer, temperature: float) -> None:
    """A draft that is the model itself is always right; one that is another never breaks it."""

    class Other(HashRunner):
        def logits(self, batch: Any) -> Any:
            return np.roll(super().logits(batch), 1, axis=1)

    generator = random.Random(5)
    asked = []
    for _ in range(15):
        ids, params = random_request(generator, tokenizer.vocab_size)
        asked.append((ids, SamplingParams(temperature, seed=7, max_tokens=params.max_tokens)))
    for kind, pages in ((HashRunner, 20), (HashRunner, 8), (Other, 20)):
        runner = kind(pages, 4, context=64, vocab=tokenizer.vocab_size + 12)
        drafter = DraftModel(runner, tokenizer.vocab_size, 3, max_rows=20, max_sequences=6)
        engine = small_engine(tokenizer, drafter)
        requests = [engine.add(ids, params) for ids, params in asked]
        while engine.has_work:
            engine.step()
            check(engine)
        for request, (ids, params) in zip(requests, asked, strict=True):
            assert tokens_of(request) == [alone(tokenizer, ids, params, 0)]
        assert engine.num_proposed > 50
        if kind is HashRunner:
            assert engine.num_accepted > 0.85 * engine.num_proposed
        drafter._pages.check([])


def test_ids_that_the_draft_does_not_know_are_not_guessed_after(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size

    class Strict(HashRunner):
        def logits(self, batch: Any) -> Any:
            assert batch.tokens.max() < size, "there is no such row in the embedding"
            return super().logits(batch)

    draft = Strict(20, 4, context=64, vocab=size)
    drafter = DraftModel(draft, size, 3, max_rows=20, max_sequences=6)
    engine = small_engine(tokenizer, drafter)  # which has rows of padding
    params = SamplingParams(0, max_tokens=12, ignore_eos=True)
    requests = [engine.add(ids, params) for ids in ([1, size + 3], [1, 5])]
    while engine.has_work:
        engine.step()
    for request in requests:
        assert tokens_of(request) == [alone(tokenizer, request.prompt_token_ids, params, 0)]
    assert engine.num_accepted > 0


def test_draws_under_speculation_follow_the_models_distribution(tokenizer: Tokenizer) -> None:
    params = SamplingParams(1.0, top_k=4, max_tokens=2, ignore_eos=True)
    drafter = PromptLookup(4)
    prompt = [1, 5, 6, 5]  # after 5 comes 6, it guesses
    row = logits_after(np.array(prompt, np.int32), tokenizer.vocab_size)
    expected = probabilities(adjusted(row, params, prompt, []), params)
    # The guess must be one of the likely ones, or it never holds.
    likely = int(np.argsort(expected)[-2])
    prompt = [1, 5, likely, 5]
    row = logits_after(np.array(prompt, np.int32), tokenizer.vocab_size + 12)[
        : tokenizer.vocab_size
    ]
    expected = probabilities(adjusted(row, params, prompt, []), params)
    counts, num = np.zeros(tokenizer.vocab_size), 1500
    engine = small_engine(tokenizer, drafter)
    for seed in range(num):
        request = engine.add(prompt, SamplingParams(1.0, top_k=4, max_tokens=2, seed=seed))
        while engine.has_work:
            engine.step()
        counts[tokens_of(request)[0][0]] += 1
    some = expected > 0
    assert not counts[~some].any()
    # Chi-square, 3 degrees of freedom, 0.1 %.
    assert ((counts - expected * num)[some] ** 2 / (expected * num)[some]).sum() < 16.3


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], [3, 4, 1]),
        ([1, 2, 9, 1, 2, 3, 7, 1, 2], [3, 7, 1]),  # the latest
        ([5, 2, 8, 4, 2, 7, 5, 2], [8, 4, 2]),  # the longest
        ([1, 2, 3], []),
        ([4, 4], [4]),
        ([4], []),
    ],
    ids=str,
)
def test_prompt_lookup(ids: list[int], expected: list[int]) -> None:
    sequence = Sequence((0, 0), ids, 1)
    PromptLookup(3).propose([(sequence, None, 9)])  # type: ignore[list-item]
    assert sequence.proposals == expected
    PromptLookup(3).propose([(sequence, None, 1)])  # type: ignore[list-item]
    assert sequence.proposals == expected[:1]


def test_models_draft_for_each_other(tokenizer: Tokenizer, tmp_path: Any) -> None:
    from puna.formats import open_checkpoint, save_checkpoint
    from puna.hub.locate import shipped_path

    small = tmp_path / "small.gguf"
    save_checkpoint(open_checkpoint(shipped_path("cria")), small, "gguf", dtype="q4_0")
    params = SamplingParams(seed=1, max_tokens=60)
    prompts = ["Once upon a time", "The dog"]
    expected = [result.outputs for result in LLM("cria").generate(prompts, params)]
    for draft in ("prompt-lookup", small):
        llm = LLM("cria", draft=draft)
        assert [result.outputs for result in llm.generate(prompts, params)] == expected
        assert llm.engine.num_accepted > 0
    assert llm.engine.num_accepted > 0.5 * llm.engine.num_proposed


def test_a_draft_of_another_vocabulary_is_refused(tmp_path: Any) -> None:
    from puna.formats.network import as_checkpoint
    from puna.tokenizer.train import train
    from tests.samples import random_model, small_config, story_lines

    vocabulary = train(story_lines(300), vocab_size=400, num_threads=1)
    other = as_checkpoint(random_model(small_config(vocab_size=400)), tmp_path, vocabulary)
    with pytest.raises(ValueError, match="cannot draft"):
        LLM("cria", draft=other)
