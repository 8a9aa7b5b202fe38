"""Solvers on a line in time: Chebyshev collocation or finite elements with Radau IIA, Fourier with ETDRK4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.linalg import matrix_power
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse.linalg import splu
from scipy.special import roots_jacobi

Solution = Callable[[Any], Any]
"""Points `(n, d)` to values `(n, unknowns)`."""


def barycentric(nodes: Any) -> Any:
    gaps = nodes[:, None] - nodes + np.eye(len(nodes))
    logs = -np.log(np.abs(gaps)).sum(1)
    return np.sign(gaps).prod(1) * np.exp(logs - logs.max())


def interpolation(nodes: Any, x: Any) -> Any:
    """The matrix from values at nodes to those at x of their polynomial (Berrut & Trefethen 2004)."""
    gaps = np.asarray(x)[:, None] - nodes
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = barycentric(nodes) / gaps
        found = terms / terms.sum(1, keepdims=True)
    return np.where((gaps == 0).any(1, keepdims=True), gaps == 0, found)


def differentiation(nodes: Any) -> Any:
    weights, gaps = barycentric(nodes), nodes[:, None] - nodes + np.eye(len(nodes))
    found = weights / weights[:, None] / gaps
    return found - np.diag(found.sum(1))


class Chebyshev:
    """Polynomials by values at n Chebyshev points. Equations are asked at Gauss points, one less for each condition."""

    def __init__(self, low: float, high: float, n: int, conditions: Sequence[tuple[float, int]] = ((0, 0), (1, 0))) -> None:
        self.nodes = low + (high - low) * (1 - np.cos(np.pi * np.arange(n) / (n - 1))) / 2
        self.d = differentiation(self.nodes)
        m = n - len(conditions)
        self.inner = low + (high - low) * (1 - np.cos(np.pi * (np.arange(m) + 0.5) / m)) / 2
        self.values = [self.at(self.inner, order) for order in range(4)]
        self.block, self.diagonal = np.block, lambda blocks: np.array(sp.block_diag(blocks).todense())

    def at(self, x: Any, order: int = 0) -> Any:
        return interpolation(self.nodes, x) @ matrix_power(self.d, order)

    def weak(self, order: int) -> tuple[Any, Any]:
        """What tests a function's values at the points, and the matrix of -d^order there."""
        return np.eye(len(self.inner)), -self.values[order]

    def fitted(self, function: Callable[[Any], Any]) -> Any:
        return function(self.nodes)

    @staticmethod
    def solver(matrix: Any) -> Callable[[Any], Any]:
        factors = lu_factor(matrix)
        return lambda right: lu_solve(factors, right)


def sampled(basis: Any, local: Sequence[Any], cells: Any) -> list[Any]:
    """Matrices from coefficients to value, gradient and, where there is one, second derivative, from local functions."""
    shape = local[0].shape
    rows = np.arange(local[0].size)

    def matrix(parts: Sequence[Any]) -> Any:
        columns = [np.repeat(basis.element_dofs[i, cells], shape[1]) for i in range(len(parts))]
        entries = (
            np.concatenate([np.asarray(part).ravel() for part in parts]),
            (np.tile(rows, len(parts)), np.concatenate(columns)),
        )
        return sp.csr_array(entries, (len(rows), basis.N))

    found = [matrix(list(local))]
    found += [matrix([phi.grad[axis] for phi in local]) for axis in range(basis.mesh.dim())]
    return found if local[0].hess is None else [*found, matrix([phi.hess[0, 0] for phi in local])]


def samples(basis: Any, x: Any, element: Any = None) -> list[Any]:
    """The same at points `(n, d)`."""
    cells = basis.mesh.element_finder(mapping=basis.mapping)(*x.T)
    local = basis.mapping.invF(x.T[:, :, None], tind=cells)
    phis = [(element or basis.elem).gbasis(basis.mapping, local, i, tind=cells)[0] for i in range(basis.Nbfun)]
    return sampled(basis, phis, cells)


