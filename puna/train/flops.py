"""How much arithmetic training is, and what share of a device's best it reaches (MFU).

A token costs 6 N + 12 L d T floating-point operations: N parameters that multiply, each once
forward and twice backward, a multiplication and an addition each; and in each of L layers the
scores and the weighted sums of attention, of width d over all T positions of a window. N is without
an embedding that is only looked up; a tied one multiplies as the head. The half of attention that a
causal mask spares counts, what is recomputed does not: so are the figures of PaLM (arXiv
2204.02311, appendix B) and torchtitan, and those of different programs compare.

MFU is tokens a second times that, over the peak of all devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from puna.config import ModelConfig


def flops_per_token(config: ModelConfig) -> int:
    """Operations that a token of a full window costs in training: 6 N + 12 L d T."""
    looked_up = 0 if config.tied else config.vocab_size * config.dim
    multiplying = config.num_parameters - looked_up
    return 6 * multiplying + 12 * config.num_layers * config.dim * config.context_length


@dataclass(frozen=True, slots=True)
class Peak:
    """What a device does at best, in TFLOP/s without sparsity; `fp8` 0 where it has none.

    `words` are all in the device's name.
    """

    words: str
    bf16: float
    fp8: float
    source: str


# The first row that fits. NVIDIA's sheets give most figures with sparsity: twice these.
PEAKS: tuple[Peak, ...] = (
    Peak("A100", 312, 0, "NVIDIA A100 data sheet"),
    Peak("A800", 312, 0, "NVIDIA A800 data sheet"),
    Peak("H100 PCIe", 756, 1513, "NVIDIA H100 data sheet, 2022"),
    Peak("H100 NVL", 835, 1671, "NVIDIA H100 data sheet"),
    Peak("H100", 989, 1979, "NVIDIA H100 data sheet, SXM"),
    Peak("H200 NVL", 835, 1671, "NVIDIA H200 data sheet"),
    Peak("H200", 989, 1979, "NVIDIA H200 data sheet, SXM"),
    Peak("GH200", 989, 1979, "NVIDIA GH200 data sheet"),
    Peak("H800", 989, 1979, "NVIDIA H800 data sheet, SXM"),
    Peak("H20", 148, 296, "NVIDIA H20 data sheet"),
    Peak("B200", 2250, 4500, "NVIDIA DGX B200 data sheet"),
    Peak("L4", 121, 242, "NVIDIA L4 data sheet"),
    Peak("L40S", 362, 733, "NVIDIA L40S data sheet"),
    Peak("A10", 125, 0, "NVIDIA A10 data sheet"),
    Peak("MI300X", 1307, 2614, "AMD Instinct MI300X data sheet"),
    Peak("MI325X", 1307, 2614, "AMD Instinct MI325X data sheet"),
)


def peak_tflops(device_name: str, kind: str) -> float | None:
    """The best of a device in "bf16" or "fp8"; None where the table does not know it."""
    words = device_name.replace("-", " ").split()
    for row in PEAKS:
        if all(word in words for word in row.words.split()):
            return {"bf16": row.bf16, "fp8": row.fp8}.get(kind) or None
    return None


def name_of(device: torch.device) -> str:
    """What a GPU calls itself; the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
