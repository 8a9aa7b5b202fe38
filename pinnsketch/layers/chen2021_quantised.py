"""Stochastic rounding of each number to a few bits: Chen et al. (2021, ActNN, arXiv 2104.14129, section 4).

Numbers are taken 256 at a time, with the least of them and the size of a step in single precision; a number between two levels
goes to the nearer one with the greater chance, so that its mean is itself. Its variance is `step^2 f (1 - f)` for a number a
share f of a step above a level, and `E |G~ - G|^2 = sum_i |delta_i|^2 sum_j var a_ij`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pinnsketch.layers.fused import fused
from pinnsketch.layers.packing import pack, unpack
from pinnsketch.layers.steele2014_split_mix import round_at_random

RUN = 256
"""Numbers that share a step."""


class Quantised:
    """Keep each number in as many bits, 8, 4, 2 or 1, as the share allows."""

    unbiased = True

    def save(self, x: Tensor, seed: Tensor, keep: float) -> tuple[Tensor, ...]:
        width = torch.empty(0, x.shape[1], dtype=x.dtype, device=x.device)  # nothing, of the rows' width
        return *rounded(x, seed, bits_of(x, keep)), width

    def factors(self, delta: Tensor, saved: tuple[Tensor, ...], seed: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        packed, scales, width = saved
        shape = torch.Size((len(delta), width.shape[1]))
        return delta, restored(packed, scales, bits_of(width, keep), shape).to(width.dtype)

    def variance(self, delta: Tensor, x: Tensor, keep: float, seed: Tensor) -> Tensor:
        _, step, above = _levels(x, bits_of(x, keep))
        share = above - above.floor()
        each = (share * (1 - share) * step * step).flatten()[: x.numel()].view_as(x)
        return (delta.square().sum(1) * each.sum(1)).sum()


def bits_of(x: Tensor, keep: float) -> int:
    """The most bits whose bytes, with the scales, are within the share."""
    number = 8 * x.element_size()
    scales = 64 / RUN * (1 if x.dtype != torch.float64 else 2)
    for bits in (8, 4, 2, 1):
        if bits + scales <= keep * number + 1e-9:
            return bits
    raise ValueError(
        f"quantised: expected keep >= {(1 + scales) / number:.4f}, which is 1 bit of {number} and the scales; got {keep}."
    )


def rounded(x: Tensor, seed: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A tensor in so many bits a number, packed `(bytes,)`, and the least and the step of each run, `(runs, 2)`."""
    kernels = fused(x)
    if kernels:
        return kernels.rounded(x.contiguous(), seed, bits)
    low, step, above = _levels(x, bits)
    return pack(round_at_random(above, seed, 2**bits - 1).flatten(), bits), torch.cat([low, step], dim=1)


def restored(packed: Tensor, scales: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """The tensor again, but for the rounding."""
    kernels = fused(packed)
    if kernels:
        return kernels.restored(packed, scales, bits, shape)
    low, step = scales.split(1, dim=1)
    values = unpack(packed, bits, len(scales) * RUN).view(-1, RUN).to(low.dtype).mul_(step).add_(low)
    return values.flatten()[: shape.numel()].view(shape)


def _levels(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """The least `(runs, 1)` and the step `(runs, 1)` of each run, and the numbers in steps above it `(runs, RUN)`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    flat = x.reshape(-1).to(wide)
    rest = -len(flat) % RUN
    runs = (torch.cat([flat, flat[-1:].expand(rest)]) if rest else flat).view(-1, RUN)
    low, high = runs.aminmax(dim=1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return low, step, (runs - low) / step.clamp(min=torch.finfo(wide).tiny)
