"""Doubly sketched Gauss-Newton: its step is the dense damped one at full size, its draws are unbiased, and it converges."""

import pytest
import torch
from test_natural_gradient import made

from pinnsketch.jets import Basis
from pinnsketch.methods.webb2026_dsgnar import CLOSE, Dsgnar, Quadratic
from pinnsketch.train import Stage, train

F64 = torch.float64


def linearized(**options):
    trial, task = made(**options)
    r, jacobian = task.linearize(trial, task.batch())
    return list(trial.parameters()), r, jacobian


def sketched(parameters, share, like):
    method = Dsgnar(parameters, share=share)
    return method._bases(like)


def matrix(bases):
    return torch.block_diag(*[basis.matrix() for basis in bases])


def test_directions_are_orthonormal_and_the_lift_is_their_sum():
    basis = Basis.random(4, 3, 7, torch.Generator().manual_seed(0), torch.zeros((), dtype=F64))
    b, z = basis.matrix(), torch.linspace(-1, 1, 7, dtype=F64)
    torch.testing.assert_close(b.T @ b, torch.eye(7, dtype=F64))
    torch.testing.assert_close(basis.lift(z), b @ z)


@pytest.mark.parametrize("points", [60, 1500])  # in one piece and in several
def test_the_sketched_jacobian_is_the_dense_one_times_the_directions(points):
    parameters, r, jacobian = linearized(points=points)
    bases = sketched(parameters, 0.3, r)
    torch.testing.assert_close(jacobian.along(bases).T, jacobian.dense() @ matrix(bases))


def test_at_full_size_the_step_is_the_dense_damped_gauss_newton_step():
    parameters, r, jacobian = linearized()
    bases = sketched(parameters, 1.0, r)
    quadratic, damping = Quadratic(jacobian.along(bases), r), 1e-2
    parts = quadratic.solve(damping).z.split([len(basis.a) for basis in bases])
    found = torch.cat([basis.lift(part) for basis, part in zip(bases, parts, strict=True)])
    j = jacobian.dense()
    expected = torch.linalg.solve(j.T @ j + damping * torch.eye(j.shape[1], dtype=F64), j.T @ r)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8 * float(expected.abs().max()))


@pytest.mark.parametrize("radius", [1e-3, 1e-1, 1.0])
def test_a_trust_region_is_filled_and_the_predicted_fall_is_that_of_the_model(radius):
    parameters, r, jacobian = linearized()
    j = jacobian.along(sketched(parameters, 0.3, r))
    quadratic = Quadratic(j, r)
    for first in (1e-12, 1.0, 1e6):
        at = quadratic.within(radius, first)
        assert float(at.z.norm()) == pytest.approx(radius, rel=CLOSE)
        fall = float(r.square().sum() - (r - j.T @ at.z).square().sum())
        assert quadratic.predicted(at) == pytest.approx(fall, rel=1e-8)


def test_a_radius_beyond_the_gauss_newton_step_gives_that_step():
    generator = torch.Generator().manual_seed(0)
    j, r = torch.randn(30, 5, generator=generator, dtype=F64), torch.randn(30, generator=generator, dtype=F64)
    at = Quadratic(j.T.contiguous(), r).within(1e6, 1.0)
    torch.testing.assert_close(at.z, torch.linalg.lstsq(j, r[:, None]).solution[:, 0])


@pytest.mark.parametrize("rows", [1000, 20])
def test_the_gradient_it_leaves_is_that_of_the_losses_it_gives(rows):
    trial, task = made()
    batch = task.batch()
    offsets = torch.rand(len(batch), generator=torch.Generator().manual_seed(0), dtype=F64).tolist()
    few = task.drawn(batch, task.scaled(trial, batch), [rows] * len(batch), offsets)
    expected = task.losses(trial, few)
    loss = sum(task.weights[name] * value for name, value in expected.items())
    gradient = torch.autograd.grad(loss, list(trial.parameters()))
    step = next(iter(train(trial, task, [Stage("dsgnar", 1, {"rows": rows})])))
    assert step.losses == pytest.approx({name: value.item() for name, value in expected.items()})
    for p, g in zip(trial.parameters(), gradient, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("damping", "goal"), [(0.0, 1e-3), (1e-7, 1e-4)])
def test_both_rules_converge(damping, goal):
    trial, task = made(points=400)
    *_, _ = train(trial, task, [Stage("dsgnar", 60, {"damping": damping, "share": 0.5, "rows": 300})], resample=1)
    assert task.error(trial)["overall"] < goal


@pytest.mark.parametrize("damping", [0.0, 1e-4])
def test_stopped_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended(damping):
    def run(steps, state=None, trial=None):
        fresh, task = made()
        trial = trial or fresh
        for step in train(trial, task, [Stage("dsgnar", 30, {"damping": damping, "rows": 30})], resample=1, state=state):
            if step.index == steps:
                break
        return trial, step.state()

    whole, _ = run(8)
    half, state = run(4)
    resumed, _ = run(8, state, half)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damping", [0.0, 1e-4])
def test_where_nothing_is_left_to_do_it_stays(damping):
    trial, task = made()
    with torch.no_grad():
        for p in trial.parameters():
            p.zero_()
    task.weights = dict.fromkeys(task.weights, 0.0)
    for step in train(trial, task, [Stage("dsgnar", 3, {"damping": damping})]):
        assert step.finite
        assert step.loss == 0
    assert all(not p.any() for p in trial.parameters())


def test_more_than_all_parameters_cannot_move():
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, the part of the parameters that move; got 2"):
        Dsgnar([torch.nn.Parameter(torch.zeros(2))], share=2.0)
