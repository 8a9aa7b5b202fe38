"""The learners of benchmarks/regret.py are what they are named after, and what they are held against is the best there is."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pinnsketch import Sketchy

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
regret = pytest.importorskip("regret")
F64 = torch.float64


@pytest.fixture(autouse=True)
def _doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


def gradients(count=25, n=3, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, n, d, generator=generator) * torch.logspace(0, -2, d)


def sent(learner, rank, grads, delta):
    n, d = grads.shape[1:]
    learn = regret.directions(learner, n, d, rank, torch.full((n,), delta))
    next(learn)
    return [learn.send(g) for g in grads]


def test_s_adagrad_is_sketchy_on_a_vector_with_sums_for_means():
    grads, lr = gradients(), 0.5
    found = sent("S-AdaGrad", 3, grads, 1e-300)
    for run in range(grads.shape[1]):
        w = nn.Parameter(torch.zeros(6))
        optimizer = Sketchy([w], lr=lr, rank=3, betas=(0.0, 1.0), graft="none", eps=1e-12)
        for t, (g, (step, _)) in enumerate(zip(grads, found, strict=True)):
            before = w.detach().clone()
            w.grad = g[run].clone()
            optimizer.step()
            if t >= 3:  # until the sketch is full nothing has escaped, and eps alone stands for the tail
                torch.testing.assert_close(before - w.detach(), lr * step[run], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("sketched", "power"), [("S-AdaGrad", -0.5), ("RFD-SON", -1.0)])
def test_at_full_rank_a_sketch_is_the_whole_matrix(sketched, power):
    grads, delta = gradients(), 0.1
    total = torch.zeros(6, 6)
    for g, (step, _) in zip(grads[:, 0], sent(sketched, 6, grads, delta), strict=True):
        total += torch.outer(g, g)
        values, vectors = torch.linalg.eigh(total + delta * torch.eye(6))
        torch.testing.assert_close(step[0], vectors @ (values**power * (vectors.T @ g)), rtol=1e-7, atol=1e-9)
    if sketched == "S-AdaGrad":
        exact = sent("full AdaGrad", 0, grads, delta)
        for (step, trace), (other, whole) in zip(sent(sketched, 6, grads, delta), exact, strict=True):
            torch.testing.assert_close(step, other, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(trace, whole, rtol=1e-9, atol=1e-9)


def test_ada_fd_adds_delta_to_the_root_of_its_sketch():
    grads, delta = gradients(), 0.1
    sketch = regret.Sketch(torch.zeros(3, 6, 2), torch.zeros(3))
    for g, (step, trace) in zip(grads, sent("Ada-FD", 2, grads, delta), strict=True):
        sketch.update(g)
        values, vectors = torch.linalg.eigh(sketch.b[0] @ sketch.b[0].T)
        expected = vectors @ ((vectors.T @ g[0]) / (delta + values.clamp(min=0).sqrt()))
        torch.testing.assert_close(step[0], expected, rtol=1e-5, atol=1e-7)
        assert trace is None


def test_the_sketches_of_many_streams_are_frequent_directions_of_each():
    from pinnsketch.sketch import FrequentDirections

    grads = gradients()
    sketch, alone = regret.Sketch(torch.zeros(3, 6, 2), torch.zeros(3)), FrequentDirections(6, 2)
    for g in grads:
        sketch.update(g)
        alone.update(g[1][:, None])
    torch.testing.assert_close(sketch.b[1] @ sketch.b[1].T, alone.b @ alone.b.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sketch.escaped[1], alone.escaped, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("radius", [0.5, 100.0])
def test_the_best_fixed_weights_are_a_minimum_in_the_ball(radius):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator)
    y = torch.where(x[:, 0] + torch.randn(80, generator=generator) > 0, 1.0, -1.0)
    w = regret.best(x, y, radius)
    slope = -x.T @ (y * torch.sigmoid(-y * (x @ w)))
    if radius < 1:
        assert float(w.norm()) == pytest.approx(radius, rel=1e-9)
        assert float(slope @ w) == pytest.approx(-float(slope.norm() * w.norm()), rel=1e-9)  # straight into the ball
    else:
        assert float(w.norm()) < radius
        assert float(slope.norm()) < 1e-7


@pytest.mark.parametrize("learner", regret.GROWS)
def test_no_run_of_a_learner_whose_matrix_grows_is_beyond_its_bound(learner):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 60, 5, generator=generator)
    y = torch.where(x[:, :, 0] + torch.randn(4, 60, generator=generator) > 0, 1.0, -1.0)
    star = torch.stack([regret.best(a, b, 10.0) for a, b in zip(x, y, strict=True)])
    grid = torch.tensor([[0.1, 1e-4], [1.0, 1e-4], [0.1, 1.0], [3.0, 1.0]])
    lost, bound = regret.play(learner, 2, x, y, star, grid)
    assert (lost[-1] <= bound).all()
