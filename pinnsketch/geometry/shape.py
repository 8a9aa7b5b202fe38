"""Shape and Region: what every geometry is made of.

A shape is a signed distance (negative inside) and a list of boundary pieces. Each piece maps a unit cube onto a patch of
boundary, so one sampler serves interiors, boundaries and faces alike: draw in the cube, embed, keep what lies on the region.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RESERVED = ("n", "d", "value")
"""Names that a coordinate cannot have: `u.n` is the normal derivative, `u.d(...)` any derivative, `u.value` the value."""


class GeometryError(ValueError):
    """A shape that cannot exist, or a part of it that it does not have."""


class EmptyRegion(GeometryError):
    """A region in which no point was found."""


@dataclass(frozen=True)
class Piece:
    """A patch of boundary: the image of a unit cube under a map that stretches evenly.

    Args:
        measure: its length (2D), area (3D) or 1 for an end point (1D).
        along: the coordinates among which its normal points.
        at: the value of that coordinate on it, for a flat face of a Box.
        embed: maps parameters `(n, m)` in the unit cube to points `(n, d)`, outward unit normals `(n, d)`, and which of
            them belong to the boundary `(n,)`: a circle cut by another shape keeps an arc.
    """

    measure: float
    along: tuple[str, ...]
    embed: Callable[[Array], tuple[Array, Array, Mask]]
    at: float | None = None


class Shape(ABC):
    """A bounded set in named coordinates; `|`, `&`, `-` combine shapes, `*` multiplies them (space by time)."""

    coordinates: tuple[str, ...]
    periodic: tuple[str, ...] = ()
    """Coordinates whose two ends are one place: the shape has no boundary there."""

    @property
    @abstractmethod
    def bounds(self) -> Array:
        """Lower and upper corner of a box around the shape, `(d, 2)`."""

    @abstractmethod
    def distance(self, x: Array) -> Array:
        """Signed distance `(n,)` of points `(n, d)` to the boundary, negative inside; at least a bound of right sign."""

    @abstractmethod
    def pieces(self) -> tuple[Piece, ...]:
        """The boundary, in pieces."""

    @property
    def interior(self) -> Region:
        return Region(self, "interior")

    @property
    def boundary(self) -> Region:
        """The whole boundary. In space and time this has the end of time in it: use `sides` and `start` there."""
        return Region(self, "boundary", along=self.coordinates)

    def sides(self, *coordinates: str) -> Region:
        """The part of the boundary whose normal points along these coordinates: `sides("x")` of Box(x=..., t=...)."""
        self._known(coordinates)
        if set(coordinates) & set(self.periodic) and not any(set(p.along) <= set(coordinates) for p in self.pieces()):
            raise GeometryError(
                f"sides({', '.join(coordinates)}): {self!r} is periodic there and has no sides: leave them out."
            )
        return Region(self, f"sides({', '.join(coordinates)})", along=coordinates)

    def side(self, **at: float) -> Region:
        """One flat face: `side(x=0)`."""
        if len(at) != 1:
            raise GeometryError(f"side() takes one coordinate and its value, as in side(x=0); got {at}.")
        ((name, value),) = at.items()
        self._known((name,))
        ends = sorted({p.at for p in self.pieces() if p.along == (name,) and p.at is not None})
        if value not in ends:
            none = "it is periodic there" if name in self.periodic else "it has no flat face there"
            faces = f"its faces lie at {', '.join(f'{e:g}' for e in ends)}" if ends else none
            raise GeometryError(f"side({name}={value:g}): no face of {self!r} lies there; {faces}.")
        return Region(self, f"side({name}={value:g})", along=(name,), at=value)

    def start(self, time: str = "t") -> Region:
        """The face where `time` begins, for initial conditions."""
        return self._end(time, 0, "start")

    def end(self, time: str = "t") -> Region:
        """The face where `time` ends."""
        return self._end(time, 1, "end")

    def _end(self, time: str, which: int, word: str) -> Region:
        self._known((time,))
        value = float(self.bounds[self.coordinates.index(time), which])
        return replace(self.side(**{time: value}), name=f"{word}({time})")

    def _known(self, names: tuple[str, ...]) -> None:
        unknown = [name for name in names if name not in self.coordinates]
        if unknown or not names:
            raise GeometryError(
                f"{unknown[0] if unknown else 'nothing'!r} is no coordinate of {self!r}; "
                f"its coordinates are {', '.join(self.coordinates)}."
            )

    def __or__(self, other: Shape) -> Shape:
        return _combine("union", self, other)

    def __and__(self, other: Shape) -> Shape:
        return _combine("intersection", self, other)

    def __sub__(self, other: Shape) -> Shape:
        return _combine("difference", self, other)

    def __mul__(self, other: Shape) -> Shape:
        from pinnsketch.geometry.combine import Product

        return Product(self, other)


def _combine(operation: str, a: Shape, b: Shape) -> Shape:
    from pinnsketch.geometry.combine import Combined

    return Combined(operation, a, b)


@dataclass(frozen=True)
class Region:
    """A set of points on which a residual must vanish: a shape's interior, or a part of its boundary.

    Regions are values: two of the same shape and part are equal, and share their points and derivatives.
    """

    shape: Shape
    name: str
    along: tuple[str, ...] = ()
    at: float | None = None
    conditions: tuple[Callable[..., Array], ...] = ()

    @property
    def coordinates(self) -> tuple[str, ...]:
        return self.shape.coordinates

    @property
    def has_normal(self) -> bool:
        return bool(self.along)

    @property
    def cube(self) -> int:
        """Dimension of the unit cube that `embed` maps onto this region."""
        d = len(self.coordinates)
        return d if not self.has_normal else max(1, d - 1)

    @property
    def endpoints(self) -> int | None:
        """How many points there are, where they are finitely many (ends of an interval); None for a continuum."""
        return len(self.pieces()) if self.has_normal and len(self.coordinates) == 1 else None

    def where(self, condition: Callable[..., Array], name: str | None = None) -> Region:
        """The points at which `condition(x, y, ...)`, called with the coordinates it names, is true."""
        label = name or f"{self.name} where {getattr(condition, '__name__', 'condition')}"
        return replace(self, conditions=(*self.conditions, condition), name=label)

    def pieces(self) -> tuple[Piece, ...]:
        """The boundary pieces of this region; none for an interior."""
        chosen = (p for p in self.shape.pieces() if set(p.along) <= set(self.along))
        return tuple(p for p in chosen if self.at is None or p.at == self.at)

    def embed(self, s: Array) -> tuple[Array, Array | None, Mask]:
        """Map cube points `(n, cube)` evenly onto this region.

        Returns: points `(n, d)`, outward unit normals `(n, d)` or None in an interior, and which points to keep `(n,)`.
        """
        if not self.has_normal:
            low, high = self.shape.bounds.T
            x, normal = low + s * (high - low), None
            keep = self.shape.distance(x) < 0
        else:
            x, normal, keep = _embed_pieces(self.pieces(), s, len(self.coordinates))
        for condition in self.conditions:
            keep &= np.asarray(_call_by_name(condition, self.coordinates, x), dtype=bool).reshape(-1)
        return x, normal, keep

    def __str__(self) -> str:
        return f"{self.name} of {self.shape!r}"


def _embed_pieces(pieces: tuple[Piece, ...], s: Array, d: int) -> tuple[Array, Array, Mask]:
    """Lay the pieces end to end by measure along the first cube axis, so an even draw is even by length or area."""
    edges = np.cumsum([0.0, *(p.measure for p in pieces)])
    position = s[:, 0] * edges[-1]
    which = np.clip(np.searchsorted(edges, position, side="right") - 1, 0, len(pieces) - 1)
    x, normal, keep = np.empty((len(s), d)), np.empty((len(s), d)), np.empty(len(s), dtype=bool)
    for i, piece in enumerate(pieces):
        mine = which == i
        local = s[mine].copy()
        local[:, 0] = (position[mine] - edges[i]) / piece.measure
        x[mine], normal[mine], keep[mine] = piece.embed(local)
    return x, normal, keep


def _call_by_name(function: Callable[..., Array], names: tuple[str, ...], x: Array) -> Array:
    from inspect import signature

    wanted = [p.name for p in signature(function).parameters.values() if p.default is p.empty]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise GeometryError(f"where(): the condition asks for {unknown[0]!r}; the coordinates are {', '.join(names)}.")
    return function(**{name: x[:, names.index(name)] for name in wanted})


def check_coordinates(names: tuple[str, ...]) -> None:
    """Refuse coordinate names that would make `u.x`, `u.xy` or `u.n` ambiguous."""
    for name in names:
        if name in RESERVED or name.startswith("_") or not name.isidentifier():
            raise GeometryError(
                f"A coordinate cannot be called {name!r}: an unknown's .n is its normal derivative, .d(...) any "
                "derivative and .value its value. Choose another name."
            )
        if len(name) > 1 and all(letter in names for letter in name):
            raise GeometryError(f"Coordinates {', '.join(names)}: u.{name} would be ambiguous. Rename {name!r}.")
    if len(set(names)) < len(names):
        raise GeometryError(f"Coordinates must have different names; got {', '.join(names)}.")
