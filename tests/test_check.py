"""`check` says what is read and what could be carried as one; residuals are the same in one forward pass and in pieces."""

import gc

import pytest
import torch
from torch import nn

from pinnsketch import Box, Data, Problem, Term, Unknown, bilaplacian, diff, div, grad, laplacian
from pinnsketch.check import check
from pinnsketch.collocation import Collocation
from pinnsketch.derivatives import Linked, Nested
from pinnsketch.network import MLP
from pinnsketch.trial import Trial

SPACE_TIME = Box(x=(0, 1), y=(0, 1), t=(0, 1))


@pytest.mark.parametrize(
    ("residual", "hint"),
    [
        (lambda u: u.t - u.xx - u.yy, "u.xx + u.yy as a sum: laplacian(u) is the same, and faster"),
        (lambda u: u.xx + u.tt, "u.xx + u.tt as a sum: laplacian(u, 'x', 't') is the same"),
        (lambda u: u * (u.xx + u.yy) + u.x, "laplacian(u) is the same"),
        (lambda u: u.xx + 2 * u.yy, None),
        (lambda u: u.xx * u.yy, None),
        (lambda u: u.t - laplacian(u), None),
        (lambda u: u.xx, None),
    ],
)
def test_a_sum_of_pure_second_derivatives_is_pointed_out_and_nothing_else(residual, hint):
    _, warnings = check(Problem(SPACE_TIME, "u", {"law": Term(SPACE_TIME.interior, residual)}), interior=20)
    assert len(warnings) == (hint is not None)
    assert all(hint in warning for warning in warnings)


def reads_of(residual):
    (term,), _ = check(Problem(SPACE_TIME, "u", {"law": Term(SPACE_TIME.interior, residual)}), interior=20)
    return term.reads


def test_a_term_reads_what_it_names_and_what_diff_and_div_are_made_of():
    assert reads_of(lambda u: u.t - u * u.x) == ("u", "u.t", "u.x")
    assert reads_of(lambda u, x, y: div([x * u.x, u.y], x, y)) == ("u.x", "u.xx", "u.y", "u.yy")
    assert reads_of(lambda u: laplacian(u)) == ("u.xx + u.yy",)


SQUARE = Box(x=(0, 1), y=(0, 1))


def network():
    return MLP(torch.tensor(SQUARE.bounds), width=6, depth=2, generator=torch.Generator().manual_seed(0))


def slowly(task, trial):
    """The residuals by nested differentiation, all points at once."""
    found = {}
    for block in task.batch():
        names = task.namespace(Nested(trial.network, block.x), trial.coefficients, block)
        found |= {name: task.evaluate(name, names, len(block.x)) for name in block.terms}
    return found


def mean_squares(residuals):
    return {name: residual.square().mean() for name, residual in residuals.items()}


class NoRules(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 4, dtype=torch.float64)

    def forward(self, x):
        return torch.special.erf(self.layer(x)).sum(1, keepdim=True)


def task(residual):
    terms = {"law": Term(SQUARE.interior, residual), "sides": Term(SQUARE.boundary, lambda u: u.n + u)}
    return Collocation(Problem(SQUARE, "u", terms), interior=20, boundary=8)


def agree(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).detach().abs().max()) <= 1e-10 * max(1.0, float(expected.detach().abs().max()))


