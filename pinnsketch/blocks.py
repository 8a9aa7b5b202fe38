"""Blocks: the terms of a problem that share points, with their points, whole or in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from pinnsketch.geometry.shape import Region
from pinnsketch.problem import Data, Problem, ProblemError, Term


@dataclass(frozen=True)
class Block:
    """The terms that share points: their names, the points `(n, d)`, normals `(n, d)` or None, data columns `(n, 1)`.

    Args:
        share: of these points in all points of the terms; below 1 in a piece of a block.
    """

    terms: tuple[str, ...]
    x: Tensor
    normal: Tensor | None
    columns: Mapping[str, Tensor]
    share: float = 1.0

    def piece(self, start: int, stop: int) -> Block:
        """The same terms at a range of the points."""
        rows = slice(start, stop)
        columns = {name: column[rows] for name, column in self.columns.items()}
        share = self.share * len(self.x[rows]) / len(self.x)
        return Block(self.terms, self.x[rows], None if self.normal is None else self.normal[rows], columns, share)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that a block holds."""
        return (self.x, *(() if self.normal is None else (self.normal,)), *self.columns.values())

    def holding(self, tensors: Sequence[Tensor]) -> Block:
        """The same block with other tensors in place of `tensors`."""
        x, *rest = tensors
        normal = None if self.normal is None else rest.pop(0)
        return replace(self, x=x, normal=normal, columns=dict(zip(self.columns, rest, strict=True)))


@dataclass(frozen=True)
class Within:
    """Points that were drawn box by box.

    Args:
        block: the points.
        factor: of the scaled residuals of each, `(n,)`: with it, their squares add up to the loss of points spread evenly.
        cell: the number of the box of each, `(n,)`.
    """

    block: Block
    factor: Tensor
    cell: Tensor

    def at(self, index: Tensor) -> Within:
        """The points of these numbers, in their order."""
        return Within(self.block.holding([t[index] for t in self.block.tensors]), self.factor[index], self.cell[index])


@dataclass(frozen=True)
class Part:
    """What one term contributes to the gradient.

    Args:
        gradient: of its weighted loss, by parameter.
        norms: of what each point contributes to that, `(n,)`; None where the forward pass does not give it.
    """

    gradient: list[Tensor]
    norms: Tensor | None

    def __add__(self, other: Part) -> Part:
        """The same term at more points."""
        norms = None if self.norms is None or other.norms is None else torch.cat([self.norms, other.norms])
        return Part([a + b for a, b in zip(self.gradient, other.gradient, strict=True)], norms)


def cut(block: Block, count: int) -> list[Block]:
    """A block in at least so many pieces, of one size if a few more make that possible, else of two."""
    n = len(block.x)
    count = next((k for k in range(count, min(2 * count, n) + 1) if n % k == 0), min(count, n))
    ends = [n * k // count for k in range(count + 1)]
    return [block.piece(a, b) for a, b in pairwise(ends)]


Place = tuple[Region | Data, int, tuple[str, ...]]
"""Where, how many points, and the terms there."""


def group(problem: Problem, interior: int, boundary: int, counts: Mapping[str, int]) -> list[Place]:
    """Terms on the same place with the same number of points share them, and their derivatives."""
    groups: dict[tuple[Region | Data, int], list[str]] = {}
    for name, term in problem.terms.items():
        groups.setdefault((term.where, _count(name, term, interior, boundary, counts)), []).append(name)
    return [(where, count, tuple(names)) for (where, count), names in groups.items()]


def _count(name: str, term: Term, interior: int, boundary: int, counts: Mapping[str, int]) -> int:
    if isinstance(term.where, Data):
        if name in counts:
            raise ProblemError(f"points: term {name!r} is put on data, whose number is given; remove {name!r} here.")
        return 0
    own = counts.get(name, term.points)
    return own if own is not None else boundary if term.where.has_normal else interior


def known_terms(what: str, given: Mapping[str, float], problem: Problem) -> None:
    for name, value in given.items():
        if name not in problem.terms:
            raise ProblemError(f"{what}: there is no term {name!r}; the terms are {', '.join(problem.terms)}.")
        if not 0 < value < inf:
            raise ProblemError(f"{what}: term {name!r} needs a positive number; got {value}.")
