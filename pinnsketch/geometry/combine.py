"""Combined and Product: shapes made of two shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pinnsketch.geometry.shape import Array, GeometryError, Mask, Piece, Shape, check_coordinates

OFFSET = 1e-7
"""A point is on the boundary if a step of this size (relative to the shape) along the normal leaves, and back enters."""


@dataclass(frozen=True)
class Combined(Shape):
    """Union, intersection or difference of two shapes in the same coordinates (`a | b`, `a & b`, `a - b`).

    The signed distance is min(a, b), max(a, b) or max(a, -b): exact in sign, a bound in size.
    """

    operation: str
    a: Shape
    b: Shape

    def __post_init__(self) -> None:
        if self.a.coordinates != self.b.coordinates:
            raise GeometryError(
                f"{self.operation}: both shapes must have the same coordinates; got "
                f"{', '.join(self.a.coordinates)} and {', '.join(self.b.coordinates)}."
            )
        if self.operation == "union" and self.a.periodic != self.b.periodic:
            raise GeometryError("union: both shapes must be periodic in the same coordinates.")
        for name in self.periodic:
            axis, whole = self.coordinates.index(name), self.a if name in self.a.periodic else self.b
            if not np.array_equal(self.bounds[axis], whole.bounds[axis]):
                raise GeometryError(f"{self.operation}: {name} is periodic, so both shapes must have the same ends there.")

    @property
    def coordinates(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.a.coordinates

    @property
    def periodic(self) -> tuple[str, ...]:  # type: ignore[override]
        other = self.b.periodic if self.operation == "intersection" else ()
        return tuple(name for name in self.coordinates if name in (*self.a.periodic, *other))

    @property
    def bounds(self) -> Array:
        (al, ah), (bl, bh) = self.a.bounds.T, self.b.bounds.T
        if self.operation == "union":
            return np.stack([np.minimum(al, bl), np.maximum(ah, bh)], axis=1)
        low, high = np.maximum(al, bl), np.minimum(ah, bh)
        disjoint = bool((low >= high).any())
        return self.a.bounds if self.operation == "difference" or disjoint else np.stack([low, high], axis=1)

    def distance(self, x: Array) -> Array:
        a, b = self.a.distance(x), self.b.distance(x)
        match self.operation:
            case "union":
                return np.minimum(a, b)
            case "intersection":
                return np.maximum(a, b)
            case _:
                return np.maximum(a, -b)

    def pieces(self) -> tuple[Piece, ...]:
        sign = -1 if self.operation == "difference" else 1
        mine = (self._cut(p, 1, seam=False) for p in self.a.pieces())
        theirs = (self._cut(p, sign, seam=True) for p in self.b.pieces())
        return tuple(p for p in (*mine, *theirs) if not self._seam(p))

    def _seam(self, piece: Piece) -> bool:
        """Whether a piece lies where the ends of a periodic coordinate meet."""
        name = piece.along[0]
        return name in self.periodic and piece.at is not None and piece.at in self.bounds[self.coordinates.index(name)]

    def _cut(self, piece: Piece, sign: int, seam: bool) -> Piece:
        """The part of `piece` that bounds the combined shape; where both boundaries coincide, only a's piece counts."""
        step = OFFSET * float(np.ptp(self.bounds, axis=1).max())

        def embed(s: Array) -> tuple[Array, Array, Mask]:
            x, normal, keep = piece.embed(s)
            normal = sign * normal
            keep = keep & (self.distance(x + step * normal) > 0) & (self.distance(x - step * normal) < 0)
            return x, normal, keep & (np.abs(self.a.distance(x)) > step / 2) if seam else keep

        return replace(piece, embed=embed)

    def __repr__(self) -> str:
        sign = {"union": "|", "intersection": "&", "difference": "-"}[self.operation]
        return f"({self.a!r} {sign} {self.b!r})"


@dataclass(frozen=True)
class Product(Shape):
    """All pairs of a point of `a` and a point of `b`: `Disk() * Box(t=(0, 1))` is a disk through time."""

    a: Shape
    b: Shape

    def __post_init__(self) -> None:
        check_coordinates(self.coordinates)

    @property
    def coordinates(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.a.coordinates, *self.b.coordinates)

    @property
    def periodic(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.a.periodic, *self.b.periodic)

    @property
    def bounds(self) -> Array:
        return np.concatenate([self.a.bounds, self.b.bounds])

    def _split(self, x: Array) -> tuple[Array, Array]:
        d = len(self.a.coordinates)
        return x[:, :d], x[:, d:]

    def distance(self, x: Array) -> Array:
        a, b = self._split(x)
        return np.maximum(self.a.distance(a), self.b.distance(b))

    def pieces(self) -> tuple[Piece, ...]:
        walls = (_times(p, self.b, len(self.a.coordinates) - 1, first=True) for p in self.a.pieces())
        lids = (_times(p, self.a, len(self.b.coordinates) - 1, first=False) for p in self.b.pieces())
        return (*walls, *lids)

    def __repr__(self) -> str:
        return f"{self.a!r} * {self.b!r}"


def _times(piece: Piece, other: Shape, m: int, first: bool) -> Piece:
    """`piece`, of dimension m, times the inside of `other`."""
    low, high = other.bounds.T

    def embed(s: Array) -> tuple[Array, Array, Mask]:
        x, normal, keep = piece.embed(s[:, : max(m, 1)])
        y = low + s[:, m : m + len(low)] * (high - low)
        parts = [(x, normal), (y, np.zeros_like(y))]
        xs, normals = zip(*(parts if first else reversed(parts)), strict=True)
        return np.concatenate(xs, axis=1), np.concatenate(normals, axis=1), keep & (other.distance(y) < 0)

    return replace(piece, measure=piece.measure * float(np.prod(high - low)), embed=embed)