def slopes(y, parameters):
    return torch.autograd.grad(y.square().sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


def same_by_either_way(collocation, trial):
    """Residuals and their gradient with respect to the parameters, twice: when they are traced, and later."""
    batch, parameters = collocation.batch(), list(trial.parameters())
    for _ in range(2):
        slow = slowly(collocation, trial)
        for name, fast in collocation.residuals(trial, batch).items():
            agree(fast, slow[name])
            for ours, theirs in zip(slopes(fast, parameters), slopes(slow[name], parameters), strict=True):
                agree(ours, theirs)


def sloped(u, x, y):
    """User's own gradients, one of the other."""
    (ux,) = torch.autograd.grad((u * u.y).sum(), x, create_graph=True)
    return u * torch.autograd.grad((ux * ux + y * u).sum(), y, create_graph=True)[0] + ux


RESIDUALS = {
    "usual": lambda u, x: u.xx + u.yy + u * u.x + x,
    "laplacian": lambda u: laplacian(u) + u.xy,
    "bilaplacian": lambda u: bilaplacian(u) - laplacian(u) * u,
    "diff": lambda u, x: diff(u * u.x, x),
    "diff of a derivative": lambda u, x, y: diff(u.x, y) + diff(laplacian(u), x),
    "diff of diff": lambda u, x, y: diff(x * u * diff(u**2 * u.y, x), y) + diff(u * u, x, y),
    "diff of a coordinate": lambda u, x: diff(x * x, x) * u,
    "diff of an operator": lambda u, x: diff(u * laplacian(u), x),
    "div": lambda u, x, y: div((1 + x * x * y) * grad(u), x, y),
    "nonlinear div": lambda u, x, y: div([(1 + u**2) * u.x, torch.exp(u) * u.y], x, y) + u.y,
    "autograd": lambda u, x: torch.autograd.grad(u.value.sum(), x, create_graph=True)[0],
    "autograd of autograd": sloped,
    "autograd without a graph": lambda u, x: torch.autograd.grad(u.value.sum(), x, retain_graph=True)[0] ** 2 * u.x + u,
}


@pytest.mark.parametrize("residual", RESIDUALS.values(), ids=RESIDUALS)
def test_a_residual_and_its_gradient_are_the_same_in_one_forward_pass_with_no_note(residual):
    collocation, trial = task(residual), Trial(network())
    same_by_either_way(collocation, trial)
    assert collocation.notes == []
    assert all(collocation.plan(trial, block).streams is not None for block in collocation.batch())


@pytest.mark.parametrize("residual", [RESIDUALS["usual"], RESIDUALS["diff"]], ids=["usual", "diff"])
def test_backward_on_a_loss_gives_the_gradient_that_grad_gives(residual):
    collocation, trial = task(residual), Trial(network())
    found = torch.autograd.grad(
        collocation.losses(trial, collocation.batch())["law"], list(trial.parameters()), allow_unused=True
    )
    collocation.losses(trial, collocation.batch())["law"].backward()
    for parameter, expected in zip(trial.parameters(), found, strict=True):
        assert (parameter.grad is None) == (expected is None)
        assert expected is None or torch.equal(parameter.grad, expected)


def test_nothing_of_an_evaluation_outlives_it():
    def alive():
        gc.collect()
        return sum(type(thing) is Linked for thing in gc.get_objects())

    before, collocation, trial = alive(), task(RESIDUALS["diff"]), Trial(network())
    for _ in range(3):
        evaluated(collocation.losses(trial, collocation.batch()), trial)
    assert alive() == before


def test_a_network_without_rules_falls_back_and_says_once_which_operation():
    collocation, trial = task(lambda u, x: u.xx + diff(u * u, x)), Trial(NoRules())
    warnings = collocation.check(trial)
    same_by_either_way(collocation, trial)
    for term, warning in zip(("law", "sides"), warnings, strict=True):
        assert f"{term}: derivatives by nested differentiation, which is slower (no rule for " in warning
    assert collocation.notes == warnings


@pytest.mark.parametrize("more", [lambda u, x: u.xx, lambda u, x: diff(u.x, x)], ids=["derivative", "diff"])
def test_a_residual_that_reads_more_than_when_it_was_traced_is_served_all_the_same(more):
    later = []
    collocation, trial = task(lambda u, x: u.x + more(u, x) if later else u.x), Trial(network())
    same_by_either_way(collocation, trial)
    later.append(True)
    same_by_either_way(collocation, trial)
    (block, _), nested = collocation.batch(), Nested(trial.network, collocation.batch()[0].x)
    found = collocation.residuals(trial, (block,))["law"]
    agree(found, nested.derivative(0, (0,)) + nested.derivative(0, (0, 0)))


DATA = Data({"x": [0.1, 0.2, 0.7, 0.9, 0.5], "y": [0.3, 0.1, 0.5, 0.8, 0.4], "seen": [1.0, 0.0, 2.0, -1.0, 0.5]})
TERMS = {
    "law": Term(SQUARE.interior, lambda u, k, x, y: div((k + x * y) * grad(u), x, y) - u),
    "also": Term(SQUARE.interior, lambda u, x: torch.cat([laplacian(u) + u.xy * x, u * u.x], dim=1)),
    "flux": Term(SQUARE.boundary, lambda u, k, n, x: k * u.n + u * n[:, :1] - x),
    "data": Term(DATA, lambda u, seen, x: (u - seen) * x),
}


def made(terms=TERMS, interior=20, **options):
    coefficients = {"k": Unknown(0.7)} if terms is TERMS else {}
    task = Collocation(Problem(SQUARE, "u", terms, parameters=coefficients), interior=interior, boundary=11, **options)
    return task, Trial(network(), coefficients)


def evaluated(losses, trial):
    """The losses by name, and the gradient of their sum, all parameters in one."""
    slopes = torch.autograd.grad(sum(losses.values()), list(trial.parameters()), allow_unused=True, materialize_grads=True)
    return {name: loss.detach() for name, loss in losses.items()} | {"gradient": torch.cat([s.flatten() for s in slopes])}


def close(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 1e-12 * float(value.norm())


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, "auto"])
def test_losses_and_gradients_of_pieces_add_up_to_those_of_the_whole(chunk):
    task, trial = made(chunk=chunk)
    found = dict.fromkeys([*TERMS, "gradient"], 0.0)
    for piece in task.pieces(trial, task.batch()):
        for name, part in evaluated(task.losses(trial, piece), trial).items():
            found[name] = found[name] + part
    close(found, evaluated(task.losses(trial, task.batch()), trial))
    close(found, evaluated(mean_squares(slowly(task, trial)), trial))
    assert task.notes == []


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_pieces_hold_each_point_once_in_order_and_no_more_than_a_chunk(chunk):
    task, trial = made(chunk=chunk)
    batch, pieces = task.batch(), task.pieces(trial, task.batch())
    for block in batch:
        parts = [part for piece in pieces for part in piece if part.terms == block.terms]
        assert max(len(part.x) for part in parts) <= chunk
        assert sum(part.share for part in parts) == pytest.approx(1, rel=1e-12)
        for whole, cut in zip(block.tensors, zip(*(part.tensors for part in parts), strict=True), strict=True):
            assert torch.equal(whole, torch.cat(cut))


def test_blocks_that_are_not_cut_are_evaluated_together():
    task, trial = made(chunk=12)
    assert [[len(block.x) for block in piece] for piece in task.pieces(trial, task.batch())] == [[11, 5], [10], [10]]


@pytest.mark.parametrize("n", [5, 8, 9, 16, 40])
def test_a_residual_that_mixes_points_is_not_cut_and_its_loss_stays_right(n):
    task, trial = made({"law": Term(SQUARE.interior, lambda u: u - u.value.mean())}, interior=n, chunk=3)
    (piece,) = task.pieces(trial, task.batch())
    assert not task.plan(trial, piece[0]).apart
    close(evaluated(task.losses(trial, piece), trial), evaluated(mean_squares(slowly(task, trial)), trial))
