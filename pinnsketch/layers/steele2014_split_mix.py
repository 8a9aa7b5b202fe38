"""Random numbers without state: the i-th is a hash of (seed, i), by the mixer of Steele, Lea & Flood (2014, SplitMix64).

Seeds are tensors `()` of int64 on the device: they may change between replays of a CUDA graph, and nothing waits for them.
Integers, signs and uniform numbers are the same on every device; normal ones to the rounding of log and cos there.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor


def signed(number: int) -> int:
    """The number modulo 2^64, as int64 has it."""
    return (number + 2**63) % 2**64 - 2**63


GOLDEN = signed(0x9E3779B97F4A7C15)
FIRST, SECOND = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)
SIGN, ONE = -(2**31), 0x3F800000
"""The bit of a sign, and the other bits of 1.0, in single precision."""
STEP = signed(0xD1342543DE82EF95)
"""What a seed grows by when its counter grows by one."""


def key(*numbers: int) -> int:
    """One int64 from several integers, in Python: of a seed, a layer, a process."""
    state = 0
    for number in numbers:
        state = (state ^ number) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            state = (state ^ (state % 2**64 >> shift)) * factor % 2**64
    return signed(state)


def seed_of(counter: Tensor, key: int) -> Tensor:
    """The seed `()` of one call: a new tensor, which stays as it is when the counter goes on."""
    return counter.mul(STEP).add_(key)


def integers(seed: Tensor, count: int) -> Tensor:
    """`(count,)` of int64, all 64 bits of which are random.

    Shifts keep the sign, other than in the source, so that one seed in 2^63 meets another; the last product fills the top bit.
    """
    x = torch.arange(count, device=seed.device).mul_(GOLDEN).add_(seed)
    x.bitwise_xor_(x >> 30).mul_(FIRST)
    x.bitwise_xor_(x >> 27).mul_(SECOND)
    return x.bitwise_xor_(x >> 31).mul_(GOLDEN)


def signs(seed: Tensor, shape: tuple[int, ...], size: float, dtype: torch.dtype) -> Tensor:
    """`size` or `-size` with equal chance: 64 of them from one hash."""
    count = torch.Size(shape).numel()
    words = integers(seed, -(-count // 64)).view(torch.int32)
    ones = (words[:, None] << torch.arange(32, dtype=torch.int32, device=seed.device)).bitwise_and_(SIGN).bitwise_or_(ONE)
    return ones.view(torch.float32).view(-1)[:count].view(shape).to(dtype).mul_(size)


def uniform(seed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(k + 1/2) / 2^16 with k uniform on 0 .. 2^16 - 1."""
    return quarters(seed, shape).to(dtype).add_(2**15 + 0.5).mul_(2.0**-16)


def quarters(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """k - 2^15 with k uniform on 0 .. 2^16 - 1, as int16: four of them from one hash."""
    count = torch.Size(shape).numel()
    return integers(seed, -(-count // 4)).view(torch.int16)[:count].view(shape)


def round_at_random(level: Tensor, seed: Tensor, most: int) -> Tensor:
    """Numbers in [0, most], each to a whole number beside it, so that the mean is the number; `level` is overwritten."""
    level.add_(quarters(seed, tuple(level.shape)), alpha=2.0**-16).add_(0.5 + 2.0**-17)
    return level.clamp_(0, most + 0.5).to(torch.int32).to(torch.uint8)  # faster than at once


def normal(seed: Tensor, shape: tuple[int, ...], size: float, dtype: torch.dtype) -> Tensor:
    """Normal with standard deviation `size`, by Box & Muller (1958): two of them from one hash; none is beyond 5.8 sizes."""
    count, wide = torch.Size(shape).numel(), torch.promote_types(dtype, torch.float32)
    x = integers(seed, -(-count // 2))
    radius = ((x >> 40) & 0xFFFFFF).to(wide).add_(1).mul_(2.0**-24).log_().mul_(-2 * size * size).sqrt_()
    angle = (x & 0xFFFFFF).to(wide).mul_(2 * pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].to(dtype).view(shape)
