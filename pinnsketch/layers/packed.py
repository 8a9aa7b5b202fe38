"""Activations that keep few bits for their backward pass, as in Novikov et al. (2022, arXiv 2202.00441), here without bias.

autograd keeps the output of tanh or relu, which is the next layer's input: beside them, a layer that forgets its input saves
nothing. Here relu keeps the mask of its positive inputs, one bit each, and is exact. A smooth activation keeps its derivative
f'(x), rounded at random to one of 2^bits levels between its bounds such that the mean is f'(x): so is that of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinnsketch.jets import Jet
from pinnsketch.layers.fused import fused
from pinnsketch.layers.packed_jet import packed_jet
from pinnsketch.layers.packing import pack, unpack
from pinnsketch.layers.sketched import Stream, only_once
from pinnsketch.layers.steele2014_split_mix import GOLDEN, round_at_random, signed

BITS = (8, 4, 2, 1)
PIECE = (2**18, 2**24)
"""Numbers that are rounded at a time: on a CPU its cache holds them; and on a GPU."""
TWICE = (
    "The gradient of a packed activation was differentiated again. It keeps its first derivative, rounded, and no second one: "
    'use the plain activation (activations="exact" in sketch_layers) where gradients of gradients are needed.'
)


@dataclass(frozen=True)
class Smooth:
    """An activation.

    Args:
        function: itself.
        slope: its derivative, from input and output.
        low, high: bounds of the derivative.
    """

    function: Callable[..., Any]
    slope: Callable[[Tensor, Tensor], Tensor]
    low: float
    high: float


def _silu_slope(x: Tensor, y: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s + y * (1 - s)


def _gelu_slope(x: Tensor, y: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * (-0.5 * x * x).exp() / math.sqrt(2 * math.pi)


SMOOTH: MappingProxyType[str, Smooth] = MappingProxyType(
    {
        "tanh": Smooth(torch.tanh, lambda x, y: torch.addcmul(y.new_ones(()), y, y, value=-1), 0.0, 1.0),
        "sigmoid": Smooth(torch.sigmoid, lambda x, y: y * (1 - y), 0.0, 0.25),
        "sin": Smooth(torch.sin, lambda x, y: torch.cos(x), -1.0, 1.0),
        "silu": Smooth(functional.silu, _silu_slope, -0.1, 1.1),
        "gelu": Smooth(functional.gelu, _gelu_slope, -0.13, 1.13),
    }
)
"""By name."""
NAMES = {smooth: name for name, smooth in SMOOTH.items()}


class PackedSlope(torch.autograd.Function):
    """f(x), with f'(x) kept in a few bits; made piece by piece, so that little memory is used beside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, smooth: Smooth, bits: int) -> Tensor:
        y, kernels = smooth.function(x), fused(x)
        step = (smooth.high - smooth.low) / (2**bits - 1)
        ctx.bits, ctx.step, ctx.low = bits, step, smooth.low
        if kernels and x.is_contiguous():
            ctx.save_for_backward(kernels.slope(x, y, seed, NAMES[smooth], smooth.low, step, bits))
            return y
        wide = torch.promote_types(x.dtype, torch.float32)
        packed = torch.empty(-(-x.numel() * bits // 8), dtype=torch.uint8, device=x.device)
        size = PIECE[x.is_cuda]
        for k, (u, v) in enumerate(zip(x.reshape(-1).split(size), y.reshape(-1).split(size), strict=True)):
            level = smooth.slope(u.to(wide), v.to(wide)).mul_(1 / step)
            level = level.sub_(smooth.low / step) if smooth.low else level
            piece = pack(round_at_random(level, seed + signed(k * (size // 4) * GOLDEN), 2**bits - 1), bits)
            packed[k * size * bits // 8 :][: len(piece)] = piece
        ctx.save_for_backward(packed)
        return y

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        (packed,), kernels = ctx.saved_tensors, fused(delta)
        if kernels:
            return only_once(kernels.times_slope(delta.detach(), packed, ctx.low, ctx.step, ctx.bits), TWICE), None, None, None
        flat, size = delta.detach().reshape(-1), PIECE[delta.is_cuda]
        found, given = flat * ctx.step, flat.split(size) if ctx.low else ()
        for k, piece in enumerate(found.split(size)):
            piece.mul_(unpack(packed[k * size * ctx.bits // 8 :], ctx.bits, len(piece)))
            if ctx.low:
                piece.add_(given[k], alpha=ctx.low)
        return only_once(found.view(delta.shape), TWICE), None, None, None


class PackedMask(torch.autograd.Function):
    """max(x, 0), with one bit kept for each number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        kernels = fused(x)
        if kernels and x.is_contiguous():
            y = x if inplace else torch.empty_like(x)
            if inplace:
                ctx.mark_dirty(x)
            ctx.save_for_backward(kernels.relu(x, y))
            return y
        ctx.save_for_backward(pack((x <= 0).view(torch.uint8).flatten(), 1))
        if not inplace:
            return torch.relu(x)
        ctx.mark_dirty(x)
        return x.relu_()

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        (packed,), kernels = ctx.saved_tensors, fused(delta)
        if kernels and not torch.is_grad_enabled():
            return kernels.relu_slope(delta, packed), None
        return delta.masked_fill(unpack(packed, 1, delta.numel()).view(torch.bool).view(delta.shape), 0), None


class PackedReLU(nn.Module):
    """relu that keeps one bit for each number; exact, also when it is differentiated twice."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Any) -> Any:
        packed = isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()
        return PackedMask.apply(x, self.inplace) if packed else functional.relu(x, self.inplace)


class Packed(nn.Module):
    """A smooth activation that keeps its derivative in a few bits, rounded at random so that gradients are right in the mean.

    In evaluation mode it is the plain activation. For jets, all that the Taylor-mode pass keeps of it is rounded, 256 numbers
    at a time between the least and the greatest of them.

    Args:
        name: in `SMOOTH`.
        bits: 8, 4, 2 or 1.
        seed: of the rounding.

    Raises:
        ValueError: if there is no such activation, or not so many bits.
    """

    def __init__(self, name: str, bits: int = 8, seed: int = 0) -> None:
        super().__init__()
        if name not in SMOOTH:
            raise ValueError(f"There is no packed activation {name!r}; there are {', '.join(SMOOTH)}, and PackedReLU.")
        if bits not in BITS:
            raise ValueError(f"bits: expected one of {', '.join(map(str, BITS))}; got {bits}.")
        self.name, self.bits, self.random = name, bits, Stream(seed)

    def forward(self, x: Any) -> Any:
        smooth = SMOOTH[self.name]
        rows_wanted = isinstance(x, Jet) and x.uses is not None
        if self.random.exact or rows_wanted or not (self.training and torch.is_grad_enabled()):
            return smooth.function(x)
        if isinstance(x, Jet):
            return packed_jet(x, self.name, self.bits, self.random)
        return PackedSlope.apply(x, self.random.next(x), smooth, self.bits)

    def extra_repr(self) -> str:
        return f"{self.name}, bits={self.bits}"


PackedTanh, PackedSigmoid, PackedSin, PackedSiLU, PackedGELU = (partial(Packed, name) for name in SMOOTH)
"""Each takes bits and seed."""
