"""The velocity in a lid-driven cavity, at which `problems/cavity.py` measures its errors: written to pinnsketch/references/.

Steady Navier-Stokes equations by spectral elements on a tensor grid: velocity of degree k, pressure of degree k - 1, both
continuous (Taylor & Hood 1973), Newton's method from the flow at a lower Re or degree. Where the lid's velocity jumps in the
corners, or falls to zero near them, the elements there shrink in geometric progression; in the last one a jump is a ramp.
The error that is saved is the relative L2 difference, on the points that are saved, from a solution of degree k - 1 with a
layer of elements less.

    python benchmarks/cavity.py [--lid NAME] [--degree K] [--out FOLDER]        (other lids: degree 8)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.interpolate import BarycentricInterpolator
from scipy.sparse.linalg import splu

from pinnsketch import Reference

RATIO = 0.3
"""Of one element to the next, towards a corner: the smaller, the fewer elements, and the worse polynomials follow in each."""
SPARING: Any = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.1, "options": {"SymmetricMode": True}}
"""How the sparse LU decomposition orders, for little fill-in."""
PLACES = 41
"""Points that are saved along each side, in the middles of equal cells."""
PUBLISHED = {"u": -0.0620561, "v": 0.0257995}
"""In the centre at Re 1000, where the lid has speed 1 throughout: Botella & Peyret (1998), table 9."""
LIDS: dict[str, Callable[[Any], Any]] = {
    "full": np.ones_like,
    "steep": lambda x: 1 - np.cosh(50 * (x - 0.5)) / np.cosh(25),
    "parabola": lambda x: 4 * x * (1 - x),
}
"""Speeds of the lid, those of `problems/cavity.py`."""


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

    @property
    def positions(self) -> Any:
        """Of the nodes, `(size,)`."""
        inner = self.edges[:-1, None] + np.diff(self.edges)[:, None] * (self.nodes[:-1] + 1) / 2
        return np.append(inner.ravel(), self.edges[-1])

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
    """The equations, discretized: `degree` of the velocity, `layers` of elements towards the corners at the lid.

    Args:
        degree, layers: as above.
        speed: of the lid, at places `(n,)`.
    """

    def __init__(self, degree: int, layers: int, speed: Callable[[Any], Any] = np.ones_like) -> None:
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
        self.lid = (np.where(wall[0], 0.0, speed(lines[0].positions))[:, None] * top[None, :]).ravel()
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

    def like(self, other: Cavity, s: Any) -> Any:
        """The flow s of another discretization, to start from; pressures enter linearly and need none."""
        wall = np.ones((self.lines[0].size, self.lines[1].size), dtype=bool)
        wall[1:-1, 1:-1] = False
        u, v = (np.where(wall, 0.0, part).ravel() for part in other.at(s, *(line.positions for line in self.lines)).values())
        return np.concatenate([u + self.lid, v, np.zeros(self.dx.shape[0])])

    def at(self, s: Any, x: Any, y: Any) -> dict[str, Any]:
        """Velocities at the points of a grid, `(len(x), len(y))`."""
        n, (a, b) = self.q.shape[1], self.lines
        grids = (part.reshape(a.size, b.size) for part in (s[:n], s[n : 2 * n]))
        return {name: a.at(x) @ grid @ b.at(y).T for name, grid in zip("uv", grids, strict=True)}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--lid", choices=LIDS, default="full")
    words.add_argument("--degree", type=int, default=7, help="of the velocity; layers are two less")
    words.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "pinnsketch" / "references")
    given = words.parse_args()
    places = (np.arange(PLACES) + 0.5) / PLACES
    points = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
    given.out.mkdir(exist_ok=True)
    cavity, flows, shown = None, dict[int, Any](), list[dict[int, Any]]()
    for degree in range(5, given.degree + 1):
        began, coarser, cavity = time.perf_counter(), cavity, Cavity(degree, degree - 2, LIDS[given.lid])
        print(f"degree {degree}, {degree - 2} layers: {len(cavity.free):,} unknowns")
        if coarser is None:
            for re, before in ((100, None), (400, 100), (1000, 400)):
                flows[re] = cavity.solve(re, flows.get(before))
        else:
            flows = {re: cavity.solve(re, cavity.like(coarser, flows[re])) for re in (100, 1000)}
        shown.append({re: cavity.at(flows[re], places, places) for re in (100, 1000)})
        print(f"  {time.perf_counter() - began:.0f} s, in the centre at Re 1000:", end="")
        print(*(f" {name} {shown[-1][1000][name][PLACES // 2, PLACES // 2]:.7f}" for name in "uv"), end="")
        print(f" ({PUBLISHED['u']}, {PUBLISHED['v']} are published)" if given.lid == "full" else "")
        for re in (100, 1000) if coarser else ():
            there, here = (np.stack([level[re][name].ravel() for name in "uv"]) for level in shown[-2:])
            error = float(np.linalg.norm(here - there) / np.linalg.norm(here))
            print(f"  Re {re}: error {error:.1e}, at a point {np.abs(here - there).max():.1e}", flush=True)
            name = f"cavity_{re}" + (f"_{given.lid}" if given.lid != "full" else "")
            Reference(points, dict(zip("uv", here, strict=True)), error).save(given.out / f"{name}.npz")


if __name__ == "__main__":
    main()
