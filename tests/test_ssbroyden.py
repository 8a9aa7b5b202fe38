"""Self-scaled quasi-Newton updates: the dense formulas, secant, positive definite, and as fast as they are said to be."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_train import F64, FUNCTIONS, Breaks, Model, Point, objective_of, quadratic, randn, rosenbrock

from pinnsketch.config import ConfigError, make_config
from pinnsketch.methods import Evaluation, SSBroyden
from pinnsketch.methods.line_search import Trial
from pinnsketch.methods.urban2025_ssbroyden import LAG, InverseHessian, factors
from pinnsketch.train import Stage, train

UPDATES = ("ssbroyden", "ssbfgs", "bfgs")
updates = pytest.mark.parametrize("update", UPDATES)
functions = pytest.mark.parametrize(("function", "start"), FUNCTIONS.values(), ids=FUNCTIONS)


def dense(state):
    return state["scale"] * state["h"] + state["w"].T @ state["d"] @ state["w"]


def slowly(update, h, s, y, b_matrix_s):
    """The update as written in the paper, B s from the inverse."""
    n, rho = len(s), 1 / y.dot(s)
    m = y @ h @ y
    hk, b = m * rho, s.dot(b_matrix_s) * rho
    phi, tau = 1.0, 1.0
    if update != "bfgs":
        tau = min(1.0, float(1 / b))
    if update == "ssbroyden":
        a = b * hk - 1
        c = (a.abs() / (1 + a)).sqrt()
        low = min(1.0, float(hk * (1 - c)))
        theta_minus, theta_plus = (low - 1) / a, 1 / low
        theta = max(theta_minus, min(theta_plus, (1 - b) / b))
        sigma = 1 + theta * a
        sigma_n = sigma.abs() ** (1 / (1 - n))
        tau = min(tau * sigma_n, sigma) if theta <= 0 else tau * min(sigma_n, 1 / theta)
        phi = (1 - theta) / (1 + a * theta)
    v = rho * s - h @ y / m
    return (h - torch.outer(h @ y, h @ y) / m + phi * m * torch.outer(v, v)) / tau + rho * torch.outer(s, s)


def steps_on_a_quadratic(update, count, n=7):
    """Steps of odd lengths along -H g; after each: H before, H after, s, y."""
    q = torch.linalg.qr(randn(n, n))[0]
    hessian = q @ torch.diag(torch.logspace(-1, 1, n, dtype=F64)) @ q.T
    matrix, x = InverseHessian(update), randn(n, seed=1)
    for k in range(count):
        gradient = hessian @ x
        direction = matrix.direction(gradient)
        length = 0.3 + 0.5 * (k % 3)
        s = length * direction
        before = None if matrix.empty else dense(matrix.state_dict()).clone()
        matrix.learn(s, gradient, Trial(length, 0.0, Evaluation(0.0, {}, True), hessian @ (x + s)))
        y = hessian @ s
        if before is None:
            before = torch.eye(n, dtype=F64) * (s.dot(y) / y.dot(y))
        yield before, dense(matrix.state_dict()), s, y
        x = x + s + 0.1 * randn(n, seed=10 + k)
        matrix.renew()  # the point moved of itself, as the gradient does on fresh points


@updates
def test_an_update_is_the_dense_formula(update):
    for before, after, s, y in steps_on_a_quadratic(update, 2 * LAG + 3):
        expected = slowly(update, before, s, y, torch.linalg.solve(before, s))
        torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


@updates
def test_updates_that_wait_are_the_dense_formula_too(update):
    function = quadratic(n=6)[0]
    point = Point(np.full(6, 3.0))
    method, objective = SSBroyden(list(point.parameters()), update=update), objective_of(function, point)
    expected, path = None, []
    for _ in range(2 * LAG - 3):
        state = method.state_dict()["matrix"]
        before = point.x.detach(), None if state["h"] is None else dense(state).clone()
        old = method.state_dict()["here"]
        method.step(objective)
        new, state = method.state_dict()["here"], method.state_dict()["matrix"]
        s = point.x.detach() - before[0]
        if old is None or before[1] is None or float(s.norm()) < 1e-7:
            continue
        y = new["gradient"] - old["gradient"]
        expected = slowly(update, before[1], s, y, torch.linalg.solve(before[1], s))
        torch.testing.assert_close(dense(state), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
        path.append(int(state["count"]))
    assert {0, 1, LAG - 1} <= set(path)


@updates
def test_the_secant_condition_holds_to_rounding_and_the_matrix_stays_positive(update):
    for _, after, s, y in steps_on_a_quadratic(update, 20):
        torch.testing.assert_close(after @ y, s, rtol=0, atol=1e-12 * float(s.norm()))
        torch.testing.assert_close(after, after.T, rtol=0, atol=1e-13 * float(after.abs().max()))
        assert torch.linalg.eigvalsh(after)[0] > 0


@updates
def test_the_direction_is_the_matrix_times_the_gradient(update):
    point = Point(np.tile([-1.2, 1.0], 4))
    method, objective = SSBroyden(list(point.parameters()), update=update), objective_of(rosenbrock, point)
    for _ in range(2 * LAG):
        method.step(objective)
        state = method.state_dict()
        torch.testing.assert_close(state["matrix"]["hg"], dense(state["matrix"]) @ point.gradient, rtol=1e-9, atol=1e-11)


def test_factors_keep_to_what_al_baali_proves():
    """tau <= 1, H+ is positive definite (sigma > 0), and a pair of no curvature error gives BFGS without scaling."""
    for b in np.logspace(-3, 3, 25):
        for a in np.logspace(-6, 4, 21):
            h = (1 + a) / b
            phi, tau = factors("ssbroyden", b, h, 50)
            theta = (1 - phi) / (1 + phi * a)
            assert 0 < tau <= 1
            assert 1 + theta * a > 0
            assert factors("ssbfgs", b, h, 50) == (1.0, min(1.0, 1 / b))
            assert factors("bfgs", b, h, 50) == (1.0, 1.0)


def test_bfgs_with_exact_line_searches_minimises_a_quadratic_in_its_dimension_of_steps():
    n, matrix = 9, InverseHessian("bfgs")
    q = torch.linalg.qr(randn(n, n))[0]
    hessian, x = q @ torch.diag(torch.linspace(1, 9, n, dtype=F64)) @ q.T, randn(n, seed=1)
    for _ in range(n):
        g = hessian @ x
        d = matrix.direction(g)
        length = float(-g.dot(d) / (d @ hessian @ d))
        matrix.learn(length * d, g, Trial(length, 0.0, Evaluation(0.0, {}, True), hessian @ (x + length * d)))
        x = x + length * d
    assert x.norm() < 1e-10
    torch.testing.assert_close(dense(matrix.state_dict()), torch.linalg.inv(hessian), rtol=1e-7, atol=1e-8)


def descend(function, start, steps=400, **options):
    point = Point(start)
    method, objective = SSBroyden(list(point.parameters()), **options), objective_of(function, point)
    path = []
    while not method.stalled and len(path) < steps:
        at = method.step(objective)
        path.append((at.loss, point.x.detach(), point.gradient.clone()))
    return path, method


@pytest.mark.parametrize(("update", "steps"), [("bfgs", 160), ("ssbfgs", 170), ("ssbroyden", 190)])
def test_rosenbrock_in_twenty_dimensions_takes_as_many_steps_as_is_known(update, steps):
    path, _ = descend(rosenbrock, np.tile([-1.2, 1.0], 10), update=update)
    first = next(k for k, (_, x, _) in enumerate(path, 1) if (x - 1).abs().max() < 1e-6)
    assert first <= steps


@updates
@functions
def test_every_step_goes_down_and_leaves_the_gradient_of_where_it_ended(function, start, update):
    path, _ = descend(function, start, update=update)
    losses = [float(function(torch.as_tensor(start, dtype=F64))), *(loss for loss, _, _ in path)]
    assert all(after <= before for before, after in pairwise(losses))
    for loss, x, gradient in path[:40]:
        x = x.clone().requires_grad_()
        value = function(x)
        assert loss == float(value.detach())
        assert torch.equal(gradient, torch.autograd.grad(value, x)[0])


@functions
def test_it_ends_where_bfgs_ends(function, start):
    lowest = [descend(function, start, update=update)[0][-1][0] for update in UPDATES]
    assert lowest == pytest.approx([lowest[-1]] * 3, rel=1e-8, abs=1e-9)


def test_a_matrix_that_misleads_is_forgotten():
    function, _ = quadratic()
    point = Point(np.full(10, 3.0))
    method, objective = SSBroyden(list(point.parameters()), evaluations=3), objective_of(function, point)
    before = method.step(objective).loss
    state = method.state_dict()
    wrong = {**state["matrix"], "h": 1e12 * torch.eye(10, dtype=F64), "hg": None}
    method.load_state_dict({**state, "matrix": wrong})
    for _ in range(5):
        after = method.step(objective).loss
    assert after < before
    assert not method.stalled
    assert torch.linalg.eigvalsh(dense(method.state_dict()["matrix"]))[-1] < 100


def test_two_runs_are_the_same_bit_for_bit():
    first, second = (descend(rosenbrock, np.tile([-1.2, 1.0], 10), steps=60)[0] for _ in range(2))
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))


def test_fresh_points_keep_the_matrix_made_symmetric_unless_it_is_not_positive():
    point = Point(np.tile([-1.2, 1.0], 4))
    method, objective = SSBroyden(list(point.parameters())), objective_of(rosenbrock, point)
    for _ in range(LAG + 3):
        method.step(objective)
    kept = dense(method.state_dict()["matrix"])
    matrix = method._matrix
    matrix.renew()
    assert torch.equal(matrix.state_dict()["h"], matrix.state_dict()["h"].T)
    torch.testing.assert_close(dense(matrix.state_dict()), kept, rtol=1e-12, atol=1e-13)
    matrix.state_dict()["h"][0, 0] = -1.0
    matrix.renew()
    assert matrix.empty
    before = method.step(objective).loss
    assert method.step(objective).loss < before


@pytest.mark.parametrize("value", [True, False], ids=["loss", "gradient"])
def test_a_loss_that_is_no_longer_finite_is_a_step_too_long_and_leaves_the_parameters(value):
    model = Model()
    states, steps = [], []
    for step in train(model, Breaks(12, value), [Stage("ssbroyden", 50)]):
        states.append([p.detach().clone() for p in model.parameters()])
        steps.append(step)
    assert steps[-1].note
    assert math.isfinite(steps[-1].loss)
    assert all(torch.equal(a, b) for a, b in zip(states[-1], states[-2], strict=True))


def test_its_update_is_a_word_of_the_configuration():
    config = make_config({"problem": "poisson", "train": {"method": "ssbroyden", "update": "bfgs", "steps": 3}})
    assert config.train.schedule[0].stage() == Stage("ssbroyden", 3, {"update": "bfgs"})
    with pytest.raises(ConfigError, match=r"update: there is no update 'dfp' \(known: ssbroyden, ssbfgs, bfgs\)"):
        make_config({"problem": "poisson", "train": {"method": "ssbroyden", "update": "dfp"}})
    with pytest.raises(ConfigError, match="decay: ssbroyden finds the length of each step itself"):
        make_config({"problem": "poisson", "train": {"method": "ssbroyden", "decay": "cosine"}})
