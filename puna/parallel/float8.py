"""Linear layers that multiply in float8 while training, by torchao (arXiv 2209.05433)."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from puna.model import Llama


def check_float8(device: torch.device) -> None:
    """ValueError where torchao is missing, or the device does not multiply float8."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(
            "float8 needs an NVIDIA GPU of compute capability 8.9 or newer (Ada, Hopper, "
            f"Blackwell), not {device}; train in bf16"
        )
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise ValueError("float8 needs torchao; install it by: pip install torchao") from None


def to_float8(network: Llama, *, emulate: bool = False) -> None:
    """Exchanges the blocks' linear layers; embedding and head stay as they are.

    Each row of both factors has a scale of its own, so that tensor parallel needs no more sums.
    With `emulate` the values are float8's and the products float32's: slow, for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig.from_recipe_name("rowwise")
    convert_to_float8_training(
        network.layers,
        config=dataclasses.replace(config, emulate=emulate),
        module_filter_fn=_fits,
    )


def _fits(module: nn.Module, name: str) -> bool:
    # What the hardware's instructions ask of the matrices.
    return (
        isinstance(module, nn.Linear)
        and module.in_features % 16 == 0
        and module.out_features % 16 == 0
    )
