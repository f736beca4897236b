"""Perplexity and divergence against plain loops and figures worked out by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.evaluate.perplexity import (
    Logits,
    chunk_windows,
    compare,
    network_logits,
    perplexity,
    strided_windows,
)
from tests.samples import positions_like, random_model, small_config, transformers_twin

BOS = 1


def random_logits(seed: int, vocab_size: int = 11, spread: float = 2.0) -> Logits:
    """A 'model' whose prediction depends on all tokens so far, and on nothing else."""

    def logits(tokens: Tensor) -> Tensor:
        rows = []
        for end in range(1, len(tokens) + 1):
            generator = torch.Generator().manual_seed(hash((seed, *tokens[:end].tolist())) % 2**31)
            rows.append(torch.randn(vocab_size, generator=generator) * spread)
        return torch.stack(rows)

    return logits


def random_ids(count: int, vocab_size: int = 11) -> list[int]:
    generator = random.Random(count)
    return [BOS] + [generator.randrange(vocab_size) for _ in range(count - 1)]


def llama_cpp_loop(logits: Logits, ids: list[int], context: int, bos: int | None) -> list[float]:
    """The surprises that tools/perplexity/perplexity.cpp sums up, one at a time."""
    surprises = []
    for chunk in range(len(ids) // context):
        tokens = ids[chunk * context : (chunk + 1) * context]
        shown = tokens if bos is None else [bos, *tokens[1:]]
        rows = logits(torch.tensor(shown)).double().numpy()
        for position in range(context // 2, context - 1):
            weights = [math.exp(x) for x in rows[position]]
            surprises.append(-math.log(weights[tokens[position + 1]] / sum(weights)))
    return surprises


@pytest.mark.parametrize("context", [4, 8, 9])
@pytest.mark.parametrize("bos", [None, BOS])
def test_chunks_are_counted_as_llama_cpp_counts_them(context: int, bos: int | None) -> None:
    ids = random_ids(40)
    surprises = llama_cpp_loop(random_logits(0), ids, context, bos)
    found = perplexity(random_logits(0), chunk_windows(ids, context=context, bos_id=bos))
    assert found.count == len(surprises) == 40 // context * (context - 1 - context // 2)
    assert found.nll == pytest.approx(np.mean(surprises), rel=1e-5)
    assert found.value == pytest.approx(math.exp(np.mean(surprises)), rel=1e-5)
    variance = np.mean(np.square(surprises)) - np.mean(surprises) ** 2
    expected = math.exp(np.mean(surprises)) * math.sqrt(variance / (len(surprises) - 1))
    assert found.error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("length", "context", "stride"), [(40, 8, 3), (40, 8, 7), (7, 8, 4)])
def test_a_stride_counts_every_token_once_with_enough_before_it(
    length: int, context: int, stride: int
) -> None:
    ids = random_ids(length)
    surprises = {}
    begin = 0
    while len(surprises) < length - 1:
        window = ids[begin : begin + context]
        rows = F.log_softmax(random_logits(0)(torch.tensor(window)), -1)
        for place in range(1, len(window)):
            target = begin + place
            surprises.setdefault(target, -float(rows[place - 1, ids[target]]))
        begin += stride
    windows = list(strided_windows(ids, context=context, stride=stride))
    found = perplexity(random_logits(0), windows)
    assert found.count == length - 1
    assert found.nll == pytest.approx(np.mean(list(surprises.values())), rel=1e-5)
    assert all(w.first + 1 >= context - stride for w in windows[1:])


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    found = perplexity(lambda t: torch.zeros(len(t), 7), chunk_windows([1] * 16, context=8))
    assert found.value == pytest.approx(7) and found.error == pytest.approx(0, abs=1e-6)


def test_a_network_against_transformers() -> None:
    model = random_model(small_config())
    twin: Any = transformers_twin(model)
    ids = random_ids(64, vocab_size=97)

    @torch.inference_mode()
    def reference(tokens: Tensor) -> Tensor:
        return twin(tokens[None]).logits[0]

    windows = list(chunk_windows(ids, context=16, bos_id=BOS))
    found = perplexity(network_logits(model), windows)
    assert found.value == pytest.approx(perplexity(reference, windows).value, rel=1e-5)
    inputs = torch.tensor([ids[:32]])
    whole = twin(inputs, labels=inputs, position_ids=positions_like(inputs)).loss.item()
    one = perplexity(network_logits(model), strided_windows(ids[:32], context=32, stride=16))
    assert one.nll == pytest.approx(whole, rel=1e-5)


def test_comparison_against_a_plain_loop() -> None:
    base, model = random_logits(0), random_logits(1)
    ids = random_ids(48)
    found = compare(base, model, chunk_windows(ids, context=8, bos_id=BOS))
    divergences, same = [], []
    for window in chunk_windows(ids, context=8, bos_id=BOS):
        p = np.asarray(F.softmax(base(window.tokens).double(), -1))[4:7]
        q = np.asarray(F.softmax(model(window.tokens).double(), -1))[4:7]
        divergences += [
            sum(a * math.log(a / b) for a, b in zip(*rows, strict=True))
            for rows in zip(p, q, strict=True)
        ]
        same += [int(a.argmax() == b.argmax()) for a, b in zip(p, q, strict=True)]
    divergences.sort()
    assert len(divergences) == 18 and 0 < sum(same) < 18
    assert found.mean_kl == pytest.approx(np.mean(divergences), rel=1e-4)
    assert found.median_kl == pytest.approx((divergences[8] + divergences[9]) / 2, rel=1e-4)
    assert found.max_kl == pytest.approx(divergences[-1], rel=1e-4)
    # 0.99 of the way along 17 steps is 0.83 of the last one.
    ninety_nine = 0.17 * divergences[16] + 0.83 * divergences[17]
    assert found.kl_99 == pytest.approx(ninety_nine, rel=1e-4)
    assert found.same_top == np.mean(same)
    windows = list(chunk_windows(ids, context=8, bos_id=BOS))
    assert found.base == perplexity(base, windows) and found.model == perplexity(model, windows)
    assert found.ratio == pytest.approx(found.model.value / found.base.value)


def test_a_model_compared_with_itself_differs_in_nothing() -> None:
    found = compare(random_logits(0), random_logits(0), chunk_windows(random_ids(32), context=8))
    assert (found.ratio, found.ratio_error, found.max_kl, found.same_top) == (1, 0, 0, 1)


def test_progress_is_told_after_each_window() -> None:
    told: list[float] = []
    found = perplexity(
        random_logits(0), chunk_windows(random_ids(40), context=8), on_window=told.append
    )
    assert len(told) == 5 and told[-1] == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("run", "match"),
    [
        (lambda: list(chunk_windows([1] * 15, context=8)), "15 tokens.*needs 16"),
        (lambda: list(chunk_windows([1] * 15, context=3)), "nothing to count"),
        (
            lambda: list(strided_windows([1] * 15, context=8, stride=8)),
            "stride must be from 1 to 7",
        ),
        (lambda: list(strided_windows([1], context=8, stride=4)), "predicts nothing"),
        (lambda: perplexity(random_logits(0), []), "no windows"),
        (
            lambda: compare(
                random_logits(0, 11), random_logits(0, 12), chunk_windows([1] * 16, context=8)
            ),
            "11 and 12 logits",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(run: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run()
