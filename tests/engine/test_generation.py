"""Generation with a real network: against recomputation, transformers, and what was meant."""

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
from puna.engine.engine import Engine
from puna.engine.params import SamplingParams
from puna.engine.request import Request
from puna.engine.sampling import choose
from puna.engine.torch_runner import TorchRunner
from puna.heads import next_token_logits
from puna.model import Llama
from puna.tokenizer import Tokenizer
from tests.samples import positions_like, random_model, small_config, transformers_twin

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
PROMPT = [1, 17, 4, 33, 8]


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    return random_model(small_config(vocab_size=tokenizer.vocab_size))


def request(model: Llama, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams) -> Any:
    engine = Engine(TorchRunner(model, num_pages=4), tokenizer, max_rows=9, max_sequences=4)
    made = engine.add(prompt, params)
    while engine.has_work:
        engine.step()
    return made


def output_of(made: Request) -> list[int]:
    return made.result().outputs[0].token_ids


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
        parts.append(runner.step(batch).logits)
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
    "changes",
    [{"temperature": 0}, {"seed": 3}, {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "seed": 4}],
    ids=str,
)
@pytest.mark.parametrize("shape", [{}, {"num_kv_heads": 4}], ids=str)
def test_cached_generation_equals_recomputing(
    changes: dict[str, Any], shape: dict[str, Any], tokenizer: Tokenizer
) -> None:
    model = random_model(small_config(vocab_size=tokenizer.vocab_size, **shape), seed=2)
    sampling = SamplingParams(max_tokens=20, ignore_eos=True, **changes)
    ids = output_of(request(model, tokenizer, PROMPT, sampling))
    assert ids == recomputed(model, PROMPT, 20, sampling)
    assert len(set(ids)) > 3


def test_greedy_equals_transformers(model: Llama, tokenizer: Tokenizer) -> None:
    twin = transformers_twin(model)
    twin.generation_config.eos_token_id = None
    expected = twin.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
    )
    ids = output_of(request(model, tokenizer, PROMPT, GREEDY))
    assert ids == expected[0, len(PROMPT) :].tolist()


def test_seeds_reproduce(model: Llama, tokenizer: Tokenizer) -> None:
    def run(seed: int | None) -> list[int]:
        sampling = SamplingParams(temperature=1.5, top_p=1.0, seed=seed, max_tokens=20)
        return output_of(request(model, tokenizer, PROMPT, sampling))

    assert run(1) == run(1) != run(2)
    assert run(None) != run(None)


def test_padding_rows_are_never_chosen(tokenizer: Tokenizer) -> None:
    """Rows of the embedding that stand for no piece."""
    padded = random_model(small_config(vocab_size=tokenizer.vocab_size + 400))
    hot = SamplingParams(50.0, top_p=1.0, seed=0, max_tokens=27, n=4, ignore_eos=True)
    for params in (hot, dataclasses.replace(GREEDY, n=1)):
        made = request(padded, tokenizer, PROMPT, params)
        for output in made.result().outputs:
            assert max(output.token_ids) < tokenizer.vocab_size


class Scripted(Llama):
    """Says the ids of a script after a prompt of one token, whatever that is."""

    def __init__(self, script: list[int], num_rows: int) -> None:
        super().__init__(
            small_config(dim=num_rows, vocab_size=num_rows, tied=True, context_length=64)
        )
        self.script = torch.tensor(script)
        self.tok_embeddings.weight = torch.nn.Parameter(torch.eye(num_rows))

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        return F.one_hot(self.script[positions_BT], self.config.dim).float()


TEXT = "A small child found 12 stones"


def said(
    tokenizer: Tokenizer, script: list[int], *, strip_space: bool = True, **options: Any
) -> Request:
    padding = -tokenizer.vocab_size % 8 + 8
    model = Scripted(script, tokenizer.vocab_size + padding)
    engine = Engine(TorchRunner(model, num_pages=20), tokenizer)
    values = {"max_tokens": 50, "temperature": 0} | options
    made = engine.add([1], SamplingParams(**values), strip_space=strip_space)
    while engine.has_work:
        engine.step()
    (output,) = made.result().outputs
    assert "".join(delta.text for delta in made.deltas) == output.text
    assert [t for delta in made.deltas for t in delta.token_ids] == output.token_ids
    reasons = [delta.finish_reason for delta in made.deltas]
    assert reasons == [None] * (len(reasons) - 1) + [output.finish_reason]
    return made


def test_an_output_ends_at_eos(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode(TEXT), tokenizer.eos_id]
    (output,) = said(tokenizer, ids).result().outputs
    assert (output.text, output.token_ids) == (TEXT, ids)
    assert (output.finish_reason, output.stop_reason) == ("stop", tokenizer.eos_id)


def test_an_output_ends_at_a_stop_string(tokenizer: Tokenizer) -> None:
    script = [*tokenizer.encode(TEXT), tokenizer.eos_id]
    (output,) = said(tokenizer, script, stop=("nd 1", "never")).result().outputs
    assert (output.text, output.finish_reason) == ("A small child fou", "stop")
    assert output.stop_reason == "nd 1" and tokenizer.eos_id not in output.token_ids
    # One that only begins is given out in the end.
    (output,) = said(tokenizer, script, stop=("stones!",)).result().outputs
    assert (output.text, output.stop_reason) == (TEXT, tokenizer.eos_id)


def test_an_output_ends_at_a_stop_id(tokenizer: Tokenizer) -> None:
    script = [*tokenizer.encode(TEXT), tokenizer.eos_id]
    (output,) = said(tokenizer, script, stop_ids=(script[5], script[7])).result().outputs
    assert output.text == tokenizer.decode(script[:5]) and output.token_ids == script[:6]
    assert (output.finish_reason, output.stop_reason) == ("stop", script[5])


def test_an_output_ends_at_max_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    (output,) = said(tokenizer, [*ids, 2], max_tokens=4).result().outputs
    assert (output.text, output.token_ids) == (tokenizer.decode(ids[:4]), ids[:4])
    assert (output.finish_reason, output.stop_reason) == ("length", None)


def test_eos_may_be_ignored(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("one"), tokenizer.eos_id, *tokenizer.encode("two")]
    made = said(tokenizer, ids, ignore_eos=True, max_tokens=len(ids))
    assert made.result().outputs[0].text == tokenizer.decode(ids)


def test_no_delta_has_half_a_character(tokenizer: Tokenizer) -> None:
    llama = tokenizer.encode("🦙")
    made = said(tokenizer, [*llama, 2])
    assert [delta.text for delta in made.deltas if delta.text] == ["🦙"]
    cut = said(tokenizer, llama, max_tokens=4)
    assert [delta.text for delta in cut.deltas if delta.text] == ["\ufffd" * 3]


def test_the_first_space_may_be_kept(tokenizer: Tokenizer) -> None:
    made = said(tokenizer, [*tokenizer.encode(TEXT), 2], strip_space=False)
    assert made.result().outputs[0].text == f" {TEXT}"
