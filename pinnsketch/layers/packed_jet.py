"""A smooth activation of a jet that keeps what its reverse pass needs in few bits, rounded at random.

The reverse pass of the Taylor mode is a sum of products of f', f'', ..., of the streams and of sums of products of these, each
kept apart. Rounded independently, a product of different ones is right in the mean; up to second derivatives all are such.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pinnsketch.jets import Jet, Streams, functions
from pinnsketch.jets.faa_di_bruno import Elementwise
from pinnsketch.jets.functions import Family
from pinnsketch.layers.chen2021_quantised import restored, rounded
from pinnsketch.layers.sketched import Stream
from pinnsketch.layers.steele2014_split_mix import STEP


class PackedElementwise(torch.autograd.Function):
    """`pinnsketch.jets.faa_di_bruno.Elementwise`, with what it keeps rounded."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, parts: Tensor, streams: Streams, family: Family, seed: Tensor, bits: int) -> Any:
        kept: list[Tensor] = []
        ctx.inner = SimpleNamespace(
            save_for_backward=lambda *tensors: kept.extend(tensors), needs_input_grad=ctx.needs_input_grad
        )
        results = Elementwise.forward(ctx.inner, value, parts, streams, family)
        del ctx.inner.save_for_backward
        ctx.bits, ctx.shapes, ctx.dtype = bits, [tensor.shape for tensor in kept], value.dtype
        pairs = [rounded(tensor, seed + i * (STEP // 31), bits) for i, tensor in enumerate(kept)]
        ctx.save_for_backward(*(tensor for pair in pairs for tensor in pair))
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        saved = ctx.saved_tensors
        pairs = zip(saved[::2], saved[1::2], ctx.shapes, strict=True)
        values = [restored(packed, scales, ctx.bits, shape).to(ctx.dtype) for packed, scales, shape in pairs]
        inner = SimpleNamespace(**vars(ctx.inner), saved_tensors=values)
        return *Elementwise.backward(inner, *slopes), None, None


def packed_jet(x: Jet, name: str, bits: int, random: Stream) -> Jet:
    """The activation of a name in `pinnsketch.jets.functions`, of a jet."""
    value, parts = PackedElementwise.apply(x.value, x.parts, x.streams, getattr(functions, name), random.next(x.value), bits)
    return x.like(value, parts)
