"""The estimate of a solution's error: against true errors, and its constant against a spectral computation."""

from math import exp, isfinite

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from pinnsketch import Box, Data, Disk, Problem, Term, Unknown, div_grad, solve
from pinnsketch.collocation import Collocation
from pinnsketch.estimate import estimate
from pinnsketch.library import find_problem, load_problem
from pinnsketch.network import MLP
from pinnsketch.trial import Trial


def shipped(name, **parameters):
    from pathlib import Path

    return load_problem(find_problem(name, Path.cwd()), parameters)


def untrained(problem, **options):
    bounds = torch.tensor(problem.domain.bounds)
    network = MLP(bounds, len(problem.unknowns), width=20, depth=2, generator=torch.Generator().manual_seed(1))
    return Trial(network, problem.coefficients), Collocation(problem, interior=200, boundary=50, **options)


def trained(problem, steps):
    points = {"interior": 150, "boundary": 50, "resample": 1}
    train = {"method": "natural_gradient", "steps": steps}
    return solve(problem, network={"width": 20, "depth": 2}, points=points, train=train, monitor=False)


@pytest.mark.parametrize("name", ["poisson", "heat", "poisson_disk"])
def test_of_a_linear_problem_any_error_however_large_is_found(name):
    problem = shipped(name)
    trial, task = untrained(problem)
    found, true = estimate(trial, task), task.error(trial)["overall"]
    assert found.correction == pytest.approx(true, rel=1e-3)
    assert found.explained > 0.999
    assert true <= found.limit <= 1.2 * true


SQUARE, TIME = Box(x=(0, 1), y=(0, 1)), Box(x=(0, 1), t=(0, 1))
UNDETERMINED = {
    "no condition on two sides": {
        "laplace": Term(SQUARE.interior, lambda u: u.xx + u.yy),
        "sides": Term(SQUARE.sides("x"), lambda u, x: u - x),
    },
    "slopes alone": {
        "laplace": Term(SQUARE.interior, lambda u: u.xx + u.yy),
        "sides": Term(SQUARE.boundary, lambda u, n: u.n - n[:, :1]),
    },
    "no start": {"heat": Term(TIME.interior, lambda u: u.t - u.xx / 10), "ends": Term(TIME.sides("x"), lambda u: u)},
}


@pytest.mark.parametrize("name", UNDETERMINED)
def test_where_a_problem_has_other_solutions_there_is_no_limit(name):
    terms = UNDETERMINED[name]
    trial, task = untrained(Problem(terms[next(iter(terms))].where.shape, "u", terms))
    found = estimate(trial, task)
    assert found.stability == found.limit == float("inf")


def test_of_a_problem_with_a_coefficient_that_varies_the_error_is_found():
    domain = Disk(radius=2) - Disk(radius=1)

    def exact(x, y):
        return torch.exp(x) * torch.sin(2 * y)

    def darcy(p, x, y):
        return div_grad(1 + x**2, p) - exact(x, y) * (2 * x - 3 * (1 + x**2))

    terms = {"darcy": Term(domain.interior, darcy), "rims": Term(domain.boundary, lambda p, x, y: p - exact(x, y))}
    trial, task = untrained(Problem(domain, "p", terms, exact=exact))
    found, true = estimate(trial, task), task.error(trial)["overall"]
    assert found.correction == pytest.approx(true, rel=1e-3)
    assert true <= found.limit <= 1.2 * true


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("poisson", {}), ("heat", {}), ("poisson_disk", {}), ("burgers", {"nu": 0.2})],
    ids=lambda v: str(v),
)
def test_of_a_trained_solution_the_error_lies_within_the_estimates(name, parameters):
    solution = trained(shipped(name, **parameters), 40)
    found, true = solution.estimate, solution.error["overall"]
    assert true < 0.01
    assert 0.5 * true < found["correction"] < 2 * true
    assert true < found["limit"]


@pytest.mark.parametrize("precision", ["mixed", "float32"])
def test_in_lower_precision_it_is_there_too(precision):
    train = {"method": "adam", "steps": 3}
    solution = solve(shipped("heat"), network={"width": 8, "depth": 1}, train=train, monitor=False, precision=precision)
    assert solution.estimate["correction"] == pytest.approx(solution.error["overall"], rel=0.05)


