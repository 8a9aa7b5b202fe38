"""What an estimator of a weight gradient is, and the groups of rows that are sketched apart."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Protocol

from torch import Tensor

GROUP = 128
"""Rows that a dense sketch mixes, at most: its cost then grows as the number of rows, not as its square."""
FEWEST = 4
"""Rows that a group keeps, at least, if there are so many: for a small share, groups are larger."""


class Estimator(Protocol):
    """An estimate of G = sum_i delta_i a_i^T from the rows delta `(N, o)` and what was kept of the rows a `(N, d)`.

    It has the form L^T R with `left` L `(m, o)`, linear in delta, and `right` R `(m, d)`, so that it serves any product that
    is linear in delta and in a and sums over rows, as a convolution's is.
    """

    unbiased: bool
    """Whether the mean over seeds is G."""

    def save(self, x: Tensor, seed: Tensor, keep: float) -> tuple[Tensor, ...]:
        """What is kept of rows x `(N, d)`: at most a share `keep` of its bytes, but of each group at least one row."""
        ...

    def factors(self, delta: Tensor, saved: tuple[Tensor, ...], seed: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        """Left and right factor of the estimate for delta `(N, o)`."""
        ...

    def variance(self, delta: Tensor, x: Tensor, keep: float, seed: Tensor) -> Tensor:
        """E |estimate - G|_F^2, a scalar; of lowrank+rademacher given the directions that the seed leads to."""
        ...


@dataclass(frozen=True)
class Part:
    """Groups of equal size, one after another.

    Args:
        start: the first row.
        count: of groups.
        size: rows of a group.
        kept: rows that are kept of a group.
    """

    start: int
    count: int
    size: int
    kept: int

    def of(self, x: Tensor) -> Tensor:
        """The rows of x `(N, ...)` that belong here, `(count, size, d)`."""
        return x[self.start : self.start + self.count * self.size].reshape(self.count, self.size, -1)


def parts(rows: int, keep: float, width: int) -> list[Part]:
    """All rows in groups of one size, or, where that would leave them much smaller than they may be, with a smaller last one.

    A group of narrow rows keeps about width / 8 of them, and at least 8: the random numbers and products of a sketch, as
    many for each row as its group keeps, then stay below those of the layer itself. Variances hardly depend on the size.
    """
    most = max(min(GROUP, ceil(max(width / 8, 8) / keep)), ceil(FEWEST / keep))
    least = -(-rows // most)
    count = next((k for k in range(least, min(2 * least, rows) + 1) if rows % k == 0), least)
    size = -(-rows // count)
    whole, rest = divmod(rows, size)
    found = [Part(0, whole, size, kept(size, keep))]
    return [*found, Part(whole * size, 1, rest, kept(rest, keep))] if rest else found


def kept(size: int, keep: float) -> int:
    return max(1, int(keep * size + 1e-9))
