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
        factor: of the residuals at each point `(n,)`, where points were drawn with unequal probabilities; None: 1.
    """

    terms: tuple[str, ...]
    x: Tensor
    normal: Tensor | None
    columns: Mapping[str, Tensor]
    share: float = 1.0
    factor: Tensor | None = None

    def piece(self, start: int, stop: int) -> Block:
        """The same terms at a range of the points."""
        rows = slice(start, stop)
        columns = {name: column[rows] for name, column in self.columns.items()}
        share = self.share * len(self.x[rows]) / len(self.x)
        normal, factor = (None if each is None else each[rows] for each in (self.normal, self.factor))
        return Block(self.terms, self.x[rows], normal, columns, share, factor)

    def drawn(self, size: Tensor, count: int, offset: float | Tensor) -> Block:
        """So many of the points, drawn by a size of each `(n,)`, as `draw_by_size` has it."""
        if count >= len(self.x):
            return self
        order = along_curve(self.x)
        index, factor = draw_by_size(size[order], count, offset)
        index = order[index]
        kept = self.holding([tensor[index] for tensor in self.tensors])
        factor = factor.to(self.x.dtype)
        return replace(kept, factor=factor if kept.factor is None else factor * kept.factor)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that a block holds."""
        optional = (each for each in (self.normal, self.factor) if each is not None)
        return (self.x, *optional, *self.columns.values())

    def holding(self, tensors: Sequence[Tensor]) -> Block:
        """The same block with other tensors in place of `tensors`."""
        x, *rest = tensors
        normal, factor = (None if each is None else rest.pop(0) for each in (self.normal, self.factor))
        return replace(self, x=x, normal=normal, factor=factor, columns=dict(zip(self.columns, rest, strict=True)))


def along_curve(x: Tensor) -> Tensor:
    """Indices that sort points `(n, d)` along a space-filling curve, Morton's: those of a part of it are near each other.

    Systematic sampling along it draws points that are spread evenly (Stevens & Olsen 2004).
    """
    d = x.shape[1]
    depth = max(min(62 // d, 16), 1)  # bits of a key
    low, high = x.amin(0), x.amax(0)
    cells = ((x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny) * (2**depth - 1)).long()
    key = torch.zeros_like(cells[:, 0])
    for bit in range(depth):
        for axis in range(d):
            key |= ((cells[:, axis] >> bit) & 1) << (bit * d + axis)
    return key.argsort(stable=True)


EVEN, ROUNDS = 0.5, 16
"""The part of a draw by size that is even; in how many rounds its probabilities are found."""


def draw_by_size(size: Tensor, count: int, offset: float | Tensor) -> tuple[Tensor, Tensor]:
    """Which of n points, all different, half evenly and half by size (Wu et al. 2023, equation 2), and factors of their rows.

    The probability that a point is among them is `min(1, EVEN m / n + c size)`, with c such that m are expected; by systematic
    sampling (Madow 1949) there are m. With the factor `sqrt(m / (n probability))` a mean square over them is that over all
    points on average (Horvitz & Thompson 1952).

    Args:
        size: of all points, `(n,)`; what is not finite counts as far larger than all others, so that it comes to light.
        count: m.
        offset: a random number from 0 to 1.

    Returns: indices and factors, `(m,)`.
    """
    n, m = len(size), count
    finite = size.isfinite()
    size = torch.where(finite, size, 1 + n * torch.where(finite, size, 0.0).max())
    size = size.double() / size.sum().double().clamp(min=torch.finfo(torch.float64).tiny) + 1e-9 / n
    chance = EVEN * m / n + (1 - EVEN) * m * size / size.sum()
    for _ in range(ROUNDS):
        free = chance < 1
        left = m - (~free).sum() - EVEN * m / n * free.sum()
        chance = torch.where(free, EVEN * m / n + size * (left / (size * free).sum().clamp(min=1e-300)), 1.0)
    ends = chance.cumsum(0)
    places = (torch.arange(m, dtype=ends.dtype, device=ends.device) + offset) * (ends[-1] / m)
    index = torch.searchsorted(ends, places).clamp(max=n - 1)
    return index, (m / (n * chance[index])).sqrt()


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
