"""Collocation points: even draws from regions. A draw is a pure function of its seed, so a resumed run draws the same.

A sampler is one row in `SAMPLERS`: `(n, widths, rng) -> (about n, len(widths))` points of the unit cube; `widths` are the
side lengths the cube is stretched to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch.quasirandom import SobolEngine

from pinnsketch.geometry.shape import Array, EmptyRegion, Mask, Region

Sampler = Callable[[int, Array, np.random.Generator], Array]

DRAWS = {"even": 1, "residual": 4}
"""How points are drawn, and how many even ones one of them is taken from: by residuals, with `blocks.draw_by_size`."""

BITS = 30
"""Binary digits of a coordinate of a Sobol point."""

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
    """Scrambled Sobol sequence, the first n of the next power of two, in the order of a Gray code.

    Direction numbers of Joe & Kuo (2008), mixed by a random lower triangular matrix of bits, and shifted (Matousek 1998): the
    points of `scipy.stats.qmc.Sobol`, bit for bit, without the most of a second that it takes to load.
    """
    (rng,) = rng.spawn(1)
    places, d = 2 ** np.arange(BITS, dtype=np.uint32), len(widths)
    shift = rng.integers(2, size=(d, BITS), dtype=np.uint32) @ places
    mixing = np.tril(rng.integers(2, size=(d, BITS, BITS), dtype=np.uint32), -1) + np.eye(BITS, dtype=np.uint32)
    bits = (SobolEngine(d).sobolstate.numpy().astype(np.uint32)[:, None] & places[::-1, None]) > 0
    directions = (places[::-1] @ (mixing @ bits % 2)).astype(np.uint32)
    points = shift[None]
    for direction in directions.T[: max(n - 1, 1).bit_length()]:
        points = np.concatenate([points, points[::-1] ^ direction])
    return points[:n] / 2.0**BITS


def latin_hypercube(n: int, widths: Array, rng: np.random.Generator) -> Array:
    """Latin hypercube (McKay, Beckman & Conover 1979): one point in each of n slices of every axis."""
    (rng,) = rng.spawn(1)
    below = rng.random((n, len(widths)))
    return (np.stack([rng.permutation(np.arange(1, n + 1)) for _ in widths], axis=1) - below) / n


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


ASIDE = 1e-6
"""How far within the domain it is looked to which box a part of a boundary belongs, over the width of that."""
TRIED = 64
"""Points that are proposed in a box for each that is wanted, at most."""
CELLS, FINE, DEPTH = 256, 0.25, 60
"""A part of a boundary in a box: the most cells that cover it, their width over that of the box, and how often they are cut."""


@dataclass(frozen=True)
class Cell:
    """A box of coordinates, ends included.

    Args:
        low, high: its corners, `(d,)`.
        key: integers that tell it from other boxes.
    """

    low: Array
    high: Array
    key: tuple[int, ...] = ()

    def holds(self, x: Array) -> Mask:
        """Which of points `(n, d)` lie in it."""
        inside: Mask = np.all((x >= self.low) & (x <= self.high), axis=1)
        return inside


def draw_within(region: Region, cell: Cell, n: int, seed: Sequence[int] = (0,)) -> tuple[Points, float]:
    """Draw n points of the part of a region that lies in a box, by Sobol sequence; fewer where the box hardly meets the region.

    Args:
        region: where.
        cell: the box.
        n: how many.
        seed: as for `draw`; the key of the box is added to it.

    Returns: the points, and the share of the unit cube that is mapped onto that part: its measure, in one unit for all boxes.
    """
    if region.endpoints:
        points = draw(region, region.endpoints)
        inside = _belongs(points, cell)
        normal = None if points.normal is None else points.normal[inside]
        return Points(points.x[inside], normal), float(inside.mean())
    cells = _cells(region, cell.low, cell.high)
    cells = cells[(cells[:, 1] > cells[:, 0]).all(axis=1)]
    volumes = np.prod(cells[:, 1] - cells[:, 0], axis=1)
    ends, rng, ask = np.cumsum(volumes), np.random.default_rng([*seed, *cell.key]), n
    if not len(cells):
        none = np.empty((0, len(cell.low)))
        return Points(none, none if region.has_normal else None), 0.0
    while True:
        s = sobol(ask, np.ones(region.cube), rng)
        position = s[:, 0] * ends[-1]
        which = np.searchsorted(ends, position, side="right").clip(max=len(cells) - 1)
        s[:, 0] = (position - ends[which] + volumes[which]) / volumes[which]
        x, normal, keep = region.embed(cells[which, 0] + s * (cells[which, 1] - cells[which, 0]))
        keep = keep & _belongs(Points(x, normal), cell)
        found = int(keep.sum())
        if found >= n or ask >= TRIED * n:
            kept = Points(x[keep][:n], None if normal is None else normal[keep][:n])
            return kept, float(ends[-1]) * found / ask
        ask = min(TRIED * n, int(1.2 * ask * n / found) + 8) if found else TRIED * n


def _belongs(points: Points, cell: Cell) -> Mask:
    """Which points lie in a box; a boundary that runs along its side belongs to it where the domain is on the same side."""
    inward = 0.0 if points.normal is None else ASIDE * (cell.high - cell.low) * points.normal
    return cell.holds(points.x) & cell.holds(points.x - inward)


def _cells(region: Region, low: Array, high: Array) -> Array:
    """Boxes in the unit cube that hold all of what is mapped into a box: lower and upper corners, `(cells, 2, cube)`."""
    if not region.has_normal:
        ends = region.shape.bounds
        width = ends[:, 1] - ends[:, 0]
        return np.stack([((edge - ends[:, 0]) / width).clip(0, 1) for edge in (low, high)])[None]
    m, edges = region.cube, np.cumsum([0.0, *(piece.measure for piece in region.pieces())])
    cells = np.zeros((len(edges) - 1, 2, m)) + np.array([0.0, 1.0])[:, None]
    cells[:, 0, 0], cells[:, 1, 0] = edges[:-1] / edges[-1], edges[1:] / edges[-1]
    corners = np.stack(np.meshgrid(*[[1e-9, 0.5, 1 - 1e-9]] * m, indexing="ij"), axis=-1).reshape(-1, m)
    halves = np.stack(np.meshgrid(*[[0, 1]] * m, indexing="ij"), axis=-1).reshape(-1, m)
    for _ in range(DEPTH):
        if not 0 < len(cells) <= CELLS:
            break
        wide = cells[:, 1] - cells[:, 0]
        x = region.embed((cells[:, None, 0] + corners * wide[:, None]).reshape(-1, m))[0].reshape(len(cells), len(corners), -1)
        least, most = x.min(axis=1), x.max(axis=1)
        spread = most - least
        cells = cells[((most + spread / 4 >= low) & (least - spread / 4 <= high)).all(axis=1)]
        if (spread <= FINE * (high - low)).all():
            break
        starts = cells[:, None, 0] + halves * (cells[:, 1] - cells[:, 0])[:, None] / 2
        cells = np.stack([starts, starts + (cells[:, 1] - cells[:, 0])[:, None] / 2], axis=2).reshape(-1, 2, m)
    return cells


def _widths(region: Region) -> Array:
    """Side lengths of the cube's image: those of the bounds, or one for each of the pieces laid end to end on a boundary."""
    if not region.has_normal:
        return np.ptp(region.shape.bounds, axis=1)
    return np.array([len(region.pieces()), *[1] * (region.cube - 1)], dtype=float)


def _kept(region: Region, s: Array) -> Points:
    x, normal, keep = region.embed(s)
    return Points(x[keep], None if normal is None else normal[keep])
