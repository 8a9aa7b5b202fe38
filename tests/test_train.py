"""Methods descend as their papers say; the loop counts, hands over and ends as told; a stopped run resumes bit for bit."""

import copy
import math
import os
import pickle
import re
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from pinnsketch import checkpoint
from pinnsketch.checkpoint import CheckpointError
from pinnsketch.config import make_config
from pinnsketch.gradient import Gradient
from pinnsketch.library import load_problem, shipped
from pinnsketch.methods import LBFGS, METHODS, Adam, Evaluation, Objective
from pinnsketch.methods.line_search import Trial, strong_wolfe
from pinnsketch.network import MLP
from pinnsketch.run import Run
from pinnsketch.train import Stage, train

F64 = torch.float64
SUFFICIENT, CURVATURE = 1e-4, 0.9  # Nocedal & Wright's constants for quasi-Newton directions


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Point(nn.Module):
    """Parameters that are a point, in two parts so that flattening matters."""

    def __init__(self, x):
        super().__init__()
        x = torch.as_tensor(x, dtype=F64)
        self.a, self.b = nn.Parameter(x[:1].clone()), nn.Parameter(x[1:].clone().view(1, -1))

    @property
    def x(self):
        return torch.cat([self.a, self.b.flatten()])

    @property
    def gradient(self):
        return torch.cat([self.a.grad, self.b.grad.flatten()])


def objective_of(function, point):
    task = SimpleNamespace(weights={"f": 1.0}, losses=lambda point, batch: {"f": function(point.x)})
    return Objective(list(point.parameters()), partial(Gradient(point, task), ()), ["f"])


def quadratic(n=10, condition=50.0):
    q = torch.linalg.qr(randn(n, n))[0]
    matrix = q @ torch.diag(torch.logspace(0, math.log10(condition), n, dtype=F64)) @ q.T
    minimiser = randn(n, seed=1)
    return (lambda x: (x - minimiser) @ matrix @ (x - minimiser) / 2 + 3), minimiser


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def wavy(x):
    return (x**2).sum() / 50 - torch.cos(x + torch.arange(len(x))).sum() + rosenbrock(x) / 500


FUNCTIONS = {
    "quadratic": (quadratic()[0], np.full(10, 3.0)),
    "rosenbrock 2": (rosenbrock, np.array([-1.2, 1.0])),
    "rosenbrock 20": (rosenbrock, np.tile([-1.2, 1.0], 10)),
    "wavy": (wavy, np.linspace(-3, 4, 8)),
    "logistic": (lambda x: nn.functional.softplus(-randn(40, 6) @ x).sum() + (x**2).sum() / 20, np.zeros(6)),
}
functions = pytest.mark.parametrize(("function", "start"), FUNCTIONS.values(), ids=FUNCTIONS)


def descend(function, start, steps=400, **options):
    """L-BFGS until it stalls; after each step the loss, the point, and `p.grad`."""
    point = Point(start)
    method, objective = LBFGS(list(point.parameters()), **options), objective_of(function, point)
    path = []
    while not method.stalled and len(path) < steps:
        at = method.step(objective)
        path.append((at.loss, point.x.detach(), point.gradient.clone()))
    return path, method


def value_and_gradient(function, x):
    x = torch.as_tensor(x).clone().requires_grad_()
    value = function(x)
    return float(value.detach()), torch.autograd.grad(value, x)[0]


# --- L-BFGS --------------------------------------------------------------------------------------------------------------


