"""An ansatz: conditions hold whatever the weights, and all that is made of a network knows it."""

import pytest
import torch
from torch import cos, sin

from pinnsketch import Box, Problem, Solution, Term, laplacian, solve
from pinnsketch.collocation import Collocation
from pinnsketch.derivatives import Nested
from pinnsketch.network import build
from pinnsketch.problem import ProblemError
from pinnsketch.trial import Trial

SQUARE = Box(x=(0, 1), y=(0, 1))
TWO = torch.tensor([[0.3, 0.6], [0.0, 0.2], [1.0, 0.7]], dtype=torch.float64)


def poisson(**ansatz):
    terms = {
        "poisson": Term(SQUARE.interior, lambda u, x: laplacian(u) + u * u.x - x),
        "sides": Term(SQUARE.boundary, lambda u, x, y, k: u - k * x * y),
    }
    return Problem(SQUARE, "u", terms, {"k": 2.0}, ansatz=ansatz)


def held(k, u, x, y):
    return k * x * y + sin(x) * (1 - x) * y * (1 - y) * u


def network(problem, **options):
    options = {"width": 6, "depth": 2, **options}
    generator = torch.Generator().manual_seed(0)
    bounds = torch.tensor(SQUARE.bounds)
    return build("mlp", options, bounds, SQUARE.coordinates, len(problem.unknowns), ansatz=problem.shaping, generator=generator)


