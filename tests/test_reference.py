"""References: what a problem has in place of an exact solution, how errors use it, and the solvers that make them."""

from math import pi
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import cos

from pinnsketch import Box, Problem, Reference, Solution, Term, etdrk4, laplacian, solve
from pinnsketch.collocation import Collocation
from pinnsketch.library import load_problem
from pinnsketch.network import build
from pinnsketch.problem import ProblemError, parameters_of
from pinnsketch.report.figures import solution_figure
from pinnsketch.report.tables import metrics_table
from pinnsketch.trial import Trial

ROOT = Path(__file__).parents[1]
SQUARE = Box(x=(0, 1), y=(0, 1))
QUICK = {
    "network": {"width": 6, "depth": 1},
    "points": {"interior": 30, "boundary": 10},
    "train": {"method": "lbfgs", "steps": 5},
}


def table(n=40, error=1e-6):
    x = np.random.default_rng(0).random((n, 2))
    return Reference(x, {"u": x.sum(axis=1)}, error)


def problem(**more):
    terms = {
        "laplace": Term(SQUARE.interior, lambda u: laplacian(u)),
        "sides": Term(SQUARE.boundary, lambda u, x, y: u - x - y),
    }
    return Problem(SQUARE, "u", terms, **{"reference": table, **more})


# --- a reference


def test_errors_are_measured_at_the_points_of_the_reference():
    asked = []

    def reference():
        asked.append(1)
        return table()

    solution = solve(problem(reference=reference), **QUICK)
    assert asked == [1]
    x, u = table().points, table().values["u"]
    expected = np.linalg.norm(solution.at(x)[:, 0] - u) / np.linalg.norm(u)
    assert solution.error == pytest.approx({"overall": expected, "u": expected})
    assert solution.history[-1]["error"]["overall"] == pytest.approx(expected)
    assert solution.metrics["reference_error"] == 1e-6


def test_nothing_is_computed_before_an_error_is_asked_for():
    def reference():
        raise AssertionError

    task = Collocation(problem(reference=reference), interior=20, boundary=10)
    network = build("mlp", {}, torch.tensor(SQUARE.bounds), ("x", "y"), 1)
    assert task.check(Trial(network)) == []


def test_tables_and_figures_show_it_and_its_own_error(tmp_path):
    solution = solve(problem(), **QUICK)
    shown = [list(column.cells) for column in metrics_table(solution.metrics).columns]
    assert dict(zip(*shown, strict=True))["the reference's own error"] == "1e-06"
    titles = [axes.get_title() for axes in solution_figure(solution).axes]
    assert {"u, reference", "u, |found - reference|"} < set(titles)
    solution.save(tmp_path / "u.pt")
    assert Solution.load(tmp_path / "u.pt").error == solution.error


def test_unknowns_may_be_left_out():
    two = Problem(
        SQUARE,
        "u v",
        {"u": Term(SQUARE.interior, lambda u: u), "v": Term(SQUARE.interior, lambda v: v)},
        reference=table,
    )
    solution = solve(two, **QUICK)
    assert set(solution.error) == {"overall", "u"}
    assert solution_figure(solution)


def test_it_is_saved_and_read_back(tmp_path):
    table().save(tmp_path / "u.npz")
    found = Reference.load(tmp_path / "u.npz")
    np.testing.assert_array_equal(found.points, table().points)
    np.testing.assert_array_equal(found.values["u"], table().values["u"])
    assert found.error == 1e-6


