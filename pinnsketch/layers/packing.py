"""Small whole numbers, several in one byte."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(levels: Tensor, bits: int) -> Tensor:
    """Numbers `(n,)` of uint8 below 2^bits, 8 / bits of them in a byte."""
    per = 8 // bits
    if per == 1:
        return levels
    rest = -len(levels) % per
    rows = (torch.cat([levels, levels.new_zeros(rest)]) if rest else levels).view(per, -1)
    packed = rows[0].clone()
    for k in range(1, per):
        packed.bitwise_or_(rows[k] << (k * bits))
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The numbers `(count,)` again."""
    if bits == 8:
        return packed[:count]
    rows = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.cat(rows)[:count]
