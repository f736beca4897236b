"""How packed weights lie for the GPU: planes of bits, scales, offsets; and what they stand for.

A matrix of O outputs and I inputs is cut into runs of 32 inputs. Element e = 16 h + j of a run has
its bits in one or more planes, the first of which holds the lowest:

| plane | of a run | bits of element 16 h + j |
|---|---|---|
| 8 | 32 bytes | byte 16 h + j |
| 4 | 16 bytes | byte j, low half for h = 0, high half for h = 1 |
| 2 | two words of 32 bits | word h, bits 2 j and 2 j + 1 |
| 1 | one word of 32 bits | bit 16 h + j |

so that bytes are loaded 16 at a time and words are broadcast. With g = i // group:

    W[o, i] = scale[o, g] * code - offset[o, g]

where scale and offset may themselves be small integers times a number of each 256 inputs.
Tensors: `codes` (the 8 or 4 plane, uint8), `twos`, `ones` (int32 words), `scales`, `zeros`,
`supers`, `super_zeros`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RUN, HALF, SUPER = 32, 16, 256


@dataclass(frozen=True, slots=True)
class Layout:
    """What a kernel must know of a packed type besides its tensors.

    `offset`: "zeros" (scale * zeros[o, g]), "middle" (scale * middle) or "minimums" (zeros[o, g]
    itself). With `has_supers`, scales and minimums are integers, to be multiplied by
    `supers[o, i // 256]` and `super_zeros[o, i // 256]`.
    """

    planes: tuple[int, ...]
    offset: Literal["zeros", "middle", "minimums"]
    middle: int = 0
    has_supers: bool = False


# Names are those of schemes and storage types.
LAYOUTS = {
    "int8": Layout((8,), "zeros"),
    "int4": Layout((4,), "zeros"),
    "q4_0": Layout((4,), "middle", 8),
    "q4_1": Layout((4,), "minimums"),
    "q5_0": Layout((4, 1), "middle", 16),
    "q5_1": Layout((4, 1), "minimums"),
    "q8_0": Layout((8,), "middle", 128),
    "q2_k": Layout((2,), "minimums", has_supers=True),
    "q3_k": Layout((2, 1), "middle", 4, has_supers=True),
    "q4_k": Layout((4,), "minimums", has_supers=True),
    "q5_k": Layout((4, 1), "minimums", has_supers=True),
    "q6_k": Layout((4, 2), "middle", 32, has_supers=True),
}


def unpack(
    tensors: Mapping[str, Tensor], name: str, group: int, rows: slice = slice(None)
) -> Tensor:
    """Float32 rows (R, I): the definition that the kernels are held against."""
    layout = LAYOUTS[name]
    parts = {key: tensor[rows] for key, tensor in tensors.items() if key != "order"}
    codes, shift = None, 0
    for bits in layout.planes:
        plane = _PLANES[bits](parts) << shift
        codes = plane if codes is None else codes | plane
        shift += bits
    assert codes is not None
    values = codes.flatten(1).float()
    groups = torch.arange(values.shape[1], device=values.device) // group
    scale = parts["scales"].float()
    offset = parts["zeros"].float() if "zeros" in parts else scale.new_tensor(layout.middle)
    if layout.has_supers:
        per_super = SUPER // group
        scale = scale * parts["supers"].float().repeat_interleave(per_super, 1)
        if layout.offset == "minimums":
            offset = offset * parts["super_zeros"].float().repeat_interleave(per_super, 1)
    if layout.offset == "minimums":
        return scale[:, groups] * values - offset[:, groups]
    if layout.offset == "middle":
        return scale[:, groups] * (values - offset)
    return scale[:, groups] * (values - offset[:, groups])


def _bytes(parts: Mapping[str, Tensor]) -> Tensor:
    return parts["codes"].int().unflatten(1, (-1, RUN))


def _nibbles(parts: Mapping[str, Tensor]) -> Tensor:
    packed = parts["codes"].int().unflatten(1, (-1, HALF))
    return torch.cat((packed & 15, packed >> 4), dim=2)


def _twos(parts: Mapping[str, Tensor]) -> Tensor:
    shifts = torch.arange(0, 32, 2, device=parts["twos"].device, dtype=torch.int32)
    return (parts["twos"][:, :, None] >> shifts & 3).unflatten(1, (-1, 2)).flatten(2)


def _ones(parts: Mapping[str, Tensor]) -> Tensor:
    shifts = torch.arange(32, device=parts["ones"].device, dtype=torch.int32)
    return parts["ones"][:, :, None] >> shifts & 1


_PLANES = {8: _bytes, 4: _nibbles, 2: _twos, 1: _ones}


def pack_twos(codes: Tensor) -> Tensor:
    """Words (O, I / 16) of 2-bit numbers (O, I)."""
    shifts = torch.arange(0, 32, 2, device=codes.device)
    return _words((codes.long().unflatten(1, (-1, HALF)) << shifts).sum(2))


def pack_ones(codes: Tensor) -> Tensor:
    """Words (O, I / 32) of single bits (O, I)."""
    shifts = torch.arange(32, device=codes.device)
    return _words((codes.long().unflatten(1, (-1, RUN)) << shifts).sum(2))


def pack_nibbles(codes: Tensor) -> Tensor:
    """Bytes (O, I / 2) of 4-bit numbers (O, I)."""
    runs = codes.unflatten(1, (-1, 2, HALF))
    return (runs[:, :, 0] | runs[:, :, 1] << 4).to(torch.uint8).flatten(1)


def _words(sums: Tensor) -> Tensor:
    """Numbers below 2**32 as the int32 of the same bits."""
    return torch.where(sums >= 1 << 31, sums - (1 << 32), sums).to(torch.int32)
