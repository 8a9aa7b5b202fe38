"""Least squares with a sparse matrix of dense blocks, by multifrontal QR (George & Heath 1980; Davis 2011).

Groups of blocks of columns are eliminated one after another. The rows that meet a group form a front, dense in the columns
that they meet; reflections of its rows leave those of R for that group, and rows for the blocks that are left. In the order of
nested dissection (George 1973) fronts stay as small as the surfaces that separate parts of the domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pinnsketch.methods.least_squares import DAMPING

TALL = 1.5
"""A front is made triangular where it has so many times more rows than columns."""
SMALL = 3
"""So few blocks are eliminated together."""


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix that meet the same blocks of columns.

    Args:
        blocks: which.
        entries: in these blocks, one after another, `(n, sum of their sizes)`.
        right: the right-hand sides, `(n, q)`.
    """

    blocks: tuple[int, ...]
    entries: Tensor
    right: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Rows that meet the same blocks, as one."""
        return cls(parts[0].blocks, torch.cat([p.entries for p in parts]), torch.cat([p.right for p in parts]))

    def taken(self, x: Mapping[int, Tensor]) -> Tensor:
        """What they meet of x, `(sum of sizes, q)`."""
        return torch.cat([x[block] for block in self.blocks])

    def off(self, x: Mapping[int, Tensor]) -> Tensor:
        """|a x - b|^2."""
        return (self.entries @ self.taken(x) - self.right).square().sum()


@dataclass(frozen=True)
class Front:
    """The rows of R of a group of blocks, `(s, s)`, and `(s, t)` for the blocks after it."""

    blocks: tuple[int, ...]
    own: Tensor
    others: tuple[int, ...]
    rest: Tensor


def dissected(
    blocks: Sequence[int], joined: Mapping[int, set[int]], centres: Sequence[Sequence[float]]
) -> list[tuple[int, ...]]:
    """Groups in an order of elimination: halves of the blocks by their centres, then those of one half with rows in the other.

    Args:
        blocks: to be ordered.
        joined: the blocks that each has rows with.
        centres: where each of all blocks lies, `(d,)`.
    """
    if len(blocks) <= SMALL:
        return [tuple(blocks)] if blocks else []
    cuts = []
    for axis in range(len(centres[blocks[0]])):
        along = sorted(blocks, key=lambda block: (centres[block][axis], block))
        left, right = along[: len(along) // 2], along[len(along) // 2 :]
        for one, other in ((left, right), (right, left)):
            met = set(other)
            cut = [block for block in one if joined[block] & met]
            cuts.append((len(cut), [block for block in one if block not in cut], other, cut))
    _, one, other, cut = min(cuts, key=lambda found: found[0])
    if not one:
        return [tuple(blocks)]
    return [*dissected(one, joined, centres), *dissected(other, joined, centres), *([tuple(cut)] if cut else [])]


def least_squares(rows: Sequence[Rows], sizes: Mapping[int, int], order: Sequence[Sequence[int]]) -> dict[int, Tensor]:
    """The x that minimises |a x - b|^2 + mu^2 |D x|^2, as `pinnsketch.methods.least_squares.least_squares` has it.

    Args:
        rows: of a and b.
        sizes: how many columns each block has.
        order: groups of blocks, in the order of elimination.

    Returns: the part of x in each block, `(size, q)`.

    Raises:
        ValueError: if an entry is not finite.
    """
    like = rows[0].entries
    q = rows[0].right.shape[1]
    blocks = [block for group in order for block in group]
    square = {block: like.new_zeros(sizes[block]) for block in blocks}
    for part in rows:
        for block, piece in zip(part.blocks, part.entries.square().sum(0).split([sizes[b] for b in part.blocks]), strict=True):
            square[block] += piece
    scale = {block: torch.where(s > 0, s.sqrt(), 1.0) for block, s in square.items()}
    scaled = [Rows(p.blocks, p.entries / p.taken(scale), p.right) for p in rows]
    fronts, y = factored(scaled, sizes, order)
    _back(fronts, y)
    right = {block: like.new_zeros(sizes[block], q) for block in blocks}
    for part in scaled:
        off = part.right - part.entries @ part.taken(y)
        for block, piece in zip(part.blocks, (part.entries.T @ off).split([sizes[b] for b in part.blocks]), strict=True):
            right[block] += piece
    _forth(fronts, right)
    _back(fronts, right)
    x = {block: (y[block] + right[block]) / scale[block][:, None] for block in blocks}
    if not bool(torch.stack([part.isfinite().all() for part in x.values()]).all()):
        raise ValueError("Least squares: expected finite derivatives of the residuals; got infinite ones or NaN.")
    return x


def factored(
    rows: Sequence[Rows], sizes: Mapping[int, int], order: Sequence[Sequence[int]]
) -> tuple[list[Front], dict[int, Tensor]]:
    """R of `[a; mu I]`, in fronts, and Q^T b by block."""
    position = {block: k for k, block in enumerate(block for group in order for block in group)}
    home = {block: k for k, group in enumerate(order) for block in group}
    mu, q = DAMPING * torch.finfo(rows[0].entries.dtype).eps, rows[0].right.shape[1]
    waiting: list[list[Rows]] = [[] for _ in order]
    for part in rows:
        waiting[min(home[block] for block in part.blocks)].append(part)
    fronts, y = [], dict[int, Tensor]()
    for k, group in enumerate(order):
        parts, waiting[k] = waiting[k], []
        met = sorted({*group}.union(*(part.blocks for part in parts)), key=position.__getitem__)
        ends = dict(zip(met, accumulate(sizes[b] for b in met), strict=True))
        width, own = ends[met[-1]], ends[met[len(group) - 1]]
        front = rows[0].entries.new_zeros(sum(len(part.entries) for part in parts) + own, width + q)
        row = 0
        for part in parts:
            here, column = front[row : row + len(part.entries)], 0
            for b in part.blocks:
                here[:, ends[b] - sizes[b] : ends[b]] = part.entries[:, column : column + sizes[b]]
                column += sizes[b]
            here[:, width:] = part.right
            row += len(part.entries)
        front[row:, :own].diagonal().fill_(mu)
        triangle, rest = _reflected(front, own, width)
        others = tuple(met[len(group) :])
        fronts.append(Front(tuple(met[: len(group)]), triangle, others, rest[:own, : width - own]))
        right = rest[:own, width - own :].split([sizes[b] for b in met[: len(group)]])
        y |= zip(fronts[-1].blocks, right, strict=True)
        if others:
            waiting[home[others[0]]].append(Rows(others, rest[own:, : width - own], rest[own:, width - own :]))
    return fronts, y


def _reflected(front: Tensor, own: int, width: int) -> tuple[Tensor, Tensor]:
    """R of the first columns of a front, `(own, own)`, and the others reflected with it; triangular if there are many rows."""
    if len(front) > TALL * width:
        r = torch.linalg.qr(front, mode="r").R
        return r[:own, :own], r[:width, own:]
    reflected, factors = torch.geqrf(front[:, :own])
    rest = torch.ormqr(reflected, factors, front[:, own:], left=True, transpose=True)
    return reflected[:own].triu(), rest


def _taken(y: Mapping[int, Tensor], blocks: Sequence[int]) -> Tensor:
    return y[blocks[0]] if len(blocks) == 1 else torch.cat([y[b] for b in blocks])


def _given(y: dict[int, Tensor], blocks: Sequence[int], found: Tensor) -> None:
    y |= zip(blocks, found.split([len(y[b]) for b in blocks]), strict=True)


def _back(fronts: Sequence[Front], y: dict[int, Tensor]) -> None:
    """R^-1 y, in place."""
    for front in reversed(fronts):
        right = _taken(y, front.blocks)
        if front.others:
            right = right - front.rest @ _taken(y, front.others)
        _given(y, front.blocks, torch.linalg.solve_triangular(front.own, right, upper=True))


def _forth(fronts: Sequence[Front], y: dict[int, Tensor]) -> None:
    """R^-T y, in place."""
    for front in fronts:
        found = torch.linalg.solve_triangular(front.own.T, _taken(y, front.blocks), upper=False)
        _given(y, front.blocks, found)
        if front.others:
            _given(y, front.others, _taken(y, front.others) - front.rest.T @ found)
