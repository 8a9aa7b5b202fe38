"""Sign-and-fold: the CountSketch of Charikar, Chen & Farach-Colton (2002) with position mod p as its hash.

A vector of N numbers becomes p: signs are flipped at random and the vector is folded,
`(S g)_j = sum over i = j mod p of sigma_i g_i`. S is linear, and `E <S x, S y> = <x, y>` with variance about
`(|x|^2 |y|^2 + <x, y>^2) / p` for vectors spread evenly over the p cells (more, if few cells hold most of them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TABLE = 16381
"""Signs repeat after this many places (a prime). Two that coincide meet in one of p cells only TABLE * p places apart."""
AT_ONCE = 1 << 20
"""Numbers that are measured at once, which bounds what is held for the time of a look."""

ALIKE = 0.95
"""How far two unlike gradients of one training are large at the same entries: found on real ones, for 95 % intervals."""


class SignFold:
    """One sketch of p numbers for each of several vectors, made in one pass over all of them.

    Args:
        lengths: the length N of each vector.
        size: p.
        seed: of the signs.

    Raises:
        ValueError: if a vector is so long that the sketch would be biased.
    """

    def __init__(self, lengths: Sequence[int], size: int = 509, seed: int = 0, device: torch.device | str = "cpu") -> None:
        if size < 8 or math.gcd(size, TABLE) > 1:
            raise ValueError(f"The size of a sketch must be at least 8 and no multiple of {TABLE}; got {size}.")
        if max(lengths) > TABLE * size:
            raise ValueError(f"A sketch of {size} numbers serves up to {TABLE * size:,} weights; got {max(lengths):,}.")
        self.lengths, self.size = tuple(lengths), size
        self._rows = rows = [-(-n // size) for n in lengths]
        signs = torch.randint(0, 2, (min(TABLE, sum(rows) * size),), generator=torch.Generator().manual_seed(seed))
        self._signs = (2 * signs - 1).to(torch.int8).to(device)
        self._vector = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows)).to(device)
        self._padding = [r * size - n for r, n in zip(rows, lengths, strict=True)]
        self._runs = _runs([r * size for r in rows], AT_ONCE)

    def rows(self, vectors: Sequence[Sequence[Tensor]], first: int = 0) -> Tensor:
        """Vectors from the `first` on, each in parts of any shape, laid in rows of p and padded with zeros: `(rows, p)`."""
        parts: list[Tensor] = []
        for vector, padding in zip(vectors, self._padding[first:], strict=False):
            parts += [part.reshape(-1) for part in vector]
            if padding:
                parts.append(parts[-1].new_zeros(padding))
        return torch.cat(parts).view(-1, self.size)

    def fold(self, rows: Tensor) -> Tensor:
        """The sketches of laid rows: `(vectors, p)`."""
        return self.sum_rows(rows * self._signs_of(0, rows.numel()).view_as(rows))

    def measure(self, vectors: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each vector, given in parts: its norm `(vectors,)`, exact; the sketch of the vector over its norm `(vectors, p)`,
        float32, zero where that is not finite; and its collisions, and those of all vectors together, each in cells of its own,
        `(vectors + 1, 2)`: `sum_j e_j^2` and `sum_i x_i^4` over `|x|^4`, for e_j the energy that is folded into cell j.
        """
        found = [self._measured(vectors[a:b], a, b) for a, b in self._runs]
        sketches, energies, alone = (torch.cat(column) for column in zip(*found, strict=True))
        total = energies.sum(dim=1)
        norms = total.sqrt()
        scale = torch.where(norms.isfinite() & (norms > 0), norms, torch.inf)
        sketch = (sketches / scale[:, None]).nan_to_num(0.0).float()
        met = torch.stack([energies.square().sum(dim=1), alone], dim=1)
        squares = torch.cat([total, total.sum(0, keepdim=True)]).square()
        collisions = torch.cat([met, met.sum(0, keepdim=True)]) / squares[:, None]
        usual = torch.full_like(collisions, 1 / self.size)
        usual[:, 1] = 0.0
        return norms, sketch, torch.where(collisions.isfinite(), collisions, usual)

    def _measured(self, vectors: Sequence[Sequence[Tensor]], first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a run of vectors the sketches `(vectors, p)`, the energy in each cell, and the sum of fourth powers; in float64,
        where no square of a float32 number under- or overflows."""
        start, stop = sum(self._rows[:first]), sum(self._rows[:last])
        rows = self.rows(vectors, first).double()
        place, empty = self._vector[start:stop] - first, rows.new_zeros(last - first, self.size)
        squares = rows.square()
        signed = rows * self._signs_of(start * self.size, rows.numel()).view_as(rows)
        alone = empty[:, 0].index_add(0, place, squares.square().sum(dim=1))
        return empty.index_add(0, place, signed), empty.index_add(0, place, squares), alone

    def sum_rows(self, rows: Tensor) -> Tensor:
        """The rows of each vector summed: `(rows, q)` to `(vectors, q)`."""
        total = rows.new_zeros(len(self.lengths), rows.shape[1])
        return total.index_add_(0, self._vector, rows)

    def _signs_of(self, start: int, n: int) -> Tensor:
        """The signs of n places from `start` on."""
        start %= len(self._signs)
        times = -(-(start + n) // len(self._signs))
        return (self._signs if times == 1 else self._signs.repeat(times))[start : start + n]

    def __call__(self, vectors: Sequence[Sequence[Tensor]]) -> Tensor:
        """The sketches of vectors given in parts: `(vectors, p)`."""
        return self.fold(self.rows(vectors))

    @property
    def exact(self) -> tuple[bool, ...]:
        """Which sketches only flip signs, since the vector is no longer than the sketch: these make no error."""
        return tuple(n <= self.size for n in self.lengths)

    @property
    def bytes(self) -> int:
        return self._signs.nbytes + self._vector.nbytes


def _runs(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Runs (first, last) of consecutive vectors with at most so many numbers together, or one vector each."""
    runs: list[tuple[int, int]] = []
    total = most + 1
    for i, length in enumerate(lengths):
        if total + length > most:
            runs.append((i, i))
            total = 0
        runs[-1], total = (runs[-1][0], i + 1), total + length
    return runs


def cells_of(x: Sequence[float], y: Sequence[float], cosine: float) -> float:
    """The number that takes the place of p in the error of an inner product of two sketches, from the collisions of both.

    `1 / cells = sum_j e_j^2 - a sum_i x_i^4`, for x or y, whichever has more: an entry makes no error with itself, so a is 1
    for y = x, exactly, and less where they are large at different entries: `a = 0.95 + 0.05 cosine^2`.
    """
    alike = ALIKE + (1 - ALIKE) * cosine * cosine
    more = max(x[0] - alike * x[1], y[0] - alike * y[1])
    return 1 / more if more > 0 else math.inf


def cosine_interval(cosine: float, size: float, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true cosine, given the cosine of two sketches of p numbers, by Fisher's z transform.

    `tanh(atanh(c) +- z / sqrt(p - 2))`: 95 % for z = 1.96, exact in law for Gaussian sketches and close for sign-and-fold.
    Fewer than 16 numbers say nothing.
    """
    if size < 16:
        return -1.0, 1.0
    centre = math.atanh(min(max(cosine, -1 + 1e-15), 1 - 1e-15))
    half = z / math.sqrt(size - 2)
    return math.tanh(centre - half), math.tanh(centre + half)
