"""SPRING solves its proximal problem; the Nyström-preconditioned solver gives what a factored kernel does, with less work."""

import pytest
import torch
from test_natural_gradient import made

from pinnsketch.config import ConfigError, make_config
from pinnsketch.methods import goldshlager2024_spring as spring
from pinnsketch.methods.frangella2023_nystrom import conjugate_gradients, iterative_solver, nystrom, preconditioner
from pinnsketch.methods.mueller2023_natural_gradient import _solver
from pinnsketch.train import Stage, train

F64 = torch.float64


def linearized(**options):
    trial, task = made(**options)
    return task.linearize(trial, task.batch())


def vector(trial):
    return torch.cat([p.detach().flatten() for p in trial.parameters()])


def test_a_step_is_the_proximal_least_squares_problem_of_its_source():
    trial, task = made()
    options = {"lr": 1e-3, "damping": 1e-2, "momentum": 0.7, "reach": 1e9}
    phi, steps = torch.zeros_like(vector(trial)), iter(train(trial, task, [Stage("spring", 3, options)], resample=1))
    for k in range(3):
        r, jacobian = task.linearize(trial, task.batch(k))
        j, before = jacobian.dense(), vector(trial)
        # argmin |J phi - r|^2 + damping |phi - mu old|^2
        whole = j.T @ j + options["damping"] * torch.eye(j.shape[1], dtype=F64)
        phi = torch.linalg.solve(whole, j.T @ r + options["damping"] * options["momentum"] * phi)
        next(steps)
        moved = before - vector(trial)
        expected = options["lr"] * phi / (1 - options["momentum"] ** (2 * (k + 1))) ** 0.5
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))


def test_no_step_is_longer_than_its_reach():
    trial, task = made()
    before = vector(trial)
    for _ in train(trial, task, [Stage("spring", 1, {"lr": 100.0, "reach": 1e-3})]):
        pass
    assert float((vector(trial) - before).norm()) == pytest.approx(1e-3)


def test_it_converges():
    trial, task = made(points=30)
    *_, _ = train(trial, task, [Stage("spring", 100, {"lr": 0.3, "reach": 1.0}, "cosine")], resample=1)
    assert task.error(trial)["overall"] < 1e-2


def test_stopped_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended():
    def run(steps, state=None, trial=None):
        fresh, task = made()
        trial = trial or fresh
        for step in train(trial, task, [Stage("spring", 30)], resample=1, state=state):
            if step.index == steps:
                break
        return trial, step.state()

    whole, _ = run(8)
    half, state = run(4)
    resumed, _ = run(8, state, half)
    assert torch.equal(vector(whole), vector(resumed))


def test_its_momentum_is_a_share():
    with pytest.raises(ConfigError, match="momentum"):
        make_config({"problem": "poisson", "train": {"method": "spring", "momentum": -0.5}})


def spectrum(n=200, power=3.0):
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=F64))[0]
    values = torch.arange(1, n + 1, dtype=F64) ** -power
    return q, values, (q * values) @ q.T


def test_nystrom_is_exact_where_the_rank_suffices():
    q, values, _ = spectrum()
    low = (q[:, :10] * values[:10]) @ q[:, :10].T
    u, s = nystrom(lambda v: low @ v, 200, 20, torch.Generator().manual_seed(0), low)
    torch.testing.assert_close((u * s) @ u.T, low, atol=1e-10, rtol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(20, dtype=F64))


def test_at_twice_the_effective_dimension_the_condition_number_is_bounded():
    _, values, k = spectrum()
    damping = 1e-4
    rank = 2 * int((values / (values + damping)).sum().ceil()) + 1
    for seed in range(5):
        apply = preconditioner(*nystrom(lambda v: k @ v, 200, rank, torch.Generator().manual_seed(seed), k), damping)
        inverse = torch.stack([apply(e) for e in torch.eye(200, dtype=F64)])
        whole = k + damping * torch.eye(200, dtype=F64)
        half = torch.linalg.cholesky(whole)
        found = torch.linalg.eigvalsh(half.T @ inverse @ half)
        assert float(found[-1] / found[0]) < 28  # Theorem 1.1, which bounds the mean


def test_the_iterative_solver_gives_what_the_factored_kernel_gives():
    r, jacobian = linearized(points=200)
    damping = 1e-2
    expected = _solver(jacobian, jacobian.square(), damping)(r)
    found = iterative_solver(jacobian, damping, r, tolerance=1e-12)(r)
    assert float((found - expected).norm()) <= 1e-8 * float(expected.norm())


def test_the_preconditioner_saves_products():
    r, jacobian = linearized(points=200)
    kernel, damping = jacobian.gram(), 1e-2

    def shifted(v):
        return kernel @ v + damping * v

    counts = []
    for rank in (10, 40, 120):
        u, s = nystrom(lambda v: kernel @ v, len(r), rank, torch.Generator().manual_seed(0), r)
        counts.append(conjugate_gradients(shifted, r, preconditioner(u, s, damping))[1])
    plain = conjugate_gradients(shifted, r)[1]
    assert plain > counts[0] > counts[1] > counts[2]
    assert counts[2] < plain / 5


def test_many_points_go_by_products_alone(monkeypatch):
    def moved():
        trial, task = made()
        for _ in train(trial, task, [Stage("spring", 1, {"damping": 1e-2})]):
            pass
        return vector(trial)

    expected = moved()
    monkeypatch.setattr(spring, "MOST", 10)
    torch.testing.assert_close(moved(), expected, rtol=1e-6, atol=1e-8)
