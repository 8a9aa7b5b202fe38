"""Box: a product of intervals with named coordinates, in any dimension, space and time alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pinnsketch.geometry.shape import Array, GeometryError, Mask, Piece, Shape, check_coordinates


@dataclass(frozen=True, repr=False)
class Box(Shape):
    """`Box(x=(-1, 1), t=(0, 1))`: the points with x in (-1, 1) and t in (0, 1).

    Raises:
        GeometryError: if an interval is empty or turned inside out, or a name is reserved.
    """

    coordinates: tuple[str, ...]
    intervals: tuple[tuple[float, float], ...]

    def __init__(self, **intervals: tuple[float, float]) -> None:
        if not intervals:
            raise GeometryError("Box() needs at least one interval, as in Box(x=(0, 1)).")
        check_coordinates(tuple(intervals))
        for name, interval in intervals.items():
            _check_interval(name, interval)
        object.__setattr__(self, "coordinates", tuple(intervals))
        object.__setattr__(self, "intervals", tuple((float(a), float(b)) for a, b in intervals.values()))

    @property
    def bounds(self) -> Array:
        return np.array(self.intervals)

    def distance(self, x: Array) -> Array:
        low, high = self.bounds.T
        outside = np.maximum(low - x, x - high)
        return np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(axis=1), 0)

    def pieces(self) -> tuple[Piece, ...]:
        return tuple(self._face(axis, end) for axis in range(len(self.coordinates)) for end in (0, 1))

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
        return f"Box({inside})"


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
