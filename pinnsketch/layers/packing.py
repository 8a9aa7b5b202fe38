"""Small whole numbers, several in one byte."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(levels: Tensor, bits: int) -> Tensor:
    """Numbers `(n,)` of uint8 below 2^bits, each 8 / bits that follow one another in a byte."""
    per = 8 // bits
    if per == 1:
        return levels
    rest = -len(levels) % per
    rows = (torch.cat([levels, levels.new_zeros(rest)]) if rest else levels).view(-1, per)
    packed = rows[:, 0].clone()
    for k in range(1, per):
        packed.bitwise_or_(rows[:, k] << (k * bits))
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The numbers `(count,)` again."""
    if bits == 8:
        return packed[:count]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed[:, None] >> shifts).bitwise_and_(2**bits - 1).view(-1)[:count]
