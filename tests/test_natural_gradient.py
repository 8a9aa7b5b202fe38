"""The natural gradient: its direction, its convergence, and that it goes on bit for bit."""

from copy import deepcopy
from math import pi
from pathlib import Path

import pytest
import torch
from torch import exp

from pinnsketch import Box, Problem, Term, laplacian
from pinnsketch.collocation import Collocation
from pinnsketch.config import ConfigError, make_config, validate
from pinnsketch.image_config import ImageConfig
from pinnsketch.library import find_problem, load_problem
from pinnsketch.methods import mueller2023_natural_gradient as natural
from pinnsketch.methods.mueller2023_natural_gradient import FLOOR, _solver
from pinnsketch.network import MLP
from pinnsketch.run import Run
from pinnsketch.train import Stage, train
from pinnsketch.trial import Trial

POISSON = find_problem("poisson", Path.cwd())


def made(points=60, width=10, device="cpu"):
    network = MLP(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), width=width, depth=2, generator=torch.Generator().manual_seed(0))
    return Trial(network.to(device)), Collocation(load_problem(POISSON), interior=points, boundary=points // 3, device=device)


def trained(steps, state=None, trial=None):
    fresh, task = made()
    trial = trial or fresh
    for step in train(trial, task, [Stage("natural_gradient", 30)], resample=1, state=state):
        if step.index == steps:
            break
    return trial, step.state()


@pytest.mark.parametrize("points", [40, 400], ids=["fewer residuals than parameters", "more"])
def test_the_direction_is_that_of_the_normal_equations_in_parameter_space(points):
    trial, task = made(points=points)
    r, jacobian = task.linearize(trial, task.batch())
    j = jacobian.dense()
    assert (j.shape[0] > j.shape[1]) == (points == 400)
    damping = 1e-3
    whole = j.T @ j + (damping + FLOOR * j.square().sum()) * torch.eye(j.shape[1], dtype=j.dtype)
    expected = torch.linalg.solve(whole, j.T @ r)
    torch.testing.assert_close(
        _solver(jacobian, jacobian.square(), damping)(r), expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max())
    )


def test_it_leaves_the_gradient_of_the_loss():
    trial, task = made()
    before = deepcopy(trial.state_dict())
    step = next(iter(train(trial, task, [Stage("natural_gradient", 1)])))
    found = [p.grad.clone() for p in trial.parameters()]
    trial.load_state_dict(before)
    losses = task.losses(trial, task.batch())
    loss = sum(task.weights[name] * value for name, value in losses.items())
    assert step.loss == pytest.approx(loss.item(), rel=1e-12)
    assert step.losses == pytest.approx({name: value.item() for name, value in losses.items()}, rel=1e-12)
    for g, expected in zip(found, torch.autograd.grad(loss, list(trial.parameters())), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-9)


def test_it_reaches_six_digits_where_adam_has_one():
    config = {
        "problem": str(POISSON),
        "network": {"width": 16, "depth": 3},
        "points": {"interior": 200, "boundary": 60, "resample": 1},
        "monitor": False,
    }
    errors = {}
    for method in ("adam", "natural_gradient"):
        run = Run(load_problem(POISSON), make_config({**config, "train": {"method": method, "steps": 60}}))
        for _ in run:
            pass
        errors[method] = run.task.error(run.trial)["overall"]
    assert errors["adam"] > 0.1
    assert errors["natural_gradient"] < 1e-5


def reaction():
    """u_t = 5 u (1 - u): where u is small at first, its Gauss-Newton directions are far too long."""
    box = Box(x=(0, 2 * pi), t=(0, 1))

    def first(x):
        return exp(-0.5 * ((x - pi) / (pi / 4)) ** 2)

    terms = {
        "reaction": Term(box.interior, lambda u: u.t - 5 * u * (1 - u)),
        "start": Term(box.start("t"), lambda u, x: u - first(x), weight=10.0),
    }
    exact = lambda x, t: first(x) * exp(5 * t) / (first(x) * exp(5 * t) + 1 - first(x))  # noqa: E731
    return Problem(box, unknowns="u", terms=terms, exact=exact)