def test_a_solution_that_is_right_to_rounding_is_known_to_be():
    points, network = {"interior": 900, "boundary": 200}, {"kind": "features", "width": 250}
    solution = solve(shipped("poisson"), network=network, points=points, train={"method": "features"}, monitor=False)
    assert solution.error["overall"] < 1e-8
    assert 0.1 * solution.error["overall"] < solution.estimate["limit"] < 1e-6


def test_large_weights_of_patches_do_not_hide_that_the_residual_is_linear_in_the_error():
    network = {"kind": "patches", "width": 240}
    solution = solve(shipped("poisson"), network=network, train={"method": "patches", "steps": 2}, monitor=False)
    before = {name: value.clone() for name, value in solution.trial.state_dict().items()}
    assert before["network.output.weight"].abs().max() > 100
    assert solution.estimate["correction"] == pytest.approx(solution.error["overall"], rel=0.5)
    assert solution.error["overall"] < solution.estimate["limit"]
    assert all(torch.equal(value, before[name]) for name, value in solution.trial.state_dict().items())


def test_where_nothing_has_been_solved_yet_the_error_is_all_of_the_solution():
    trial = Trial(curve([0.0, 0.0], 0.0, 0.0, 0.0))
    found = estimate(trial, Collocation(shipped("poisson")))
    assert found.correction == pytest.approx(1, abs=1e-6)
    assert 1 <= found.limit < 2
    line = Box(x=(0, 1))
    nothing = Problem(line, "u", {"law": Term(line.interior, lambda u: u.x + u), "start": Term(line.side(x=0), lambda u: u)})
    assert estimate(Trial(curve([0.0], 0.0, 0.0, 0.0)), Collocation(nothing)).limit == 0


def curve(weights, bias, scale, shift):
    """A network scale tanh(weights x + bias) + shift."""
    network = torch.nn.Sequential(torch.nn.Linear(len(weights), 1), torch.nn.Tanh(), torch.nn.Linear(1, 1)).double()
    values = [[weights], [bias], [[scale]], [shift]]
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.data.copy_(torch.tensor(value))
    return network


def test_the_error_of_a_sharp_front_that_is_out_of_place_is_found():
    """Burgers' u = c - tanh((x - c t) / (2 nu)), of width 0.02: with another speed it is 0.005 out of place at the end."""
    nu, speed, wrong = 0.01, 0.5, 0.505
    domain = Box(x=(-1, 1), t=(0, 1))

    def exact(x, t, speed):
        return speed - torch.tanh((x - speed * t) / (2 * nu))

    terms = {
        "burgers": Term(domain.interior, lambda u: u.t + u * u.x - nu * u.xx),
        "start": Term(domain.start("t"), lambda u, x, t, speed: u - exact(x, t, speed)),
        "sides": Term(domain.sides("x"), lambda u, x, t, speed: u - exact(x, t, speed)),
    }
    problem = Problem(domain, "u", terms, parameters={"speed": speed}, exact=exact)
    trial = Trial(curve([1 / (2 * nu), -wrong / (2 * nu)], 0.0, -1.0, speed))
    found, true = estimate(trial, Collocation(problem)), Collocation(problem).error(trial)["overall"]
    assert true > 0.01
    assert found.correction == pytest.approx(true, rel=0.1)
    assert true < found.limit < 10 * true


def test_an_error_beyond_first_order_is_found_by_further_steps():
    """The logistic u' = 4 u (1 - u) with a rate of 5: its error is of a size whose square counts."""
    rate, time = 4.0, Box(t=(0, 1))

    def exact(t):
        return torch.sigmoid(rate * t - 2)

    terms = {
        "reaction": Term(time.interior, lambda u: u.t - rate * u * (1 - u)),
        "start": Term(time.start("t"), lambda u, t: u - exact(t)),
    }
    problem = Problem(time, "u", terms, exact=exact)
    trial = Trial(curve([2.5], -1.0, 0.5, 0.5))
    found, true = estimate(trial, Collocation(problem)), Collocation(problem).error(trial)["overall"]
    assert true > 0.1
    assert found.correction == pytest.approx(true, rel=0.02)
    assert true < found.limit < 2 * true


def test_the_error_of_an_unknown_coefficient_is_estimated_too():
    solution = trained(shipped("inverse_diffusivity", noise=0.0), 25)
    (true,) = (abs(found["estimate"] - found["exact"]) for found in solution.metrics["unknowns"].values())
    (found,) = solution.estimate["coefficients"].values()
    assert found == pytest.approx(true, rel=0.1)


