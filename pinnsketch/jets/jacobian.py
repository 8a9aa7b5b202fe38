"""Jacobian: the derivative of residuals at points by the parameters of a network, as a linear map kept as outer products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pinnsketch.jets.outer import Basis, Outer
from pinnsketch.jets.squares import add_columns_by_columns, rows_by_rows

HELD = 2**26
"""Numbers of a Jacobian that are held at a time."""
SPARED = 0.25
"""Share of a kernel's work that channels must spare for rows not to be made."""


class Jacobian:
    """The derivative of N residuals by P parameters, `(N, P)`, as a linear map.

    Args:
        blocks: in order, the residuals `(n,)` that share points with, by number of the parameter, their outer products.
        shapes: of the parameters, in the order of their entries in a vector.
    """

    def __init__(self, blocks: Sequence[tuple[Tensor, Mapping[int, Outer]]], shapes: Sequence[torch.Size]) -> None:
        self._blocks, self._like = [block for _, block in blocks], blocks[0][0]
        self._rows, self._sizes, self._shapes = [len(r) for r, _ in blocks], [shape.numel() for shape in shapes], shapes
        self.held: Tensor | None = None
        """All entries, where a kernel was made of them."""

    @property
    def blocks(self) -> list[Mapping[int, Outer]]:
        """The outer products by number of the parameter, of the residuals that share points with."""
        return self._blocks

    @property
    def shape(self) -> tuple[int, int]:
        return sum(self._rows), sum(self._sizes)

    def _hold(self) -> Tensor | None:
        """Hold all entries, where they are few, and a kernel by channels would spare little: layers that are narrow."""
        sizes = [(n * n, outer) for n, block in zip(self._rows, self._blocks, strict=True) for outer in block.values()]
        work, spared = (sum(n * f(outer) for n, outer in sizes) for f in (Outer.by_rows, Outer.spared))
        rows, columns = self.shape
        if self.held is None and rows * columns <= HELD and spared <= SPARED * work:
            self.held = self.dense()
        return self.held

    def dense(self) -> Tensor:
        """All entries, `(N, P)`."""
        found = self._zeros(*self.shape)
        for part, block in zip(found.split(self._rows), self._blocks, strict=True):
            columns = part.split(self._sizes, dim=1)
            for k, outer in block.items():
                outer.put(columns[k])
        return found

    def times(self, v: Tensor) -> Tensor:
        """J v, `(N,)`, for a change v `(P,)` of the parameters."""
        if self.held is not None:
            return self.held @ v
        parts = v.split(self._sizes)
        return self._by_block(lambda k, outer: outer.times(parts[k]))

    def transposed(self, w: Tensor) -> Tensor:
        """J^T w, `(P,)`, for weights w `(N,)` of the residuals."""
        if self.held is not None:
            return w @ self.held
        found = [self._zeros(size) for size in self._sizes]
        for block, part in zip(self._blocks, w.split(self._rows), strict=True):
            for k, outer in block.items():
                found[k] = found[k] + outer.transposed(part)
        return torch.cat(found)

    def gram(self) -> Tensor:
        """J J^T, `(N, N)`."""
        held = self._hold()
        if held is not None:
            return rows_by_rows(held)
        blocks, found = list(zip(self._rows, self._blocks, strict=True)), dict[tuple[int, int], Tensor]()
        for i, a in enumerate(blocks):
            for j, b in enumerate(blocks[i:], start=i):
                found[i, j] = self._inner(a, b)
                found[j, i] = found[i, j].T
        return torch.cat([torch.cat([found[i, j] for j in range(len(blocks))], 1) for i in range(len(blocks))])

    def normal(self) -> Tensor:
        """J^T J, `(P, P)`, of rows that are made piece by piece."""
        size, held = self.shape[1], self._hold()
        found = self._zeros(size, size)
        if held is not None:
            add_columns_by_columns(found, held)
            return _mirrored(found)
        for n, block in zip(self._rows, self._blocks, strict=True):
            points = next((outer.g.shape[2] for outer in block.values()), n)
            each = max(1, HELD // (size * (n // points)))
            for start in range(0, points, each):
                end = min(start + each, points)
                part = {k: outer.part(start, end) for k, outer in block.items()}
                rows = Jacobian([(self._like.new_empty((end - start) * (n // points)), part)], self._shapes).dense()
                add_columns_by_columns(found, rows)
        return _mirrored(found)

    def square(self) -> Tensor:
        """J J^T or J^T J, whichever is smaller."""
        return self.gram() if self.shape[0] <= self.shape[1] else self.normal()

    def along(self, bases: Sequence[Basis]) -> Tensor:
        """J B transposed, `(s, N)`, for the directions B of all parameters: s counts those of all bases."""
        found = self._like.new_zeros(sum(len(basis.a) for basis in bases), self.shape[0])
        column = 0
        for n, block in zip(self._rows, self._blocks, strict=True):
            row = 0
            for k, basis in enumerate(bases):
                if k in block:
                    found[row : row + len(basis.a), column : column + n] = block[k].along(basis)
                row += len(basis.a)
            column += n
        return found

    def norms(self) -> Tensor:
        """The norm of each row, `(N,)`: of the gradient of each residual."""
        return self._by_block(lambda k, outer: outer.squares()).sqrt()

    def _by_block(self, number: Callable[[int, Outer], Tensor]) -> Tensor:
        """One number for each row, the sum over parameters."""
        blocks = zip(self._rows, self._blocks, strict=True)
        return torch.cat([sum((number(k, outer) for k, outer in block.items()), self._zeros(n)) for n, block in blocks])

    def _inner(self, a: tuple[int, Mapping[int, Outer]], b: tuple[int, Mapping[int, Outer]]) -> Tensor:
        (n, left), (m, right) = a, b
        return sum((left[k].gram(right[k]) for k in left if k in right), self._zeros(n, m))

    def _zeros(self, *shape: int) -> Tensor:
        return self._like.new_zeros(shape)


def _mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of which this holds the part on and above the diagonal."""
    return upper.triu_().add_(upper.triu(1).T)
