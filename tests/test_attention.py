"""Attention in blocks against the fused kernel and against fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from puna.attention import Attend, causal, causal_in_blocks


def out_and_gradients(attend: Attend, inputs: list[Tensor], slope: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = attend(0, *leaves)
    return [out, *torch.autograd.grad(out, leaves, slope.to(out.dtype))]


@pytest.mark.parametrize("num_tokens", [1, 100, 128, 300, 1200])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_blocks_are_as_near_to_fp64_as_the_fused_kernel(num_tokens: int, num_kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(2, num_tokens, heads, 16, generator=generator).bfloat16()
        for heads in (4, num_kv_heads, num_kv_heads)
    ]
    slope = torch.randn(2, num_tokens, 4, 16, generator=generator).bfloat16()
    exact = out_and_gradients(causal, [x.double() for x in inputs], slope)
    fused = out_and_gradients(causal, inputs, slope)
    blocks = out_and_gradients(causal_in_blocks, inputs, slope)
    for right, one, other in zip(exact, fused, blocks, strict=True):
        assert other.dtype == torch.bfloat16 and other.shape == right.shape
        most = 2 * (one.double() - right).norm() + 1e-3 * right.norm()
        assert (other.double() - right).norm() <= most


def test_other_types_are_left_to_the_fused_kernel() -> None:
    inputs = [
        torch.randn(1, 200, 2, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 3)
    ]
    assert torch.equal(causal_in_blocks(0, *inputs), causal(0, *inputs))
