"""How many parameters and operations a model is, by formulas.

A token costs 6 N + 12 L d T floating-point operations in training: N parameters that multiply, each
once forward and twice backward, a multiplication and an addition each; and in each of L layers the
scores and the weighted sums of attention, of width d over all T positions of a window. N is without
an embedding that is only looked up; a tied one multiplies as the head. The half of attention that a
causal mask spares counts, what is recomputed does not: so are the figures of PaLM (arXiv
2204.02311, appendix B) and torchtitan, and those of different programs compare.

MFU is tokens a second times that, over the peak of all devices.
"""

from __future__ import annotations

from puna.config import ModelConfig

FORMULA = "6N + 12LdT"


def multiplying(config: ModelConfig) -> int:
    """N: parameters that a token is multiplied with, all but an embedding that is looked up."""
    looked_up = 0 if config.tied else config.vocab_size * config.dim
    return config.num_parameters - looked_up


def flops_per_token(config: ModelConfig) -> int:
    """Operations that a token of a full window costs in training: 6 N + 12 L d T."""
    attention = 12 * config.num_layers * config.dim * config.context_length
    return 6 * multiplying(config) + attention


def forward_flops(config: ModelConfig, context: float) -> float:
    """Operations of a token's forward pass that looks at `context` positions: 2 N + 4 L d T."""
    return 2 * multiplying(config) + 4 * config.num_layers * config.dim * context


def formula(config: ModelConfig) -> str:
    """The training formula with this model's numbers."""
    return (
        f"6 x {multiplying(config):,} + 12 x {config.num_layers} x {config.dim} x "
        f"{config.context_length} = {flops_per_token(config):,}"
    )
