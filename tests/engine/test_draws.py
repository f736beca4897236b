"""Tokens that are drawn inside a step are those that `choose` draws from its logits."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna import LLM
from puna.engine import draws, engine
from puna.engine.batch import NO_TOKEN, Batch, Draw, Output, greedy
from puna.engine.cpu.runner import NativeRunner
from puna.engine.draws import Draws, answered, draws_of, token_of
from puna.engine.params import SamplingParams
from puna.engine.sampling import choose, drawn, probabilities, uniform, uniforms
from puna.kernels import native, step

INF = float("inf")


@pytest.fixture(params=native.libraries())
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    return native.libraries()[request.param]


def random_row(generator: np.random.Generator, size: int) -> NDArray[np.float32]:
    row = generator.normal(0, generator.choice([0, 0.1, 1, 4, 20]), size).astype(np.float32)
    if generator.random() < 0.3:  # many ties
        row = np.round(row)
    if generator.random() < 0.3:
        row[generator.random(size) < 0.7] = -INF
        row[generator.integers(size)] = 1.0
    if generator.random() < 0.3:  # sure of one
        row[generator.integers(size)] += 15
    return row


def random_draw(generator: np.random.Generator, size: int) -> Draw:
    return Draw(
        float(generator.choice([0, 1e-320, 1e-3, 0.1, 0.7, 1, 5, 1e308])),
        int(generator.choice([0, 0, 1, 2, 40, size // 2, size, size + 5])),
        float(generator.choice([1, 1, 1 - 1e-16, 0.999, 0.9, 0.5, 0.1, 1e-9])),
        float(generator.choice([0, 0, 1e-9, 0.01, 0.2, 1])),
        float(generator.choice([0, 1 - 2**-53, *generator.random(6)])),
        size - int(generator.integers(min(size, 3))),
    )


@pytest.mark.parametrize(
    ("size", "count"), [(1, 50), (5, 2000), (19, 1000), (512, 600), (3000, 200), (32000, 80)]
)
def test_native_draws_equal_the_definition(library: ctypes.CDLL, size: int, count: int) -> None:
    generator = np.random.default_rng(size)
    different = set()
    for _ in range(count):
        row, draw = random_row(generator, size), random_draw(generator, size)
        if row[: draw.vocab_size].max() == -INF:
            continue
        token = step.choose(library, row, draw)
        assert token == drawn(row[: draw.vocab_size], draw), draw
        different.add(token)
    assert len(different) > min(size, count / 10) * 0.4


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [-INF, INF, float("nan")])
@pytest.mark.parametrize("size", [4, 16, 37])
def test_native_code_finds_no_token_where_there_is_none(
    library: ctypes.CDLL, temperature: float, value: float, size: int
) -> None:
    for place in range(size):
        row = np.full(size, -INF, np.float32)
        row[place] = value
        draw = Draw(temperature, 0, 0.9, 0.0, 0.5, size)
        assert step.choose(library, row, draw) == NO_TOKEN
        with pytest.raises(ValueError, match="no token can be chosen"):
            drawn(row, draw)
        # What cannot be chosen does no harm.
        padded = np.append(np.zeros(3, np.float32), row)
        assert 0 <= step.choose(library, padded, draw._replace(vocab_size=3)) < 3


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 7}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.9, "min_p": 0.01}],
    ids=str,
)
def test_native_draws_follow_the_distribution(
    library: ctypes.CDLL, options: dict[str, Any]
) -> None:
    params = SamplingParams(**{"temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 3} | options)
    row = np.random.default_rng(4).normal(0, 1.5, 30).astype(np.float32)
    draws, count = Draws(params, 3, 0, len(row)), 6000
    tokens = [step.choose(library, row, draws(index)) for index in range(count)]  # type: ignore[arg-type]
    expected = probabilities(row, params) * count
    counts = np.bincount(tokens, minlength=len(row))
    assert not counts[expected == 0].any()
    some = expected > 0
    # Chi-square, at most 29 degrees of freedom, 0.1 %.
    assert ((counts - expected)[some] ** 2 / expected[some]).sum() < 58.3


def test_random_numbers_are_the_same_made_together_and_in_any_order() -> None:
    params = SamplingParams(1.0, top_k=3, top_p=0.5, min_p=0.1)
    draws = Draws(params, 9, 2, 100)
    for index in (0, 1, 63, 64, 65, 300, 5, 4, 130):
        assert draws(index) == Draw(1.0, 3, 0.5, 0.1, uniform(9, 2, index), 100)
    assert uniforms(9, 2, 7, 40).tolist() == [uniform(9, 2, 7 + i) for i in range(40)]
    assert Draws(SamplingParams(0, top_p=1.0), 9, 2, 100)(5) == greedy(100)


def test_numbers_that_were_broken_off_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(1.0)
    whole = Draws(params, 9, 2, 100)
    expected = [whole(index) for index in (0, 64)]
    broken = Draws(params, 9, 2, 100)
    assert broken(0) == expected[0]

    def interrupted(*arguments: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(draws, "uniforms", interrupted)
        broken(64)
    assert broken(64) == expected[1]


@pytest.mark.parametrize(
    ("options", "first", "later"),
    [
        ({}, True, True),
        ({"temperature": 0}, True, True),
        ({"top_k": 4, "min_p": 0.1, "stop": ("a",), "stop_ids": (3,)}, True, True),
        ({"n": 2}, False, True),
        ({"n": 2, "best_of": 2}, False, True),
        ({"best_of": 2}, False, False),
        ({"typical_p": 0.9}, False, False),
        ({"repetition_penalty": 1.1}, False, False),
        ({"presence_penalty": 0.1}, False, False),
        ({"frequency_penalty": 0.1}, False, False),
        ({"logit_bias": {1: 1.0}}, False, False),
        ({"logprobs": 0}, False, False),
        ({"prompt_logprobs": 0}, False, False),
        ({"json_schema": "{}"}, False, False),
        ({"regex": "a"}, False, False),
        ({"grammar": "start: A"}, False, False),
    ],
    ids=str,
)
def test_parameters_say_what_is_drawn_in_a_step(
    options: dict[str, Any], first: bool, later: bool
) -> None:
    draws = draws_of(SamplingParams(**options), 1, 0, 50)
    found = [draws is not None and draws(index) is not None for index in (0, 1, 70)]
    assert found == [first, later, later]


def test_a_step_answers_with_tokens_and_logits() -> None:
    rows = np.arange(20, dtype=np.float32).reshape(4, 5)
    rows[2] = np.nan
    each = np.arange(4, dtype=np.int32)
    batch = Batch(each, each, each, each[:, None], each, draws=(None, greedy(4), greedy(5), None))
    states = np.empty((0, 8), np.float32)
    output = answered(batch, rows, states)
    assert output.tokens.tolist() == [NO_TOKEN, 3, NO_TOKEN, NO_TOKEN]
    answers = output.answers(batch, 3)
    assert answers[1:3] == [3, NO_TOKEN]
    assert [np.asarray(answers[i]).tolist() for i in (0, 3)] == [[0, 1, 2], [15, 16, 17]]
    plain = Batch(each, each, each, each[:, None], each)
    np.testing.assert_array_equal(np.stack(answered(plain, rows, states).answers(plain, 5)), rows)
    assert isinstance(output, Output)


def test_a_token_or_logits_become_a_token() -> None:
    params = SamplingParams(1.0, top_p=1.0)
    row = np.zeros(9, np.float32)
    expected = choose(row, params, [], [1], seed=1, sample=2)
    assert token_of(row, params, [], [1], seed=1, sample=2) == expected
    assert token_of(7, params, [], [1], seed=1, sample=2) == 7
    with pytest.raises(ValueError, match="no token can be chosen: the highest logit is"):
        token_of(NO_TOKEN, params, [], [1], seed=1, sample=2)


KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"seed": 1},
    {"temperature": 1.5, "top_k": 12, "top_p": 1.0, "min_p": 0.02, "seed": 2},
    {"temperature": 1.0, "top_p": 1.0, "n": 3, "seed": 3},
    {"n": 2, "best_of": 3, "seed": 4},
    {"repetition_penalty": 1.3, "typical_p": 0.9, "seed": 5},
    {"logprobs": 1, "prompt_logprobs": 1, "seed": 6},
    {"logit_bias": {300: 5.0}, "frequency_penalty": 0.5, "temperature": 0},
)


def expect_the_same_from_logits(monkeypatch: pytest.MonkeyPatch, draft: str | None) -> None:
    """Alone or together, with few pages so that some wait."""
    prompts = ["Once upon a time there was a dog, a dog, a", "The"]
    asked = [(prompt, SamplingParams(max_tokens=8, **kind)) for kind in KINDS for prompt in prompts]

    def texts(**options: Any) -> list[Any]:
        llm = LLM("cria", kv_tokens=96, draft=draft, num_threads=1, **options)
        found = llm.generate([prompt for prompt, _ in asked], [params for _, params in asked])
        if draft is not None:
            assert llm.engine.num_accepted > 0
        return [[output.token_ids for output in result.outputs] for result in found]

    found = texts()
    assert found == texts(max_sequences=1)
    monkeypatch.setattr(engine, "draws_of", lambda *_: None)
    assert found == texts()


def test_drawn_in_the_step_or_from_its_logits_a_text_is_the_same(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda: library)
    expect_the_same_from_logits(monkeypatch, None)


@pytest.mark.skipif(not native.available(), reason="native code was not built")
@pytest.mark.parametrize("draft", ["prompt-lookup", "cria"])
def test_guesses_are_checked_in_the_step(draft: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_the_same_from_logits(monkeypatch, draft)


@pytest.mark.skipif(not native.available(), reason="native code was not built")
def test_what_has_no_likeliest_token_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM("cria", kv_tokens=256)
    prompts = ["The dog", "Once upon a time"]
    params = SamplingParams(temperature=0, max_tokens=5)
    (expected,) = llm.generate(prompts[1], params)
    runner = llm.engine.runner
    assert isinstance(runner, NativeRunner)
    values = runner._forward.values.view(np.float32)
    requests = [llm.engine.add(llm.tokenizer.encode(p, bos=True), params) for p in prompts]
    llm.engine.step()
    values[:, requests[0].live[0].pages] = np.nan
    while llm.engine.has_work:
        llm.engine.step()
    assert requests[1].result().outputs == expected.outputs
    with pytest.raises(ValueError, match="no token can be chosen: the highest logit is not fin"):
        requests[0].result()
