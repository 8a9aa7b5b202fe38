"""Jet: a value and its derivatives through a network, one rule per torch operation, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pinnsketch.derivatives import Wanted, layer_norm
from pinnsketch.jets import functions
from pinnsketch.jets.functions import Family
from pinnsketch.jets.streams import Product, Streams


class NoRule(TypeError):
    """An operation that has no rule here."""


@dataclass(frozen=True)
class Jet:
    """A value `(n, ...)` and its derivative streams `(K, n, ...)`."""

    value: Tensor
    parts: Tensor
    streams: Streams

    def like(self, value: Tensor, parts: Tensor) -> Jet:
        return Jet(value, parts, self.streams)

    @classmethod
    def seed(cls, x: Tensor, streams: Streams) -> Jet:
        """The coordinates `(n, d)` themselves: their first derivatives are unit vectors, all others zero."""
        parts = x.new_zeros(len(streams), *x.shape)
        for s, orders in enumerate(streams.wanted):
            for order in orders:
                if len(order) == 1:
                    parts[s, :, order[0]] = 1
        return cls(x, parts, streams)

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    def size(self, dim: int | None = None) -> Any:
        return self.value.size() if dim is None else self.value.size(dim)

    def dim(self) -> int:
        return self.value.ndim

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(function)
        if rule is None:
            raise NoRule(f"no rule for {getattr(function, '__name__', function)}")
        return rule(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        """`x.sin()` is `torch.sin(x)`."""
        function = getattr(torch, name, None)
        if name.startswith("_") or function not in RULES:
            raise NoRule(f"no rule for .{name}") if not name.startswith("_") else AttributeError(name)
        return lambda *args, **kwargs: RULES[function](self, *args, **kwargs)

    def __add__(self, other: Any) -> Jet:
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Jet:
        return add(self, -other)

    def __rsub__(self, other: Any) -> Jet:
        return add(-self, other)

    def __neg__(self) -> Jet:
        return self.like(-self.value, -self.parts)

    def __mul__(self, other: Any) -> Jet:
        return multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Jet:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Jet:
        return multiply(power(self, -1), other)

    def __pow__(self, exponent: Any) -> Jet:
        return power(self, exponent)

    def __matmul__(self, other: Any) -> Jet:
        return matmul(self, other)

    def __getitem__(self, key: Any) -> Jet:
        keys = key if isinstance(key, tuple) else (key,)
        return self.like(self.value[keys], self.parts[(slice(None), *keys)])


class Elementwise(torch.autograd.Function):
    """f applied to each entry of a jet, and the reverse of that, by the formula of Faa di Bruno.

    y_s = f' x_s + sum over terms of c f^(m) prod x. The reverse needs one more derivative of f.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, parts: Tensor, streams: Streams, derivatives: Family) -> Any:
        order = max((m for _, m in streams.terms), default=1)
        f = derivatives(value, order + 1)
        out = f[1] * parts
        sums = {key: _sum(parts, products) for key, products in streams.terms.items()}
        for (s, m), total in sums.items():
            out[s].addcmul_(f[m], total)
        ctx.streams, ctx.f, ctx.sums = streams, [None, *f[1:]], sums  # an output kept here would keep itself alive
        ctx.save_for_backward(parts)
        return f[0], out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_value: Tensor, g: Tensor) -> Any:
        (parts,) = ctx.saved_tensors
        f, streams = ctx.f, ctx.streams
        inner = g[0] * parts[0]
        for g_s, part in zip(g[1:], parts[1:], strict=True):
            inner.addcmul_(g_s, part)
        to_value = inner.mul_(f[2]).addcmul_(g_value, f[1])
        to_parts = f[1] * g
        for (s, m), total in ctx.sums.items():
            to_value.addcmul_(f[m + 1] * g[s], total)
            weight = f[m] * g[s]
            for target, products in streams.slopes[s, m].items():
                if len(products) == 1 and len(products[0][1]) == 1:
                    c, (other,) = products[0]
                    to_parts[target].addcmul_(weight, parts[other], value=c)
                else:
                    to_parts[target].addcmul_(weight, _sum(parts, products))
        return to_value, to_parts, None, None