class Elements:
    """Finite elements on a line. Conditions take the place of the equations of the coefficients that they fix.

    Where it is `periodic`, the coefficients at its two ends are the same ones.
    """

    def __init__(
        self, places: Any, element: Callable[[], Any], conditions: Sequence[tuple[float, int]], periodic: bool = False
    ) -> None:
        from skfem import Basis, MeshLine

        self.element = element  # a fresh one each time: ElementLinePp keeps values by the number of points alone
        self.basis = Basis(MeshLine(places), element(), intorder=11)
        own = np.arange(self.basis.N)
        if periodic:
            own[self.basis.nodal_dofs[:, -1]] = self.basis.nodal_dofs[:, 0]
        kept, place = np.unique(own, return_inverse=True)
        self.joined = sp.csr_array((np.ones(len(own)), (np.arange(len(own)), place)), (len(own), len(kept)))
        found = sampled(self.basis, [phi[0] for phi in self.basis.basis], np.arange(len(places) - 1))
        self.values = [matrix @ self.joined for matrix in found]
        self.weights = sp.diags_array(self.basis.dx.ravel())
        fixed = [int(abs(self.at(np.array([x]), order)).argmax()) for x, order in conditions]
        self.kept = np.setdiff1d(np.arange(len(kept)), fixed)
        self.block, self.diagonal = lambda blocks: sp.block_array(blocks).tocsr(), sp.block_diag

    def at(self, x: Any, order: int = 0) -> Any:
        return samples(self.basis, np.clip(x, *self.basis.mesh.p[0, [0, -1]])[:, None], self.element())[order] @ self.joined

    def weak(self, order: int) -> tuple[Any, Any]:
        """What tests a function's values at the points, and the matrix of -d^order, once integrated by parts."""
        tests = [(values.T @ self.weights).tocsr()[self.kept] for values in self.values[:2]]
        return tests[0], tests[1] @ self.values[order - 1]

    def fitted(self, function: Callable[[Any], Any]) -> Any:
        value = self.values[0]
        return splu((value.T @ self.weights @ value).tocsc()).solve(
            value.T @ (self.weights @ function(self.basis.global_coordinates().ravel()))
        )

    @staticmethod
    def solver(matrix: Any) -> Callable[[Any], Any]:
        return splu(sp.csc_matrix(matrix)).solve


@dataclass(frozen=True)
class Evolution:
    """u_t + g(u, u_x) = k d^order u / dx^order for x and t in `span`, from `start`; or u_tt = ... at rest.

    Args:
        g: gives g and its derivatives by u and u_x; None is 0.
        ends: place, order of derivative, value at t of what is given there.
        periodic: whether the ends are one place.
    """

    span: tuple[float, float, float]
    start: Callable[[Any], Any]
    k: float = 0.0
    order: int = 2
    g: Callable[[Any, Any], tuple[Any, Any, Any]] | None = None
    ends: tuple[tuple[float, int, Callable[[float], float]], ...] = ()
    linear: bool = True
    second: bool = False
    periodic: bool = False

    def conditions(self) -> list[tuple[float, int]]:
        return [(x, order) for x, order, _ in self.ends]

    def solve(self, space: Any, steps: int, stages: int) -> Solution:
        """By Radau IIA (Hairer & Wanner 1996, section IV.5): the equation holds at the nodes of a polynomial in time."""
        value, slope = space.values[:2]
        test, stiffness = space.weak(self.order)
        mass, fixed = test @ value, [space.at(np.array([x]), order) for x, order in self.conditions()]
        linear, zero, rows = self.k * stiffness, 0 * mass, list(fixed)
        ends = [end for *_, end in self.ends]
        u, n = space.fitted(self.start), mass.shape[1]
        if self.second:
            blank = [0 * row for row in rows]
            rows = [space.block([[a, b]]) for a, b in [*zip(rows, blank, strict=True), *zip(blank, rows, strict=True)]]
            linear = space.block([[zero, -mass], [linear, zero]])
            mass, ends, u = space.block([[mass, zero], [zero, mass]]), 2 * ends, np.concatenate([u, 0 * u])
        many = mass.shape[0]
        mass = space.block([[mass], *([0 * row] for row in rows)])
        linear = space.block([[linear], *([row] for row in rows)])

        def rate(t: float, u: Any) -> tuple[Any, Any]:
            found, jacobian = linear @ u, linear
            if self.g is not None:
                g, g_u, g_x = self.g(value @ u, slope @ u)
                found[:many] += test @ g
                more = test @ (sp.diags_array(g_u) @ value + sp.diags_array(g_x) @ slope)
                jacobian = linear + space.block([[more], *([0 * row] for row in rows)])
            found[many:] -= [end(t) for end in ends]
            return found, jacobian

        h = self.span[2] / steps
        nodes = np.concatenate([[0], (roots_jacobi(stages - 1, 1, 0)[0] + 1) / 2, [1]])
        d, ahead = differentiation(nodes)[1:] / h, interpolation(nodes, 1 + nodes[1:])
        coupling, path, solve = (np.kron if isinstance(mass, np.ndarray) else sp.kron)(d[:, 1:], mass), [], None
        for k in range(steps):
            guess = ahead @ path[-1] if path else np.tile(u, (stages, 1))
            for _ in range(20):
                rates, jacobians = zip(*(rate(h * (k + c), v) for c, v in zip(nodes[1:], guess, strict=True)), strict=True)
                right = (mass @ (d @ np.vstack([u, guess])).T).T + rates
                if solve is None or not self.linear:
                    solve = space.solver(coupling + space.diagonal(jacobians))
                step = solve(right.ravel()).reshape(stages, -1)
                guess = guess - step
                if self.linear or abs(step).max() < 1e-8 * abs(guess).max():
                    break
            path.append(np.vstack([u, guess]))
            u = guess[-1]

        def solution(points: Any) -> Any:
            found, which = np.empty(len(points)), np.minimum((points[:, 1] / h).astype(int), steps - 1)
            for k in np.unique(which):
                here = which == k
                there = interpolation(nodes, points[here, 1] / h - k) @ path[k][:, :n]
                at = space.at(points[here, 0])
                found[here] = (at.multiply(there) if sp.issparse(at) else at * there).sum(1).ravel()
            return found[:, None]

        return solution

    def spectral(self, n: int, steps: int, stages: int = 7) -> Solution:
        return self.solve(Chebyshev(*self.span[:2], n, self.conditions()), steps, stages)

    def elements(self, cells: int, steps: int, graded: float = 0.0, stages: int = 3) -> Solution:
        from skfem import ElementLineHermite, ElementLinePp

        places = np.linspace(-1, 1, cells + 1)
        places = np.sinh(graded * places) / np.sinh(graded) if graded else places
        low, high, _ = self.span
        element = ElementLineHermite if self.order == 3 else lambda: ElementLinePp(4)
        space = Elements(low + (high - low) * (places + 1) / 2, element, self.conditions(), self.periodic)
        return self.solve(space, steps, stages)


