"""The loss by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from puna.train.losses import chunked_next_token_loss_sum, next_token_loss_sum
from puna.train.plot import smooth


def test_next_token_loss_sum() -> None:
    # p = (1/2, 1/4, 1/4) and (1/8, 3/4, 1/8): -log of the targets' is log 4 and log 4/3.
    logits = torch.log(torch.tensor([[[2.0, 1.0, 1.0], [1.0, 6.0, 1.0]]]))
    targets = torch.tensor([[2, 1]])
    expected = math.log(4) + math.log(4 / 3)
    assert next_token_loss_sum(logits, targets).item() == pytest.approx(expected)
    assert next_token_loss_sum(logits + 7, targets).item() == pytest.approx(expected, rel=1e-5)
    assert next_token_loss_sum(logits.bfloat16(), targets).dtype == torch.float32


def test_smooth() -> None:
    # Weighted means of all so far, each 1/2 of the one after it.
    assert smooth([3.0, 0.0, 7.0], weight=0.5) == pytest.approx([3, 1, 31 / 7])


@pytest.mark.parametrize("chunk", [0, 1, 3, 7, 100])
def test_the_chunked_loss_is_the_plain_one_both_ways(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (2, 7), generator=generator)
    targets[1, 3:] = -100  # left out by both
    plain = next_token_loss_sum(hidden @ head.T, targets)
    chunked = chunked_next_token_loss_sum(hidden, head, targets, chunk=chunk)
    torch.testing.assert_close(chunked, plain, rtol=0, atol=1e-12)
    expected = torch.autograd.grad(plain / 3, (hidden, head))
    found = torch.autograd.grad(chunked / 3, (hidden, head))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert chunked_next_token_loss_sum(hidden, head, targets, chunk=chunk) == chunked


def test_the_chunked_loss_never_holds_all_logits() -> None:
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.numel())
            return result

    hidden = torch.randn(1, 64, 4, requires_grad=True)
    head = torch.randn(1000, 4, requires_grad=True)
    with Watch() as watch:
        chunked_next_token_loss_sum(hidden, head, torch.zeros(1, 64).long(), chunk=8).backward()
    assert watch.largest == 8 * 1000


def test_the_chunked_loss_in_bf16_sums_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 512, 16, generator=generator).bfloat16()
    head = torch.randn(50, 16, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(50, (1, 512), generator=generator)
    loss = chunked_next_token_loss_sum(hidden, head, targets, chunk=2)
    exact = next_token_loss_sum(hidden.double() @ head.double().T, targets)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-3)
    (grad,) = torch.autograd.grad(loss, head)
    (expected,) = torch.autograd.grad(exact, head)
    # Sums over 256 chunks in bf16 would be off by more.
    assert (grad.double() - expected.double()).norm() < 0.01 * expected.double().norm()
