"""Disk and Polygon: shapes of the plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np

from pinnsketch.geometry.shape import Array, GeometryError, Mask, Piece, Shape, check_coordinates


@dataclass(frozen=True)
class Disk(Shape):
    """The points closer to `center` than `radius`.

    Raises:
        GeometryError: if the radius is not positive, or a number is not finite.
    """

    center: tuple[float, float] = (0.0, 0.0)
    radius: float = 1.0
    coordinates: tuple[str, ...] = ("x", "y")

    def __post_init__(self) -> None:
        _check_plane("Disk", self.coordinates)
        if len(self.center) != 2 or not np.isfinite(self.center).all():
            raise GeometryError(f"Disk: the center must be two finite numbers; got {self.center}.")
        if not (self.radius > 0 and np.isfinite(self.radius)):
            raise GeometryError(f"Disk: the radius must be positive and finite; got {self.radius:g}.")
        object.__setattr__(self, "center", tuple(map(float, self.center)))
        object.__setattr__(self, "coordinates", tuple(self.coordinates))

    @property
    def bounds(self) -> Array:
        return np.array([(c - self.radius, c + self.radius) for c in self.center])

    def distance(self, x: Array) -> Array:
        return np.hypot(*(x - np.array(self.center)).T) - self.radius

    def pieces(self) -> tuple[Piece, ...]:
        def embed(s: Array) -> tuple[Array, Array, Mask]:
            angle = 2 * pi * s[:, 0]
            normal = np.stack([np.cos(angle), np.sin(angle)], axis=1)
            return self.center + self.radius * normal, normal, np.ones(len(s), dtype=bool)

        return (Piece(2 * pi * self.radius, self.coordinates, embed),)


@dataclass(frozen=True, init=False)
class Polygon(Shape):
    """The inside of a closed line through `vertices`, in either sense; shapely decides what lies inside.

    Raises:
        GeometryError: if there are fewer than three vertices, or the line crosses itself.
    """

    vertices: tuple[tuple[float, float], ...]
    coordinates: tuple[str, ...]

    def __init__(self, vertices: Sequence[tuple[float, float]], coordinates: tuple[str, ...] = ("x", "y")) -> None:
        import shapely  # takes a while to load

        _check_plane("Polygon", coordinates)
        if len(vertices) < 3:
            raise GeometryError(f"Polygon: at least three vertices are needed; got {len(vertices)}.")
        if not np.isfinite(vertices).all():
            raise GeometryError("Polygon: every vertex must be a pair of finite numbers.")
        polygon = shapely.remove_repeated_points(shapely.Polygon(vertices))
        if not polygon.is_valid or polygon.area == 0:
            raise GeometryError(f"Polygon: {shapely.is_valid_reason(polygon)}; list the vertices in order around it.")
        ring = shapely.get_coordinates(shapely.orient_polygons(polygon))[:-1]
        object.__setattr__(self, "vertices", tuple(map(tuple, ring.tolist())))
        object.__setattr__(self, "coordinates", tuple(coordinates))

    @property
    def bounds(self) -> Array:
        points = np.array(self.vertices)
        return np.stack([points.min(axis=0), points.max(axis=0)], axis=1)

    def distance(self, x: Array) -> Array:
        import shapely

        polygon = shapely.Polygon(self.vertices)
        shapely.prepare(polygon)
        away = shapely.distance(polygon.exterior, shapely.points(x))
        return np.where(shapely.contains_xy(polygon, x[:, 0], x[:, 1]), -away, away)

    def pieces(self) -> tuple[Piece, ...]:
        starts = np.array(self.vertices)
        return tuple(self._edge(a, b) for a, b in zip(starts, np.roll(starts, -1, axis=0), strict=True))

    def _edge(self, a: Array, b: Array) -> Piece:
        length = float(np.hypot(*(b - a)))
        tangent = (b - a) / length
        normal = np.array([tangent[1], -tangent[0]])  # counter-clockwise, so the right-hand side is outside

        def embed(s: Array) -> tuple[Array, Array, Mask]:
            x = a + s[:, :1] * (b - a)
            return x, np.broadcast_to(normal, x.shape), np.ones(len(x), dtype=bool)

        return Piece(length, self.coordinates, embed)


def _check_plane(name: str, coordinates: tuple[str, ...]) -> None:
    check_coordinates(tuple(coordinates))
    if len(coordinates) != 2:
        raise GeometryError(f"{name}: two coordinates are needed; got {', '.join(coordinates)}.")