def test_a_convex_quadratic_is_minimised_in_about_its_dimension_of_steps():
    function, minimiser = quadratic(n=10)
    path, _ = descend(function, np.full(10, 3.0), steps=30)
    torch.testing.assert_close(path[-1][1], minimiser, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n", "steps"), [(2, 45), (20, 150)])
def test_rosenbrock_is_minimised(n, steps):
    path, _ = descend(rosenbrock, np.tile([-1.2, 1.0], n // 2), steps=steps)
    torch.testing.assert_close(path[-1][1], torch.ones(n, dtype=F64), rtol=0, atol=1e-6)


@functions
def test_every_step_goes_down_and_leaves_the_gradient_of_where_it_ended(function, start):
    path, _ = descend(function, start)
    losses = [value_and_gradient(function, start)[0], *(loss for loss, _, _ in path)]
    assert all(after <= before for before, after in pairwise(losses))
    assert all(after < before for before, after in pairwise(losses[:5]))  # later, rounding may decide
    for loss, x, gradient in path:
        true_loss, true_gradient = value_and_gradient(function, x)
        assert loss == true_loss
        assert torch.equal(gradient, true_gradient)


@functions
def test_every_accepted_step_satisfies_the_strong_wolfe_conditions(function, start):
    path, _ = descend(function, start)
    lowest, checked = path[-1][0], 0
    at = value_and_gradient(function, start)
    before = (at[0], torch.as_tensor(start), at[1])
    for after in path:
        step = after[1] - before[1]
        slope = float(before[2].dot(step))
        if before[0] - lowest > 1e-9 * max(1, abs(lowest)):  # above what rounding can decide
            assert slope < 0
            assert after[0] <= before[0] + SUFFICIENT * slope
            assert abs(float(after[2].dot(step))) <= CURVATURE * abs(slope)
            checked += 1
        before = after
    assert checked >= 4


@functions
def test_it_ends_as_low_as_scipy(function, start):
    path, _ = descend(function, start)

    def both(x):
        value, gradient = value_and_gradient(function, x)
        return value, gradient.numpy()

    scipy = minimize(both, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-15, "gtol": 1e-10})
    assert path[-1][0] == pytest.approx(scipy.fun, rel=1e-8, abs=1e-9)


def test_at_a_minimiser_it_says_that_it_has_stalled_and_stays():
    function, minimiser = quadratic()
    path, method = descend(function, minimiser.numpy())
    assert method.stalled == "no step along the gradient lowers the loss: it is as small as the precision allows"
    assert torch.equal(path[-1][1], minimiser)
    path, method = descend(function, np.full(10, 3.0))
    assert method.stalled
    assert len(path) < 60


@pytest.mark.parametrize("history", [1, 2, 7])
def test_it_remembers_the_last_pairs_only(history):
    path, method = descend(rosenbrock, np.tile([-1.2, 1.0], 10), steps=30, history=history)
    pairs, points, gradients = method.state_dict()["pairs"], [x for _, x, _ in path], [g for _, _, g in path]
    assert len(pairs) == history
    for i, (s, y, rho) in enumerate(reversed(pairs)):
        torch.testing.assert_close(s, points[-1 - i] - points[-2 - i], rtol=1e-6, atol=1e-12)
        assert torch.equal(y, gradients[-1 - i] - gradients[-2 - i])
        assert float(rho) == pytest.approx(1 / float(s.dot(y)), rel=1e-12)


def inverse_hessian_slowly(pairs, n):
    """BFGS's dense update (Nocedal & Wright 6.17) of H_0 = s.y / y.y I (7.20) by the pairs, oldest first."""
    s, y, _ = pairs[-1]
    h = torch.eye(n, dtype=F64) * (s.dot(y) / y.dot(y))
    for s, y, _ in pairs:
        rho, eye = 1 / y.dot(s), torch.eye(n, dtype=F64)
        h = (eye - rho * torch.outer(s, y)) @ h @ (eye - rho * torch.outer(y, s)) + rho * torch.outer(s, s)
    return h


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_the_first_trial_of_a_step_is_the_full_quasi_newton_step(steps):
    seen, point = [], Point(np.tile([-1.2, 1.0], 3))

    def recorded(x):
        seen.append(x.detach().clone())
        return rosenbrock(x)

    method, objective = LBFGS(list(point.parameters()), history=5), objective_of(recorded, point)
    for _ in range(steps):
        method.step(objective)
    x, gradient, state = point.x.detach(), point.gradient.clone(), method.state_dict()
    h = inverse_hessian_slowly(state["pairs"], 6)
    seen.clear()
    method.step(objective)
    torch.testing.assert_close(seen[0], x - h @ gradient, rtol=1e-8, atol=1e-10)


def test_a_step_whose_first_trial_is_accepted_costs_one_evaluation():
    function, count = quadratic(condition=2.0)[0], []
    point = Point(np.full(10, 3.0))
    method = LBFGS(list(point.parameters()))
    objective = objective_of(lambda x: (count.append(1), function(x))[1], point)
    for _ in range(3):
        method.step(objective)
    before = len(count)
    for _ in range(4):
        method.step(objective)
    assert len(count) - before == 4


WALLS = {
    "logarithm": (lambda x: (x - 0.01 * x.log()).sum(), [3.0, 5.0], 0.01),
    "root": (lambda x: ((x - 1).sqrt() + 1 / (x - 1)).sum(), [90.0, 1.5], 1 + 4 ** (1 / 3)),
    "nan": (lambda x: ((x.exp() - 1) ** 2 + 0 * (1.2 - x).sqrt()).sum(), [-3.0, -5.0], 0.0),
    "infinite": (lambda x: torch.where((x > 1.2).any(), math.inf, ((x.exp() - 1) ** 2).sum()), [-3.0, -5.0], 0.0),
}


@pytest.mark.parametrize(("function", "start", "minimiser"), WALLS.values(), ids=WALLS)
def test_it_shrinks_a_step_into_where_the_loss_is_finite(function, start, minimiser):
    bad = []

    def watched(x):
        value = function(x)
        bad.append(not value.isfinite())
        return value

    path, _ = descend(watched, start, steps=100)
    assert any(bad)
    assert all(math.isfinite(loss) and x.isfinite().all() and g.isfinite().all() for loss, x, g in path)
    assert path[-1][1].tolist() == pytest.approx([minimiser] * 2, abs=1e-6)


def test_a_start_that_is_not_finite_is_handed_back_untouched():
    point = Point([-1.0, 2.0])
    at = LBFGS(list(point.parameters())).step(objective_of(lambda x: x.log().sum(), point))
    assert not at.finite
    assert point.x.tolist() == [-1.0, 2.0]


def test_pairs_that_mislead_are_forgotten():
    """Given a curvature of the wrong size, the direction is useless; down the gradient it still goes on."""
    function, _ = quadratic()
    point = Point(np.full(10, 3.0))
    method, objective = LBFGS(list(point.parameters()), evaluations=3), objective_of(function, point)
    before = method.step(objective).loss
    state = method.state_dict()
    s, y = randn(10, seed=3) * 1e12, randn(10, seed=3)
    state["pairs"] = [(s, y, 1 / s.dot(y))]
    method.load_state_dict(state)
    for _ in range(5):
        after = method.step(objective).loss
    assert after < before
    assert not method.stalled
    assert all(float(s.norm()) < 100 for s, _, _ in method.state_dict()["pairs"])


# --- the line search -----------------------------------------------------------------------------------------------------


def line(f, seen=None):
    """Trials along a line, of a function that gives value and slope."""

    def trial(length):
        if seen is not None:
            seen.append(length)
        value, slope = f(length)
        return Trial(length, slope, Evaluation(value, {}, math.isfinite(value)), torch.zeros(0))

    return trial


LINES = {
    "parabola": lambda a: ((a - 1) ** 2, 2 * (a - 1)),
    "far parabola": lambda a: ((a - 300) ** 2, 2 * (a - 300)),
    "near parabola": lambda a: ((a - 1e-6) ** 2, 2 * (a - 1e-6)),
    "quartic": lambda a: (a**4 - 2 * a, 4 * a**3 - 2),
    "wave": lambda a: (math.cos(3 * a + 0.5) + 0.02 * a, -3 * math.sin(3 * a + 0.5) + 0.02),
    "cliff": lambda a: (math.inf if a > 0.37 else (a - 0.3) ** 2, 2 * (a - 0.3)),
    "moré & thuente 5.1": lambda a: (-a / (a**2 + 2), (a**2 - 2) / (a**2 + 2) ** 2),
}


@pytest.mark.parametrize("first", [1e-4, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("f", LINES.values(), ids=LINES)
def test_a_line_search_ends_where_the_strong_wolfe_conditions_hold(f, first):
    start = line(f)(0.0)
    found = strong_wolfe(line(f), start, first, 60)
    assert found.loss <= start.loss + SUFFICIENT * found.length * start.slope
    assert abs(found.slope) <= -CURVATURE * start.slope
    assert found.length > 0
    assert (found.loss, found.slope) == f(found.length)


@given(st.floats(0.01, 100), st.floats(0.05, 3), st.floats(-2, 2), st.floats(1e-3, 20))
@settings(max_examples=100, deadline=None)
def test_a_line_search_succeeds_on_any_smooth_line_that_is_bounded_below(width, wave, phase, first):
    def f(a):
        return (a - width) ** 2 / width + math.sin(wave * a + phase), 2 * (a - width) / width + wave * math.cos(
            wave * a + phase
        )

    start = line(f)(0.0)
    if start.slope < -1e-3:
        found = strong_wolfe(line(f), start, first, 60)
        assert found.loss <= start.loss + SUFFICIENT * found.length * start.slope
        assert abs(found.slope) <= -CURVATURE * start.slope


@pytest.mark.parametrize("evaluations", [1, 2, 5, 9])
@pytest.mark.parametrize(
    "f",
    [lambda a: (-a, -1.0), lambda a: (a, -1.0), lambda a: (math.nan, math.nan), LINES["near parabola"]],
    ids=["unbounded", "uphill", "nan", "near parabola"],
)
def test_a_line_search_keeps_to_its_evaluations_and_returns_the_lowest_or_none(f, evaluations):
    seen = []
    found = strong_wolfe(line(f, seen), Trial(0.0, -1.0, Evaluation(f(0.0)[0], {}, True), torch.zeros(0)), 1.0, evaluations)
    assert 1 <= len(seen) <= evaluations
    lower = [f(a)[0] for a in seen if f(a)[0] < f(0.0)[0]]
    assert (found is None) == (not lower)
    if lower:
        assert found.loss == min(lower) or abs(found.slope) <= CURVATURE


def test_a_line_search_that_has_passed_a_minimum_goes_back_to_it():
    def f(a):
        if 1 < a < 1.9:
            return 1.5 * (a - 1) ** 2 - a, 3 * (a - 1) - 1
        return (-a if a <= 1 else 1.215 - a), -1.0  # after the hump it falls for ever

    found = strong_wolfe(line(f), line(f)(0.0), 1.0, 25)
    assert 1 < found.length < 1.9


def test_pairs_of_negative_curvature_are_not_remembered():
    path, method = descend(lambda x: (1 + x**2).log().sum(), [10.0, 12.0], steps=3, evaluations=1)
    bends = [float((b[1] - a[1]).dot(b[2] - a[2])) for a, b in pairwise(path)]
    assert min(bends) < 0
    assert method.state_dict()["pairs"] == []


# --- Adam ----------------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A small network, a coefficient, and a parameter that is frozen."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.network = MLP(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), width=5, depth=2, generator=generator)
        self.a = nn.Parameter(torch.tensor(0.5, dtype=F64))
        self.frozen = nn.Parameter(torch.tensor(2.0, dtype=F64), requires_grad=False)


class Fit:
    """A task that remembers which draws were asked of it."""

    def __init__(self, weights=(3.0, 0.1)):
        self.weights, self.draws = dict(zip(("fit", "slope"), weights, strict=True)), []

    def batch(self, draw):
        self.draws.append(draw)
        return torch.rand(20, 2, generator=torch.Generator().manual_seed(draw), dtype=F64)

    def losses(self, model, x):
        x = x.clone().requires_grad_()
        u = model.network(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        return {"fit": (u - model.frozen * x[:, :1].sin()).square().mean(), "slope": (slope - model.a).square().mean()}

    def error(self, model):
        return None


@pytest.mark.parametrize("options", [{}, {"lr": 0.02, "betas": (0.7, 0.95)}])
def test_adam_is_torchs_adam_bit_for_bit(options):
    ours, theirs, task = Model(), Model(), Fit()
    adam = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], fused=True, **{"lr": 1e-3, **options})
    for step in train(ours, task, [Stage("adam", 20, options)]):
        adam.zero_grad()
        losses = task.losses(theirs, task.batch(0))
        loss = sum(task.weights[name] * value for name, value in losses.items())
        loss.backward()
        adam.step()
        assert step.loss == float(loss.detach())
        assert all(
            torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True) if q.requires_grad
        )
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(type(step.losses[name]) is float for name in task.weights)


# --- the loop ------------------------------------------------------------------------------------------------------------


def test_methods_take_their_steps_in_order_and_the_index_goes_on():
    schedule = [Stage("adam", 3), Stage("lbfgs", 2), Stage("adam", 4)]
    steps = list(train(Model(), Fit(), schedule))
    assert [(s.index, s.method) for s in steps] == list(enumerate(["adam"] * 3 + ["lbfgs"] * 2 + ["adam"] * 4, start=1))
    assert all(s.finite and s.note is None for s in steps)
    assert [s.last for s in steps] == [False] * 8 + [True]


def test_a_step_tells_losses_before_weighting_and_their_weighted_sum():
    model, task = Model(), Fit(weights=(7.0, 0.25))
    for step in train(model, task, [Stage("lbfgs", 3)]):
        true = {name: float(value.detach()) for name, value in task.losses(model, task.batch(0)).items()}
        assert dict(step.losses) == true
        assert step.loss == pytest.approx(7 * true["fit"] + 0.25 * true["slope"], rel=1e-14)


def test_adam_tells_the_loss_before_it_moves_and_lbfgs_after():
    for method, after in (("adam", False), ("lbfgs", True)):
        model, task = Model(), Fit()
        before = task.losses(model, task.batch(0))["fit"].item()
        step = next(train(model, task, [Stage(method, 1)]))
        assert step.losses["fit"] == (task.losses(model, task.batch(0))["fit"].item() if after else before)


def test_frozen_parameters_stay():
    model = Model()
    for _ in train(model, Fit(), [Stage("adam", 5), Stage("lbfgs", 5)]):
        assert model.frozen.grad is None
    assert model.frozen.item() == 2
    assert model.a.item() != 0.5


class Bowl(Fit):
    """A quadratic of the coefficient alone: done in a few steps of L-BFGS. Parameters it does not read get no gradient."""

    def losses(self, model, x):
        return {"fit": (model.a - 3) ** 2, "slope": (model.a - 3) ** 4}


def test_a_method_that_stalls_says_so_and_hands_over_to_the_next():
    model = Model()
    steps = list(train(model, Bowl(), [Stage("lbfgs", 500), Stage("adam", 3), Stage("lbfgs", 500)]))
    methods = [s.method for s in steps]
    first = methods.index("adam")
    assert first < 30
    assert methods[first:] == ["adam"] * 3 + ["lbfgs"] * (len(steps) - first - 3)
    assert len(steps) < first + 40
    assert [s.index for s in steps if s.note] == [first, len(steps)]
    assert [s.index for s in steps if s.last] == [len(steps)]
    assert "no step along the gradient lowers the loss" in steps[-1].note
    assert [s.index for s in steps] == list(range(1, len(steps) + 1))
    assert model.a.item() == pytest.approx(3, abs=1e-7)


class Breaks(Fit):
    """Its loss turns bad after some evaluations; or only its gradient does."""

    def __init__(self, after, value=True):
        super().__init__()
        self.after, self.value, self.count = after, value, 0

    def losses(self, model, x):
        self.count += 1
        losses = super().losses(model, x)
        if self.count > self.after:
            zero = model.a - model.a.detach()
            losses["fit"] = losses["fit"] * math.nan if self.value else losses["fit"] + zero.abs().sqrt()
        return losses


@pytest.mark.parametrize("value", [True, False], ids=["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_loop_with_the_parameters_of_before(value):
    model, states = Model(), []
    for step in train(model, Breaks(4, value), [Stage("adam", 20), Stage("adam", 20)]):
        states.append(copy.deepcopy(model.state_dict()))
        assert step.finite == (step.index <= 4)
        assert step.last == (not step.finite)
    assert len(states) == 5
    assert all(torch.equal(states[4][name], states[3][name]) for name in states[4])
    assert not all(torch.equal(states[3][name], states[2][name]) for name in states[3])


@pytest.mark.parametrize("value", [True, False], ids=["loss", "gradient"])
def test_lbfgs_takes_a_loss_that_is_no_longer_finite_for_a_step_too_long(value):
    model = Model()
    states, steps = [], []
    for step in train(model, Breaks(12, value), [Stage("lbfgs", 50)]):
        states.append(copy.deepcopy(model.state_dict()))
        steps.append(step)
    assert steps[-1].note
    assert steps[-1].finite
    assert math.isfinite(steps[-1].loss)
    assert all(torch.equal(states[-1][name], states[-2][name]) for name in states[-1])


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not getattr(m, "needs_residuals", False)])
def test_a_start_that_is_not_finite_ends_the_loop_at_once(method):
    model = Model()
    before = copy.deepcopy(model.state_dict())
    steps = list(train(model, Breaks(0), [Stage(method, 5), Stage("adam", 5)]))
    assert [(s.index, s.finite) for s in steps] == [(1, False)]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)


@pytest.mark.parametrize(
    ("resample", "draws"), [(0, [0, 0]), (1, list(range(9))), (2, [0, 1, 2, 2, 3, 4]), (5, [0, 1]), (100, [0, 0])]
)
def test_a_fresh_batch_is_drawn_every_so_many_steps_of_the_run_and_a_stage_begins_with_its_own(resample, draws):
    task = Fit()
    steps = list(train(Model(), task, [Stage("adam", 5), Stage("adam", 4)], resample=resample))
    assert len(steps) == 9
    assert task.draws == draws


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not getattr(m, "needs_residuals", False)])
def test_a_step_uses_the_points_of_its_draw(method):
    model, task = Model(), Fit()
    before = copy.deepcopy(model)
    for step in train(model, task, [Stage(method, 8)], resample=3):
        where = model if method in ("lbfgs", "ssbroyden") else before
        losses = task.losses(where, task.batch((step.index - 1) // 3))
        assert {name: float(value.detach()) for name, value in losses.items()} == dict(step.losses)
        loss = sum(task.weights[name] * value for name, value in losses.items())
        trained = [p for p in where.parameters() if p.requires_grad]
        for p, g in zip((p for p in model.parameters() if p.requires_grad), torch.autograd.grad(loss, trained), strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-13, atol=1e-15)
        before = copy.deepcopy(model)


def test_lbfgs_looks_for_lower_ground_on_the_new_points_not_the_old():
    model, task = Model(), Fit()
    for step in train(model, task, [Stage("lbfgs", 9)], resample=3):
        if step.index == 3:
            old = copy.deepcopy(model)
        if step.index == 4:
            start = sum(task.weights[n] * v for n, v in task.losses(old, task.batch(1)).items())
            assert step.loss < float(start.detach())


def test_a_term_that_no_parameter_enters_does_no_harm():
    class Constant(Fit):
        def losses(self, model, x):
            return {**super().losses(model, x), "slope": torch.tensor(4.0, dtype=F64)}

    step = next(train(Model(), Constant(), [Stage("adam", 1)]))
    assert step.losses["slope"] == 4
    assert step.loss == pytest.approx(3 * step.losses["fit"] + 0.4)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not getattr(m, "needs_residuals", False)])
