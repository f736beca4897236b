"""Sizes between a laptop's and Llama 2's; the paper has none of them, so all of it is *ours*.

Twenty tokens a parameter, learning rate and batch by the rule of `dial.py`.
"""

from __future__ import annotations

import dataclasses

from puna.config import ModelConfig, preset
from puna.recipes.dial import TOKENS_PER_PARAMETER, scaled
from puna.train.pretrain import PretrainConfig


def base_110m() -> PretrainConfig:
    """The preset `medium` with its embedding as head, 109.5M parameters: one GPU."""
    return _run(dataclasses.replace(preset("medium"), tied=True))


def base_1b() -> PretrainConfig:
    """1.1B parameters, with grouped-query attention: one machine of 8 GPUs."""
    return _run(preset("1b"), parallel="fsdp=8")


def _run(model: ModelConfig, parallel: str = "") -> PretrainConfig:
    return scaled(model, TOKENS_PER_PARAMETER * model.num_parameters, parallel=parallel)
