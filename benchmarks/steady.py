"""Solvers of steady problems, each in a few lines: Poisson and Navier-Stokes by finite elements and by spectral methods."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from evolution import Chebyshev, Elements, Solution, differentiation, interpolation, sampled, samples
from numpy.linalg import eig, inv, lstsq, matrix_power

LOWER = (100.0, 400.0)
"""Reynolds numbers by way of which a flow at a higher one is found."""


def chebyshev_poisson(
    n: int, d: int, low: float, high: float, source: Callable[[Any], Any], edge: Callable[[Any], Any], shift: float = 0.0
) -> Solution:
    """laplacian(u) + shift u = source on a cube of d dimensions, by diagonalising the second derivative (Lynch et al. 1964)."""
    line = Chebyshev(low, high, n)
    second = matrix_power(line.d, 2)
    grid = np.stack(np.meshgrid(*[line.nodes] * d, indexing="ij"), -1).reshape(-1, d)
    inner = (slice(1, -1),) * d
    u = edge(grid).reshape((n,) * d)
    u[inner] = 0
    right = source(grid).reshape((n,) * d)[inner] - sum(along(second, u, axis)[inner] for axis in range(d))
    values, vectors = (part.real for part in eig(second[1:-1, 1:-1]))
    for axis in range(d):
        right = along(inv(vectors), right, axis)
    right = right / (sum(np.ix_(*[values] * d)) + shift)
    for axis in range(d):
        right = along(vectors, right, axis)
    u[inner] = right

    def solution(points: Any) -> Any:
        at, found = [line.at(points[:, axis]) for axis in range(d)], np.empty((len(points), 1))
        for k in range(len(points)):
            part = u
            for matrix in at:
                part = np.tensordot(matrix[k], part, 1)
            found[k] = part
        return found

    return solution


def along(matrix: Any, tensor: Any, axis: int) -> Any:
    return np.moveaxis(np.tensordot(matrix, tensor, (1, axis)), 0, axis)


def rational_l_shape(poles: int, edge: Callable[[Any], Any]) -> Solution:
    """Laplace's equation by the real parts of rational functions, poles clustered at the corner (Gopal & Trefethen 2019)."""
    z = np.exp(-0.25j * np.pi) * np.exp(-4 * (poles**0.5 - np.arange(1, poles + 1) ** 0.5))
    sides = np.array([0, 1, 1 + 1j, -1 + 1j, -1 - 1j, -1j, 0])
    close, even = np.logspace(-14, 0, 6 * poles), (1 - np.cos(np.pi * (np.arange(6 * poles) + 0.5) / (6 * poles))) / 2
    boundary = np.concatenate(
        [a + (b - a) * (close if a == 0 else 1 - close if b == 0 else even) for a, b in itertools.pairwise(sides)]
    )

    def functions(w: Any) -> Any:
        parts = np.concatenate([abs(z) / (w[:, None] - z), (w[:, None] / 1.5) ** np.arange(poles // 2 + 4)], 1)
        return np.concatenate([parts.real, parts.imag], 1)

    weights = lstsq(functions(boundary), edge(np.stack([boundary.real, boundary.imag], 1)), rcond=1e-15)[0]
    return lambda points: functions(points @ [1, 1j]) @ weights[:, None]


def triangle(degree: int) -> Any:
    import skfem

    return getattr(skfem, f"ElementTriP{degree}")()


def triangles(nodes: Sequence[Any], degree: int) -> Any:
    """A basis on the triangles of a tensor grid."""
    from skfem import Basis, MeshTri

    return Basis(MeshTri.init_tensor(*nodes), triangle(degree), intorder=min(3 * degree - 1, 10))


def l_shaped(refined: int, degree: int) -> Any:
    """A basis on the L without the fourth quadrant, whose triangles shrink towards the corner as the solution asks."""
    from skfem import Basis, MeshTri

    mesh = MeshTri.init_lshaped().scaled((1.0, -1.0)).refined(refined)
    size = np.abs(mesh.p).max(0)
    graded = mesh.p * np.where(size > 0, size, 1) ** (1.5 * (degree + 1) - 1)
    return Basis(MeshTri(graded, mesh.t), triangle(degree))


def elements_poisson(
    basis: Any, source: Callable[[Any], Any] | None, edge: Callable[[Any], Any], shift: float = 0.0
) -> Solution:
    """laplacian(u) + shift u = source, with u given on the boundary, in the way of scikit-fem's first examples."""
    from skfem import BilinearForm, LinearForm, condense, solve
    from skfem.helpers import dot, grad

    @BilinearForm
    def operator(u: Any, v: Any, w: Any) -> Any:
        return dot(grad(u), grad(v)) - shift * u * v

    @LinearForm
    def load(v: Any, w: Any) -> Any:
        return -source(np.moveaxis(w.x, 0, -1).reshape(-1, 2)).reshape(w.x.shape[1:]) * v

    right = basis.zeros() if source is None else load.assemble(basis)
    boundary, u = basis.get_dofs(), basis.zeros()
    u[boundary] = edge(basis.doflocs[:, boundary.flatten()].T)[:, 0]
    u = solve(*condense(operator.assemble(basis), right, x=u, D=boundary))
    return lambda points: (samples(basis, points)[0] @ u)[:, None]


def newton(system: Callable[[Any], tuple[Any, Any]], z: Any, solver: Callable[[Any], Callable[[Any], Any]]) -> Any:
    for _ in range(30):
        residual, jacobian = system(z)
        step = solver(jacobian)(residual)
        z = z - step
        if abs(step).max() < 1e-9 * abs(z).max():
            return z
    raise ArithmeticError(f"Newton's method has not converged: its last step was {abs(step).max():.1e}.")


def chebyshev_flow(n: tuple[int, int], box: Any, re: float, exact: Solution) -> Solution:
    """Steady Navier-Stokes on a box: velocities of degree n - 1, a pressure of degree n - 3, by Newton's method."""
    lines = [Chebyshev(*ends, k) for ends, k in zip(box, n, strict=True)]
    (x, y), points = lines, [line.inner for line in lines]
    value, d_x, d_y = (np.kron(x.values[i], y.values[j]) for i, j in ((0, 0), (1, 0), (0, 1)))
    viscous = -(np.kron(x.values[2], y.values[0]) + np.kron(x.values[0], y.values[2])) / re
    p_x = np.kron(differentiation(points[0]), np.eye(len(points[1])))
    p_y = np.kron(np.eye(len(points[0])), differentiation(points[1]))
    ends = [np.asarray(pair, float) for pair in box]
    edges = np.vstack([np.kron(x.at(ends[0]), np.eye(n[1])), np.kron(x.values[0], y.at(ends[1]))])
    places = np.vstack([_product(ends[0], y.nodes), _product(points[0], ends[1])])
    outlet = np.array([[ends[0][1], ends[1].mean()]])
    pressure = np.kron(interpolation(points[0], outlet[:, 0]), interpolation(points[1], outlet[:, 1]))
    given, many, inside = exact(places), value.shape[1], value.shape[0]
    one, none, blank = np.ones((inside, 1)), np.zeros((inside, 1)), np.zeros_like

    def system(z: Any) -> tuple[Any, Any]:
        u, v, p = z[:many], z[many : 2 * many], z[2 * many : -1]
        (a, b), carried = (value @ u, value @ v), lambda w: (d_x @ w, d_y @ w)
        (u_x, u_y), (v_x, v_y) = carried(u), carried(v)
        flow = a[:, None] * d_x + b[:, None] * d_y + viscous
        residual = [a * u_x + b * u_y + viscous @ u + p_x @ p, a * v_x + b * v_y + viscous @ v + p_y @ p]
        residual += [u_x + v_y + z[-1], edges @ u - given[:, 0], edges @ v - given[:, 1], pressure @ p - exact(outlet)[:, 2]]
        empty = np.zeros((len(edges), inside + 1))
        jacobian = [
            [flow + u_x[:, None] * value, u_y[:, None] * value, p_x, none],
            [v_x[:, None] * value, flow + v_y[:, None] * value, p_y, none],
            [d_x, d_y, blank(p_x), one],
            [edges, blank(edges), empty[:, 1:], empty[:, :1]],
            [blank(edges), edges, empty[:, 1:], empty[:, :1]],
            [np.zeros((1, 2 * many)), pressure, np.zeros((1, 1))],
        ]
        return np.concatenate(residual), np.vstack([np.hstack(row) for row in jacobian])

    z = newton(system, np.zeros(2 * many + inside + 1), Chebyshev.solver)

    def solution(at: Any) -> Any:
        rows = [[line.at(at[:, k]), interpolation(line.inner, at[:, k])] for k, line in enumerate(lines)]
        parts = (0, z[:many]), (0, z[many : 2 * many]), (1, z[2 * many : -1])
        return np.stack([((rows[0][i] @ part.reshape(rows[0][i].shape[1], -1)) * rows[1][i]).sum(1) for i, part in parts], 1)

    return solution


def _product(x: Any, y: Any) -> Any:
    return np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)


def elements_flow(basis: Any, degree: int, re: float, edge: Solution, pin: Any, start: Solution | None = None) -> Solution:
    """Steady Navier-Stokes by Taylor and Hood's elements (the pressure one degree lower) and Newton's method, from lower Re.

    Args:
        basis: of each velocity, of this degree.
        edge: u, v and p at points; read are velocities on the boundary, and the pressure at the vertex nearest to `pin`.
        start: the flow on coarser triangles, which Newton's method begins with instead.
    """
    pressure, cells = basis.with_element(triangle(degree - 1)), np.arange(basis.nelems)
    value, d_x, d_y = sampled(basis, [phi[0] for phi in basis.basis], cells)
    hydro = sampled(pressure, [phi[0] for phi in pressure.basis], cells)[0]
    weights = sp.diags_array(basis.dx.ravel())
    test, test_x, test_y, test_p = ((matrix.T @ weights).tocsr() for matrix in (value, d_x, d_y, hydro))
    stiffness = test_x @ d_x + test_y @ d_y
    n, m, rim = basis.N, pressure.N, basis.get_dofs().flatten()
    pinned = int(((pressure.doflocs.T - pin) ** 2).sum(1).argmin())
    whole = np.zeros(2 * n + m)
    if start:
        whole = np.concatenate([*start(basis.doflocs.T)[:, :2].T, start(pressure.doflocs.T)[:, 2]])
    whole[rim], whole[n + rim] = edge(basis.doflocs[:, rim].T)[:, :2].T
    whole[2 * n + pinned] = edge(pressure.doflocs[:, [pinned]].T)[0, 2]
    free = np.setdiff1d(np.arange(2 * n + m), np.concatenate([rim, n + rim, [2 * n + pinned]]))

    def system(z: Any, re: float) -> tuple[Any, Any]:
        whole[free], viscous = z, stiffness / re
        u, v, p = np.split(whole, [n, 2 * n])
        a, b, (u_x, u_y), (v_x, v_y) = value @ u, value @ v, (d_x @ u, d_y @ u), (d_x @ v, d_y @ v)
        flow = viscous + test @ (sp.diags_array(a) @ d_x + sp.diags_array(b) @ d_y)
        residual = [
            test @ (a * u_x + b * u_y) + viscous @ u - test_x @ (hydro @ p),
            test @ (a * v_x + b * v_y) + viscous @ v - test_y @ (hydro @ p),
            test_p @ (u_x + v_y),
        ]
        carried = [[test @ (sp.diags_array(slope) @ value) for slope in pair] for pair in ((u_x, u_y), (v_x, v_y))]
        jacobian = sp.block_array(
            [
                [flow + carried[0][0], carried[0][1], -test_x @ hydro],
                [carried[1][0], flow + carried[1][1], -test_y @ hydro],
                [test_p @ d_x, test_p @ d_y, None],
            ]
        )
        return np.concatenate(residual)[free], jacobian.tocsr()[free][:, free]

    for rate in (*(lower for lower in LOWER if lower < re and not start), re):
        whole[free] = newton(partial(system, re=rate), whole[free], Elements.solver)
    u, v, p = np.split(whole, [n, 2 * n])

    def solution(points: Any) -> Any:
        at = samples(basis, points)[0]
        return np.stack([at @ u, at @ v, samples(pressure, points)[0] @ p], 1)

    return solution