def _sum(parts: Tensor, products: list[Product]) -> Tensor:
    """The sum of c times the product of streams."""
    total: Tensor | None = None
    for c, (first, *rest) in products:
        right = parts[rest[0]] if rest else None
        for factor in rest[1:]:
            right = right * parts[factor]  # type: ignore[operator]
        if total is None:
            total = parts[first] * (c if right is None else right)
            total = total if right is None or c == 1 else total.mul_(c)
        else:
            total = total.add_(parts[first], alpha=c) if right is None else total.addcmul_(parts[first], right, value=c)
    assert total is not None
    return total


DEFAULTS = (False, "none", 1, 20)
"""Options that activations are given by default: inplace, approximate, beta, threshold."""


def elementwise(derivatives: Family) -> Callable[..., Jet]:
    """The rule of a function applied to each entry, from `derivatives(v, k)`: f(v) and its first k derivatives."""

    def rule(x: Jet, *args: Any, **kwargs: Any) -> Jet:
        given = [*args, *kwargs.values()]
        if any(option not in DEFAULTS for option in given):
            raise NoRule(f"no rule with the options {given}")
        value, parts = Elementwise.apply(x.value, x.parts, x.streams, derivatives)
        return x.like(value, parts)

    return rule


def linear(x: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    return x.like(functional.linear(x.value, weight, bias), functional.linear(x.parts, weight))


def add(x: Any, y: Any, alpha: float = 1) -> Jet:
    if isinstance(x, Jet) and isinstance(y, Jet):
        return x.like(x.value + alpha * y.value, x.parts + alpha * y.parts)
    if isinstance(x, Jet):
        value = x.value + alpha * y
        return x.like(value, x.parts.expand(len(x.parts), *value.shape))
    return add(alpha * y, x)


def multiply(x: Any, y: Any) -> Jet:
    if not isinstance(x, Jet):
        x, y = y, x
    if not isinstance(y, Jet):
        return x.like(x.value * y, x.parts * y)
    parts = x.value * y.parts + x.parts * y.value
    if x.streams.products:
        rows = list(parts.unbind(0))
        for s, i, j, c in x.streams.products:
            rows[s] = rows[s] + c * x.parts[i] * y.parts[j]
        parts = torch.stack(rows)
    return x.like(x.value * y.value, parts)


def divide(x: Any, y: Any) -> Jet:
    return multiply(x, power(y, -1) if isinstance(y, Jet) else 1 / y)


def power(x: Any, exponent: Any) -> Jet:
    if isinstance(exponent, (Jet, Tensor)) or not isinstance(x, Jet):
        raise NoRule("no rule for a power whose exponent is no number")
    return elementwise(lambda v, k: functions.powers(v, exponent, k))(x)


def matmul(x: Any, y: Any) -> Jet:
    if isinstance(x, Jet) and isinstance(y, Tensor):
        return x.like(x.value @ y, x.parts @ y)
    raise NoRule("no rule for a matrix product with a jet on its right")


def cat(jets: Sequence[Any], dim: int = 0) -> Jet:
    first = next(jet for jet in jets if isinstance(jet, Jet))
    if dim % first.ndim == 0:
        raise NoRule("no rule for joining points")
    whole = [jet if isinstance(jet, Jet) else first.like(jet, jet.new_zeros(len(first.streams), *jet.shape)) for jet in jets]
    axis = dim % first.ndim
    return first.like(torch.cat([j.value for j in whole], axis), torch.cat([j.parts for j in whole], axis + 1))


def _along(function: Callable[..., Tensor]) -> Callable[..., Jet]:
    """The rule of a sum or mean over the last axes."""

    def rule(x: Jet, dim: Any = None, keepdim: bool = False) -> Jet:
        dims = [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim or [0])]
        if 0 in dims:
            raise NoRule("no rule for a sum over points")
        return x.like(function(x.value, dims, keepdim), function(x.parts, [d + 1 for d in dims], keepdim))

    return rule


