"""Exact derivatives of a network's outputs at points, by nested reverse-mode differentiation.

`Nested` serves any network and any residual; `pinnsketch.jets` serves most of them much faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Order = tuple[int | tuple[int, ...], ...]
"""Along what a derivative is taken: (0, 0) is d^2/dx_0^2; a group (0, 1) in it is the Laplacian over these coordinates, so that
((0, 1),) is the Laplacian, (0, (0, 1)) its derivative along x_0, and ((0, 1), (0, 1)) the bilaplacian."""


def order_of(parts: Iterable[int | tuple[int, ...]]) -> Order:
    """The one way to write an order: coordinates first, then groups, each sorted; a group of one is that one twice."""
    given = list(parts)
    flat = [part for part in given if isinstance(part, int)]
    groups = [tuple(sorted(part)) for part in given if not isinstance(part, int)]
    flat += [group[0] for group in groups if len(group) == 1 for _ in range(2)]
    return (*sorted(flat), *sorted(group for group in groups if len(group) > 1))


def degree(order: Order) -> int:
    """How many times is differentiated."""
    return sum(1 if isinstance(part, int) else 2 for part in order)


def partials(order: Order) -> list[tuple[int, ...]]:
    """The plain partial derivatives whose sum an order stands for."""
    fixed = tuple(part for part in order if isinstance(part, int))
    groups = [part for part in order if not isinstance(part, int)]
    return [tuple(sorted((*fixed, *axes, *axes))) for axes in product(*groups)]


class Derivatives(Protocol):
    """Values and partial derivatives of the outputs of one network at one set of points."""

    columns: tuple[Tensor, ...]
    """The coordinates of the points, one `(n, 1)` tensor each."""

    def derivative(self, output: int, order: Order) -> Tensor:
        """The output's derivative `(n, 1)`; order () is its value."""
        ...

    def knows(self, order: Order) -> bool:
        """Whether it can give derivatives of this order."""
        ...


class Nested:
    """Derivatives by `torch.autograd.grad` of its own results; each is computed once and kept while the object lives.

    Args:
        forward: maps points `(n, d)` to outputs `(n, m)`, each row on its own.
        x: the points `(n, d)`.

    Attributes:
        passes: through the network or its derivatives, so far.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.columns = tuple(column.detach().requires_grad_() for column in x.split(1, dim=1))
        self.passes = 0
        self._forward = forward
        self._outputs: Tensor | None = None
        self._known: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def derivative(self, output: int, order: Order) -> Tensor:
        first, *rest = (self._partial(output, axes) for axes in partials(order))
        return sum(rest, first)

    def knows(self, order: Order) -> bool:
        return True

    def _partial(self, output: int, axes: tuple[int, ...]) -> Tensor:
        if not axes:
            return self._value(output)
        if (output, axes) not in self._known:
            # A gradient holds all first derivatives of its parent at the price of one: keep those not known yet.
            parent = self._partial(output, axes[:-1])
            self.passes += 1
            for axis, derivative in enumerate(differentiate(parent, self.columns)):
                self._known.setdefault((output, tuple(sorted((*axes[:-1], axis)))), derivative)
        return self._known[output, axes]

    def _value(self, output: int) -> Tensor:
        if self._outputs is None:
            self.passes += 1
            with _Differentiable():
                self._outputs = self._forward(torch.cat(self.columns, dim=1))
        return self._outputs[:, output : output + 1]


class Linked:
    """Derivatives that can themselves be differentiated along the points, as `diff` and `div` do, whatever computed them.

    To each derivative a zero is added whose slope along a coordinate is the derivative of one order higher.

    Args:
        engine: computes the derivatives.
        x: the points `(n, d)`.
        reads: is told what is asked for: output and order; `differentiated` then tells whether anything was along the points.
    """

    def __init__(self, engine: Derivatives, x: Tensor, reads: set[tuple[int, Order]] | None = None) -> None:
        self.columns = tuple(column.detach().requires_grad_() for column in x.split(1, dim=1))
        self._engine, self._reads = engine, reads
        self._known: dict[tuple[int, Order], Tensor] = {}
        self._slopes = slopes = list[bool]()
        for column in self.columns if reads is not None else ():
            column.register_hook(lambda slope: slopes.append(True))  # a hook must not hold this object: it would never be freed

    @property
    def differentiated(self) -> bool:
        return bool(self._slopes)

    def along(self, slope: Tensor, output: int, order: Order) -> Tensor | None:
        """A slope times a derivative. A slope of zeros, as of parts that were joined and split again, reads nothing."""
        if self._reads is not None:
            if not slope.any():
                return None
        elif not self._engine.knows(order):
            return torch.where(slope == 0, slope, torch.nan)
        with torch.enable_grad():  # it is kept, for whoever asks next
            found = self.derivative(output, order)
        return slope * found

    def derivative(self, output: int, order: Order) -> Tensor:
        if self._reads is not None:
            self._reads.add((output, order))
        if (output, order) not in self._known:
            found = self._engine.derivative(output, order)
            for axis, column in enumerate(self.columns):
                found = found + _Zero.apply(column, self, output, order_of((*order, axis)))
            self._known[output, order] = found
        return self._known[output, order]

    def knows(self, order: Order) -> bool:
        return self._engine.knows(order)


class Widened:
    """Derivatives in double precision, from an engine that computes them in single.

    Args:
        engine: computes the derivatives.
        x: the points `(n, d)` in double precision.
    """

    def __init__(self, engine: Derivatives, x: Tensor) -> None:
        self.columns = x.split(1, dim=1)
        self._engine = engine

    def derivative(self, output: int, order: Order) -> Tensor:
        return self._engine.derivative(output, order).double()

    def knows(self, order: Order) -> bool:
        return self._engine.knows(order)


class _Zero(torch.autograd.Function):
    """Zero, with the slope along the column that the linked derivative has."""

    @staticmethod
    def forward(ctx: Any, column: Tensor, linked: Linked, output: int, order: Order) -> Tensor:
        ctx.linked, ctx.output, ctx.order = ref(linked), output, order  # a weak one: else the graph would keep itself alive
        return torch.zeros_like(column)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        linked = ctx.linked()
        if linked is None:  # the residual is done: this pass is for the parameters
            return None, None, None, None
        return linked.along(slope, ctx.output, ctx.order), None, None, None


def layer_norm(x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Layer normalisation from elementary operations, for anything that has those."""
    dims = list(range(-len(shape), 0))
    centred = x - x.mean(dims, True)
    y = centred * ((centred * centred).mean(dims, True) + eps) ** -0.5
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class _Differentiable(TorchFunctionMode):
    """Replaces torch's layer_norm, whose third derivatives are wrong (seen in 2.13: 100 % off a difference quotient)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (layer_norm if function is functional.layer_norm else function)(*args, **(kwargs or {}))


def differentiate(y: Tensor, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Derivatives of `y (n, 1)`, whose row i depends on row i of the columns alone, along each column `(n, 1)`.

    A `y` that does not depend on a column has derivative zero there.

    Raises:
        RuntimeError: where torch records no operations, so that this cannot be told.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError("An expression cannot be differentiated under torch.no_grad().")
    if not y.requires_grad:
        return tuple(torch.zeros_like(column) for column in columns)
    # Of the sum: given slopes of the outputs, torch loads sympy to compare their shapes, which takes half a second.
    return torch.autograd.grad(y.sum(), columns, create_graph=True, allow_unused=True, materialize_grads=True)