def test_training_leaves_the_global_random_numbers_alone(method):
    before = torch.get_rng_state()
    list(train(Model(), Fit(), [Stage(method, 3)]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("make", [Adam, LBFGS])
def test_a_method_at_its_start_has_not_stalled(make):
    assert make(list(Model().parameters())).stalled is None


# --- resume --------------------------------------------------------------------------------------------------------------

SCHEDULES = {
    "adam": [Stage("adam", 11)],
    "lbfgs": [Stage("lbfgs", 12, {"history": 3})],
    "ssbroyden": [Stage("ssbroyden", 12)],
    "sketchy": [Stage("sketchy", 12, {"rank": 2, "every": 5})],
    "both": [Stage("adam", 5, {"lr": 0.01}), Stage("lbfgs", 6), Stage("adam", 3)],
}


def logged(steps):
    return [(s.index, s.method, s.loss, dict(s.losses), s.finite, s.note, s.last) for s in steps]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("resample", [0, 1, 4])
@pytest.mark.parametrize(("task", "schedule"), [(Fit, s) for s in SCHEDULES.values()], ids=SCHEDULES)
def test_training_stopped_after_any_step_ends_bit_for_bit_where_unstopped_training_ends(task, schedule, resample, tmp_path):
    whole, log = Model(), []
    for step in train(whole, task(), schedule, resample=resample):
        log += logged([step])
        checkpoint.save(tmp_path / f"{step.index}.pt", {"model": whole.state_dict(), "train": step.state()})
    assert len(log) == sum(stage.steps for stage in schedule)
    for stop in range(1, len(log) + 1):
        state, again = checkpoint.load(tmp_path / f"{stop}.pt"), Model(seed=9)
        again.load_state_dict(state["model"])
        assert logged(train(again, task(), schedule, resample=resample, state=state["train"])) == log[stop:]
        assert_same(again.state_dict(), whole.state_dict())


def test_training_stopped_where_a_method_stalled_hands_over_on_resuming(tmp_path):
    schedule = [Stage("lbfgs", 100), Stage("adam", 4)]
    whole, log = Model(), []
    for step in train(whole, Bowl(), schedule):
        log += logged([step])
        if step.note:
            checkpoint.save(tmp_path / "stalled.pt", {"model": whole.state_dict(), "train": step.state()})
            stop = step.index
    state, again = checkpoint.load(tmp_path / "stalled.pt"), Model(seed=9)
    again.load_state_dict(state["model"])
    assert logged(train(again, Bowl(), schedule, state=state["train"])) == log[stop:]
    assert [row[1] for row in log[stop:]] == ["adam"] * 4
    assert_same(again.state_dict(), whole.state_dict())


PROBLEMS = {
    "poisson": {"points": {"interior": 20, "boundary": 8}},
    "poisson resampled": {"points": {"interior": 20, "boundary": 8, "resample": 4}},
    "unknown coefficient": {"points": {"interior": 20, "boundary": 8, "resample": 3, "sampler": "random"}},
    "single precision": {"points": {"interior": 20, "boundary": 8}, "precision": "float32"},
}
FILES = {"unknown coefficient": "inverse_diffusivity"}


def run_of(case, folder, checkpoint_every, monitor=None):
    path = shipped("problems") / f"{FILES.get(case, 'poisson')}.py"
    config = {
        "problem": str(path),
        "network": {"width": 6, "depth": 2},
        "train": {
            "schedule": [{"method": "adam", "steps": 7}, {"method": "lbfgs", "steps": 7}],
            "log": 2, "checkpoint": checkpoint_every, "seed": 3,
        },
        "monitor": monitor or {"every": 3, "adaptive": True, "size": 64},
        "device": "cpu",
        **PROBLEMS[case],
    }  # fmt: skip
    config["points"] = {"test": 64, **config["points"]}
    return Run(load_problem(path), make_config(config), folder, source=path)


def without_time(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def assert_same_end(run, whole):
    assert_same(run.trial.state_dict(), whole.trial.state_dict())
    assert without_time(run.history) == without_time(whole.history)
    assert run.monitor.read() == whole.monitor.read()
    assert run.health.state_dict() == whole.health.state_dict()
    one, two = ({k: v for k, v in r.metrics().items() if "second" not in k and k != "outcome"} for r in (run, whole))
    assert one == two


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_run_stopped_at_any_step_and_resumed_ends_bit_for_bit_where_the_unstopped_run_ends(case, tmp_path):
    whole = run_of(case, None, 100)
    assert [step.index for step in whole] == list(range(1, 15))
    stops = (1, 3, 4, 7, 8, 9, 12, 13)
    for step in run_of(case, tmp_path / "run", 1):
        if step.index in stops:
            shutil.copytree(tmp_path / "run", tmp_path / str(step.index))
    for stop in stops:
        run = Run.resume(tmp_path / str(stop))
        assert [step.index for step in run] == list(range(stop + 1, 15))
        assert_same_end(run, whole)
        if case == "unknown coefficient":
            assert whole.history[-1]["unknowns"]["a"] != 1


@pytest.mark.usefixtures("numbers_only")
def test_a_run_that_was_interrupted_and_finished_resumes_bit_for_bit_and_more_than_once(tmp_path):
    whole, folder = run_of("unknown coefficient", None, 100), tmp_path / "run"
    list(whole)
    run = run_of("unknown coefficient", folder, 100)
    for stop in (5, 10):
        for step in run:
            if step.index == stop:
                break
        run.finish(interrupted=True)
        run = Run.resume(folder)
    list(run)
    assert_same_end(run, whole)


# --- checkpoint ----------------------------------------------------------------------------------------------------------


STATE = {"step": 3, "loss": 0.5, "note": None, "tensors": [torch.arange(5.0), {"x": torch.zeros((), dtype=F64)}], "ok": (True,)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, STATE)
    found = checkpoint.load(path)
    assert {key: found[key] for key in ("step", "loss", "note", "ok")} == {"step": 3, "loss": 0.5, "note": None, "ok": (True,)}
    assert torch.equal(found["tensors"][0], STATE["tensors"][0])
    assert found["tensors"][1]["x"].dtype == F64
    assert names(tmp_path) == ["a.pt"]
    checkpoint.save(path, {"step": 4})
    assert checkpoint.load(path) == {"step": 4}


def test_text_is_written_whole(tmp_path):
    checkpoint.write_text(tmp_path / "a.txt", "u_t = ν u_xx\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "u_t = ν u_xx\n"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(28, "No space left on device"), OSError),
        (RuntimeError("[enforce fail] unexpected pos 64 vs 0"), OSError),
        (KeyboardInterrupt("now"), KeyboardInterrupt),
        (TypeError("what"), TypeError),
    ],
    ids=lambda e: type(e).__name__ if isinstance(e, BaseException) else None,
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(error, seen, tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def fails(file):
        file.write(b"half")
        raise error

    with pytest.raises(seen, match=re.escape(str(error.args[-1]))):
        checkpoint.write(path, fails)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.pt"]


def test_the_old_file_stands_until_the_new_one_is_complete_and_on_the_disk(tmp_path, monkeypatch):
    path, order = tmp_path / "a.txt", []
    checkpoint.write_text(path, "old")
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(("fsync", path.read_text())), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(("replace", Path(a).read_text())), replace(a, b))[1])
    checkpoint.write_text(path, "new")
    assert order == [("fsync", "old"), ("replace", "new")]
    assert path.read_text() == "new"


def test_a_state_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path / "a.pt", {"f": lambda: 0})
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        checkpoint.save(tmp_path / "no" / "a.pt", STATE)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no file .*a\.pt\."):
        checkpoint.load(tmp_path / "a.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(share, tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read \(\w+\): it is damaged, or not from pinnsketch"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"# a text\n", b"\x89PNG\r\n\x1a\n", bytes(range(256)), pickle.dumps({"step": 3}, 4)[:9]])
def test_a_foreign_file_is_refused(content, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="it is damaged, or not from pinnsketch"):
        checkpoint.load(path)


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="it is damaged, or not from pinnsketch"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(("content", "kind"), [(torch.zeros(3), "Tensor"), ([1, 2], "list")])
def test_a_file_of_torch_that_is_no_checkpoint_is_refused(content, kind, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"holds a {kind}, not a checkpoint of pinnsketch"):
        checkpoint.load(tmp_path / "a.pt")


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    "write",
    [
        lambda value, path: torch.save(value, path),
        lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
        lambda value, path: path.write_bytes(pickle.dumps(value)),
    ],
    ids=["zip", "legacy", "pickle"],
)
def test_loading_runs_no_code_from_the_file(write, tmp_path):
    path, marker = tmp_path / "a.pt", tmp_path / "ran"
    write({"state": Malicious(marker)}, path)
    with pytest.raises(CheckpointError, match="it is damaged, or not from pinnsketch"):
        checkpoint.load(path)
    assert not marker.exists()
