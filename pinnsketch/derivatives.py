"""Exact derivatives of a network's outputs at points, by nested reverse-mode differentiation.

`Nested` serves any network and any residual; `pinnsketch.jets` serves most of them much faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Order = tuple[int, ...]
"""Coordinate indices along which a derivative is taken, sorted: (0, 0) is d^2/dx_0^2."""
Wanted = frozenset[Order]
"""A sum of derivatives of one order, as a Laplacian is; usually just one."""


class Derivatives(Protocol):
    """Values and partial derivatives of the outputs of one network at one set of points."""

    columns: tuple[Tensor, ...]
    """The coordinates of the points, one `(n, 1)` tensor each."""

    def value(self, output: int) -> Tensor:
        """The output's value `(n, 1)`."""
        ...

    def derivative(self, output: int, wanted: Wanted) -> Tensor:
        """The sum of the wanted partial derivatives of the output, `(n, 1)`."""
        ...


class Nested:
    """Derivatives by `torch.autograd.grad` of its own results; each is computed once and kept while the object lives.

    Args:
        forward: maps points `(n, d)` to outputs `(n, m)`, each row on its own.
        x: the points `(n, d)`.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.columns = tuple(column.detach().requires_grad_() for column in x.split(1, dim=1))
        self._forward = forward
        self._outputs: Tensor | None = None
        self._known: dict[tuple[int, Order], Tensor] = {}

    def value(self, output: int) -> Tensor:
        if self._outputs is None:
            with _Differentiable():
                self._outputs = self._forward(torch.cat(self.columns, dim=1))
        return self._outputs[:, output : output + 1]

    def derivative(self, output: int, wanted: Wanted) -> Tensor:
        first, *rest = (self.partial(output, order) for order in sorted(wanted))
        return sum(rest, first)

    def partial(self, output: int, order: Order) -> Tensor:
        """The output's partial derivative `(n, 1)`, once along each coordinate index in `order`."""
        order = tuple(sorted(order))
        if (output, order) not in self._known:
            parent = self.partial(output, order[:-1]) if len(order) > 1 else self.value(output)
            # A gradient holds all first derivatives of its parent at the price of one: keep those not known yet.
            for axis, derivative in enumerate(differentiate(parent, self.columns)):
                self._known.setdefault((output, tuple(sorted((*order[:-1], axis)))), derivative)
        return self._known[output, order]


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
    """
    if not y.requires_grad:
        return tuple(torch.zeros_like(column) for column in columns)
    return torch.autograd.grad(
        y, columns, grad_outputs=torch.ones_like(y), create_graph=True, allow_unused=True, materialize_grads=True
    )
