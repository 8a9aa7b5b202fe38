"""Random projections of rows: Bershatsky et al. (2022, arXiv 2201.13195), with the mean row kept exactly.

Forward keeps S A, backward projects delta by the same S, made again from its seed: `G~ = (S delta)^T (S A)`, and E S^T S = I
makes E G~ = G. With q rows of S and entries of variance 1/q,

    E |G~ - G|^2 = (|delta|^2 |A|^2 + |G|^2 - 2 sum_i |delta_i|^2 |a_i|^2) / q          (entries +-1/sqrt q)
    E |G~ - G|^2 = (|delta|^2 |A|^2 + |G|^2) / q                                         (Gaussian)

With the mean, one of the rows of S is 1/sqrt N and the others are centred, so that delta and A enter the formula without their
means, and the part of G that belongs to the means is exact. Many rows are sketched in groups; the variances of groups add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnsketch.layers.estimator import Part, parts
from pinnsketch.layers.fused import fused
from pinnsketch.layers.steele2014_split_mix import STEP, signs

Draw = Callable[[Tensor, tuple[int, ...], float, torch.dtype], Tensor]


@dataclass(frozen=True)
class Projection:
    """Keep S A, in groups.

    Args:
        draw: gives the entries of S from seed, shape, standard deviation and dtype.
        mean: whether the mean row of each group is kept exactly; it counts as one of the rows.
        fourth: 3 minus the kurtosis of an entry.
    """

    draw: Draw
    mean: bool = False
    fourth: float = 2.0
    unbiased = True

    def matrices(self, seed: Tensor, rows: int, keep: float, width: int, dtype: torch.dtype) -> list[tuple[Part, Tensor]]:
        """The parts of the rows, each with its S `(count, kept, size)`."""
        found = parts(rows, keep, width)
        return [(part, self._matrix(seed, i * STEP // 3, part, dtype)) for i, part in enumerate(found)]

    def _matrix(self, seed: Tensor, offset: int, part: Part, dtype: torch.dtype) -> Tensor:
        q, kernels = self.random(part), fused(seed)
        if kernels and self.draw is signs and part.size <= kernels.WIDEST:
            return kernels.signs(seed, offset, part.count, q, part.kept, part.size, dtype)
        seed = seed + offset if offset else seed
        s = self.draw(seed, (part.count, q, part.size), q**-0.5, dtype)
        if q == part.kept:
            return s
        whole = s.new_full((part.count, part.kept, part.size), part.size**-0.5)
        torch.sub(s, s.mean(2, keepdim=True), out=whole[:, :q])
        return whole

    def random(self, part: Part) -> int:
        """Random rows of S for each group: all that are kept but the mean."""
        return part.kept - (self.mean and part.kept > 1)

    def save(self, x: Tensor, seed: Tensor, keep: float) -> tuple[Tensor, ...]:
        return (self._project(x, seed, keep, x.shape[1]),)

    def factors(self, delta: Tensor, saved: tuple[Tensor, ...], seed: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        return self._project(delta, seed, keep, saved[0].shape[1]), saved[0]

    def _project(self, x: Tensor, seed: Tensor, keep: float, width: int) -> Tensor:
        pieces = [s @ part.of(x) for part, s in self.matrices(seed, len(x), keep, width, x.dtype)]
        flat = [piece.flatten(0, 1) for piece in pieces]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def mispaired(self, left: Tensor, rows: int, keep: float, width: int) -> Tensor:
        """The left factor with each random row in the place of another, and no means: L'^T R has mean zero.

        Rows of S are independent, so that E |L'^T R|^2 = |delta|^2 |A|^2 / q without the means, which is the variance but for
        its smaller terms, whatever the product.
        """
        found, start = [], 0
        for part in parts(rows, keep, width):
            stop, q = start + part.count * part.kept, self.random(part)
            here = left[start:stop].view(part.count, part.kept, -1)
            other = here[:, :q].roll(1, 1 if q > 1 else 0)
            found.append(torch.cat([other, torch.zeros_like(here[:, q:])], dim=1).flatten(0, 1))
            start = stop
        return torch.cat(found)

    def variance(self, delta: Tensor, x: Tensor, keep: float, seed: Tensor) -> Tensor:
        total = x.new_zeros(())
        for part in parts(len(x), keep, x.shape[1]):
            d, a, q = part.of(delta), part.of(x), self.random(part)
            if q < part.kept:
                d, a = d - d.mean(1, keepdim=True), a - a.mean(1, keepdim=True)
            total = total + (spread(d, a, self.fourth) / q).sum()
        return total


def spread(delta: Tensor, x: Tensor, fourth: float) -> Tensor:
    """The variance of a sketch of one row, `(count,)`: |delta|^2 |A|^2 + |delta^T A|^2 - fourth sum_i |delta_i|^2 |a_i|^2."""
    d, a = delta.square().sum(2), x.square().sum(2)
    return d.sum(1) * a.sum(1) + (delta.mT @ x).square().sum((1, 2)) - fourth * (d * a).sum(1)
