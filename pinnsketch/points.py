"""Collocation points: even draws from regions. A draw is a pure function of its seed, so a resumed run draws the same.

A sampler is one row in `SAMPLERS`: `(n, widths, rng) -> (about n, len(widths))` points of the unit cube; `widths` are the
side lengths the cube is stretched to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pinnsketch.geometry.shape import Array, EmptyRegion, Region

Sampler = Callable[[int, Array, np.random.Generator], Array]

DRAWS = {"even": 1, "residual": 4}
"""How points are drawn, and how many even ones one of them is taken from: by residuals, with `blocks.draw_by_size`."""

PROPOSALS = 1 << 20
"""A region of which fewer than one in this many proposals is inside counts as empty."""

MOST = 1 << 24
"""No draw proposes more points than this, unless for more than one in 16 of them: they would not fit into memory."""


@dataclass(frozen=True)
class Points:
    """Points `x (n, d)` of a region, and its outward unit normals there `(n, d)`, or None in an interior."""

    x: Array
    normal: Array | None = None


def sobol(n: int, widths: Array, rng: np.random.Generator) -> Array:
    """Scrambled Sobol sequence (Owen 1998), the first n of the next power of two."""
    from scipy.stats import qmc

    return qmc.Sobol(len(widths), scramble=True, rng=rng).random_base2(max(n - 1, 1).bit_length())[:n]


def latin_hypercube(n: int, widths: Array, rng: np.random.Generator) -> Array:
    """Latin hypercube (McKay, Beckman & Conover 1979): one point in each of n slices of every axis."""
    from scipy.stats import qmc

    return qmc.LatinHypercube(len(widths), rng=rng).random(n)


def uniform(n: int, widths: Array, rng: np.random.Generator) -> Array:
    """Independent uniform points."""
    return rng.random((n, len(widths)))


def grid(n: int, widths: Array, rng: np.random.Generator) -> Array:
    """Centres of a regular grid of at least n nearly square cells; the same at every draw."""
    counts, left = np.ones(len(widths), dtype=int), float(n)
    order = np.argsort(widths, kind="stable")  # narrow axes first: what they leave over, the wider ones share
    for i, axis in enumerate(order):
        spacing = (np.prod(widths[order[i:]]) / left) ** (1 / len(order[i:]))
        counts[axis] = max(np.ceil(widths[axis] / spacing - 1e-9), 1)
        left /= counts[axis]
    axes = [(np.arange(k) + 0.5) / k for k in counts]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(widths))


SAMPLERS: dict[str, Sampler] = {"sobol": sobol, "latin_hypercube": latin_hypercube, "random": uniform, "grid": grid}


def draw(region: Region, n: int, sampler: str = "sobol", seed: Sequence[int] = (0,)) -> Points:
    """Draw n points of a region, even by length, area or volume.

    Args:
        region: where; ends of an interval are given once each, whatever n.
        n: how many; a grid gives as many as fit a regular pattern, at least n.
        sampler: a name in SAMPLERS.
        seed: integers; equal seeds give equal points, different ones independent points.

    Raises:
        ValueError: for an unknown sampler or n < 1.
        EmptyRegion: if the region has no points, or hardly any; the message names it.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"There is no sampler {sampler!r}; the samplers are {', '.join(SAMPLERS)}.")
    if n < 1:
        raise ValueError(f"{region}: at least one point is needed; got {n}.")
    if region.has_normal and not region.pieces():
        raise EmptyRegion(f"{region} is empty: this shape has no such boundary.")
    if region.endpoints:
        s = (np.arange(region.endpoints)[:, None] + 0.5) / region.endpoints
        points = _kept(region, s)
        if not len(points.x):
            raise EmptyRegion(f"{region} is empty: none of its {region.endpoints} end points lies in it. Check its conditions.")
        return points
    widths = _widths(region)
    ask = n
    while True:
        points = _kept(region, SAMPLERS[sampler](ask, widths, np.random.default_rng(list(seed))))
        found = len(points.x)
        if found >= n:
            return points if sampler == "grid" else Points(points.x[:n], None if points.normal is None else points.normal[:n])
        if ask >= PROPOSALS and not found:
            raise EmptyRegion(f"{region} is empty: none of {ask:,} proposed points lies in it. Check its shape and conditions.")
        tried, ask = ask, min(ask * 64, PROPOSALS) if not found else int(ask * n / found * 1.1) + 1
        if ask > max(MOST, 16 * n):
            raise EmptyRegion(f"{region} is too thin: {found} of {tried:,} proposed points lie in it, and {n} are needed.")


def _widths(region: Region) -> Array:
    """Side lengths of the cube's image: those of the bounds, or one for each of the pieces laid end to end on a boundary."""
    if not region.has_normal:
        return np.ptp(region.shape.bounds, axis=1)
    return np.array([len(region.pieces()), *[1] * (region.cube - 1)], dtype=float)


def _kept(region: Region, s: Array) -> Points:
    x, normal, keep = region.embed(s)
    return Points(x[keep], None if normal is None else normal[keep])
