"""Many requests at once give what each gives alone, and no page is lost, whatever happens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from puna.engine.batch import Batch
from puna.engine.engine import Engine
from puna.engine.params import SamplingParams
from puna.engine.request import Request
from puna.engine.sampling import choose, logprobs_of
from puna.tokenizer import Tokenizer
from tests.engine.fakes import HashRunner, logits_after

GREEDY = SamplingParams(temperature=0, ignore_eos=True)


def engine_of(tokenizer: Tokenizer, **options: Any) -> Engine:
    values = {"num_pages": 16, "page_size": 4, "context": 64}
    values |= {key: options.pop(key) for key in list(options) if key in values}
    return Engine(HashRunner(vocab=tokenizer.vocab_size + 12, **values), tokenizer, **options)


def alone(tokenizer: Tokenizer, prompt: list[int], params: SamplingParams, index: int) -> list[int]:
    """A plain loop over the whole sequence: no pages, no batches."""
    assert params.max_tokens and (params.seed is not None or params.temperature == 0)
    output: list[int] = []
    while len(output) < params.max_tokens:
        row = logits_after(np.array(prompt + output, np.int32), tokenizer.vocab_size + 12)
        row = row[: tokenizer.vocab_size]
        output.append(choose(row, params, prompt, output, seed=params.seed or 0, sample=index))
        ends = {*params.stop_ids, *([] if params.ignore_eos else [tokenizer.eos_id])}
        if output[-1] in ends:
            break
    return output


def run(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        check(engine)


def check(engine: Engine) -> None:
    engine.pages.check([s.pages for s in engine.scheduler.running])
    assert not any(s.pages for s in engine.scheduler.waiting)


def tokens_of(request: Request) -> list[list[int]]:
    return [writer.completion.token_ids for writer in request.writers]


def random_request(generator: random.Random, vocab: int) -> tuple[list[int], SamplingParams]:
    # Few different tokens at the start, so that prompts share beginnings.
    prompt = [1] + [generator.choice([5, 6]) for _ in range(generator.randrange(20))]
    prompt += [generator.randrange(3, vocab) for _ in range(generator.randrange(10))]
    params = SamplingParams(
        temperature=generator.choice([0, 1.0]),
        seed=generator.randrange(100),
        max_tokens=generator.randrange(1, 30),
        n=generator.choice([1, 1, 1, 2, 3]),
        ignore_eos=generator.random() < 0.5,
        stop_ids=(generator.randrange(vocab),),
        repetition_penalty=generator.choice([1.0, 1.2]),
        logprobs=generator.choice([None, None, 2]),
        prompt_logprobs=generator.choice([None, None, 1]),
    )
    return prompt, params


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_pages": 200, "max_sequences": 20, "max_rows": 64},
        {"max_sequences": 1, "max_rows": 2},
        {"max_sequences": 6, "max_rows": 7},
        {"page_size": 1, "num_pages": 64, "max_rows": 9, "max_sequences": 5},
    ],
    ids=str,
)
def test_any_mix_gives_what_each_gives_alone(tokenizer: Tokenizer, options: Any) -> None:
    generator = random.Random(1)
    engine = engine_of(tokenizer, **{"max_rows": 24, "max_sequences": 8} | options)
    runner = engine.runner
    assert isinstance(runner, HashRunner)
    kept: list[Request] = []
    preempted = cancelled = 0
    while len(kept) < 50:
        for _ in range(generator.choice([0, 0, 1, 1, 3])):
            if len(engine.scheduler.waiting) < 10:
                kept.append(engine.add(*random_request(generator, tokenizer.vocab_size)))
        before = list(engine.scheduler.running)
        engine.step()
        check(engine)
        preempted += sum(s in engine.scheduler.waiting for s in before)
        assert len(engine.scheduler.running) <= engine.scheduler.max_sequences
        if kept and cancelled < 30 and generator.random() < 0.1:
            engine.cancel(kept.pop(generator.randrange(len(kept))))
            cancelled += 1
            check(engine)
    run(engine)
    assert engine.pages.num_available == engine.pages.num_pages
    assert max(runner.num_rows) <= engine.scheduler.max_rows
    for request in kept:
        prompt, params = request.prompt_token_ids, request.params
        for index, found in enumerate(tokens_of(request)):
            assert found == alone(tokenizer, prompt, params, index)
        expect_logprobs(request, tokenizer)
    if not options:
        assert preempted > 10 and runner.num_copies > 10


def expect_logprobs(request: Request, tokenizer: Tokenizer) -> None:
    prompt, params, result = request.prompt_token_ids, request.params, request.result()
    vocab = tokenizer.vocab_size

    def expected(ids: list[int], at: int, num: int) -> Any:
        row = logits_after(np.array(ids[:at], np.int32), vocab + 12)[:vocab]
        return logprobs_of(row, ids[at], num)

    if params.prompt_logprobs is None:
        assert result.prompt_logprobs is None
    else:
        assert result.prompt_logprobs == [
            expected(prompt, at, 1) if at else None for at in range(len(prompt))
        ]
    for output in result.outputs:
        ids = prompt + output.token_ids
        if params.logprobs is None:
            assert output.logprobs is None and output.cumulative_logprob is None
            continue
        assert output.logprobs == [expected(ids, at, 2) for at in range(len(prompt), len(ids))]
        total = sum(token.logprob for token in output.logprobs)
        assert output.cumulative_logprob == pytest.approx(total)


def test_a_prompt_that_begins_as_another_is_not_run_again(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, max_rows=64, max_sequences=8)
    runner = engine.runner
    assert isinstance(runner, HashRunner)
    prompt = list(range(3, 20))
    for tail, rows in (([], 17), ([], 1), ([30, 31], 3), ([30, 32], 3)):
        request = engine.add(prompt + tail, SamplingParams(temperature=0, max_tokens=1))
        run(engine)
        assert runner.num_rows[-1] == rows and request.finished
    engine.weights_changed()
    engine.add(prompt, SamplingParams(temperature=0, max_tokens=1))
    run(engine)
    assert runner.num_rows[-1] == 17


def test_new_weights_start_everything_anew(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    request = engine.add([1, 5, 6, 7, 8], params)
    for _ in range(5):
        engine.step()
    engine.weights_changed()
    run(engine)
    assert tokens_of(request) == [alone(tokenizer, [1, 5, 6, 7, 8], params, 0)]


def test_a_long_prompt_holds_nobody_up_and_is_not_starved(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, num_pages=200, context=600, max_rows=32, max_sequences=16)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    talking = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=64, ignore_eos=True))
    engine.step()
    long = engine.add([1] + [7] * 500, params)
    steps = 0
    while not long.writers[0].completion.token_ids:
        # Short ones keep coming, and each has its first token at once.
        short = engine.add([1, 9, 9, steps + 3], params)
        engine.step()
        assert len(short.writers[0].completion.token_ids) == 1
        steps += 1
        assert len(talking.writers[0].completion.token_ids) == min(64, steps + 1)
    assert steps < 60
    run(engine)


def test_cancelling_frees_at_once(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    requests = [engine.add([1, 5, 6, 7, 8], GREEDY) for _ in range(6)]
    for _ in range(3):
        engine.step()
    for request in requests:
        engine.cancel(request)
        engine.cancel(request)
        check(engine)
    assert engine.pages.num_available == engine.pages.num_pages and not engine.has_work
    assert engine.step() == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_is_broken_off_loses_nothing(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    engine = engine_of(tokenizer)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    requests = [engine.add([1, 5, 6, 7, i], params) for i in range(3, 9)]
    honest = engine.runner.step

    def broken(batch: Batch) -> Any:
        honest(batch)
        raise error

    for _ in range(4):
        engine.step()
        monkeypatch.setattr(engine.runner, "step", broken)
        with pytest.raises(error):
            engine.step()
        check(engine)
        monkeypatch.setattr(engine.runner, "step", honest)
    run(engine)
    for i, request in enumerate(requests, start=3):
        assert tokens_of(request) == [alone(tokenizer, [1, 5, 6, 7, i], params, 0)]


def test_a_request_that_fails_takes_no_other_with_it(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tokenizer)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    good = engine.add([1, 5], params)
    bad = engine.add([1, 6], SamplingParams(n=3, max_tokens=6, seed=1))
    runner = engine.runner
    assert isinstance(runner, HashRunner)
    honest = runner.logits

    def damaged(batch: Batch) -> Any:
        logits = honest(batch)
        rows = batch.sequences[batch.outputs]
        logits[rows > 0] = np.nan
        return logits

    engine.step()
    monkeypatch.setattr(runner, "logits", damaged)
    run(engine)
    assert tokens_of(good) == [alone(tokenizer, [1, 5], params, 0)]
    with pytest.raises(ValueError, match="no token can be chosen"):
        bad.result()


def test_best_of_gives_the_likeliest(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, num_pages=64)
    params = SamplingParams(1.0, seed=3, n=2, best_of=6, max_tokens=5, ignore_eos=True)
    request = engine.add([1, 5, 6], params)
    run(engine)
    found = request.result().outputs
    everything = [alone(tokenizer, [1, 5, 6], params, index) for index in range(6)]

    def mean_logprob(output: list[int]) -> float:
        ids = np.array([1, 5, 6, *output], np.int32)
        rows = [logits_after(ids[:at], tokenizer.vocab_size + 12) for at in range(3, len(ids))]
        logprobs = [
            logprobs_of(row[: tokenizer.vocab_size], token, 0).logprob
            for row, token in zip(rows, output, strict=True)
        ]
        return sum(logprobs) / len(logprobs)

    everything.sort(key=mean_logprob, reverse=True)
    assert [output.token_ids for output in found] == everything[:2]


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        ([], {}, ["no tokens"]),
        ([1] * 64, {}, ["64 tokens", "holds 64", "shorten"]),
        ([1] * 60, {"max_tokens": 5}, ["60 tokens", "max_tokens is 5", "at most 4"]),
        ([1] * 20, {"max_tokens": 30}, ["50 tokens", "of 40", "kv_tokens"]),
        ([1, 432], {}, ["token 432"]),
        ([1, -1], {}, ["token -1"]),
        ([1], {"logit_bias": {420: 1.0}}, ["logit_bias", "token 420", "0 to 419"]),
        ([1], {"stop_ids": (500,)}, ["stop_ids", "500"]),
    ],
    ids=str,
)
def test_what_can_never_run_is_refused(
    tokenizer: Tokenizer, ids: list[int], options: Any, words: list[str]
) -> None:
    engine = engine_of(tokenizer, num_pages=10)
    good = engine.add([1, 5], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    with pytest.raises(ValueError) as caught:
        engine.add(ids, SamplingParams(**options))
    assert all(word in str(caught.value) for word in words), caught.value
    run(engine)
    assert len(good.writers[0].completion.token_ids) == 6


def test_without_max_tokens_the_context_ends_it(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    request = engine.add([1] * 50, GREEDY)
    run(engine)
    (output,) = request.result().outputs
    assert (len(output.token_ids), output.finish_reason) == (14, "length")


def test_more_sequences_than_rows_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"max_rows \(8\) must be above max_sequences \(8\)"):
        engine_of(tokenizer, max_rows=8, max_sequences=8)


@pytest.mark.parametrize("n", [1, 3])
def test_max_tokens_0_reads_the_prompt_alone(tokenizer: Tokenizer, n: int) -> None:
    engine = engine_of(tokenizer, max_rows=12, max_sequences=4)
    prompt = [1, *range(5, 5 + 63)]  # all that the context holds
    params = SamplingParams(n=n, max_tokens=0, prompt_logprobs=1)
    request = engine.add(prompt, params)
    run(engine)
    result = request.result()
    assert [(o.text, o.token_ids, o.finish_reason) for o in result.outputs] == [
        ("", [], "length")
    ] * n
    assert len(request.deltas) == n
    rows = logits_after(np.array(prompt, np.int32)[:-1], tokenizer.vocab_size + 12)
    expected = logprobs_of(rows[: tokenizer.vocab_size], prompt[-1], 1)
    assert result.prompt_logprobs and result.prompt_logprobs[-1] == expected
    with pytest.raises(ValueError, match="context holds 64"):
        engine.add([*prompt, 5], params)


def test_statistics_count(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, max_rows=65)
    prompt = [1, *range(5, 5 + 16)]  # four pages, and a token to run
    for cached in (0, 16):
        request = engine.add(prompt, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
        assert engine.statistics().num_waiting == 1
        engine.step()
        now = engine.statistics()
        assert (now.num_waiting, now.num_running, now.num_pages) == (0, 1, 16)
        assert now.num_pages_used == 5
        run(engine)
        assert request.result().num_cached_tokens == cached
    assert engine.statistics()[:4] == (0, 0, 16, 0)
    assert (engine.statistics().prompt_tokens, engine.statistics().cached_tokens) == (34, 16)


def test_statistics_count_who_gave_back_pages(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, num_pages=6)
    for first in (5, 6):
        engine.add([1, first], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    run(engine)
    assert engine.statistics().preemptions > 0
