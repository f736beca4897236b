"""The network against Hugging Face's, and its attention against itself taken apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from puna.attention import causal, document_masked
from puna.heads import next_token_logits
from puna.model import Llama, initialize
from tests.samples import positions_like, random_model, small_config, transformers_twin


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_heads": 4},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "num_layers": 3, "ffn_dim": 100},
        {"tied": True},
        {"rope_theta": 500.0},
        {"norm_eps": 0.1},
        {"num_heads": 2, "num_kv_heads": 2},
    ],
    ids=str,
)
@torch.inference_mode()
def test_logits_equal_transformers(changes: dict[str, Any]) -> None:
    model = random_model(small_config(**changes))
    tokens = torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(1))
    logits = next_token_logits(model, model(tokens, positions_like(tokens), causal))
    expected = transformers_twin(model)(tokens).logits
    assert expected.std() > 0.5  # not all alike
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_document_mask_equals_documents_apart() -> None:
    model = random_model(small_config())
    generator = torch.Generator().manual_seed(2)
    rows = [[5, 1, 7], [6, 7]]
    tokens = torch.randint(97, (2, 13), generator=generator)
    documents = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in rows]
    )
    packed = model(tokens, positions_like(tokens), document_masked(documents))
    for row, lengths in enumerate(rows):
        pieces = tokens[row : row + 1].split(lengths, dim=1)
        apart = torch.cat([model(p, positions_like(p), causal) for p in pieces], dim=1)
        # Positions differ by a shift, which rotary attention does not see.
        torch.testing.assert_close(packed[row : row + 1], apart, rtol=0, atol=1e-5)
    plain = model(tokens, positions_like(tokens), causal)
    assert (plain - packed).abs().max() > 0.1


@torch.inference_mode()
def test_future_tokens_do_not_matter() -> None:
    model = random_model(small_config())
    tokens = torch.randint(97, (1, 12), generator=torch.Generator().manual_seed(3))
    changed = tokens.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 97
    one, other = (model(t, positions_like(t), causal) for t in (tokens, changed))
    torch.testing.assert_close(one[:, :7], other[:, :7], rtol=0, atol=1e-6)
    assert (one[:, 7:] - other[:, 7:]).abs().min(dim=-1).values.max() > 0


def test_weights_keep_their_dtype_and_norms_are_computed_in_fp32() -> None:
    model = random_model(small_config()).to(torch.bfloat16)
    tokens = torch.randint(97, (1, 6), generator=torch.Generator().manual_seed(4))
    hidden = model(tokens, positions_like(tokens), causal)
    assert hidden.dtype == torch.bfloat16
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(5)).bfloat16()
    model.norm.weight = torch.nn.Parameter(torch.ones(32, dtype=torch.bfloat16))
    mean = x.double().square().mean(-1, keepdim=True) + model.norm.eps
    # Rounded once, at the end; sums in bf16 would be off by one in many places.
    same = model.norm(x) == (x.double() / mean.sqrt()).bfloat16()
    assert same.float().mean() > 0.99


def test_initialize_draws_what_it_says() -> None:
    config = small_config(dim=256, num_layers=8, ffn_dim=512, vocab_size=500)
    model, again, other = Llama(config), Llama(config), Llama(config)
    initialize(model, torch.Generator().manual_seed(7))
    initialize(again, torch.Generator().manual_seed(7))
    initialize(other, torch.Generator().manual_seed(8))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        if weight.ndim == 1:
            assert torch.all(weight == 1)
            continue
        residual = name.endswith(("attention.wo.weight", "feed_forward.w2.weight"))
        deviation = 0.02 / 4 if residual else 0.02  # sqrt(2 * 8 layers) is 4
        assert weight.std().item() == pytest.approx(deviation, rel=0.02), name
        assert abs(weight.mean().item()) < deviation / 20, name
        assert not torch.equal(weight, other.state_dict()[name])