@pytest.mark.parametrize("raised", [True, False])
def test_where_steps_stay_short_damping_rises_and_without_that_nothing_is_learnt(raised, monkeypatch):
    if not raised:
        monkeypatch.setattr(natural, "RAISE", 1.0)
    problem = reaction()
    network = MLP(torch.tensor(problem.domain.bounds), width=20, depth=4, generator=torch.Generator().manual_seed(2))
    trial, task = Trial(network), Collocation(problem, interior=200, boundary=50, seed=2)
    lambdas = [step.state()["method"]["damping"] for step in train(trial, task, [Stage("natural_gradient", 30)], resample=1)]
    error = task.error(trial)["overall"]
    assert error < 0.1 if raised else error > 0.5
    assert (max(lambdas) > 1e-5) == raised
    assert min(lambdas) >= 1e-7


def test_on_fixed_points_it_ends_where_no_damping_lowers_the_loss():
    trial, _ = made()
    box = Box(x=(0, 1), y=(0, 1))
    terms = {"laplace": Term(box.interior, lambda u: laplacian(u)), "sides": Term(box.boundary, lambda u: u)}
    task = Collocation(Problem(box, "u", terms), interior=30, boundary=10)
    with torch.no_grad():
        for p in trial.parameters():
            p.zero_()
    *_, last = train(trial, task, [Stage("natural_gradient", 40)])
    assert last.index < 40
    assert "no step along the natural gradient lowers the loss" in last.note


@pytest.mark.parametrize("kept", [0, 25], ids=["at once", "resumed"])
def test_patience_ends_where_the_loss_has_not_halved_for_so_many_steps_and_not_before_the_loss_has_fallen(kept):
    losses, patience, state = [], 5, None
    trial, task = made()
    schedule = [Stage("natural_gradient", 200, {"patience": patience})]
    for part in [kept, 200] if kept else [200]:
        for step in train(trial, task, schedule, resample=1, state=state):
            losses.append(step.loss)
            if step.index == part:
                break
        state = step.state()
    best, since, due = float("inf"), 0, []
    for number, loss in enumerate(losses, start=1):
        best, since = (loss, 0) if loss < best / 2 else (best, since + 1)
        due += [number] if since >= patience and best < 1e-4 * losses[0] else []
    assert due == [len(losses)] == [step.index]
    assert step.last
    assert step.note == "the loss has not halved in 5 steps"


def test_stopped_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended():
    whole, _ = trained(12)
    half, state = trained(6)
    resumed, _ = trained(12, state, half)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_images_have_no_residuals_for_it():
    with pytest.raises(ConfigError, match=r"natural_gradient needs residuals, which only problems have: use adam or sgd"):
        validate(ImageConfig, {"data": "digits", "train": {"method": "natural_gradient"}}, "here")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_its_functions_are_replayed_and_give_what_they_give_one_by_one():
    from pinnsketch.methods.method import Objective
    from pinnsketch.methods.mueller2023_natural_gradient import _linearized, _residuals, _standing
    from pinnsketch.methods.replayed import Replayed

    trial, task = made(width=40, device="cuda")  # wide enough for what no residual reads to be left out
    parameters = list(trial.parameters())
    for function, standing in ((_linearized, _standing), (_residuals, None)):
        replayed = Replayed(function, standing)
        for draw in range(4):
            batch = task.batch(draw)
            objective = Objective(parameters, lambda: None, tuple(task.weights), trial, task, batch)
            found, expected = replayed(objective), function(task, trial, batch)
            if isinstance(found, dict):
                found, expected = ([*d.values()] for d in (found, expected))
            else:
                v = torch.linspace(-1 - draw, 1, found[1].shape[1], dtype=torch.float64, device="cuda")
                found, expected = ([r, j.times(v), j.transposed(r), k] for r, j, k in (found, expected))
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
            with torch.no_grad():
                for p in parameters:
                    p.mul_(0.9)
        assert replayed._replay.captured is not None
