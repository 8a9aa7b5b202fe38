"""Points drawn by their residuals: spread evenly, without bias, the same when a run is resumed, for every method."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from pinnsketch import Box, Problem, Term, diff, div, div_grad, grad
from pinnsketch.blocks import along_curve
from pinnsketch.collocation import Collocation
from pinnsketch.compiled import Replay, tensors_of
from pinnsketch.config import ConfigError, make_config
from pinnsketch.network import MLP
from pinnsketch.points import DRAWS
from pinnsketch.train import Stage, train
from pinnsketch.trial import Trial

F64 = torch.float64


def bump(u, x, y):
    return u.xx + u.yy - torch.exp(-100 * ((x - 0.8) ** 2 + (y - 0.2) ** 2))


def made(draw="residual", interior=60, width=8, device="cpu", law=bump):
    box = Box(x=(0, 1), y=(0, 1))
    terms = {
        "bump": Term(box.interior, law),
        "sides": Term(box.boundary, lambda u: u, weight=10.0),
    }
    network = MLP(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), width=width, depth=2, generator=torch.Generator().manual_seed(0))
    task = Collocation(Problem(box, "u", terms), interior=interior, boundary=20, draw=draw, device=device)
    return Trial(network).to(device), task


def test_points_that_follow_each_other_along_the_curve_fill_squares_one_after_another():
    side = (torch.arange(8, dtype=F64) + 0.5) / 8
    x = torch.cartesian_prod(side, side)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    for size, cells in ((16, 2), (4, 4)):
        for part in x[along_curve(x)].split(size):
            assert len((part * cells).floor().unique(dim=0)) == 1


def test_more_points_are_drawn_where_residuals_are_large():
    trial, task = made(interior=200)
    with torch.no_grad():
        for p in trial.parameters():
            p.zero_()
    (inside, _), centre = task.chosen(trial), torch.tensor([[0.8, 0.2]], dtype=F64)
    near = (inside.x - centre).norm(dim=1) < 0.15
    assert len(inside.x) == 200
    assert int(near.sum()) > 4 * 200 * 0.07  # the share of the area
    assert float(inside.factor[near].mean()) < 1 < float(inside.factor[~near].mean())


def test_the_loss_at_drawn_points_is_that_at_all_on_average():
    trial, task = made()
    many = [task.losses(trial, task.chosen(trial, k)) for k in range(60)]
    even = [task.losses(trial, pool(task, k)) for k in range(60)]
    for name in task.weights:
        a, b = (torch.stack([losses[name].detach() for losses in each]) for each in (many, even))
        assert abs(float(a.mean() - b.mean())) < 4 * float((a - b).std()) / 60**0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_choice_is_replayed_and_gives_what_it_gives_one_by_one():
    trial, task = made(device="cuda")
    earlier = []
    for draw in range(4):
        found = task.chosen(trial, draw)
        assert task._choosing[trial].captured is not None
        task._choosing[trial], kept = Replay(partial(task._chosen, lambda: trial)), task._choosing[trial]
        task._choosing[trial]._plain = True
        for a, b in zip(tensors_of(found), tensors_of(task.chosen(trial, draw)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        task._choosing[trial] = kept
        earlier.append((found, [t.clone() for t in tensors_of(found)]))
        with torch.no_grad():
            for p in trial.parameters():
                p.mul_(0.9)
    for found, values in earlier:
        assert all(map(torch.equal, tensors_of(found), values))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_choice_by_residuals_that_differentiate_expressions_is_that_of_a_cpu():
    def law(u, x, y):
        return div_grad(1 + x * x + y, u) - 1

    (here, on_cpu), (there, on_gpu) = made(law=law), made(device="cuda", law=law)
    for draw in range(3):
        for a, b in zip(on_cpu.chosen(here, draw), on_gpu.chosen(there, draw), strict=True):
            torch.testing.assert_close(a.x, b.x.cpu(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(a.factor, b.factor.cpu(), rtol=1e-8, atol=1e-8)


def pool(task, number):
    return task.batch(number, DRAWS["residual"])


def test_residuals_and_jacobian_have_the_factors_of_the_losses():
    trial, task = made()
    batch = task.chosen(trial)
    r, jacobian = task.linearize(trial, batch)
    losses = task.losses(trial, batch)
    loss = sum(task.weights[name] * value for name, value in losses.items())
    torch.testing.assert_close(r.square().sum(), loss.detach())
    torch.testing.assert_close(torch.cat(list(task.scaled(trial, batch).values())), r)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trial.parameters()))])
    torch.testing.assert_close(2 * jacobian.transposed(r), gradient)
    parts = task.by_term(trial, batch, list(trial.parameters()))
    total = torch.cat([sum(part.gradient[k] for part in parts.values()).flatten() for k in range(len(parts["sides"].gradient))])
    torch.testing.assert_close(total, gradient)


def test_residuals_at_many_points_which_are_evaluated_in_pieces_are_in_the_order_of_rows():
    box = Box(x=(0, 1), y=(0, 1))
    two = Term(box.interior, lambda u, x: torch.cat([u.xx + x, u.y * u.value], 1), weight=3.0)
    task = Collocation(Problem(box, "u", {"two": two, "third": Term(box.interior, lambda u: u - 1)}), interior=2300)
    trial, batch = made()[0], task.batch()
    r, _ = task.linearize(trial, batch)
    torch.testing.assert_close(torch.cat(list(task.scaled(trial, batch).values())), r)


DIFFERENTIATED = {
    "a coefficient": lambda u, x, y: div_grad(1 + x * x + y, u),
    "a flux": lambda u, x, y: div((1 + x * y) * grad(u), x, y) - 1,
    "a product": lambda u, x: diff(u * u.x, x),
}


@pytest.mark.parametrize("law", DIFFERENTIATED)
def test_residuals_that_differentiate_expressions_are_the_same_without_a_gradient(law):
    box = Box(x=(0, 1), y=(0, 1))
    task = Collocation(Problem(box, "u", {"law": Term(box.interior, DIFFERENTIATED[law])}), interior=50)
    trial, batch = made()[0], task.batch()
    expected = task.residuals(trial, batch)["law"].detach()
    torch.testing.assert_close(task.scaled(trial, batch)["law"] * 50**0.5, expected[:, 0])
    with torch.no_grad():
        torch.testing.assert_close(task.residuals(trial, batch)["law"], expected)


def test_an_expression_is_not_differentiated_where_nothing_is_recorded():
    x = torch.ones(3, 1, requires_grad=True)
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be differentiated under"):
        diff(x**2, x)


def test_pieces_of_a_drawn_block_add_up_to_it():
    trial, task = made()
    block, _ = task.chosen(trial)
    halves = [task.losses(trial, (block.piece(a, b),))["bump"] for a, b in ((0, 25), (25, 60))]
    torch.testing.assert_close(sum(halves), task.losses(trial, (block,))["bump"])


def test_a_block_drawn_from_twice_has_the_product_of_factors():
    trial, task = made(interior=200)
    block, _ = task.chosen(trial)
    size = torch.linspace(0, 1, 200, dtype=F64)
    plain = replace(block, factor=None).drawn(size, 50, 0.5)
    twice = block.drawn(size, 50, 0.5)
    kept = [int((block.x == point).all(1).nonzero()) for point in plain.x]
    assert torch.equal(plain.x, twice.x)
    torch.testing.assert_close(twice.factor, plain.factor * block.factor[kept])


def test_even_draws_are_what_they_were():
    trial, task = made(draw="even")
    assert not task.chooses
    assert all(torch.equal(a.x, b.x) and b.factor is None for a, b in zip(task.batch(3), task.chosen(trial, 3), strict=True))


@pytest.mark.parametrize(("method", "resample"), [("adam", 0), ("natural_gradient", 1), ("dsgnar", 4)])
def test_stopped_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended(method, resample):
    def run(steps, state=None, trial=None):
        fresh, task = made()
        trial = trial or fresh
        for step in train(trial, task, [Stage(method, 4), Stage(method, 20)], resample=resample, state=state):
            if step.index == steps:
                break
        return trial, step.state()

    whole, _ = run(9)
    for stop in (4, 7):
        half, state = run(stop)
        resumed, _ = run(9, state, half)
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)


def test_an_unknown_draw_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"there is no draw 'residuals'; did you mean 'residual'\? \(known: even, residual\)"):
        make_config({"problem": "poisson", "points": {"draw": "residuals"}})
