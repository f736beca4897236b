"""Distributions worked out by hand, and slow references on random rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.generation import logits_process

from puna.engine import sampling
from puna.engine.params import SamplingParams
from puna.engine.sampling import (
    adjusted,
    choose,
    fresh_seed,
    logprobs_of,
    probabilities,
    uniform,
)

# softmax of these is 4/15, 8/15, 1/15, 2/15
LOGITS = np.log(np.array([4, 8, 1, 2], np.float32))
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
ALL = [4 / 15, 8 / 15, 1 / 15, 2 / 15]
INF = float("inf")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, ALL),
        # Half the temperature squares the weights, twice it takes their roots.
        ({"temperature": 0.5}, [16 / 85, 64 / 85, 1 / 85, 4 / 85]),
        ({"temperature": 2.0}, np.sqrt([4, 8, 1, 2]) / np.sqrt([4, 8, 1, 2]).sum()),
        ({"temperature": 1e-320}, [0, 1, 0, 0]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [4 / 12, 8 / 12, 0, 0]),
        ({"top_k": 3}, [4 / 14, 8 / 14, 0, 2 / 14]),
        ({"top_k": 9}, ALL),
        # The sorted masses are 8/15, 12/15, 14/15, 1.
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_p": 0.53}, [0, 1, 0, 0]),
        ({"top_p": 0.54}, [4 / 12, 8 / 12, 0, 0]),
        ({"top_p": 0.81}, [4 / 14, 8 / 14, 0, 2 / 14]),
        ({"top_p": 0.94}, ALL),
        # After top-k 3 the masses are 8/14, 12/14, 1; after top-k 2, 8/12 and 1.
        ({"top_k": 3, "top_p": 0.85}, [4 / 12, 8 / 12, 0, 0]),
        ({"top_k": 3, "top_p": 0.87}, [4 / 14, 8 / 14, 0, 2 / 14]),
        ({"top_k": 2, "top_p": 0.66}, [0, 1, 0, 0]),
        # Temperature first: 64/85 alone reaches 0.75, which 8/15 does not.
        ({"temperature": 0.5, "top_p": 0.75}, [0, 1, 0, 0]),
        # Relative to the likeliest: 1/2, 1, 1/8, 1/4; squared by half the temperature.
        ({"min_p": 0.12}, ALL),
        ({"min_p": 0.13}, [4 / 14, 8 / 14, 0, 2 / 14]),
        ({"min_p": 0.26}, [4 / 12, 8 / 12, 0, 0]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"min_p": 0.13, "temperature": 0.5}, [16 / 80, 64 / 80, 0, 0]),
        # Min-p before top-p: of 8/12 and 4/12 the first reaches 0.6, of 8/15 it does not.
        ({"min_p": 0.26, "top_p": 0.6}, [0, 1, 0, 0]),
        # The information is 1.322, 0.629, 2.708, 2.015 and the entropy 1.137; so the order is
        # 4/15 (0.185 away), 8/15 (0.508), 2/15 (0.878), 1/15 and the masses 4, 12, 14, 15.
        ({"typical_p": 0.2}, [1, 0, 0, 0]),
        ({"typical_p": 0.27}, [4 / 12, 8 / 12, 0, 0]),
        ({"typical_p": 0.81}, [4 / 14, 8 / 14, 0, 2 / 14]),
        ({"typical_p": 0.94}, ALL),
        # Typical before top-p: of the one that it leaves all is kept.
        ({"typical_p": 0.2, "top_p": 0.1}, [1, 0, 0, 0]),
        ({"typical_p": 0.27, "top_p": 0.6}, [0, 1, 0, 0]),
        # Top-k before typical: 1.099 and 0.405 around 0.637, so that now 8/12 is first.
        ({"top_k": 2, "typical_p": 0.2}, [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_probabilities(options: dict[str, Any], expected: Any) -> None:
    params = SamplingParams(**OFF | options)
    np.testing.assert_allclose(probabilities(LOGITS, params), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The prompt is 0, 1, 1 and the output 1, 3, 3; 9 is past the end.
        ({"repetition_penalty": 2.0}, [1, -2, -3, 0.25]),
        ({"repetition_penalty": 0.5}, [4, -0.5, -3, 1]),
        ({"presence_penalty": 0.5}, [2, -1.5, -3, 0]),
        ({"frequency_penalty": 0.25}, [2, -1.25, -3, 0]),
        ({"presence_penalty": -1.0, "frequency_penalty": 0.25}, [2, -0.25, -3, 1]),
        ({"logit_bias": {2: 5.0, 0: -INF}}, [-INF, -1, 2, 0.5]),
        # The bias is added to what the penalties left.
        ({"repetition_penalty": 2.0, "presence_penalty": 0.5, "logit_bias": {0: 3}},
         [4, -2.5, -3, -0.25]),
    ],
    ids=str,
)  # fmt: skip
def test_adjustments(options: dict[str, Any], expected: list[float]) -> None:
    row = np.array([2, -1, -3, 0.5], np.float32)
    before = row.copy()
    result = adjusted(row, SamplingParams(**options), [0, 1, 1, 9], [1, 3, 3, 9])
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    assert result.dtype == np.float32
    assert row.tolist() == before.tolist()


def test_nothing_is_copied_where_nothing_applies() -> None:
    assert adjusted(LOGITS, SamplingParams(), [0, 1], [2]) is LOGITS
    params = SamplingParams(repetition_penalty=1.3, presence_penalty=1.0, frequency_penalty=1.0)
    assert adjusted(LOGITS, params, [], []).tolist() == LOGITS.tolist()


def test_a_bias_past_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="logit_bias names token 4 of 4"):
        adjusted(LOGITS, SamplingParams(logit_bias={1: 1.0, 4: 1.0}), [], [])


def reference(logits: NDArray[np.float32], params: SamplingParams) -> list[float]:
    """Each rule as it is told, on plain lists."""
    rows = [(float(x), i) for i, x in enumerate(logits)]
    peak = max(rows)[0]
    w = {i: math.exp((x - peak) / params.temperature) for x, i in rows}
    likeliest = sorted(w, key=lambda i: (-logits[i], i))
    if params.top_k:
        likeliest = likeliest[: params.top_k]
    kept = [i for i in likeliest if w[i] > 0 and w[i] >= params.min_p * w[likeliest[0]]]

    def until(order: list[int], share: float) -> list[int]:
        total, mass = math.fsum(w[i] for i in order), 0.0
        for count, i in enumerate(order, start=1):
            mass += w[i]
            if mass >= share * total:
                return order[:count]
        return order

    if params.typical_p < 1:
        total = math.fsum(w[i] for i in kept)
        information = {i: -math.log(w[i] / total) for i in kept}
        entropy = math.fsum(w[i] / total * information[i] for i in kept)
        kept = until(
            sorted(kept, key=lambda i: (abs(information[i] - entropy), i)), params.typical_p
        )
    if params.top_p < 1:
        kept = until(sorted(kept, key=lambda i: (-w[i], i)), params.top_p)
    total = math.fsum(w[i] for i in kept)
    return [w[i] / total if i in kept else 0.0 for i in range(len(logits))]


def random_case(
    generator: np.random.Generator, size: int
) -> tuple[NDArray[np.float32], SamplingParams]:
    logits = generator.normal(0, generator.choice([0.1, 1, 4, 20]), size).astype(np.float32)
    if generator.random() < 0.3:  # many ties
        logits = np.round(logits)
    if generator.random() < 0.3:
        logits[generator.random(size) < 0.5] = -INF
        logits[generator.integers(size)] = 1.0
    params = SamplingParams(
        temperature=float(generator.choice([0.1, 0.7, 1.0, 3.0])),
        top_k=int(generator.choice([0, 0, 1, 2, size // 2, size + 5])),
        min_p=float(generator.choice([0, 0, 0.01, 0.2, 1.0])),
        typical_p=float(generator.choice([1, 1, 0.999, 0.8, 0.3, 1e-9])),
        top_p=float(generator.choice([1, 1 - 1e-16, 0.999, 0.9, 0.5, 1e-9])),
    )
    return logits, params


@pytest.mark.parametrize(("size", "count"), [(1, 20), (2, 100), (7, 1000), (60, 1000), (5000, 30)])
def test_probabilities_equal_the_slow_reference(size: int, count: int) -> None:
    generator = np.random.default_rng(size)
    for _ in range(count):
        logits, params = random_case(generator, size)
        expected = np.array(reference(logits, params))
        result = probabilities(logits, params)
        assert np.array_equal(result > 0, expected > 0), params
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=0)
        assert not result[logits == -INF].any()


def test_probabilities_equal_transformers() -> None:
    generator = np.random.default_rng(11)
    for _ in range(300):
        logits = generator.normal(0, generator.choice([1, 4]), 200).astype(np.float32)
        prompt = generator.integers(200, size=9).tolist()
        values = {
            "top_k": int(generator.integers(1, 250)),
            "temperature": generator.uniform(0.2, 2),
        }
        values |= {name: generator.uniform(0.1, 0.95) for name in ("min_p", "typical_p", "top_p")}
        values["min_p"] **= 4
        params = SamplingParams(**values, repetition_penalty=1.3)
        scores, ids = torch.tensor(logits)[None], torch.tensor(prompt)[None]
        for rule in (
            logits_process.RepetitionPenaltyLogitsProcessor(1.3),
            # In float64, so that they agree on what just reaches a mass.
            lambda _, scores: scores.double(),
            logits_process.TemperatureLogitsWarper(params.temperature),
            logits_process.TopKLogitsWarper(params.top_k),
            logits_process.MinPLogitsWarper(params.min_p),
            logits_process.TypicalLogitsWarper(params.typical_p),
            logits_process.TopPLogitsWarper(params.top_p),
        ):
            scores = rule(ids, scores)
        result = probabilities(adjusted(logits, params, prompt[:4], prompt[4:]), params)
        np.testing.assert_allclose(result, scores.softmax(-1)[0].numpy(), atol=1e-6)


def test_ties_go_to_the_lowest_id() -> None:
    level = np.zeros(5, np.float32)
    greedy = SamplingParams(temperature=0)
    assert choose(level, greedy, [], [], seed=0) == 0
    level[[1, 3]] = 2
    assert choose(level, greedy, [], [], seed=0) == 1
    level[:] = 0
    for options in ({"top_k": 2}, {"top_p": 0.4}, {"typical_p": 0.4}):
        kept = probabilities(level, SamplingParams(**OFF | options))
        assert kept.tolist() == [0.5, 0.5, 0, 0, 0]


def test_greedy_follows_the_adjusted_logits() -> None:
    greedy = SamplingParams(temperature=0, presence_penalty=1.0, logit_bias={0: -INF})
    assert choose(LOGITS, greedy, [], [], seed=0) == 1
    assert choose(LOGITS, greedy, [1], [], seed=0) == 1
    assert choose(LOGITS, greedy, [], [1], seed=0) == 1
    twice = dataclasses.replace(greedy, frequency_penalty=0.5)
    assert choose(LOGITS, twice, [], [1], seed=0) == 3


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [-INF, INF, float("nan")])
def test_a_row_without_a_choice_is_refused(temperature: float, value: float) -> None:
    row = np.full(4, -INF, np.float32)
    row[2] = value
    params = SamplingParams(temperature)
    with pytest.raises(ValueError, match="no token can be chosen: the highest logit is"):
        choose(row, params, [], [], seed=0)
    with pytest.raises(ValueError, match="no probabilities: the highest logit is"):
        logprobs_of(row, 0, 1)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64-10 as the paper tells it (Salmon et al., Parallel random numbers, 2011)."""
    a, b, c, d = counter
    mask = 2**64 - 1
    for number in range(10):
        k0 = (key[0] + number * 0x9E3779B97F4A7C15) & mask
        k1 = (key[1] + number * 0xBB67AE8584CAA73B) & mask
        left, right = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b = (right >> 64) ^ b ^ k0, right & mask
        c, d = (left >> 64) ^ d ^ k1, left & mask
    return [a, b, c, d]