def etdrk4(v: Any, linear: Any, nonlinear: Callable[[Any], Any], stop: float, steps: int, kept: int) -> Any:
    """dv/dt = linear v + nonlinear(v) for a diagonal linear part, at `kept` equal times (Kassam & Trefethen 2005)."""
    h = stop / steps
    z = h * linear[:, None] + np.exp(2j * np.pi * (np.arange(64) + 0.5) / 64)
    e, half = np.exp(h * linear), np.exp(h * linear / 2)
    q = h * ((np.exp(z / 2) - 1) / z).mean(1)
    f1 = h * ((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3).mean(1)
    f2 = h * ((2 + z + np.exp(z) * (-2 + z)) / z**3).mean(1)
    f3 = h * ((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3).mean(1)
    found = []
    for k in range(1, steps + 1):
        first = nonlinear(v)
        a = half * v + q * first
        second = nonlinear(a)
        third = nonlinear(half * v + q * second)
        last = nonlinear(half * a + q * (2 * third - first))
        v = e * v + f1 * first + 2 * f2 * (second + third) + f3 * last
        if k % (steps // kept) == 0:
            found.append(v)
    return np.array(found)


def fourier(
    modes: int, steps: int, start: Callable[[Any], Any], linear: Callable[[Any], Any], nonlinear: Callable[[Any, Any], Any]
) -> Solution:
    """On (-1, 1) with periodic ends until t = 1, at times that are multiples of 1/40.

    Args:
        linear: of the wave numbers. nonlinear: of the transform and 1j times the wave numbers, as a transform.
    """
    waves = np.pi * np.arange(modes // 2 + 1)
    v = np.fft.rfft(start(-1 + 2 * np.arange(modes) / modes))
    path = etdrk4(v, linear(waves), lambda v: nonlinear(v, 1j * waves), 1.0, steps, 40)
    path = path * np.where((np.arange(len(waves)) == 0) | (2 * np.arange(len(waves)) == modes), 1, 2) / modes

    def solution(points: Any) -> Any:
        found, which = np.empty((len(points), 1)), np.rint(40 * points[:, 1]).astype(int) - 1
        for k in np.unique(which):
            found[which == k, 0] = (np.exp(1j * np.outer(points[which == k, 0] + 1, waves)) @ path[k]).real
        return found

    return solution
