"""Embeddings: against transformers and a plain loop, and the same however steps are cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from puna import LLM, AsyncLLM, SamplingParams
from puna.attention import causal
from puna.engine.batch import Batch
from puna.engine.engine import Engine
from puna.engine.output import Embedding
from puna.engine.pooling import MeanPooling
from puna.engine.prompts import EncodedPrompt
from puna.engine.request import Request
from puna.engine.speculate import PromptLookup
from puna.engine.torch_runner import TorchRunner
from puna.formats import open_checkpoint
from puna.formats.adapters import Pair
from puna.formats.network import load_model
from puna.hub.locate import shipped_path
from puna.model import Llama
from puna.tokenizer import Tokenizer
from tests.engine.fakes import SHIFT, HashRunner, logits_after, mark
from tests.engine.test_engine import alone, check, engine_of, random_request, run, tokens_of
from tests.formats.test_lora import MATRICES, make_pairs
from tests.samples import transformers_twin

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
STORY = "Once upon a time there was a little llama that lived on the high grassland. "
PROMPTS = (STORY * 6, "The dog", "", STORY, "Tim and Anna went to the river to count 370 sheep")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("cria", dtype="fp32")


@pytest.fixture(scope="module")
def network() -> Llama:
    return load_model(open_checkpoint(shipped_path("cria")), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    """An adapter that changes every kind of matrix, by about as much as the model can bear."""
    made = make_pairs(open_checkpoint(shipped_path("cria")), MATRICES, 4)
    return {name: (a / a.shape[1] ** 0.5, b * np.float32(0.05)) for name, (a, b) in made.items()}


def vectors(found: list[Embedding]) -> NDArray[np.float32]:
    assert all(each.vector.dtype == np.float32 for each in found)
    return np.stack([each.vector for each in found])


def of_torch(network: Llama, prompts: list[list[int]], pairs: Any = None) -> NDArray[np.float32]:
    tokenizer = open_checkpoint(shipped_path("cria")).tokenizer()
    engine = Engine(TorchRunner(network, num_pages=100), tokenizer, max_rows=50, max_sequences=4)
    if pairs:
        engine.load_adapter("a", pairs)
    requests = [engine.add_embedding(ids, adapter="a" if pairs else None) for ids in prompts]
    run(engine)
    return vectors([request.embedding() for request in requests])


@contextmanager
def watched(llm: LLM) -> Iterator[list[Batch]]:
    """The batches that are run meanwhile."""
    batches: list[Batch] = []
    honest = llm.engine.runner.step

    def step(batch: Batch) -> Any:
        batches.append(batch)
        return honest(batch)

    llm.engine.runner.step = step  # type: ignore[method-assign]
    try:
        yield batches
    finally:
        llm.engine.runner.step = honest  # type: ignore[method-assign]


def unused(llm: LLM) -> bool:
    llm.engine.pages.check([])
    return not llm.engine.has_work and not llm.engine.scheduler.waiting


@torch.inference_mode()
def test_the_mean_of_transformers_last_hidden_state(llm: LLM, network: Llama) -> None:
    twin = transformers_twin(network).model
    for prompt, found in zip(PROMPTS, llm.embed(PROMPTS), strict=True):
        assert found.prompt_token_ids == llm.tokenizer.encode(prompt, bos=True)
        states = twin(torch.tensor([found.prompt_token_ids])).last_hidden_state
        expected = states[0].double().mean(0).numpy()
        np.testing.assert_allclose(found.vector, expected, rtol=0, atol=1e-5)
        assert np.linalg.norm(expected) > 1.5  # as it comes, not normalised


def test_runners_agree_with_and_without_an_adapter(
    llm: LLM, network: Llama, pairs: dict[str, Pair]
) -> None:
    ids = [llm.tokenizer.encode(prompt, bos=True) for prompt in PROMPTS]
    plain = vectors(llm.embed(ids))
    np.testing.assert_allclose(plain, of_torch(network, ids), rtol=0, atol=1e-5)
    llm.engine.load_adapter("a", pairs)
    try:
        changed = vectors(llm.embed(ids, adapter="a"))
        np.testing.assert_allclose(changed, of_torch(network, ids, pairs), rtol=0, atol=1e-4)
        assert np.abs(changed - plain).max(axis=1).min() > 0.05
        each = llm.embed(ids, adapter=["a", None, "a", None, "a"])
        mixed = np.where(np.array([True, False, True, False, True])[:, None], changed, plain)
        assert np.array_equal(vectors(each), mixed)
    finally:
        llm.unload_adapter("a")


@pytest.mark.parametrize("dtype", ["fp32", "auto"])
def test_chunks_batches_and_caches_change_no_bit(dtype: str) -> None:
    model = LLM("cria", dtype=dtype)
    together = vectors(model.embed(PROMPTS))
    singles = [model.embed(prompt)[0] for prompt in PROMPTS]
    assert np.array_equal(vectors(singles), together)
    by_ids = model.embed([each.prompt_token_ids for each in singles])
    encoded = model.embed([EncodedPrompt(each.prompt_token_ids) for each in singles])
    assert np.array_equal(vectors(by_ids), together) and model.embed([]) == []
    assert np.array_equal(vectors(encoded), together)
    for options in (
        {"max_rows": 2, "max_sequences": 1},
        {"max_rows": 7, "max_sequences": 4, "num_threads": 1},
        {"max_rows": 40, "max_sequences": 8, "num_threads": 3},
        {"kv_tokens": 160, "max_rows": 40, "max_sequences": 8},  # of which the longest takes most
        {"draft": "prompt-lookup"},
    ):
        other = LLM("cria", dtype=dtype, **options)  # type: ignore[arg-type]
        assert np.array_equal(vectors(other.embed(PROMPTS)), together)
        assert unused(other)


def test_pages_of_others_are_no_results_but_serve_others(llm: LLM) -> None:
    ids = llm.tokenizer.encode(STORY * 3, bos=True)
    llm.engine.weights_changed()
    (first,) = llm.embed([ids])
    (after,) = llm.generate([ids], GREEDY)
    assert after.num_cached_tokens == (len(ids) - 1) // 16 * 16
    (second,) = llm.embed([ids])
    assert np.array_equal(first.vector, second.vector)


def test_no_head_is_run_for_it(llm: LLM) -> None:
    with watched(llm) as batches:
        llm.embed(PROMPTS)
    assert sum(len(batch.hidden) for batch in batches) == sum(len(b.tokens) for b in batches) > 0
    assert not any(len(batch.outputs) for batch in batches)


def test_requests_of_both_kinds_share_steps(llm: LLM) -> None:
    expected = llm.embed(PROMPTS)
    texts = [result.outputs for result in llm.generate(PROMPTS, GREEDY)]
    llm.engine.weights_changed()
    adds: list[Request] = []
    with watched(llm) as batches:
        for prompt in PROMPTS:
            ids, params, options = llm.prepare(prompt, GREEDY)
            adds.append(llm.engine.add(ids, params, **options))
            adds.append(llm.engine.add_embedding(ids))
        run(llm.engine)
    assert any(len(batch.hidden) and len(batch.outputs) for batch in batches)
    assert [request.result().outputs for request in adds[::2]] == texts
    found = [request.embedding() for request in adds[1::2]]
    assert np.array_equal(vectors(found), vectors(expected))


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        (["fine", "much " * 1000], {}, "context holds 512; shorten it"),
        ([[1, 2], [999_999]], {}, "the prompt has token 999999"),
        ([[1], []], {}, "no tokens"),
        (["fine"], {"adapter": "x"}, "no adapter 'x'"),
        (["fine"], {"adapter": ["x", "y"]}, "1 prompts and 2 adapters"),
    ],
    ids=str,
)
def test_a_bad_prompt_is_refused_before_anything_runs(
    llm: LLM, prompts: Any, options: Any, words: str
) -> None:
    with watched(llm) as batches, pytest.raises(ValueError, match=words):
        llm.embed(prompts, **options)
    assert unused(llm) and not batches


def test_a_prompt_may_fill_the_context_and_the_pages(llm: LLM) -> None:
    ids = [1, *[300] * 511]
    (whole,) = llm.embed([ids])
    assert np.array_equal(
        LLM("cria", dtype="fp32", kv_tokens=512).embed([ids])[0].vector, whole.vector
    )
    with pytest.raises(ValueError, match="memory for the keys and values of 64"):
        LLM("cria", kv_tokens=64).embed([ids[:65]])


def test_async_gives_the_same_and_ends_what_is_left(llm: LLM) -> None:
    expected = vectors(llm.embed(PROMPTS))

    async def ask() -> None:
        async with AsyncLLM("cria", dtype="fp32", max_rows=4, max_sequences=3) as model:
            both = [*map(model.embed, PROMPTS), model.generate("The dog", GREEDY)]
            *found, text = await asyncio.gather(*both)
            assert np.array_equal(vectors(found), expected)
            assert text.outputs == llm.generate("The dog", GREEDY)[0].outputs
            with pytest.raises(ValueError, match="no tokens"):
                await model.embed([])
            with pytest.raises(ValueError, match="no adapter 'x'"):
                await model.embed("a", adapter="x")
            running = asyncio.Event()
            honest, loop = model.llm.engine.runner.step, asyncio.get_running_loop()

            def step(batch: Batch) -> Any:
                loop.call_soon_threadsafe(running.set)
                return honest(batch)

            model.llm.engine.runner.step = step  # type: ignore[method-assign]
            task = asyncio.create_task(model.embed(STORY * 20))
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await model.embed("a")  # served after the cancellation
            assert unused(model.llm)
        with pytest.raises(ValueError, match="closed"):
            await model.embed("a")

    asyncio.run(ask())


def mean_of(engine: Engine, ids: list[int], shift: int = 0) -> NDArray[np.float32]:
    """What a `HashRunner` gives: a plain loop over the prompt."""
    dim = engine.runner.config.dim
    total = np.zeros(dim)
    for end in range(1, len(ids) + 1):
        total += logits_after(np.array(ids[:end], np.int32) + shift, dim)
    return (total / len(ids)).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_sequences": 1, "max_rows": 2}, {"num_pages": 200, "max_rows": 64}],
    ids=str,
)
@pytest.mark.parametrize("drafts", [False, True])
def test_any_mix_gives_what_each_gives_alone(
    tokenizer: Tokenizer, options: Any, drafts: bool
) -> None:
    """Prompts, outputs and cancellations at random, in few pages, and no page is lost."""
    generator = random.Random(3)
    values = {"max_rows": 9, "max_sequences": 8} | options
    engine = engine_of(tokenizer, drafter=PromptLookup() if drafts else None, **values)
    engine.load_adapter("one", mark(1))
    kept: list[Request] = []
    cancelled = 0
    while len(kept) < 80:
        if len(engine.scheduler.waiting) < 10:
            ids, params = random_request(generator, tokenizer.vocab_size)
            if generator.random() < 0.5:
                kept.append(engine.add(ids, params))
            else:
                many = ids + [generator.randrange(3, 400) for _ in range(generator.randrange(30))]
                adapter = generator.choice([None, "one"])
                kept.append(engine.add_embedding(many, adapter=adapter))
        engine.step()
        check(engine)
        if cancelled < 20 and generator.random() < 0.1:
            engine.cancel(kept.pop(generator.randrange(len(kept))))
            cancelled += 1
            check(engine)
    run(engine)
    assert engine.pages.num_available == engine.pages.num_pages
    for request in kept:
        if request.pooling is None:
            for index, tokens in enumerate(tokens_of(request)):
                prompt = request.prompt_token_ids
                assert tokens == alone(tokenizer, prompt, request.params, index)
            continue
        found = request.embedding()
        shift = SHIFT if request.adapter else 0
        assert np.array_equal(found.vector, mean_of(engine, found.prompt_token_ids, shift))
    assert cancelled > 3


def test_who_gave_back_pages_starts_anew(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, num_pages=10, max_rows=4, max_sequences=3)
    for first in (5, 6):
        engine.add([1, first, 7], SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))
    engine.step()
    request = engine.add_embedding([1, *range(5, 24)])
    (sequence,) = request.live
    lengths = []
    while engine.has_work:
        engine.step()
        check(engine)
        lengths.append(sequence.length)
    assert lengths[:9] == [2, 4, 6, 8, 10, 12, 14, 16, 0] and lengths[-2] == 16
    assert engine.scheduler.num_preemptions == 1
    expected = mean_of(engine, request.prompt_token_ids)
    assert np.array_equal(request.embedding().vector, expected)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_what_is_run_anew_is_not_added_twice(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    """After new weights, and after a step that was broken off."""
    engine = engine_of(tokenizer, max_rows=5, max_sequences=4)
    ids = [1, *range(5, 25)]
    requests = [engine.add_embedding(ids), engine.add_embedding(ids[:9])]
    honest = engine.runner.step

    def broken(batch: Batch) -> Any:
        honest(batch)
        assert error is not None
        raise error

    for _ in range(3):
        engine.step()
        if error is None:
            engine.weights_changed()
            continue
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(engine.runner, "step", broken)
            engine.step()
        check(engine)
    run(engine)
    for request in requests:
        expected = mean_of(engine, request.prompt_token_ids)
        assert np.array_equal(request.embedding().vector, expected)
    assert engine.statistics().prompt_tokens == 30


def test_cancelling_frees_at_once(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, max_rows=4, max_sequences=3)
    requests = [engine.add_embedding([1, *range(5, 20)]) for _ in range(6)]
    for _ in range(2):
        engine.step()
    assert engine.pages.num_available < engine.pages.num_pages
    for request in requests:
        engine.cancel(request)
        check(engine)
    assert engine.pages.num_available == engine.pages.num_pages and not engine.has_work


def test_states_that_are_not_finite_are_an_error(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tokenizer)
    runner = engine.runner
    assert isinstance(runner, HashRunner)
    infinite = np.array([np.inf, -np.inf], np.float32)
    monkeypatch.setattr(
        runner, "hidden", lambda batch: np.tile(infinite, len(batch.hidden))[:, None] + np.zeros(32)
    )
    request = engine.add_embedding([1, 5])
    run(engine)
    with pytest.raises(ValueError, match="not finite"):
        request.embedding()


def test_chunks_are_added_row_by_row() -> None:
    """Large and small rows by turns, whose sum depends on the order."""
    rows = np.float32([[1e30, 1], [3e13, 1], [-1e30, 2], [1, 4]])
    for cuts in ([0, 4], [0, 1, 4], [0, 1, 2, 3, 4]):
        pooling = MeanPooling(2)
        for begin, end in pairwise(cuts):
            pooling.add(begin, rows[begin:end])
        assert pooling.vector.tolist() == [0.25, 2.0]


def test_the_last_state_is_the_networks_with_and_without_earlier_prompts() -> None:
    llm = LLM("cria", dtype="fp32")
    network = load_model(open_checkpoint(shipped_path("cria")))
    begin = llm.tokenizer.encode("Once upon a time there was a llama who liked to sing.", bos=True)
    ends = [llm.tokenizer.encode(text) for text in ("The end.", "It sang all day and all night.")]
    prompts = [[*begin, *end] for end in ends]
    whole = [each.vector for each in llm.embed(prompts, pooling="last")]
    again = [each.vector for each in llm.embed(prompts, pooling="last")]
    for ids, first, second in zip(prompts, whole, again, strict=True):
        np.testing.assert_array_equal(first, second)
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            hidden = network(tokens, torch.arange(len(ids))[None], causal)[0, -1]
        np.testing.assert_allclose(first, hidden.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="pooling is mean or last"):
        llm.embed(prompts, pooling="first")
