"""A function applied to each entry of a jet, by the formula of Faa di Bruno, and the reverse of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pinnsketch.jets.functions import Family
from pinnsketch.jets.streams import Product, Streams


class Elementwise(torch.autograd.Function):
    """f applied to each entry of a jet, and the reverse of that, by the formula of Faa di Bruno.

    y_s = f' x_s + sum over terms of c f^(m) prod x. The reverse needs one more derivative of f.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, parts: Tensor, streams: Streams, derivatives: Family) -> Any:
        order = max((m for _, m in streams.terms), default=1)
        f, x = derivatives(value, order + any(ctx.needs_input_grad)), parts.unbind()
        sums = {key: _sum(x, products) for key, products in streams.terms.items()}
        rows = Rows(f[1] * parts)
        for (s, m), total in sums.items():
            rows.add(s, f[m], total)
        ctx.streams, ctx.keys, ctx.order = streams, tuple(sums), order
        ctx.save_for_backward(parts, *f[1:], *sums.values())
        return f[0], rows.stack()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_value: Tensor, g: Tensor) -> Any:
        parts, *saved = ctx.saved_tensors
        f, sums, streams = [None, *saved[: ctx.order + 1]], saved[ctx.order + 1 :], ctx.streams
        x, y = parts.unbind(), g.unbind()
        inner = Rows((y[0] * x[0])[None])
        for g_s, x_s in zip(y[1:], x[1:], strict=True):
            inner.add(0, g_s, x_s)
        to_value, to_parts = Rows((g_value * f[1])[None]), Rows(f[1] * g)
        to_value.add(0, f[2], inner.rows[0])
        for (s, m), total in zip(ctx.keys, sums, strict=True):
            to_value.add(0, f[m + 1] * y[s], total)
            weight = f[m] * y[s]
            for target, products in streams.slopes[s, m].items():
                c, factors = products[0]
                single = len(products) == 1 and len(factors) == 1
                to_parts.add(target, weight, x[factors[0]] if single else _sum(x, products), c if single else 1)
        found = to_parts.stack()
        return to_value.rows[0], found if parts.shape[1] == found.shape[1] else found.sum(1, keepdim=True), None, None


class Rows:
    """Rows that sums are added to: in place, or, where the steps are being recorded for a compiler, which fuses them, not."""

    def __init__(self, stacked: Tensor) -> None:
        self.rows, self._stacked, self._recorded = list(stacked.unbind()), stacked, get_proxy_mode() is not None

    def add(self, s: int, a: Tensor, b: Tensor, c: float = 1) -> None:
        self.rows[s] = torch.addcmul(self.rows[s], a, b, value=c) if self._recorded else self.rows[s].addcmul_(a, b, value=c)

    def stack(self) -> Tensor:
        return torch.stack(self.rows) if self._recorded else self._stacked


def _sum(x: Sequence[Tensor], products: list[Product]) -> Tensor:
    """The sum of c times the product of streams."""
    rows: Rows | None = None
    for c, (first, *rest) in products:
        right = torch.full((), 1.0, dtype=x[0].dtype, device=x[0].device) if not rest else x[rest[0]]
        for factor in rest[1:]:
            right = right * x[factor]
        if rows is None:
            rows = Rows((x[first] * right * c if c != 1 else x[first] * right)[None])
        else:
            rows.add(0, x[first], right, c)
    assert rows is not None
    return rows.rows[0]
