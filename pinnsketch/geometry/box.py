"""Box: a product of intervals with named coordinates, in any dimension, space and time alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pinnsketch.geometry.shape import Array, GeometryError, Mask, Piece, Shape, check_coordinates


@dataclass(frozen=True, repr=False)
class Box(Shape):
    """`Box(x=(-1, 1), t=(0, 1))`: the points with x in (-1, 1) and t in (0, 1).

    Args:
        periodic: names of coordinates whose ends are one place, as in `Box(x=(-1, 1), t=(0, 1), periodic="x")`.
        intervals: by coordinate.

    Raises:
        GeometryError: if an interval is empty or turned inside out, or a name is reserved or, as periodic, not known.
    """

    coordinates: tuple[str, ...]
    intervals: tuple[tuple[float, float], ...]
    periodic: tuple[str, ...]

    def __init__(self, *, periodic: str | Sequence[str] = (), **intervals: tuple[float, float]) -> None:
        if not intervals:
            raise GeometryError("Box() needs at least one interval, as in Box(x=(0, 1)).")
        check_coordinates(tuple(intervals))
        for name, interval in intervals.items():
            _check_interval(name, interval)
        named = tuple(periodic.replace(",", " ").split()) if isinstance(periodic, str) else tuple(periodic)
        for name in named:
            if name not in intervals:
                raise GeometryError(f"Box: periodic names coordinates, which are {', '.join(intervals)}; got {name!r}.")
        object.__setattr__(self, "coordinates", tuple(intervals))
        object.__setattr__(self, "periodic", tuple(name for name in intervals if name in named))
        object.__setattr__(self, "intervals", tuple((float(a), float(b)) for a, b in intervals.values()))

    @property
    def bounds(self) -> Array:
        return np.array(self.intervals)

    def distance(self, x: Array) -> Array:
        low, high = self.bounds.T
        outside = np.maximum(low - x, x - high)
        outside[:, [name in self.periodic for name in self.coordinates]] = -float(np.ptp(self.bounds))
        return np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(axis=1), 0)

    def pieces(self) -> tuple[Piece, ...]:
        return tuple(self._face(axis, end) for axis in self._walls for end in (0, 1))

    @property
    def _walls(self) -> list[int]:
        """The axes that end."""
        return [axis for axis, name in enumerate(self.coordinates) if name not in self.periodic]

    def _face(self, axis: int, end: int) -> Piece:
        low, high = self.bounds.T
        others = [i for i in range(len(low)) if i != axis]
        normal = np.zeros(len(low))
        normal[axis] = 2 * end - 1

        def embed(s: Array) -> tuple[Array, Array, Mask]:
            x = np.empty((len(s), len(low)))
            x[:, axis] = self.intervals[axis][end]
            x[:, others] = low[others] + s[:, : len(others)] * (high - low)[others]
            return x, np.broadcast_to(normal, x.shape), np.ones(len(x), dtype=bool)

        measure = float(np.prod((high - low)[others]))
        return Piece(measure, (self.coordinates[axis],), embed, at=self.intervals[axis][end])

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}=({a:g}, {b:g})" for n, (a, b) in zip(self.coordinates, self.intervals, strict=True))
        ends = f", periodic={' '.join(self.periodic)!r}" if self.periodic else ""
        return f"Box({inside}{ends})"


def _check_interval(name: str, interval: object) -> None:
    try:
        low, high = (float(end) for end in interval)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise GeometryError(f"Box: {name} must be a pair of numbers, as in {name}=(0, 1); got {interval!r}.") from None
    if not (np.isfinite(low) and np.isfinite(high)):
        raise GeometryError(f"Box: {name} runs from {low:g} to {high:g}; both ends must be finite.")
    if low >= high:
        raise GeometryError(
            f"Box: {name} runs from {low:g} to {high:g}; the first end must be the smaller one: {name}=({high:g}, {low:g})."
        )
