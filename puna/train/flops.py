"""How many operations training takes."""

from __future__ import annotations

from puna.config import ModelConfig


def flops_per_token(model: ModelConfig) -> int:
    """6N + 12LdT of a window's token: passes forward and back, multiplications and additions.

    Every weight counts twice forward and four times back; attention as if each position saw all
    others of its window. Recomputation is not counted ("PaLM", arXiv 2204.02311, appendix B).
    """
    attention = 12 * model.num_layers * model.dim * model.context_length
    return 6 * model.num_parameters + attention