def test_the_random_number_is_philox_of_seed_sample_and_index() -> None:
    # numpy adds one to the counter before each block.
    for seed, sample, index in [(0, 0, 0), (7, 0, 1), (7, 1, 0), (2**64 - 1, 15, 4095)]:
        word = philox([index + 1, sample, 0, 0], [seed, 0])[0]
        assert uniform(seed, sample, index) == (word >> 11) / 2**53


def test_random_numbers_are_level_and_unrelated() -> None:
    u = np.array([[uniform(3, sample, index) for index in range(500)] for sample in range(8)])
    assert u.min() >= 0 and u.max() < 1 and len(np.unique(u)) == u.size
    counts, _ = np.histogram(u, bins=20, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, 0.1 %
    assert np.abs(np.corrcoef(u) - np.eye(8)).max() < 0.2
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.06


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 3}, {"temperature": 2.0}, {"top_p": 0.81}, {"repetition_penalty": 2.0}],
    ids=str,
)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    params = SamplingParams(**OFF | options)
    count = 4000
    draws = [choose(LOGITS, params, [1], [], seed=5, sample=j) for j in range(count)]
    expected = probabilities(adjusted(LOGITS, params, [1], []), params) * count
    counts = np.bincount(draws, minlength=4)
    assert not counts[expected == 0].any()
    some = expected > 0
    # Chi-square, at most 3 degrees of freedom, 0.1 %.
    assert ((counts - expected)[some] ** 2 / expected[some]).sum() < 16.3


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    generator = np.random.default_rng(2)
    for index in range(1000):
        logits, params = random_case(generator, 30)
        token = choose(logits, params, [], [0] * index, seed=4, sample=1)
        mass = np.cumsum(reference(logits, params))
        assert token == np.searchsorted(mass, uniform(4, 1, index) * mass[-1], side="right")


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (1 - 2**-53, 3)])
def test_the_ends_of_a_draw(monkeypatch: pytest.MonkeyPatch, u: float, token: int) -> None:
    monkeypatch.setattr(sampling, "uniform", lambda *_: u)
    generator = np.random.default_rng(0)
    for _ in range(500):
        row = np.append(generator.normal(0, 3, 4), [0]).astype(np.float32)
        row[[0, 4]] = -INF
        assert choose(row, SamplingParams(**OFF), [], [], seed=0) == token


