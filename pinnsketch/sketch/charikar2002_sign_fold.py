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
        rows = [-(-n // size) for n in lengths]
        signs = torch.randint(0, 2, (min(TABLE, sum(rows) * size),), generator=torch.Generator().manual_seed(seed))
        self._signs = (2 * signs - 1).to(torch.int8).to(device)
        self._vector = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows)).to(device)
        self._padding = [r * size - n for r, n in zip(rows, lengths, strict=True)]

    def rows(self, vectors: Sequence[Sequence[Tensor]]) -> Tensor:
        """All vectors, each given in parts of any shape, laid in rows of p and padded with zeros: `(rows, p)`."""
        parts: list[Tensor] = []
        for vector, padding in zip(vectors, self._padding, strict=True):
            parts += [part.reshape(-1) for part in vector]
            if padding:
                parts.append(parts[-1].new_zeros(padding))
        return torch.cat(parts).view(-1, self.size)

    def fold(self, rows: Tensor) -> Tensor:
        """The sketches of laid rows: `(vectors, p)`."""
        return self.sum_rows(rows * self._signs_of(rows.numel()).view_as(rows))

    def sum_rows(self, rows: Tensor) -> Tensor:
        """The rows of each vector summed: `(rows, q)` to `(vectors, q)`."""
        total = rows.new_zeros(len(self.lengths), rows.shape[1])
        return total.index_add_(0, self._vector, rows)

    def _signs_of(self, n: int) -> Tensor:
        return self._signs if n <= len(self._signs) else self._signs.repeat(-(-n // len(self._signs)))[:n]

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


def cosine_interval(cosine: float, size: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true cosine, given the cosine of two sketches of p numbers, by Fisher's z transform.

    `tanh(atanh(c) +- z / sqrt(p - 2))`: 95 % for z = 1.96, exact in law for Gaussian sketches and close for sign-and-fold.
    """
    centre = math.atanh(min(max(cosine, -1 + 1e-15), 1 - 1e-15))
    half = z / math.sqrt(size - 2)
    return math.tanh(centre - half), math.tanh(centre + half)
