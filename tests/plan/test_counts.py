"""What a model is in numbers."""

from __future__ import annotations

import pytest

from puna.config import ModelConfig, preset
from puna.plan.counts import flops_per_token, formula, forward_flops

TIED = ModelConfig(8, 1, 2, 2, 16, vocab_size=10, context_length=32, tied=True)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("34b", 32_528_943_616),
     ("34b-gqa", 33_743_970_304), ("70b", 68_976_648_192)],
)  # fmt: skip
def test_parameters_are_exact(name: str, parameters: int) -> None:
    assert preset(name).num_parameters == parameters


def test_operations_of_a_token() -> None:
    # 7B: 6,738,415,616 parameters, of which 32000 x 4096 are looked up.
    assert flops_per_token(preset("7b")) == 6 * 6_607_343_616 + 12 * 32 * 4096 * 4096
    # A tied embedding multiplies as the head: all of 8 x 10 + one block of 4 8x8, 3 8x16, norms.
    assert flops_per_token(TIED) == 6 * (80 + 4 * 64 + 3 * 128 + 3 * 8) + 12 * 8 * 32
    assert formula(preset("7b")).endswith("= 46,086,512,640")


def test_a_forward_pass_is_a_third_of_training() -> None:
    for config in (TIED, preset("70b")):
        assert 3 * forward_flops(config, config.context_length) == flops_per_token(config)
