"""Random features: the network, the test of linearity, the solve, the choices, and the polish of a trained network."""

from copy import deepcopy
from math import pi
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn, sin

from pinnsketch import Box, Problem, Solution, Stage, Term, Unknown, solve, train
from pinnsketch.collocation import Collocation
from pinnsketch.collocation.residuals import Plan
from pinnsketch.config import ConfigError, make_config
from pinnsketch.derivatives import Nested
from pinnsketch.features import Features, windows
from pinnsketch.jets import Jet, Jets, Streams, of_points
from pinnsketch.library import load_problem
from pinnsketch.methods.least_squares import Weights, evaluate, gauss_newton, is_affine, least_squares, rounding
from pinnsketch.network import MLP
from pinnsketch.problem import ProblemError
from pinnsketch.run import Run
from pinnsketch.trial import Trial

PROBLEMS = Path(__file__).parents[1] / "problems"
F64 = torch.float64
SQUARE = torch.tensor([[0.0, 1.0], [-1.0, 3.0]], dtype=F64)


def drawn(seed=0, **options):
    return Features(SQUARE, **{"width": 24, "generator": torch.Generator().manual_seed(seed), **options})


def weighted(network, seed=1):
    """The network with random output weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def points(n=40, seed=2):
    low, high = SQUARE.T
    return low + (high - low) * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def radial(x):
    """Smooth away from a corner outside of the square, by operations that have no rule."""
    return torch.hypot(x[:, :1] + 1, x[:, 1:] + 2) ** (2 / 3)


# --- the network -----------------------------------------------------------------------------------------------------------


def test_it_is_the_formula_of_its_docstring():
    network, x = weighted(drawn(frequency=3.0, enrichment=[radial])), points()
    low, high = SQUARE.T
    y = 2 * (x - low) / (high - low) - 1
    inside = torch.einsum("jd,njd->nj", 3.0 * network.directions, y[:, None] - network.centres)
    given = network.singular.weights.weight[0, 0] * radial(x)
    torch.testing.assert_close(network(x), torch.tanh(inside) @ network.output.weight.T + network.output.bias + given)
    assert bool((network.directions.abs() <= 1).all())
    assert bool((network.centres.abs() <= 1).all())


@pytest.mark.parametrize("count", [2, 3, 7])
def test_windows_are_positive_and_sum_to_one(count):
    y = torch.linspace(-1, 1, 1001, dtype=F64)[:, None]
    found = windows(y, count)
    assert found.shape == (1001, count)
    assert float((found.sum(dim=1) - 1).abs().max()) < 4e-16 * count
    assert float(found.min()) > -1e-16
    middles = (torch.arange(count, dtype=F64) * 2 + 1) / count - 1
    assert float((windows(middles[:, None], count).diagonal() - 1).abs().max()) < 0.01


def test_with_all_weights_equal_in_every_patch_windows_leave_a_sum_that_is_the_same_everywhere():
    network, x = drawn(width=6, patches=(3, 2)), points()
    network.directions.zero_()
    network._activation = torch.cos  # every feature is 1
    nn.init.ones_(network.output.weight)
    torch.testing.assert_close(network(x), torch.ones(40, 1, dtype=F64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "options", [{}, {"activation": "sin"}, {"patches": (3, 2)}, {"patches": (1, 4)}, {"enrichment": [radial]}]
)
def test_derivatives_in_one_pass_equal_nested_ones(options):
    network, x = weighted(drawn(**options)), points()
    orders = [(0,), (1, 1), ((0, 1),)]
    fast, slow = Jets(network, x, Streams.of(orders)), Nested(network, x)
    for order in [(), *orders]:
        torch.testing.assert_close(fast.derivative(0, order), slow.derivative(0, order), rtol=1e-9, atol=1e-9)


def test_a_function_of_the_points_is_refused_the_jet_of_anything_else():
    x = Jet.seed(points(), Streams.of([(0,)]))
    of_points(radial, x)
    with pytest.raises(TypeError, match="no rule for a function of anything but the coordinates"):
        of_points(radial, 2 * x)


@pytest.mark.parametrize("options", [{}, {"patches": 2}, {"enrichment": [radial]}])
def test_a_network_of_the_first_features_is_the_one_whose_other_weights_are_zero(options):
    whole, x = weighted(drawn(**options)), points()
    few = whole.first(9)
    assert few.width == (8 if "patches" in options else 9)
    kept = few.output.in_features
    with torch.no_grad():
        whole.output.weight[:, kept:] = 0
    torch.testing.assert_close(few(x), whole(x))
    again = drawn(**options)
    again.take(few)
    torch.testing.assert_close(again(x), whole(x))


def test_more_patches_than_features_are_refused():
    with pytest.raises(ValueError, match="expected at least one for each of 30 patches; got a width of 24"):
        drawn(patches=(5, 6))


# --- least squares -----------------------------------------------------------------------------------------------------------


def test_least_squares_is_the_minimum_also_where_columns_depend_on_others():
    rng = np.random.default_rng(0)
    full, b = rng.standard_normal((30, 8)), rng.standard_normal(30)
    full[:, 5] = full[:, 2] + full[:, 3]
    full[:, 6] = 0
    full[:, 1] *= 1e-9
    found = least_squares(torch.tensor(full), torch.tensor(b)).numpy()
    least = np.linalg.norm(full @ np.linalg.lstsq(full, b, rcond=1e-14)[0] - b)
    assert np.linalg.norm(full @ found - b) < least * (1 + 1e-3)
    b = full @ np.array([1, 1e9, 1, 1, 1, 1, 1, 1])
    found = least_squares(torch.tensor(full), torch.tensor(b)).numpy()
    assert np.linalg.norm(full @ found - b) < 1e-13 * np.linalg.norm(b)
    assert np.abs(found * np.linalg.norm(full, axis=0)).max() < 100


def test_least_squares_does_not_square_the_condition_number():
    u, v = (torch.linalg.qr(torch.randn(n, 12, generator=torch.Generator().manual_seed(n), dtype=F64)).Q for n in (50, 12))
    a = u @ torch.diag(torch.logspace(0, -11, 12, dtype=F64)) @ v.T
    x = torch.ones(12, dtype=F64)
    found = least_squares(a, a @ x)
    assert float((found - x).norm()) < 1e-3  # normal equations have no correct digit at a condition of 1e11
    assert float((a @ (found - x)).norm()) < 1e-14


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="singular at a collocation point"):
        least_squares(torch.full((3, 2), torch.inf, dtype=F64), torch.ones(3, dtype=F64))


A = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda w: A @ w, True),
        (lambda w: A @ w - 1e3, True),
        (lambda w: 1e6 * (A @ w) + torch.linspace(0, 1, 20), True),
        (lambda w: torch.zeros(20, dtype=F64), True),
        (lambda w: A @ w + 1e-6 * (A @ w) ** 2, False),
        (lambda w: (A @ w).sin(), False),
        (lambda w: (A @ w).abs(), False),
        (lambda w: (A @ w) ** 3, False),
    ],
)
def test_affine_functions_are_told_from_others(function, expected):
    assert is_affine(function, torch.zeros(5, dtype=F64)) == expected


BOX = Box(x=(0, 1), t=(0, 1))


def on(residual, **options):
    terms = {"inside": Term(BOX.interior, residual), "start": Term(BOX.start("t"), lambda u, x: u - sin(pi * x))}
    problem = Problem(BOX, unknowns="u", terms=terms, **options)
    network = Features(torch.tensor(BOX.bounds), width=30, generator=torch.Generator().manual_seed(0))
    return Trial(network, problem.coefficients), Collocation(problem, interior=40, boundary=20)


@pytest.mark.parametrize(
    ("residual", "expected"),
    [
        (lambda u: u.t - u.xx, True),
        (lambda u, x: u.t - sin(x) * u.x + 3, True),
        (lambda u: u.t + u * u.x - 0.01 * u.xx, False),
        (lambda u: u.t - u * (1 - u), False),
        (lambda u: u.t - u.xx + 1e-3 * u**3, False),
    ],
)
def test_residuals_that_are_affine_in_the_output_weights_are_found_to_be(residual, expected):
    trial, task = on(residual)
    weighted(trial.network)
    before = {name: value.clone() for name, value in trial.state_dict().items()}
    assert Weights(task, trial).affine(task.batch()) == expected
    assert all(torch.equal(value, before[name]) for name, value in trial.state_dict().items())


def test_with_an_unknown_coefficient_the_heat_equation_is_not_affine():
    trial, task = on(lambda u, a: u.t - a * u.xx, parameters={"a": Unknown(1.0)})
    assert not Weights(task, trial).affine(task.batch())


def test_a_linear_solve_is_that_of_the_matrix_of_residuals():
    trial, task = on(lambda u: u.t - u.xx)
    weights, batch = Weights(task, trial), task.batch()
    columns = []
    zero = torch.zeros_like(weights.now)
    weights.place(zero)
    r = weights.residuals(batch)
    for k in range(len(zero)):
        unit = zero.clone()
        unit[k] = 1
        weights.place(unit)
        columns.append(weights.residuals(batch) - r)
    expected = np.linalg.lstsq(torch.stack(columns, dim=1).numpy(), -r.numpy(), rcond=1e-15)[0]
    least = float((torch.stack(columns, dim=1) @ torch.tensor(expected) + r).square().sum())
    solved = gauss_newton(weights, batch, affine=True)
    assert float(weights.residuals(batch).square().sum()) == pytest.approx(least, rel=1e-6)
    assert solved.after == pytest.approx(least, rel=1e-6)


# --- the method --------------------------------------------------------------------------------------------------------------


def poisson(method=None, network=None, points=None, **more):
    config = {
        "problem": "poisson.py",
        "network": {"kind": "features", "width": 500} if network is None else network,
        "points": {"interior": 1500, "boundary": 300, **(points or {})},
        "train": {"method": "features"} if method is None else method,
        "monitor": False,
        **more,
    }
    return Run(load_problem(PROBLEMS / "poisson.py"), make_config(config))


def finished(run):
    steps = list(run)
    return steps, run.task.error(run.trial)["overall"]


@pytest.mark.parametrize("seed", [0, 1])
def test_poissons_equation_to_twelve_digits(seed):
    steps, error = finished(poisson({"method": "features", "seed": seed}))
    assert error < 1e-11
    assert len(steps) < 15
    assert steps[-1].note
    assert steps[-1].last


def test_evaluations_leave_the_gradient_of_the_loss():
    run = poisson(network={"kind": "features", "width": 60}, points={"interior": 100, "boundary": 40})
    weighted(run.trial.network)
    batch, parameters = run.task.batch(), list(run.trial.parameters())
    found = evaluate(Weights(run.task, run.trial), batch)
    losses = run.task.losses(run.trial, batch)
    loss = sum(run.task.weights[name] * value for name, value in losses.items())
    assert found.loss == pytest.approx(loss.item(), rel=1e-12)
    assert found.losses == pytest.approx({name: value.item() for name, value in losses.items()}, rel=1e-12)
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-9 * float(g.abs().max()))


def test_each_step_leaves_the_loss_and_gradient_of_where_it_ends_to_the_rounding_of_residuals():
    run = poisson(network={"kind": "features", "width": 150}, points={"interior": 200, "boundary": 60})
    for step in run:
        batch, weights, parameters = run.task.batch(), Weights(run.task, run.trial), list(run.trial.parameters())
        a = weights.linearize(batch)[1].dense()
        off = 4 * rounding(a, weights.now)
        loss = sum(run.task.weights[name] * value for name, value in run.task.losses(run.trial, batch).items())
        assert step.loss**0.5 == pytest.approx(loss.item() ** 0.5, abs=off)
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
        assert bool(((weights.split(gradient)[0] - parameters[0].grad).abs() <= off * a.norm(dim=0)[:150]).all())


def test_stopped_at_any_step_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended():
    def made():
        run = poisson(network={"kind": "features", "width": 60}, points={"interior": 150, "boundary": 40})
        return run.trial, run.task

    whole, task = made()
    stages, states = [Stage("features", 8, {"start": 30})], []
    for step in train(whole, task, stages):
        states.append((step.state(), {name: value.clone() for name, value in whole.state_dict().items()}))
    assert len(states) > 3
    for state, model in states[:-1]:
        again, task = made()
        again.load_state_dict(model)
        for _ in train(again, task, stages, state=state):
            pass
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_resumed_it_traces_residuals_where_weights_are_of_size_one_since_rounding_hides_them_at_a_solution(monkeypatch):
    def made():
        return poisson(
            {"method": "features", "start": 30}, {"kind": "features", "width": 60}, {"interior": 150, "boundary": 40}
        )

    first, traced, trace = made(), [], Weights.trace
    next(iter(first))
    state = first.course.state_dict()
    monkeypatch.setattr(Weights, "trace", lambda self, batch: (traced.append(self.model), trace(self, batch)))
    again = made()
    again.course.load_state_dict(state)
    next(iter(again))
    assert again.trial in traced


def test_near_a_solution_residuals_are_traced_with_noise_in_the_weights_since_rounding_is_all_that_is_left_of_them():
    run = poisson({"method": "features"}, {"kind": "features", "width": 250}, {"interior": 1000, "boundary": 200})
    for _ in run:
        pass
    before, task = deepcopy(run.trial.state_dict()), Collocation(run.task.problem, interior=100, boundary=30)
    for block in task.batch():
        plan = task.plans.of(run.trial, block)
        assert plan.streams is not None, plan.why
        assert plan.apart
    assert all(torch.equal(value, before[name]) for name, value in run.trial.state_dict().items())


@pytest.mark.parametrize("noisy", [Plan(apart=False, why="the results differ"), ProblemError("no root there")])
def test_a_trace_with_noise_that_tells_less_than_the_one_without_is_not_used(monkeypatch, noisy):
    run = poisson(points={"interior": 50, "boundary": 20})
    task, found = Collocation(run.task.problem, interior=20, boundary=20), [Plan(why="no rule for it", apart=True), noisy]

    def trace(plans, trial, block):
        if isinstance(found[0], Exception):
            raise found.pop(0)
        return found.pop(0)

    monkeypatch.setattr("pinnsketch.collocation.plans.Plans._trace", trace)
    before = deepcopy(run.trial.state_dict())
    assert task.plans.of(run.trial, task.batch()[0]) == Plan(why="no rule for it", apart=True)
    assert not found
    assert all(torch.equal(value, before[name]) for name, value in run.trial.state_dict().items())


def test_a_nonlinear_equation_by_gauss_and_newton():
    problem = Problem(
        BOX,
        unknowns="u",
        terms={
            "reaction": Term(BOX.interior, lambda u: u.t - 2 * u * (1 - u)),
            "start": Term(BOX.start("t"), lambda u, x: u - 1 / (1 + (1 - x).exp())),
        },
        exact=lambda x, t: 1 / (1 + (1 - x - 2 * t).exp()),
    )
    solution = solve(
        problem,
        network={"kind": "features", "width": 125},
        points={"interior": 300, "boundary": 60},
        train={"method": "features"},
        monitor=False,
    )
    assert solution.error["overall"] < 1e-9


def test_unknown_coefficients_are_solved_for_with_the_weights():
    problem = load_problem(PROBLEMS / "inverse_diffusivity.py", {"noise": 1e-9})
    solution = solve(
        problem,
        network={"kind": "features", "width": 125},
        points={"interior": 500, "boundary": 100},
        train={"method": "features", "steps": 4},
        monitor=False,
    )
    assert solution.coefficients["a"] == pytest.approx(0.3, abs=1e-6)


def test_singular_functions_of_a_corner_are_worth_digits_and_are_asked_for_when_it_is_read(tmp_path):
    errors, found = {}, {}
    for enriched in (False, True):
        found[enriched] = solution = solve(
            load_problem(PROBLEMS / "poisson_l_shape.py", {"enriched": enriched}),
            network={"kind": "features", "width": 60},
            points={"interior": 200, "boundary": 80},
            train={"method": "features", "start": 60, "steps": 2},
            monitor=False,
        )
        errors[enriched] = solution.error["overall"]
    assert errors[True] < 1e-9 < 1e-4 < errors[False]
    found[True].save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="was trained with an ansatz or an enrichment: give its problem"):
        Solution.load(tmp_path / "model.pt")
    loaded = Solution.load(tmp_path / "model.pt", problem=load_problem(PROBLEMS / "poisson_l_shape.py", {"enriched": True}))
    assert loaded(x=-0.3, y=0.4) == found[True](x=-0.3, y=0.4)


def test_monitored_it_is_the_same():
    states = []
    for monitor in (False, {"every": 1, "terms": 1}):
        run = poisson(network={"kind": "features", "width": 60}, points={"interior": 100, "boundary": 40}, monitor=monitor)
        finished(run)
        states.append(run.finish().trial.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_saved_solution_of_features_is_read_back(tmp_path):
    run = poisson(network={"kind": "features", "width": 60, "patches": {"y": 2}}, points={"interior": 200, "boundary": 60})
    finished(run)
    solution = run.finish()
    solution.save(tmp_path / "model.pt")
    loaded = Solution.load(tmp_path / "model.pt")
    assert loaded(x=0.3, y=0.4) == solution(x=0.3, y=0.4)


def test_features_ask_for_a_network_of_features():
    with pytest.raises(ValueError, match="expected a network of kind features; got MLP"):
        finished(poisson(network={"kind": "mlp"}))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"kind": "features", "depth": 3}, "network: a network of kind features has no depth"),
        ({"kind": "mlp", "patches": 3}, "network: a network of kind mlp has no patches"),
        ({"kind": "features", "patches": {"x": 0}}, r"network\.patches.*expected greater than 0"),
    ],
)
def test_options_of_another_kind_are_refused(network, message):
    with pytest.raises(ConfigError, match=message):
        make_config({"problem": "p", "network": network})


def test_patches_along_no_coordinate_are_refused():
    with pytest.raises(ValueError, match=r"network\.patches: there is no coordinate 'z'; there are x, y\."):
        poisson(network={"kind": "features", "patches": {"z": 2}})


def test_an_enrichment_that_a_network_cannot_take_is_refused():
    with pytest.raises(ValueError, match="which networks of kind features or patches take; got the kind mlp"):
        solve(load_problem(PROBLEMS / "poisson_l_shape.py", {"enriched": True}), train={"method": "adam", "steps": 1})


def test_an_enrichment_asks_for_what_is_there():
    with pytest.raises(ValueError, match="enrichment, function 1: it asks for 'z'; it may ask for x, t"):
        Problem(BOX, "u", {"a": Term(BOX.interior, lambda u: u.x)}, enrichment=[lambda z: z])


# --- polish ------------------------------------------------------------------------------------------------------------------


def test_polish_lowers_the_error_of_a_trained_network_and_is_one_step():
    schedule = [{"method": "lbfgs", "steps": 60}, {"method": "polish", "steps": 5}]
    network = {"kind": "mlp", "width": 30, "depth": 2}
    run, errors = poisson(schedule, network, {"interior": 400, "boundary": 100}), []
    steps = []
    for step in run:
        steps.append(step)
        errors.append(run.task.error(run.trial)["overall"])
    assert [step.method for step in steps] == ["lbfgs"] * 60 + ["polish"]
    assert steps[-1].note == "the last layer is where the loss is least"
    assert errors[-1] < errors[-2] / 2


def test_polish_is_kept_only_if_residuals_at_fresh_points_fall():
    network = MLP(torch.tensor([[0.0, 1.0]] * 2), width=30, depth=2, generator=torch.Generator().manual_seed(0))
    task = Collocation(load_problem(PROBLEMS / "poisson.py"), interior=8, boundary=4)  # fewer points than weights
    trial = Trial(network)
    before = {name: value.clone() for name, value in trial.state_dict().items()}
    (step,) = train(trial, task, [Stage("polish", 3)])
    assert step.note == "the residual at fresh points would not fall"
    assert all(torch.equal(value, before[name]) for name, value in trial.state_dict().items())