WRONG = {
    "values of another length": (lambda: Reference(np.zeros((3, 2)), {"u": np.zeros(4)}, 0.0), r"got \(3, 2\), {'u': \(4,\)}"),
    "no values": (lambda: Reference(np.zeros((3, 2)), {}, 0.0), r"expected points \(n, d\), and values \(n,\)"),
    "not finite": (lambda: Reference(np.zeros((1, 1)), {"u": np.array([np.nan])}, 0.0), "must be finite"),
    "no file": (lambda: Reference.load("nowhere"), r"cannot read nowhere .*Shipped: cavity_100, cavity_1000"),
    "both": (lambda: problem(exact=lambda x, y: x + y), "an exact solution or a reference, not both"),
    "no reference": (lambda: problem(reference=lambda: 3).tabulated, "expected a Reference; got int"),
    "of another unknown": (
        lambda: problem(reference=lambda: Reference(np.zeros((1, 2)), {"v": np.zeros(1)}, 0.0)).tabulated,
        r"expected values of u at points of x, y; got v at points \(1, 2\)",
    ),
    "too few modes": (
        lambda: etdrk4(np.cos, np.ones_like, np.zeros_like, modes=64, places=128),
        "20 times and 128 places must divide 1000 steps and 32 modes",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_a_reference_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


# --- where they come from


def burgers(steps, **more):
    """u_t + u u_x = 0.1 u_xx from -sin(pi x)."""
    return etdrk4(
        lambda x: -np.sin(pi * x), lambda k: -0.1 * k**2, lambda u: u**2 / 2, lambda k: -1j * k,
        modes=256, places=64, times=5, **{"steps": steps, **more},
    )  # fmt: skip


def off(found):
    """The true error, by the transform of Cole and Hopf."""
    exact = load_problem(ROOT / "problems" / "burgers.py").exact["u"]
    x, t = torch.tensor(found.points).split(1, dim=1)
    u = exact(x, t, 0.1)[:, 0].numpy()
    return np.linalg.norm(found.values["u"] - u) / np.linalg.norm(u)


def test_exponential_steps_are_of_fourth_order_and_their_error_is_known():
    errors = []
    for steps in (20, 40, 80):
        found = burgers(steps)
        errors.append(off(found))
        assert errors[-1] < found.error < 40 * errors[-1]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.3)


def test_a_start_with_a_kink_is_resolved():
    """Heat from |x|: a Fourier series."""
    found = etdrk4(np.abs, lambda k: -(k**2), np.zeros_like, steps=40, modes=256, places=64)
    x, t = found.points.T
    odd = np.arange(1, 200, 2)[:, None]
    expected = 0.5 - 4 / pi**2 * (np.exp(-((pi * odd) ** 2) * t) * np.cos(pi * odd * x) / odd**2).sum(axis=0)
    np.testing.assert_allclose(found.values["u"], expected, atol=1e-10)
    assert found.error < 1e-10


def rows(name):
    """Values of a shipped reference, `(times, places)`, and its error."""
    found = load_problem(ROOT / "problems" / f"{name}.py").tabulated
    return found.values["u"].reshape(20, 128), found.error


def test_kdv_keeps_its_mass_and_momentum():
    u, error = rows("kdv")
    assert error < 1e-8
    np.testing.assert_allclose(u.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose((u**2).mean(axis=1), 0.5, rtol=1e-8)
    assert u.max() > 2  # solitons stand above the wave that they come from


def test_allen_cahn_stays_even_and_within_its_two_states():
    u, error = rows("allen_cahn")
    assert error < 1e-9
    np.testing.assert_allclose(u[:, 1:], u[:, :0:-1], atol=1e-10)
    assert np.abs(u).max() < 1
    assert ((u**2 - 1) ** 2).mean(axis=1)[-1] < 0.15 < ((u**2 - 1) ** 2).mean(axis=1)[0]


def test_the_flow_in_the_cavity_is_that_of_botella_and_peyret():
    found = Reference.load("cavity_1000")
    middle = np.flatnonzero((np.abs(found.points - 0.5) < 1e-9).all(axis=1))
    assert float(found.values["u"][middle[0]]) == pytest.approx(-0.0620561, abs=1e-5)
    assert float(found.values["v"][middle[0]]) == pytest.approx(0.0257995, abs=1e-5)


@pytest.mark.parametrize("lid", ["full", "steep", "parabola"])
def test_the_cavity_has_a_reference_for_each_lid(lid):
    for re in (100.0, 1000.0):
        problem = load_problem(ROOT / "problems" / "cavity.py", {"re": re, "lid": lid})
        assert problem.tabulated.error < (1e-3 if lid == "full" else 1e-4)
        name = f"cavity_{re:.0f}" + ("" if lid == "full" else f"_{lid}")
        assert (ROOT / "pinnsketch" / "references" / f"{name}.npz").stat().st_size < 60_000
    assert load_problem(ROOT / "problems" / "cavity.py", {"re": 50.0, "lid": lid}).tabulated is None


def test_a_lid_that_is_not_there_is_refused():
    with pytest.raises(ProblemError, match="expected one of full, steep, parabola; got fast"):
        load_problem(ROOT / "problems" / "cavity.py", {"lid": "fast"})


# --- many coordinates


def test_a_residual_may_ask_for_all_coordinates():
    cube = Box(**{f"x{i}": (0, 1) for i in range(1, 4)})
    seen = []

    def inside(u, x2, **x):
        seen.append((x2, x))
        return laplacian(u) + x2

    found = Problem(cube, "u", {"inside": Term(cube.interior, inside)}, exact=lambda **x: cos(sum(x.values())))
    assert found.terms["inside"].needs == ("u", "x2", "x1", "x3")
    assert parameters_of(found.exact["u"]) == ("x1", "x2", "x3")
    task = Collocation(found, interior=20)
    network = build("mlp", {}, torch.tensor(cube.bounds), cube.coordinates, 1)
    assert task.check(Trial(network)) == []
    assert set(seen[0][1]) == {"x1", "x3"}


def test_a_mistake_in_such_a_residual_is_found_in_its_line():
    cube = Box(x=(0, 1), y=(0, 1))

    def wrong(u, **x):
        return u + nowhere  # noqa: F821

    network = build("mlp", {}, torch.tensor(cube.bounds), cube.coordinates, 1)
    with pytest.raises(ProblemError, match=r"test_reference.py, line \d+\): NameError"):
        Collocation(Problem(cube, "u", {"wrong": Term(cube.interior, wrong)}), interior=20).check(Trial(network))
