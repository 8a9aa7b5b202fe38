"""Exact derivatives of a network's outputs at points, by nested reverse-mode differentiation.

`Nested` is the whole interface that another engine has to fill: `value` and `partial`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Derivatives(Protocol):
    """Values and partial derivatives of the outputs of one network at one set of points."""

    columns: tuple[Tensor, ...]
    """The coordinates of the points, one `(n, 1)` tensor each."""

    def value(self, output: int) -> Tensor:
        """The output's value `(n, 1)`."""
        ...

    def partial(self, output: int, order: tuple[int, ...]) -> Tensor:
        """The output's partial derivative `(n, 1)`, once along each coordinate index in `order`."""
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
        self._known: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def value(self, output: int) -> Tensor:
        if self._outputs is None:
            self._outputs = self._forward(torch.cat(self.columns, dim=1))
        return self._outputs[:, output : output + 1]

    def partial(self, output: int, order: tuple[int, ...]) -> Tensor:
        order = tuple(sorted(order))
        if (output, order) not in self._known:
            parent = self.partial(output, order[:-1]) if len(order) > 1 else self.value(output)
            # A gradient holds all first derivatives of its parent at the price of one: keep those not known yet.
            for axis, derivative in enumerate(differentiate(parent, self.columns)):
                self._known.setdefault((output, tuple(sorted((*order[:-1], axis)))), derivative)
        return self._known[output, order]


def differentiate(y: Tensor, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Derivatives of `y (n, 1)`, whose row i depends on row i of the columns alone, along each column `(n, 1)`.

    A `y` that does not depend on a column has derivative zero there.
    """
    if not y.requires_grad:
        return tuple(torch.zeros_like(column) for column in columns)
    return torch.autograd.grad(
        y, columns, grad_outputs=torch.ones_like(y), create_graph=True, allow_unused=True, materialize_grads=True
    )
