"""Likelihoods of endings: against transformers and a plain loop, with everything run once."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from puna import LLM
from puna.engine.batch import Batch
from puna.engine.endings import Likelihood
from puna.engine.engine import Engine
from puna.engine.params import SamplingParams
from puna.engine.request import Request
from puna.engine.sampling import logprobs_of
from puna.formats import open_checkpoint
from puna.formats.network import load_model
from puna.hub.locate import shipped_path
from puna.tokenizer import Tokenizer
from tests.engine.fakes import SHIFT, logits_after, mark
from tests.engine.test_embed import GREEDY, STORY, unused, watched
from tests.engine.test_engine import alone, check, engine_of, run, tokens_of
from tests.samples import transformers_twin

ENDINGS = ("The end.", "It sang", "a", "Tim and Anna went to the river to count 370 sheep")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("cria", dtype="fp32")


def rows_of(batches: list[Batch]) -> int:
    return sum(len(batch.tokens) for batch in batches)


@torch.inference_mode()
def test_log_probabilities_of_transformers(llm: LLM) -> None:
    twin = transformers_twin(load_model(open_checkpoint(shipped_path("cria"))))
    context = llm.tokenizer.encode(STORY * 3, bos=True)
    (written,) = llm.generate([context], GREEDY)
    endings = [llm.tokenizer.encode(text) for text in ENDINGS]
    endings += [written.outputs[0].token_ids, written.outputs[0].token_ids[:1]]
    (found,) = llm.likelihoods([context], [endings])
    for ids, each in zip(endings, found, strict=True):
        logprobs = twin(torch.tensor([context + ids])).logits[0].log_softmax(-1)
        rows = logprobs[len(context) - 1 : -1]
        expected = rows.gather(1, torch.tensor(ids)[:, None]).double().sum().item()
        assert each.logprob == pytest.approx(expected, abs=1e-4)
        assert each.is_greedy == (rows.argmax(-1).tolist() == ids)
    assert [each.is_greedy for each in found[-2:]] == [True, True] and not found[0].is_greedy


def test_nothing_is_run_twice(llm: LLM) -> None:
    """Not the context for its endings, nor what contexts begin with alike, nor the last tokens."""
    begin = llm.tokenizer.encode(STORY * 5, bos=True)[: 16 * 4]
    contexts = [[*begin, *range(300, 300 + count)] for count in (3, 9, 5)]
    endings = [[[7, 8, 9], [7], [8]], [[9]], [[7, 8]]]
    llm.engine.weights_changed()
    with watched(llm) as batches:
        together = llm.likelihoods(contexts, endings)
    assert rows_of(batches) == 64 + (3 + 9 + 5) + (2 + 1)
    assert sum(len(batch.outputs) for batch in batches) == 3 + (2 + 1)
    for context, own, each in zip(contexts, endings, together, strict=True):
        llm.engine.weights_changed()
        assert llm.likelihoods([context], [own]) == [each]
    assert unused(llm)


@pytest.mark.parametrize(
    ("contexts", "endings", "words"),
    [
        ([[1, 2]], [[[5], []]], "there is no ending, or one has no tokens"),
        ([[1, 2]], [[]], "there is no ending"),
        ([[]], [[[5]]], "the prompt has no tokens"),
        ([[1, 2]], [[[5, 999_999]]], "an ending has token 999999, the model knows 0 to"),
        ([[1, 2]], [[[999_999, 5]]], "token 999999"),
        ([[1] * 512], [[[5, 6]]], "the prompt has 513 tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    llm: LLM, contexts: Any, endings: Any, words: str
) -> None:
    with watched(llm) as batches, pytest.raises(ValueError, match=words):
        llm.likelihoods(contexts, endings)
    assert unused(llm) and not batches


def test_context_and_ending_may_fill_the_models_context(llm: LLM) -> None:
    context = [1, *[300] * 509]
    (found,) = llm.likelihoods([context], [[[5, 6, 7], [5, 6, 8]]])
    assert found[0] != found[1]


def weighed(engine: Engine, request: Request) -> list[Likelihood]:
    """What a `HashRunner` gives: a plain loop over each ending."""
    vocab, shift = engine.runner.config.vocab_size, SHIFT if request.adapter else 0
    assert request.endings is not None
    found = []
    for ids in request.endings.ids:
        seen, each = list(request.prompt_token_ids), []
        for token in ids:
            row = logits_after(np.array(seen, np.int32) + shift, vocab)
            each.append(logprobs_of(row[: engine.tokenizer.vocab_size], token, 0))
            seen.append(token)
        ranks = [one.rank for one in each]
        found.append(Likelihood(sum(one.logprob for one in each), set(ranks) == {1}))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_sequences": 1, "max_rows": 2},
        {"num_pages": 200, "max_rows": 64},
        {"page_size": 1, "num_pages": 64, "max_sequences": 5},
    ],
    ids=str,
)
def test_any_mix_gives_what_each_gives_alone(tokenizer: Tokenizer, options: Any) -> None:
    """With prompts that write, cancellations and new weights' restarts, in few pages."""
    generator = random.Random(4)
    engine = engine_of(tokenizer, **{"max_rows": 9, "max_sequences": 8} | options)
    engine.load_adapter("one", mark(1))
    kept: list[Request] = []
    cancelled = 0
    while len(kept) < 60:
        if len(engine.scheduler.waiting) < 10:
            ids = [1] + [generator.choice([5, 6]) for _ in range(generator.randrange(20))]
            if generator.random() < 0.3:
                params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
                kept.append(engine.add(ids, params))
            else:
                endings = [
                    [generator.choice([5, 6, 7]) for _ in range(generator.randrange(1, 12))]
                    for _ in range(generator.randrange(1, 5))
                ]
                adapter = generator.choice([None, "one"])
                kept.append(engine.add_endings(ids, endings, adapter=adapter))
        engine.step()
        check(engine)
        if cancelled < 10 and generator.random() < 0.1:
            engine.cancel(kept.pop(generator.randrange(len(kept))))
            cancelled += 1
            check(engine)
        if generator.random() < 0.03:
            engine.weights_changed()
    run(engine)
    assert engine.pages.num_available == engine.pages.num_pages
    for request in kept:
        if request.endings is not None:
            assert request.likelihoods() == weighed(engine, request)
        else:
            (tokens,) = tokens_of(request)
            assert tokens == alone(tokenizer, request.prompt_token_ids, request.params, 0)


def test_a_prompt_waits_for_one_that_runs_its_beginning(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, max_rows=8, max_sequences=6)
    params = SamplingParams(temperature=0, max_tokens=1)
    prompts = [[1, *range(5, 24), last] for last in (50, 60, 70)]
    requests = [engine.add(ids, params) for ids in [*prompts, [1, 9]]]
    engine.step()
    assert len(engine.scheduler.running) == 1 and len(engine.scheduler.waiting) == 3
    run(engine)
    assert [request.num_cached_tokens for request in requests] == [0, 20, 20, 0]
    assert all(
        tokens_of(request) == [alone(tokenizer, request.prompt_token_ids, params, 0)]
        for request in requests
    )


def test_logits_that_are_not_finite_are_an_error(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tokenizer)
    rows = np.full((9, engine.runner.config.vocab_size), np.nan, np.float32)
    monkeypatch.setattr(engine.runner, "logits", lambda batch: rows[: len(batch.outputs)])
    request = engine.add_endings([1, 5], [[6]])
    run(engine)
    with pytest.raises(ValueError, match="no probabilities"):
        request.likelihoods()
    assert engine.pages.num_available == engine.pages.num_pages
