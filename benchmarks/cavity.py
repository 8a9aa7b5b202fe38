"""The velocity in a lid-driven cavity, at which `problems/cavity.py` measures its errors: written to pinnsketch/references/.

Steady Navier-Stokes equations by spectral elements on a tensor grid: velocity of degree k, pressure of degree k - 1, both
continuous (Taylor & Hood 1973), Newton's method from the flow at a lower Re. The lid's velocity jumps in the corners, so that
the elements there shrink in geometric progression, which takes pollution out of the rest; in the last one the jump is a ramp.
The error that is saved is the relative L2 difference, on the points that are saved, from a solution of degree k - 1 with a
layer of elements less.

    python benchmarks/cavity.py [--degree K] [--layers N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.interpolate import BarycentricInterpolator
from scipy.sparse.linalg import splu

from pinnsketch import Reference

RATIO = 0.15
"""Of one element to the next, towards a corner: about what is best there (Gui & Babuska 1986)."""
SPARING: Any = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.1, "options": {"SymmetricMode": True}}
"""How the sparse LU decomposition orders, for little fill-in."""
PLACES = 41
"""Points that are saved along each side, in the middles of equal cells."""
PUBLISHED = {"u": -0.0620561, "v": 0.0257995}
"""In the centre at Re 1000: Botella & Peyret (1998), table 9."""


@dataclass(frozen=True)
class Line:
    """Piecewise polynomials of one coordinate.

    Args:
        edges: of the elements.
        degree: of the polynomials.
    """

    edges: Any
    degree: int

    @cached_property
    def nodes(self) -> Any:
        """Of Gauss, Lobatto and Legendre on [-1, 1]."""
        inner = np.polynomial.Legendre.basis(self.degree).deriv().roots()
        return np.array([-1, *np.sort(inner.real), 1])

    @property
    def size(self) -> int:
        return self.degree * (len(self.edges) - 1) + 1

    def at(self, x: Any, derivative: bool = False) -> Any:
        """The matrix `(len(x), size)` that gives values or slopes at points."""
        which = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, len(self.edges) - 2)
        width = np.diff(self.edges)[which]
        y = 2 * (x - self.edges[which]) / width - 1
        basis = BarycentricInterpolator(self.nodes, np.eye(self.degree + 1))
        values = basis.derivative(y) * (2 / width)[:, None] if derivative else basis(y)
        rows = np.repeat(np.arange(len(x)), self.degree + 1)
        columns = (which[:, None] * self.degree + np.arange(self.degree + 1)).ravel()
        return sparse.csr_matrix((values.ravel(), (rows, columns)), (len(x), self.size))


def graded(layers: int) -> Any:
    """Edges from 0 to 1/2, in geometric progression from 0; the greatest element is halved."""
    return np.array([0.0, *(0.5 * RATIO**k for k in reversed(range(1, layers + 1))), 0.25, 0.5])


class Cavity:
    """The equations, discretized: `degree` of the velocity, `layers` of elements towards the corners at the lid."""

    def __init__(self, degree: int, layers: int) -> None:
        side, floor = graded(layers), graded(1)
        x = np.concatenate([side, 1 - side[-2::-1]])
        y = np.concatenate([floor, 1 - side[-2::-1]])
        lines = [Line(edges, degree) for edges in (x, y)]
        lower = [Line(edges, degree - 1) for edges in (x, y)]
        points, weights = zip(*(self._quadrature(edges, 3 * degree // 2 + 1) for edges in (x, y)), strict=True)
        values, slopes = ([line.at(p, s) for line, p in zip(lines, points, strict=True)] for s in (False, True))
        self.lines, w = lines, np.kron(*weights)
        self.q, self.qx, self.qy = (
            sparse.kron(a, b, "csr") for a, b in ((values[0], values[1]), (slopes[0], values[1]), (values[0], slopes[1]))
        )
        p = sparse.kron(*(line.at(p) for line, p in zip(lower, points, strict=True)), "csr")
        self.weighed = self.q.T.multiply(w).tocsr()
        self.stiffness = self.qx.T.multiply(w) @ self.qx + self.qy.T.multiply(w) @ self.qy
        self.dx, self.dy = (p.T.multiply(w) @ slope for slope in (self.qx, self.qy))
        wall = [np.isin(np.arange(line.size), [0, line.size - 1]) for line in lines]
        top = np.arange(lines[1].size) == lines[1].size - 1
        inside = ~(wall[0][:, None] | wall[1][None, :]).ravel()
        self.lid = ((~wall[0])[:, None] & top[None, :]).ravel().astype(float)
        pressure = np.arange(p.shape[1]) > 0
        self.free = np.flatnonzero(np.concatenate([inside, inside, pressure]))

    @staticmethod
    def _quadrature(edges: Any, count: int) -> tuple[Any, Any]:
        z, w = np.polynomial.legendre.leggauss(count)
        half = np.diff(edges)[:, None] / 2
        return (edges[:-1, None] + half * (z + 1)).ravel(), (half * w).ravel()

    def solve(self, re: float, start: Any = None) -> Any:
        """Velocities and pressure `(2 n + m,)` at the nodes, by Newton's method."""
        n = self.q.shape[1]
        s = np.concatenate([self.lid, np.zeros(n + self.dx.shape[0])]) if start is None else start.copy()
        for _ in range(30):
            u, v = s[:n], s[n : 2 * n]
            (uu, ux, uy), (vv, vx, vy) = ([m @ part for m in (self.q, self.qx, self.qy)] for part in (u, v))
            along = self.weighed @ (sparse.diags(uu) @ self.qx + sparse.diags(vv) @ self.qy) + self.stiffness / re

            def scaled(by: Any) -> Any:
                return self.weighed @ sparse.diags(by) @ self.q

            linear = sparse.bmat([[along, None, -self.dx.T], [None, along, -self.dy.T], [-self.dx, -self.dy, None]], "csr")
            newton = [[scaled(ux), scaled(uy)], [scaled(vx), scaled(vy)]]
            whole = linear + sparse.block_diag([sparse.bmat(newton), sparse.csr_matrix((self.dx.shape[0],) * 2)], "csr")
            residual = (linear @ s)[self.free]
            step = splu(whole[self.free][:, self.free].tocsc(), **SPARING).solve(residual)
            s[self.free] -= step
            print(f"  Re {re:g}: step {np.abs(step).max():.1e}", flush=True)
            if np.abs(step[: 2 * len(self.free) // 3]).max() < 1e-6:  # and the next one would be of rounding
                return s
        raise RuntimeError(f"Newton's method does not converge at Re {re:g}.")

    def at(self, s: Any, x: Any, y: Any) -> dict[str, Any]:
        """Velocities at the points of a grid, `(len(x), len(y))`."""
        n, (a, b) = self.q.shape[1], self.lines
        grids = (part.reshape(a.size, b.size) for part in (s[:n], s[n : 2 * n]))
        return {name: a.at(x) @ grid @ b.at(y).T for name, grid in zip("uv", grids, strict=True)}


def solutions(degree: int, layers: int) -> dict[int, dict[str, Any]]:
    """Velocities at the points that are saved, by Re."""
    began, cavity, s = time.perf_counter(), Cavity(degree, layers), None
    x, found = (np.arange(PLACES) + 0.5) / PLACES, {}
    print(f"degree {degree}, {layers} layers: {len(cavity.free):,} unknowns")
    for re in (100, 400, 1000):
        s = cavity.solve(re, s)
        found[re] = cavity.at(s, x, x)
    print(f"  {time.perf_counter() - began:.0f} s")
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--degree", type=int, default=7)
    words.add_argument("--layers", type=int, default=5)
    words.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "pinnsketch" / "references")
    given = words.parse_args()
    fine, coarse = solutions(given.degree, given.layers), solutions(given.degree - 1, given.layers - 1)
    places = (np.arange(PLACES) + 0.5) / PLACES
    points = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
    given.out.mkdir(exist_ok=True)
    for re in (100, 1000):
        here, there = (np.stack([found[re][name].ravel() for name in "uv"]) for found in (fine, coarse))
        error = float(np.linalg.norm(here - there) / np.linalg.norm(here))
        print(f"Re {re}: error {error:.1e}, at a point {np.abs(here - there).max():.1e}")
        Reference(points, dict(zip("uv", here, strict=True)), error).save(given.out / f"cavity_{re}.npz")
    for name, value in PUBLISHED.items():
        found = fine[1000][name][PLACES // 2, PLACES // 2]
        print(f"Re 1000, {name} in the centre: {found:.7f}; Botella & Peyret: {value:.7f}")


if __name__ == "__main__":
    main()