def chebyshev(n):
    """Points on [0, 1], the differentiation matrix of Trefethen (2000, cheb.m), and Clenshaw-Curtis weights."""
    k = np.arange(n + 1)
    x, c = np.cos(np.pi * k / n), np.where((k == 0) | (k == n), 2.0, 1.0) * (-1.0) ** k
    d = np.outer(c, 1 / c) / (x[:, None] - x[None, :] + np.eye(n + 1))
    d -= np.diag(d.sum(1))
    moments = [0.0 if j % 2 else 2 / (1 - j * j) for j in k]
    weights = np.linalg.solve(np.cos(np.outer(k, np.arccos(x))), moments)
    return (x + 1) / 2, 2 * d, weights / 2


@pytest.mark.parametrize("seen", [False, True])
def test_of_a_coefficient_that_no_residual_determines_nothing_is_known(seen):
    line = Box(t=(0, 1))
    terms = {"decay": Term(line.interior, lambda u, rate: u.t + rate * u), "start": Term(line.start("t"), lambda u: u - 1)}
    if seen:
        terms["seen"] = Term(Data({"t": [0.5], "v": [exp(-1)]}), lambda u, v: u - v)
    trial, task = untrained(Problem(line, "u", terms, parameters={"rate": Unknown(1.5)}))
    found = estimate(trial, task)
    assert isfinite(found.limit) == isfinite(found.coefficients["rate"]) == isfinite(found.stability) == seen


@pytest.mark.parametrize("weight", [1.0, 100.0])
def test_the_stability_constant_is_that_of_a_spectral_discretisation(weight):
    line = Box(x=(0, 1))
    terms = {"equation": Term(line.interior, lambda u: u.xx + 1), "ends": Term(line.boundary, lambda u: u, weight=weight)}
    trial, task = untrained(Problem(line, "u", terms))
    _, d, w = chebyshev(40)
    ends = np.zeros((41, 41))
    ends[[0, 40], [0, 40]] = weight / 2
    energy = (d @ d).T @ np.diag(w) @ (d @ d) + ends
    (most,) = eigh(np.diag(w), energy, eigvals_only=True, subset_by_index=[40, 40])
    assert estimate(trial, task).stability == pytest.approx(most**0.5, rel=0.02)


def test_it_changes_nothing_and_is_the_same_each_time():
    trial, task = untrained(shipped("kovasznay"))
    before = [p.clone() for p in trial.parameters()]
    first, second = estimate(trial, task), estimate(trial, task)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(before, trial.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in trial.parameters())


@pytest.mark.parametrize("known", [True, False], ids=["against the exact solution", "by the estimate"])
def test_a_run_ends_once_its_error_is_small_enough(known):
    problem = shipped("poisson")
    if not known:
        problem = Problem(problem.domain, problem.unknowns, problem.terms, problem.parameters)
    train = {"until": 0.05, "log": 5, "method": "lbfgs", "steps": 2000}
    solution = solve(problem, network={"width": 20, "depth": 2}, train=train)
    assert solution.metrics["steps"] < 1000
    assert "is not above train.until, 0.05" in solution.metrics["note"]
    assert solution.outcome == "solved"
    found = solution.error or {"overall": solution.estimate["correction"]}
    assert found["overall"] <= 0.05


def test_where_residuals_mix_points_it_says_why_there_is_none():
    square = Box(x=(0, 1), y=(0, 1))
    terms = {"mean": Term(square.interior, lambda u: u - u.value.mean() + u.xx), "edge": Term(square.boundary, lambda u: u - 1)}
    solution = solve(Problem(square, "u", terms), network={"width": 8, "depth": 1}, train={"method": "adam", "steps": 2})
    assert "mixes points" in solution.estimate["why"]


def test_where_there_are_only_a_few_data_it_says_so():
    line = Box(x=(0, 1))
    data = {"x": np.linspace(0, 1, 5), "seen": np.ones(5)}
    problem = Problem(line, "u", {"data": Term(Data(data), lambda u, seen: u - seen)})
    solution = solve(problem, network={"width": 8, "depth": 1}, train={"method": "adam", "steps": 2})
    assert "5 residuals in all" in solution.estimate["why"]
