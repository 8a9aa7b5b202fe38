"""Solvers that stand beside networks in the benchmarks converge as their theory says, and peers are given the same problems."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import expm

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def benchmark(name):
    return importlib.import_module(name)


def test_the_differentiation_matrix_is_exact_for_polynomials_of_its_degree():
    line = benchmark("evolution").Chebyshev(-1.0, 3.0, 7, [(0.0, 0)])
    x = np.linspace(-1, 3, 11)
    coefficients = np.random.default_rng(0).standard_normal(7)
    for order in range(4):
        exact = np.polyval(np.polyder(coefficients, order), x)
        found = line.at(x, order) @ np.polyval(coefficients, line.nodes)
        np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-10 * abs(exact).max())


def test_radau_of_three_stages_converges_with_order_four_at_all_times():
    """The collocation polynomial is of order s + 1 inside a step (Hairer & Wanner 1996, theorem II.7.9)."""
    evolution = benchmark("evolution")

    def wall(x):
        return (x, 0, lambda t: 0.0)

    equation = evolution.Evolution((0, 1, 1), lambda x: np.sin(np.pi * x), k=0.25, ends=(wall(0.0), wall(1.0)))
    points = np.random.default_rng(0).random((200, 2))
    exact = np.exp(-0.25 * np.pi**2 * points[:, 1:]) * np.sin(np.pi * points[:, :1])
    errors = [abs(equation.spectral(20, steps, stages=3)(points) - exact).max() for steps in (4, 8, 16)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert ((rates > 3.5) & (rates < 4.6)).all(), rates


def test_periodic_hermite_elements_converge_with_order_three():
    """Airy's equation u_t = -u_xxx, whose waves sin(pi x + pi^3 t) travel: cubics lose one order of four (Dupont 1973)."""
    pytest.importorskip("skfem", reason="which the benchmarks alone need: pip install scikit-fem")
    equation = benchmark("evolution").Evolution((-1, 1, 0.1), lambda x: np.sin(np.pi * x), -1.0, 3, periodic=True)
    points = np.random.default_rng(0).random((200, 2)) * [2, 0.1] - [1, 0]
    exact = np.sin(np.pi * points[:, :1] + np.pi**3 * points[:, 1:])
    errors = [abs(equation.elements(cells, 40)(points) - exact).max() for cells in (8, 16, 32)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert ((rates > 2.7) & (rates < 3.6)).all(), rates


def test_spectral_elements_come_closer_to_the_reference_of_the_cavity():
    classical = benchmark("classical")
    points, values = classical.measured("cavity, Re 100", "")
    errors = [
        np.linalg.norm(classical.spectral_elements(degree, layers, 100.0)(points) - values) / np.linalg.norm(values)
        for degree, layers in ((3, 1), (4, 2))
    ]
    assert errors[1] < 0.5 * errors[0] < 0.05


def test_a_flow_from_coarser_elements_is_the_flow_by_way_of_lower_re():
    pytest.importorskip("skfem", reason="which the benchmarks alone need: pip install scikit-fem")
    classical, points = benchmark("classical"), np.random.default_rng(0).random((200, 2))
    parabola = classical.LIDS["parabola"]
    found = classical.cavity_elements(2, 18, 200.0, parabola)(points)
    sides = [(1 - np.cos(np.linspace(0, np.pi, 19))) / 2] * 2

    def walls(x):
        return np.stack([parabola(x[:, 0]) * (x[:, 1] == 1), 0 * x[:, 0], 0 * x[:, 0]], 1)

    direct = classical.elements_flow(classical.triangles(sides, 2), 2, 200.0, walls, (0, 0))(points)
    np.testing.assert_allclose(found, direct, atol=1e-10)
    flow = classical.Cavity(5, 1, parabola)
    s = flow.solve(200.0, flow.solve(100.0))
    x, y = points[:20].T
    direct = [part.diagonal() for part in flow.at(s, x, y).values()]
    np.testing.assert_allclose(classical.spectral_elements(5, 1, 200.0, parabola)(points[:20]), np.stack(direct, 1), atol=1e-10)


def test_fast_diagonalisation_in_three_dimensions_is_spectrally_exact():
    def exact(x):
        return np.cos(np.pi * x).prod(1, keepdims=True)

    def source(x):
        return (2 - 3 * np.pi**2) * exact(x)[:, 0]

    points = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    solution = benchmark("steady").chebyshev_poisson(20, 3, -1, 1, source, exact, shift=2.0)
    assert abs(solution(points) - exact(points)).max() < 1e-11


def test_etdrk4_converges_with_order_four_to_the_matrix_exponential():
    random = np.random.default_rng(0)
    diagonal, matrix, start = -10 * random.random(5), random.standard_normal((5, 5)), random.standard_normal(5)
    exact = expm(np.diag(diagonal) + matrix) @ start
    etdrk4 = benchmark("evolution").etdrk4
    errors = [abs(etdrk4(start, diagonal, lambda v: matrix @ v, 1.0, n, 1)[-1] - exact).max() for n in (8, 16, 32)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert ((rates > 3.5) & (rates < 4.6)).all(), rates


def test_rational_functions_converge_exponentially_in_the_root_of_their_number():
    def exact(x):
        r, angle = np.hypot(*x.T), np.arctan2(x[:, 1], x[:, 0])
        return r ** (2 / 3) * np.sin(2 / 3 * np.where(angle < -np.pi / 4, angle + 2 * np.pi, angle))

    points = np.random.default_rng(0).uniform(-1, 1, (500, 2))
    points = points[(points[:, 0] < 0) | (points[:, 1] > 0)]
    errors = [abs(benchmark("steady").rational_l_shape(n, exact)(points)[:, 0] - exact(points)).max() for n in (9, 25, 49)]
    assert errors[1] < errors[0] ** 1.4
    assert errors[2] < errors[1] ** 1.2
    assert errors[2] < 1e-7


KNOWN = [
    "Poisson 2D",
    "Poisson 5D",
    "heat",
    "Burgers",
    "KdV, two solitons",
    "wave, c = 2",
    "convection, beta = 30",
    "convection, beta = 50",
    "Helmholtz (1, 4)",
    "reaction, rho = 5",
    "Kovasznay, Re 40",
    "L-shape",
]


def exact_at(name, places):
    """The exact solution at points given by coordinate, as packages are asked for it: values, and derivatives by autograd."""
    task = benchmark("classical").Collocation(benchmark("accuracy").CASES[name].make())
    axes = list(places)
    x = torch.stack([torch.as_tensor(places[axis]) for axis in axes], 1).requires_grad_()
    unknowns = {unknown: task.exact(unknown, x) for unknown in task.problem.unknowns}

    def derivative(unknown, *along):
        value = unknowns[unknown]
        for axis in along:
            value = torch.autograd.grad(value.sum(), x, create_graph=True)[0][:, [axes.index(axis)]]
        return value

    columns = dict(zip(axes, x.split(1, dim=1), strict=True))
    return benchmark("peer_accuracy").Point(columns, derivative, torch), columns


def test_peers_are_given_every_periodic_coordinate_as_one_and_no_other():
    peers, cases = benchmark("peer_accuracy"), benchmark("accuracy").CASES
    for name, e in benchmark("equations").PROBLEMS.items():
        assert set(cases[name].make().domain.periodic) == {e.periodic} - {""}, name
        low, high = (np.array([float(pair[k]) for pair in e.bounds.values()]) for k in (0, 1))
        other = np.where([axis == e.periodic for axis in e.bounds], high, low)
        found = [np.stack(peers.inputs(e, x, np)) for x in (low, other)]
        np.testing.assert_allclose(*found, atol=1e-15)
        assert len(found[0]) == len(e.bounds) + bool(e.periodic)


def test_every_problem_is_given_to_peers_or_named_with_the_reason():
    peers = benchmark("peer_accuracy")
    assert set(peers.PROBLEMS) | set(peers.LEFT_OUT) == set(benchmark("accuracy").CASES)


@pytest.mark.parametrize("name", KNOWN)
def test_the_exact_solution_satisfies_what_peers_are_given(name):
    e, random = benchmark("equations").PROBLEMS[name], np.random.default_rng(0)
    bounds = benchmark("accuracy").CASES[name].make().domain.bounds
    np.testing.assert_allclose(np.array(list(e.bounds.values()), float), bounds)
    inside = {axis: random.uniform(*pair, 40) for axis, pair in e.bounds.items()}
    if e.missing:
        inside["y"] = abs(inside["y"])
    point, _ = exact_at(name, inside)
    residuals = e.equations(point)
    assert len(residuals) == len(e.unknowns.split())
    for residual in residuals:
        assert residual.abs().max() < 1e-7, name
    for condition in e.conditions:
        for face in condition.faces:
            ranges = {axis: face.get(axis, pair) for axis, pair in e.bounds.items()}
            places = {axis: random.uniform(*(r if isinstance(r, tuple) else (r, r)), 40) for axis, r in ranges.items()}
            if name == "Burgers":  # whose closed form has a division by t
                places["t"] = np.maximum(places["t"], 1e-12)
            point, columns = exact_at(name, places)
            found = point[(condition.unknown, condition.along) if condition.along else condition.unknown]
            given = benchmark("peer_accuracy").given(condition, columns, torch)
            assert (found - given).abs().max() < 1e-7, (name, face)