def _reshape(x: Jet, *shape: Any) -> Jet:
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    value = x.value.reshape(sizes)
    if value.shape[:1] != x.value.shape[:1]:
        raise NoRule("no rule for a shape that mixes points")
    return x.like(value, x.parts.reshape(len(x.parts), *value.shape))


RULES: dict[Any, Callable[..., Jet]] = {
    **{f: elementwise(functions.tanh) for f in (torch.tanh, torch.Tensor.tanh, functional.tanh)},
    **{f: elementwise(functions.sin) for f in (torch.sin, torch.Tensor.sin)},
    **{f: elementwise(functions.cos) for f in (torch.cos, torch.Tensor.cos)},
    **{f: elementwise(functions.exp) for f in (torch.exp, torch.Tensor.exp)},
    **{f: elementwise(functions.log) for f in (torch.log, torch.Tensor.log)},
    **{f: elementwise(functions.sigmoid) for f in (torch.sigmoid, torch.Tensor.sigmoid, functional.sigmoid)},
    **{f: elementwise(functions.silu) for f in (functional.silu,)},
    **{f: elementwise(functions.gelu) for f in (functional.gelu,)},
    **{f: elementwise(functions.softplus) for f in (functional.softplus,)},
    **{f: lambda x: power(x, 0.5) for f in (torch.sqrt, torch.Tensor.sqrt)},
    **{f: lambda x: power(x, 2) for f in (torch.square, torch.Tensor.square)},
    **{f: lambda x: power(x, -1) for f in (torch.reciprocal, torch.Tensor.reciprocal)},
    **dict.fromkeys((torch.pow, torch.Tensor.pow, torch.Tensor.__pow__), power),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), add),
    **{f: lambda x, y, alpha=1: add(x, -alpha * y) for f in (torch.sub, torch.Tensor.sub, torch.Tensor.__sub__)},
    torch.Tensor.__rsub__: lambda x, y: add(-x, y),
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), multiply),
    **dict.fromkeys((torch.div, torch.Tensor.div, torch.Tensor.__truediv__), divide),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), matmul),
    **{f: lambda x: -x for f in (torch.neg, torch.Tensor.neg)},
    **{f: _along(torch.sum) for f in (torch.sum, torch.Tensor.sum)},
    **{f: _along(torch.mean) for f in (torch.mean, torch.Tensor.mean)},
    **dict.fromkeys((torch.reshape, torch.Tensor.reshape, torch.Tensor.view), _reshape),
    functional.linear: linear,
    functional.layer_norm: layer_norm,
    torch.cat: cat,
}
"""One rule for each operation: it takes what the operation takes, a Jet among it, and gives a Jet."""


class Jets:
    """Derivatives of a network's outputs, all that are wanted by one pass, as `pinnsketch.derivatives.Derivatives`.

    Args:
        forward: maps points `(n, d)` to outputs `(n, m)`, each row on its own, by operations that have a rule.
        x: the points `(n, d)`.
        streams: the derivatives that will be asked for.
    """

    def __init__(self, forward: Callable[[Any], Any], x: Tensor, streams: Streams) -> None:
        self.columns = x.split(1, dim=1)
        self._forward, self._x, self._streams = forward, x, streams

    @cached_property
    def _outputs(self) -> Jet:
        if not len(self._streams):
            return Jet(self._forward(self._x), self._x.new_zeros(0), self._streams)
        found = self._forward(Jet.seed(self._x, self._streams))
        if not isinstance(found, Jet):
            raise NoRule("no rule that leads to the output")
        return found

    def value(self, output: int) -> Tensor:
        return self._outputs.value[:, output : output + 1]

    def derivative(self, output: int, wanted: Wanted) -> Tensor:
        if wanted not in self._streams.wanted:
            raise NoRule("a derivative that was not announced")
        return self._outputs.parts[self._streams.place(wanted), :, output : output + 1]
