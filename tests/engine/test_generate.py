"""Generation with a cache against plain recomputation and transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.attention import Attend, causal
from puna.engine.batch import Batch
from puna.engine.generate import Completion, generate_ids
from puna.engine.params import SamplingParams
from puna.engine.sampling import choose
from puna.engine.torch_runner import TorchRunner
from puna.heads import next_token_logits
from puna.model import Llama
from puna.tokenizer import Tokenizer
from tests.samples import positions_like, random_model, small_config, transformers_twin

GREEDY = SamplingParams(temperature=0)
PROMPT = [1, 17, 4, 33, 8]


@pytest.fixture(scope="module")
def model() -> Llama:
    return random_model(small_config())


def runner_of(model: Llama) -> TorchRunner:
    return TorchRunner(model, num_pages=2)


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 1, 1, 11], [19, 1]], ids=str)
def test_a_cached_forward_equals_the_whole(model: Llama, chunks: list[int]) -> None:
    tokens = torch.randint(97, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = next_token_logits(model, model(tokens, positions_like(tokens), causal))[0]
    runner = TorchRunner(model, num_pages=4)
    parts, begin = [], 0
    for length in chunks:
        rows = np.arange(begin, begin + length, dtype=np.int32)
        batch = Batch(
            tokens=tokens[0].numpy()[rows].astype(np.int32),
            positions=rows,
            sequences=np.zeros(length, np.int32),
            tables=np.array([[3, 1]], np.int32),
            outputs=np.arange(length, dtype=np.int32),
        )
        parts.append(runner.step(batch))
        begin += length
    np.testing.assert_allclose(np.concatenate(parts), whole.numpy(), rtol=0, atol=1e-5)


@torch.inference_mode()
def recomputed(model: Llama, prompt: list[int], count: int, sampling: SamplingParams) -> list[int]:
    """Every token from the whole sequence so far: no cache."""
    assert sampling.seed is not None or sampling.temperature == 0
    ids = list(prompt)
    for _ in range(count):
        tokens = torch.tensor([ids])
        logits = next_token_logits(model, model(tokens, positions_like(tokens), causal))[0, -1]
        output = ids[len(prompt) :]
        ids.append(choose(logits.numpy(), sampling, prompt, output, seed=sampling.seed or 0))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, SamplingParams(seed=3), SamplingParams(1.3, top_k=0, top_p=1.0, seed=4)],
    ids=str,
)
@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 4}], ids=str)
def test_cached_generation_equals_recomputing(
    sampling: SamplingParams, changes: dict[str, Any]
) -> None:
    model = random_model(small_config(**changes), seed=2)
    ids = list(generate_ids(runner_of(model), PROMPT, max_tokens=20, sampling=sampling))
    assert ids == recomputed(model, PROMPT, 20, sampling)
    assert len(set(ids)) > 3


def test_greedy_equals_transformers(model: Llama) -> None:
    twin = transformers_twin(model)
    twin.generation_config.eos_token_id = None
    expected = twin.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
    )
    ids = list(generate_ids(runner_of(model), PROMPT, max_tokens=20, sampling=GREEDY))
    assert ids == expected[0, len(PROMPT) :].tolist()


def test_seeds_reproduce(model: Llama) -> None:
    def run(seed: int | None) -> list[int]:
        sampling = SamplingParams(temperature=1.5, top_p=1.0, seed=seed)
        return list(generate_ids(runner_of(model), PROMPT, max_tokens=20, sampling=sampling))

    assert run(1) == run(1) != run(2)
    assert run(None) != run(None)


def test_the_context_bounds_the_length(model: Llama) -> None:
    context = model.config.context_length
    for count, room in ((5, 27), (31, 1)):
        ids = list(generate_ids(runner_of(model), [1] * count, max_tokens=999, sampling=GREEDY))
        assert len(ids) == room == context - count
    assert list(generate_ids(runner_of(model), [1], max_tokens=0, sampling=GREEDY)) == []
    for prompt, message in (([], "no tokens"), ([1] * 32, "has 32 tokens"), ([1] * 40, "40")):
        with pytest.raises(ValueError, match=message):
            next(generate_ids(runner_of(model), prompt, max_tokens=5, sampling=GREEDY))


def test_padding_rows_are_never_chosen(model: Llama) -> None:
    high = SamplingParams(temperature=50.0, top_p=1.0, seed=0)
    everything = list(generate_ids(runner_of(model), PROMPT, max_tokens=27, sampling=high))
    assert max(everything) >= 40
    for sampling in (high, GREEDY):
        ids = list(
            generate_ids(runner_of(model), PROMPT, max_tokens=27, sampling=sampling, num_pieces=40)
        )
        assert max(ids) < 40 and len(ids) == 27


class Scripted(Llama):
    """Says the ids of a script after a prompt of one token, whatever that is."""

    def __init__(self, script: list[int], num_rows: int) -> None:
        super().__init__(small_config(dim=num_rows, vocab_size=num_rows, tied=True))
        self.script = torch.tensor(script)
        self.tok_embeddings.weight = torch.nn.Parameter(torch.eye(num_rows))

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        return F.one_hot(self.script[positions_BT], self.config.dim).float()


def completion(tokenizer: Tokenizer, ids: list[int], **options: Any) -> Completion:
    padding = -tokenizer.vocab_size % 8 + 8
    model = Scripted(ids, tokenizer.vocab_size + padding)
    values: dict[str, Any] = {"prompt": [1], "max_tokens": 50, "sampling": GREEDY}
    runner = TorchRunner(model, num_pages=20)
    return Completion(runner, tokenizer, **values | options)


TEXT = "A small child found 12 stones"


def test_a_completion_ends_at_eos(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    result = completion(tokenizer, [*ids, 2])
    pieces = list(result)
    assert "".join(pieces) == result.text == TEXT
    assert (result.ids, result.finish_reason) == (ids, "stop")
    assert len(pieces) > 3 and all(pieces)


def test_a_completion_ends_at_a_stop_string(tokenizer: Tokenizer) -> None:
    result = completion(tokenizer, [*tokenizer.encode(TEXT), 2], stops=["nd 1", "never"])
    assert "".join(result) == result.text == "A small child fou"
    assert result.finish_reason == "stop"
    assert 2 not in result.ids
    # One that only begins is given out in the end.
    result = completion(tokenizer, [*tokenizer.encode(TEXT), 2], stops=["stones!"])
    assert "".join(result) == TEXT and result.finish_reason == "stop"


def test_a_completion_ends_at_max_tokens_or_the_context(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    result = completion(tokenizer, [*ids, 2], max_tokens=4)
    assert "".join(result) == tokenizer.decode(ids[:4])
    assert (result.ids, result.finish_reason) == (ids[:4], "length")
    result = completion(tokenizer, [*ids, 2])
    result.runner.config = dataclasses.replace(result.runner.config, context_length=6)
    assert "".join(result) == tokenizer.decode(ids[:5])
    assert result.finish_reason == "length"


def test_a_completion_never_gives_half_a_character(tokenizer: Tokenizer) -> None:
    llama = tokenizer.encode("🦙")
    result = completion(tokenizer, [*llama, 2])
    assert list(result) == ["🦙"]
    cut = completion(tokenizer, llama, max_tokens=4)
    assert list(cut) == ["\ufffd" * 3] and cut.finish_reason == "length"


def test_a_completion_may_keep_the_first_space(tokenizer: Tokenizer) -> None:
    result = completion(tokenizer, [*tokenizer.encode(TEXT), 2], strip_space=False)
    assert "".join(result) == f" {TEXT}"
