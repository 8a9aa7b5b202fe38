"""Jet: a value and its derivatives through a network, one rule per torch operation, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pinnsketch.derivatives import degree, layer_norm
from pinnsketch.jets import functions
from pinnsketch.jets.faa_di_bruno import Elementwise
from pinnsketch.jets.functions import Family
from pinnsketch.jets.streams import Streams


class NoRule(TypeError):
    """An operation that has no rule here."""


@dataclass(frozen=True)
class Use:
    """One use of a weight: `y = x W^T + b`, the jets that went in and came out.

    Args:
        columns: of W that each point meets, `(n, i)`, where x holds these alone; None: all.
    """

    weight: Tensor
    bias: Tensor | None
    x: Jet
    y: Jet
    columns: Tensor | None = None


@dataclass(frozen=True)
class Jet:
    """A value `(n, ...)` and its derivative streams `(K, n, ...)`, or `(K, 1, ...)` where all points have the same.

    Args:
        uses: where it is noted which weights the jet has met; None: nowhere.
    """

    value: Tensor
    parts: Tensor
    streams: Streams
    uses: list[Use] | None = None

    def like(self, value: Tensor, parts: Tensor) -> Jet:
        return Jet(value, parts, self.streams, self.uses)

    @classmethod
    def seed(cls, x: Tensor, streams: Streams, uses: list[Use] | None = None) -> Jet:
        """The coordinates `(n, d)` themselves: their first derivatives are unit vectors, all others zero."""
        d, first = x.shape[1], [order[0] for order in streams.orders if degree(order) == 1]
        units = torch.eye(d, dtype=x.dtype, device=x.device).unbind()
        rest = x.new_zeros(len(streams) - len(first), d)
        parts = torch.cat([*(units[axis][None] for axis in first), rest])[:, None]  # type: ignore[index]
        if uses is not None:  # each point needs its own
            parts = parts.expand(len(streams), *x.shape)
        return cls(x, parts, streams, uses)

    @property
    def whole(self) -> Tensor:
        """The streams at every point, `(K, n, ...)`."""
        return self.parts.expand(len(self.parts), *self.value.shape)

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
        if not (isinstance(keys[0], slice) and keys[0] == slice(None)) and not (keys[0] is Ellipsis and len(keys) <= self.ndim):
            raise NoRule("no rule for choosing points")
        return self.like(self.value[keys], self.parts[(slice(None), *keys)])


DEFAULTS = (False, "none", 1, 20)
"""Options that activations are given by default: inplace, approximate, beta, threshold."""


def elementwise(derivatives: Family) -> Callable[..., Jet]:
    """The rule of a function applied to each entry, from `derivatives(v, k)`: f(v) and its first k derivatives."""

    def rule(x: Jet, *args: Any, **kwargs: Any) -> Jet:
        given = [*args, *kwargs.values()]
        if any(option not in DEFAULTS for option in given):
            raise NoRule(f"no rule with the options {given}")
        if not len(x.streams):
            return x.like(derivatives(x.value, 0)[0], x.parts)
        value, parts = Elementwise.apply(x.value, x.parts, x.streams, derivatives)
        return x.like(value, parts)

    return rule


def linear(x: Jet, weight: Tensor, bias: Tensor | None = None, product: Callable[..., Tensor] = functional.linear) -> Jet:
    """x W^T + b: one matrix product for the value, one for all streams."""
    y = x.like(product(x.value, weight, bias), product(x.parts, weight))
    if x.uses is not None:
        x.uses.append(Use(weight, bias, x, y))
    return y


def sparse_linear(x: Any, weight: Tensor, columns: Tensor) -> Any:
    """x W^T where each point has a few columns of W `(o, i)`: x `(n, k)`, a tensor or a jet, columns `(n, k)`."""
    taken = weight[:, columns]
    if not isinstance(x, Jet):
        return torch.einsum("nk,onk->no", x, taken)
    y = x.like(torch.einsum("nk,onk->no", x.value, taken), torch.einsum("snk,onk->sno", x.whole, taken))
    if x.uses is not None:
        x.uses.append(Use(weight, None, x, y, columns))
    return y


def add(x: Any, y: Any, alpha: float = 1) -> Jet:
    if isinstance(x, Jet) and isinstance(y, Jet):
        return x.like(x.value + alpha * y.value, x.whole + alpha * y.whole)
    if isinstance(x, Jet):
        value = x.value + alpha * y
        return x.like(value, x.parts if value.shape == x.shape else x.whole.expand(len(x.parts), *value.shape))
    return add(alpha * y, x)


def bilinear(x: Any, y: Any, product: Callable[..., Tensor]) -> Jet:
    """A product that is linear in each of two factors, one or both of them jets."""
    if not isinstance(y, Jet):
        return _each(lambda part: product(part, y), x)
    if not isinstance(x, Jet):
        return _each(lambda part: product(x, part), y)
    value = product(x.value, y.value)
    rows = [product(x.value, v) + product(u, y.value) for u, v in zip(x.whole, y.whole, strict=True)]
    for s, i, j, c in x.streams.leibniz:
        rows[s] = rows[s] + c * product(x.whole[i], y.whole[j])
    return x.like(value, torch.stack(rows) if rows else value.new_zeros(0, *value.shape))


def _each(function: Callable[[Tensor], Tensor], x: Jet) -> Jet:
    """A linear function of a jet."""
    value, rows = function(x.value), [function(part) for part in x.whole]
    return x.like(value, torch.stack(rows) if rows else value.new_zeros(0, *value.shape))


def multiply(x: Any, y: Any) -> Jet:
    if not isinstance(x, Jet):
        x, y = y, x
    if isinstance(y, Jet):
        return bilinear(x, y, torch.mul)
    return x.like(x.value * y, x.parts * y)


def divide(x: Any, y: Any) -> Jet:
    return multiply(x, power(y, -1) if isinstance(y, Jet) else 1 / y)


def power(x: Any, exponent: Any) -> Jet:
    if isinstance(exponent, (Jet, Tensor)) or not isinstance(x, Jet):
        raise NoRule("no rule for a power whose exponent is no number")
    return elementwise(lambda v, k: functions.powers(v, exponent, k))(x)


def matmul(x: Any, y: Any) -> Jet:
    if isinstance(y, Tensor) and y.ndim == 2:
        return linear(x, y.T)
    if isinstance(y, Jet) and y.ndim < 3:
        raise NoRule("no rule for a matrix product that mixes points")
    return bilinear(x, y, torch.matmul)


def einsum(equation: str, *factors: Any) -> Jet:
    found = [place for place, factor in enumerate(factors) if isinstance(factor, Jet)]
    if len(found) > 2:
        raise NoRule("no rule for einsum with more than two jets")
    taken, _, given = equation.replace(" ", "").partition("->")
    firsts = [part[:1] for part in taken.split(",")]
    if not given[:1].isalpha() or any(firsts[place] != given[:1] for place in found):
        raise NoRule("no rule for an einsum that mixes points")

    def product(*jets: Tensor) -> Tensor:
        filled = list(factors)
        for place, jet in zip(found, jets, strict=True):
            filled[place] = jet
        return torch.einsum(equation, *filled)

    if len(found) == 2:
        return bilinear(factors[found[0]], factors[found[1]], product)
    return _each(product, factors[found[0]])


def cat(jets: Sequence[Any], dim: int = 0) -> Jet:
    first = next(jet for jet in jets if isinstance(jet, Jet))
    if dim % first.ndim == 0:
        raise NoRule("no rule for joining points")
    whole = [jet if isinstance(jet, Jet) else first.like(jet, jet.new_zeros(len(first.streams), *jet.shape)) for jet in jets]
    axis = dim % first.ndim
    return first.like(torch.cat([j.value for j in whole], axis), torch.cat([j.whole for j in whole], axis + 1))


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
    return x.like(value, x.whole.reshape(len(x.parts), *value.shape))


RULES: dict[Any, Callable[..., Jet]] = {
    **{f: elementwise(functions.tanh) for f in (torch.tanh, torch.Tensor.tanh, functional.tanh)},
    **{f: elementwise(functions.sin) for f in (torch.sin, torch.Tensor.sin)},
    **{f: elementwise(functions.cos) for f in (torch.cos, torch.Tensor.cos)},
    **{f: elementwise(functions.exp) for f in (torch.exp, torch.Tensor.exp)},
    **{f: elementwise(functions.erf) for f in (torch.erf, torch.Tensor.erf)},
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
    torch.einsum: einsum,
}
"""One rule for each operation: it takes what the operation takes, a Jet among it, and gives a Jet."""
