"""CountSketch of Charikar, Chen & Farach-Colton (2002, "Finding frequent items in data streams", section 3).

A vector of N numbers becomes p: `(S g)_j = sum over h(i) = j of sigma(i) g_i`, with a random cell h(i) and a random sign
sigma(i) for each place i. S is linear, `E <S x, S y> = <x, y>`, and since the signs are independent four at a time,

    Var <S x, S y> = (|x|^2 |y|^2 + <x, y>^2 - 2 sum_i x_i^2 y_i^2) / p

for *every* x and y, however their energy is spread (`SignFold` is several times faster and needs it spread evenly).
Cells and signs are the values of one random cubic over the integers modulo 2^31 - 1 (Wegman & Carter 1981, section 3), computed
again at each use: the state is four numbers, whatever N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PRIME = 2**31 - 1
"""The field of the cubic: a product of two of its numbers fits in int64, and the uniform law on it halves to 2^-31."""

CHUNK = 2**18
"""How many places are hashed at once: the transient memory is about 40 bytes for each."""


class CountSketch:
    """One sketch of p numbers for each of several vectors; a vector no longer than p is kept as it is.

    Args:
        lengths: the length N of each vector.
        size: p.
        seed: of cells and signs.
        device: of the vectors.

    Raises:
        ValueError: if p < 8, or if the places of all vectors are not distinct in the field.
    """

    def __init__(self, lengths: Sequence[int], size: int = 509, seed: int = 0, device: torch.device | str = "cpu") -> None:
        if size < 8:
            raise ValueError(f"The size of a sketch must be at least 8; got {size}.")
        if sum(lengths) > PRIME:
            raise ValueError(f"One CountSketch serves up to {PRIME:,} numbers in all; got {sum(lengths):,}. Use several.")
        self.lengths, self.size, self._device = tuple(lengths), size, torch.device(device)
        drawn = torch.randint(0, PRIME, (4,), generator=torch.Generator().manual_seed(seed))
        self._cubic: tuple[int, ...] = tuple(drawn.tolist())

    def hash(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Cells h and signs sigma of the places start to stop, both int64: `v = c_0 + c_1 i + c_2 i^2 + c_3 i^3 mod 2^31 - 1`.

        The last bit of v gives the sign, the others the cell; no cell is likelier than another by more than p / 2^30.
        """
        place = torch.arange(start, stop, device=self._device)
        value = torch.full_like(place, self._cubic[3])
        for coefficient in self._cubic[2::-1]:  # Horner
            value.mul_(place).add_(coefficient).remainder_(PRIME)
        return (value >> 1).remainder_(self.size), 1 - 2 * (value & 1)

    def __call__(self, vectors: Sequence[Sequence[Tensor]]) -> Tensor:
        """The sketches of vectors, each given in parts of any shape: `(vectors, p)`.

        Raises:
            ValueError: if there are more or fewer vectors, or numbers in one of them, than were announced.
        """
        found = tuple(sum(part.numel() for part in vector) for vector in vectors)
        if found != self.lengths:
            raise ValueError(f"Expected vectors of lengths {self.lengths}; got {found}: make a sketch for these lengths.")
        total = vectors[0][0].new_zeros(len(self.lengths), self.size)
        first = 0
        for row, vector, length in zip(total, vectors, self.lengths, strict=True):
            start = first
            for piece in (piece for part in vector for piece in part.reshape(-1).split(CHUNK)):
                if length <= self.size:
                    row[start - first : start - first + len(piece)] = piece
                else:
                    cells, signs = self.hash(start, start + len(piece))
                    row.index_add_(0, cells, piece * signs)
                start += len(piece)
            first += length
        return total

    @property
    def exact(self) -> tuple[bool, ...]:
        """Which sketches are the vectors themselves, padded with zeros: these make no error."""
        return tuple(n <= self.size for n in self.lengths)

    @property
    def bytes(self) -> int:
        """Of the state: the four coefficients of the cubic."""
        return 8 * len(self._cubic)