@pytest.mark.parametrize("stages", [1, 2])
def test_the_solution_is_what_the_ansatz_makes_of_the_network(stages):
    problem = poisson(u=held)
    shaped, plain = network(problem, stages=stages), network(poisson(), stages=stages)
    if stages == 2:
        shaped.begin(1), plain.begin(1)
    x, y = TWO.split(1, 1)
    torch.testing.assert_close(shaped(TWO), held(2.0, plain(TWO), x, y), rtol=1e-14, atol=0)
    torch.testing.assert_close(shaped(TWO[1:])[:, 0], torch.tensor([0.0, 1.4], dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("stages", [1, 2])
def test_residuals_and_rows_of_the_jacobian_are_those_of_nested_differentiation_by_one_forward_pass(stages):
    problem = poisson(u=held)
    net = network(problem, stages=stages)
    if stages == 2:
        net.begin(1)
    task, trial = Collocation(problem, interior=9, boundary=8), Trial(net)
    batch, parameters = task.batch(), [p for p in trial.parameters() if p.requires_grad]
    r, jacobian = task.linearize(trial, batch)
    assert {task.plan(trial, block).rows for block in batch} == {True}
    rows, found = [], []
    for block in batch:
        residuals = task.plans.residuals
        for term, values in residuals.evaluate_all(trial, block, Nested(net, block.x.clone())).items():
            for entry in (task.weights[term] / len(values)) ** 0.5 * values[:, 0]:
                slopes = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
                rows.append(torch.cat([slope.flatten() for slope in slopes]))
                found.append(entry.detach())
    torch.testing.assert_close(r, torch.stack(found), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(jacobian.dense(), torch.stack(rows), rtol=1e-9, atol=1e-10)
    sides = batch[1].terms == ("sides",) and r[-len(batch[1].x) :]
    assert float(sides.abs().max()) < 1e-15  # met, whatever the weights


def test_it_trains_by_every_kind_of_method_and_what_it_holds_stays(tmp_path):
    exact = {"exact": lambda x, y: sin(torch.pi * x) * sin(torch.pi * y)}
    terms = {
        "poisson": Term(SQUARE.interior, lambda u, x, y: laplacian(u) + 2 * torch.pi**2 * exact["exact"](x, y)),
        "sides": Term(SQUARE.boundary, lambda u: u),
    }
    hard = Problem(SQUARE, "u", terms, exact=exact["exact"], ansatz={"u": lambda u, x, y: 16 * x * (1 - x) * y * (1 - y) * u})
    size = {"network": {"width": 10, "depth": 2}, "points": {"interior": 150, "boundary": 20, "resample": 1}}
    for train in (
        {"method": "natural_gradient", "steps": 30},
        [{"method": "adam", "steps": 20}, {"method": "lbfgs", "steps": 60}],
    ):
        solution = solve(hard, train=train, **size)
        assert solution.error["overall"] < (1e-5 if isinstance(train, dict) else 1e-2)
        assert float(abs(solution(x=[0.0, 0.3], y=[0.4, 1.0])).max()) < 1e-15
        assert solution.estimate["correction"] == pytest.approx(solution.error["overall"], rel=0.5)
    solution.save(tmp_path / "m.pt")
    again = Solution.load(tmp_path / "m.pt", problem=hard)
    assert float(again(x=0.3, y=0.2)) == pytest.approx(float(solution(x=0.3, y=0.2)), rel=1e-12)  # maybe on a GPU
    with pytest.raises(Exception, match="trained with an ansatz or an enrichment: give its problem"):
        Solution.load(tmp_path / "m.pt")


def test_it_follows_the_parameters_of_a_stage():
    problem = poisson(u=held)
    trial = Trial(network(problem))
    before = trial(TWO)
    trial.put({"k": 3.0})
    torch.testing.assert_close(trial(TWO) - before, TWO.prod(1, keepdim=True))
    trial.put({})
    torch.testing.assert_close(trial(TWO), before)


def test_slabs_of_time_keep_it():
    strip = Box(x=(0, 1), t=(0, 1))
    terms = {
        "heat": Term(strip.interior, lambda u: u.t - u.xx),
        "ends": Term(strip.sides("x"), lambda u: u),
        "start": Term(strip.start("t"), lambda u, x: u - sin(torch.pi * x)),
    }
    problem = Problem(strip, "u", terms, ansatz={"u": lambda u, x: x * (1 - x) * u})
    train = {"method": "natural_gradient", "steps": 6}
    size = {"network": {"width": 6, "depth": 2, "slabs": 3}, "points": {"interior": 60, "boundary": 12}}
    solution = solve(problem, train=train, **size)
    assert float(abs(solution(x=[0.0, 1.0, 0.0], t=[0.1, 0.5, 0.9])).max()) < 1e-15


@pytest.mark.parametrize(
    ("ansatz", "message"),
    [
        ({"v": lambda v: v}, "ansatz: 'v' is no unknown; the unknowns are u"),
        ({"u": lambda u, z: z * u}, "ansatz u: it asks for 'z'; it may ask for u, x, y, k"),
        ({"u": lambda x: x}, "ansatz u: it asks for no unknown, so that no network could change it"),
    ],
    ids=["no unknown", "no coordinate", "no network"],
)
def test_what_does_not_fit_is_refused(ansatz, message):
    with pytest.raises(ProblemError, match=message):
        poisson(**ansatz)


def test_an_ansatz_and_an_enrichment_are_refused_and_so_are_features():
    terms = poisson().terms
    with pytest.raises(ProblemError, match=r"Give an ansatz, .* or an enrichment"):
        Problem(SQUARE, "u", terms, {"k": 2.0}, ansatz={"u": lambda u: u}, lift={"u": lambda x: cos(x)})
    with pytest.raises(ValueError, match="ansatz, which networks of kind mlp take; got the kind features"):
        build("features", {"width": 50}, torch.tensor(SQUARE.bounds), SQUARE.coordinates, 1, ansatz=poisson(u=held).shaping)


def test_auto_trains_a_network():
    problem = poisson(u=held)
    solution = solve(problem, train={"method": "auto", "until": 0.5})
    assert "natural gradient" in solution.metrics["chosen"]
    assert float(solution(x=1.0, y=0.5)) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda u, x: x.missing() * u, r"ansatz u: it failed \(test_ansatz.py, line \d+\): AttributeError: .*'missing'"),
        (lambda u: u.sum(1), r"ansatz u: expected one value a point, \(\d+, 1\), as it receives them; got shape \(\d+,\)"),
        (lambda u: 1.0, r"ansatz u: expected one value a point, .* got float"),
    ],
    ids=["fails", "wrong shape", "a number"],
)
def test_one_that_fails_or_has_the_wrong_shape_is_named(function, message):
    size = {"network": {"width": 6, "depth": 2}, "points": {"interior": 20, "boundary": 8}}
    with pytest.raises(ProblemError, match=message):
        solve(poisson(u=function), train={"method": "adam", "steps": 2}, **size)


def test_one_that_differs_between_the_ends_of_a_periodic_coordinate_is_refused():
    ring = Box(x=(0, 1), t=(0, 1), periodic="x")
    problem = Problem(ring, "u", {"law": Term(ring.interior, lambda u: u.t)}, ansatz={"u": lambda u, x: x * u})
    with pytest.raises(ProblemError, match=r"The network is not periodic in x, as the domain is\. Let its ansatz be so too"):
        solve(problem, network={"width": 6, "depth": 2}, train={"method": "adam", "steps": 2})
