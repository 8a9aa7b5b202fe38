"""Scrambled Sobol sequences in up to ten dimensions, bit for bit those of `scipy.stats.qmc`, which takes a second to load.

Directions: Joe & Kuo 2008, "Constructing Sobol sequences with better two-dimensional projections", table new-joe-kuo-6.
Scrambling: Matousek 1998, a random lower triangular matrix over the bits of each axis, and a digital shift.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint32]

BITS = 30
"""Binary digits of a coordinate."""

DIRECTIONS = (
    (0, 0, [1] * BITS), (1, 0, [1]), (2, 1, [1, 3]), (3, 1, [1, 3, 1]), (3, 2, [1, 1, 1]), (4, 1, [1, 1, 3, 3]),
    (4, 4, [1, 3, 5, 13]), (5, 2, [1, 1, 5, 5, 17]), (5, 4, [1, 1, 5, 5, 5]), (5, 7, [1, 1, 7, 11, 19]),
)  # fmt: skip
"""For each axis the degree s of a primitive polynomial over the bits, its inner coefficients a, and the first numbers m_i."""


def sobol(n: int, d: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The first n points `(n, d)` of a scrambled sequence, in the order of Gray's code (Antonov & Saleev 1979)."""
    rng = rng.spawn(1)[0]
    shift = rng.integers(2, size=(d, BITS), dtype=np.uint32) @ (1 << np.arange(BITS, dtype=np.uint32))
    scramble = np.tril(rng.integers(2, size=(d, BITS, BITS), dtype=np.uint32)) | np.eye(BITS, dtype=np.uint32)
    directions = np.stack([_scrambled(_directions(*DIRECTIONS[axis]), scramble[axis]) for axis in range(d)], axis=1)
    points = shift[None, :]
    for direction in directions[: max(n - 1, 0).bit_length()]:
        points = np.concatenate([points, points[::-1] ^ direction])
    return points[:n] * 2.0**-BITS


def _directions(degree: int, inner: int, first: list[int]) -> Bits:
    """The direction numbers `(BITS,)` of an axis: equations 2 and 3 of the source."""
    m = list(first)
    while len(m) < BITS:
        found = m[-degree] ^ m[-degree] << degree
        for k in range(1, degree):
            found ^= (inner >> degree - 1 - k & 1) * m[-k] << k
        m.append(found)
    return np.array([number << BITS - 1 - i for i, number in enumerate(m)], dtype=np.uint32)


def _scrambled(directions: Bits, matrix: Bits) -> Bits:
    """Each direction's binary digits, highest first, times the matrix, over the bits."""
    places = np.arange(BITS - 1, -1, -1, dtype=np.uint32)
    digits = directions >> places[:, None] & 1
    return (matrix @ digits % 2 << places[:, None]).sum(axis=0, dtype=np.uint32)
