"""NysNewton-CG: its approximation, preconditioner and solution against dense ones, and that it goes on bit for bit."""

import pytest
import torch
from test_natural_gradient import made

from pinnsketch.config import ConfigError, validate
from pinnsketch.image_config import ImageConfig
from pinnsketch.methods.rathore2024_nncg import NNCG, conjugate_gradients, nystrom
from pinnsketch.train import Stage, train

F64 = torch.float64


def positive(n, decay, seed=0):
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64))[0]
    return q @ torch.diag(decay ** torch.arange(n, dtype=F64)) @ q.T


def test_the_approximation_is_the_formula_and_exact_where_the_rank_suffices():
    n, rank = 30, 8
    h = positive(n, 0.7)
    u, values = nystrom(lambda v: h @ v, torch.zeros(n, dtype=F64), rank, seed=3)
    draw = torch.randn(n, rank, generator=torch.Generator().manual_seed(3), dtype=F64)
    omega = torch.linalg.qr(draw)[0]
    slowly = h @ omega @ torch.linalg.inv(omega.T @ h @ omega) @ omega.T @ h
    torch.testing.assert_close(u @ values.diag() @ u.T, slowly, rtol=0, atol=1e-10)
    torch.testing.assert_close(u.T @ u, torch.eye(rank, dtype=F64), rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(h - slowly)[0] > -1e-12
    low = h[:, :5] @ h[:, :5].T
    u, values = nystrom(lambda v: low @ v, torch.zeros(n, dtype=F64), rank, seed=0)
    torch.testing.assert_close(u @ values.diag() @ u.T, low, rtol=0, atol=1e-7)


def test_the_preconditioner_is_the_formula_and_saves_iterations():
    n, rank, damping = 60, 20, 1e-6
    h = positive(n, 0.6)
    method = NNCG([torch.nn.Parameter(torch.zeros(n, dtype=F64))], damping=damping)
    u, values = nystrom(lambda v: h @ v, torch.zeros(n, dtype=F64), rank, seed=0)
    precondition, one = method._preconditioner(u, values), torch.eye(n, dtype=F64)
    slowly = (values[-1] + damping) * u @ (1 / (values + damping)).diag() @ u.T + one - u @ u.T
    v = torch.randn(n, generator=torch.Generator().manual_seed(5), dtype=F64)
    torch.testing.assert_close(precondition(v), slowly @ v, rtol=1e-12, atol=1e-12)
    whole = h + damping * one
    taken = {}
    for name, by in (("with", precondition), ("without", lambda v: v)):
        count = []
        x = conjugate_gradients(lambda v, count=count: count.append(1) or whole @ v, v, by, None, 1000, 1e-9)
        assert (whole @ x - v).norm() < 1e-8 * v.norm()
        taken[name] = len(count)
    assert taken["with"] < taken["without"] / 3


def test_a_step_is_the_damped_gauss_newton_step_of_the_dense_jacobian():
    trial, task = made()
    r, jacobian = task.linearize(trial, task.batch())
    j, damping = jacobian.dense(), 1e-2
    expected = torch.linalg.solve(2 * j.T @ j + damping * torch.eye(j.shape[1], dtype=F64), -2 * j.T @ r)
    step = next(iter(train(trial, task, [Stage("nncg", 1, {"damping": damping, "accuracy": 1e-11, "iterations": 1000})])))
    torch.testing.assert_close(step.state()["method"]["last"], expected, rtol=0, atol=1e-7 * float(expected.abs().max()))


def test_every_step_goes_down_and_leaves_the_gradient_of_where_it_ended():
    trial, task = made(points=30)
    losses = []
    for step in train(trial, task, [Stage("nncg", 40)]):
        each = task.losses(trial, task.batch())
        loss = sum(task.weights[name] * value for name, value in each.items())
        assert step.loss == pytest.approx(float(loss.detach()), rel=1e-12)
        for g, p in zip(torch.autograd.grad(loss, list(trial.parameters())), trial.parameters(), strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-8, atol=1e-10)
        losses.append(step.loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-4 * losses[0]


@pytest.mark.parametrize("resample", [0, 3])
def test_stopped_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended(resample):
    schedule = [Stage("nncg", 8, {"every": 3, "rank": 10})]
    whole, task = made()
    for _ in train(whole, task, schedule, resample=resample):
        pass
    half, task = made()
    for step in train(half, task, schedule, resample=resample):
        if step.index == 4:
            break
    for _ in train(half, task, schedule, resample=resample, state=step.state()):
        pass
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_a_loss_that_is_not_finite_leaves_the_parameters():
    trial, task = made()
    with torch.no_grad():
        next(iter(trial.parameters())).mul_(float("nan"))
    before = [p.detach().clone() for p in trial.parameters()]
    (step,) = train(trial, task, [Stage("nncg", 5)])
    assert not step.finite
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, trial.parameters(), strict=True))


def test_images_have_no_residuals_for_it():
    with pytest.raises(ConfigError, match="nncg needs residuals, which only problems have"):
        validate(ImageConfig, {"data": "digits", "train": {"method": "nncg"}}, "here")