def test_a_draw_depends_on_seed_sample_and_place_alone() -> None:
    level, params = np.zeros(1000, np.float32), SamplingParams(**OFF)

    def draws(seed: int, sample: int, order: list[int]) -> list[int]:
        found = {i: choose(level, params, [1], [0] * i, seed=seed, sample=sample) for i in order}
        return [found[i] for i in sorted(found)]

    forward = list(range(20))
    assert draws(1, 0, forward) == draws(1, 0, forward[::-1])
    assert len({tuple(draws(seed, j, forward)) for seed in (1, 2) for j in (0, 1)}) == 4
    assert len(set(draws(1, 0, forward))) > 15


def test_fresh_seeds_differ_and_are_seeds() -> None:
    seeds = {fresh_seed() for _ in range(100)}
    assert len(seeds) == 100
    for seed in seeds:
        assert SamplingParams(seed=seed).seed == seed


def test_log_probabilities() -> None:
    result = logprobs_of(LOGITS, 3, 2)
    assert (result.token, result.rank) == (3, 3)
    assert result.logprob == pytest.approx(math.log(2 / 15), abs=1e-6)
    assert [token for token, _ in result.top] == [1, 0]
    np.testing.assert_allclose([x for _, x in result.top], np.log([8 / 15, 4 / 15]), atol=1e-6)
    assert logprobs_of(LOGITS, 1, 0).top == ()
    # Equals are ranked by id, and what cannot be is no alternative.
    row = np.array([0, 1, -INF, 1, 0], np.float32)
    assert [logprobs_of(row, i, 9).rank for i in range(5)] == [3, 1, 5, 2, 4]
    assert [token for token, _ in logprobs_of(row, 2, 9).top] == [1, 3, 0, 4]
    assert [token for token, _ in logprobs_of(row, 2, 3).top] == [1, 3, 0]
    assert logprobs_of(row, 2, 0).logprob == -INF
    for token in (-1, 4):
        with pytest.raises(ValueError, match=f"token {token} is not among 4"):
            logprobs_of(LOGITS, token, 1)


def test_log_probabilities_equal_torch() -> None:
    generator = np.random.default_rng(8)
    for _ in range(50):
        row = (generator.normal(0, 5, 3000) + 200).astype(np.float32)
        logprobs = torch.tensor(row).double().log_softmax(-1)
        values, order = logprobs.sort(descending=True)
        rank = int(generator.integers(3000))
        result = logprobs_of(row, int(order[rank]), 20)
        assert row[order[result.rank - 1]] == row[order[rank]]
        assert result.logprob == pytest.approx(values[rank].item(), abs=1e-9)
        np.testing.assert_allclose([x for _, x in result.top], values[:20], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(row[[i for i, _ in result.top]], row[order[:20]])
