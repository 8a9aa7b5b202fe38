"""Periodic coordinates: shapes without sides there, networks that are periodic in every derivative, and what is refused."""

from math import pi

import numpy as np
import pytest
import torch
from torch import nn, sin

from pinnsketch import Box, Disk, Periodic, Problem, Solution, Term, solve
from pinnsketch.collocation import Collocation
from pinnsketch.derivatives import Nested
from pinnsketch.estimate import Corrected, estimate
from pinnsketch.features import Features
from pinnsketch.geometry import EmptyRegion, GeometryError
from pinnsketch.jets import Jets, Streams
from pinnsketch.network import MLP, build
from pinnsketch.points import draw
from pinnsketch.problem import ProblemError
from pinnsketch.trial import Trial

F64 = torch.float64
RING = Box(x=(-1, 3), t=(0, 2), periodic="x")
TORUS = Box(x=(0, 1), y=(0, 2), periodic=("x", "y"))
BOUNDS = torch.tensor(RING.bounds)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(network, seed=1):
    """The network with all that is still zero drawn at random."""
    with torch.no_grad():
        for p in network.parameters():
            p += torch.randn(p.shape, generator=generator(seed), dtype=p.dtype) * (p == 0)
    return network


def mlp(**options):
    return build("mlp", {"width": 7, "depth": 2, **options}, BOUNDS, ("x", "t"), 2, periodic=("x",), generator=generator())


def features(**options):
    return build("features", {"width": 12, **options}, BOUNDS, ("x", "t"), 2, periodic=("x",), generator=generator())


def layer(inputs, outputs):
    found = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=F64)
    nn.init.xavier_normal_(found.weight, generator=generator(3))
    nn.init.zeros_(found.bias)
    return found


def staged():
    network = mlp(stages=2)
    network.begin(1)
    return network


def patches(periodic=("x",), splits=((0, 0), (2, 1), (0, 1), (4, 0), (1, 0)), **options):
    """A tree with halvings on both sides of the seam."""
    options = {"width": 70, "each": 7, "frequency": 100.0, **options}
    network = build("patches", options, BOUNDS, ("x", "t"), 2, periodic=periodic, generator=generator())
    for box, axis in splits:
        network.split(box, axis)
    return network


NETWORKS = {
    "tanh": mlp,
    "sin": lambda: mlp(activation="sin", frequency=3.0),
    "harmonics": lambda: mlp(harmonics=3),
    "stages": staged,
    "features, tanh": lambda: features(frequency=4.0),
    "features, sin": lambda: features(activation="sin", harmonics=2),
    "features in patches of time": lambda: features(patches={"t": 3}),
    "adaptive patches": patches,
    "adaptive patches, the first": lambda: patches(splits=()),
    "adaptive patches, sin": lambda: patches(activation="sin"),
    "of the estimate": lambda: Corrected(mlp(), RING, 2, 9, generator()),
    "one's own": lambda: nn.Sequential(Periodic.of(RING), layer(3, 8), nn.Softplus(), layer(8, 2)),
}  # fmt: skip
networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
ORDERS = [(), (0,), (1,), (0, 0), (0, 1), (0, 0, 0), ((0, 1),), (0, 0, 0, 0)]


def points(n=20):
    low, high = BOUNDS.T
    return low + (high - low) * torch.rand(n, 2, generator=generator(2), dtype=F64)


# --- shapes


def faces(region):
    points = draw(region, 200)
    axis = np.abs(points.normal).argmax(axis=1)
    return {(region.coordinates[a], x[a]) for a, x in zip(axis, points.x, strict=True)}


def test_a_periodic_box_has_no_boundary_where_its_ends_meet():
    assert faces(RING.boundary) == {("t", 0), ("t", 2)}
    assert faces(RING.sides("x", "t")) == faces(RING.sides("t")) == faces(RING.boundary)
    assert faces(RING.start("t")) == {("t", 0)}
    assert RING.boundary != Box(x=(-1, 3), t=(0, 2)).boundary
    assert repr(RING) == "Box(x=(-1, 3), t=(0, 2), periodic='x')"
    assert Box(x=(0, 1), t=(0, 1), periodic=["t", "x"]) == Box(x=(0, 1), t=(0, 1), periodic="x, t")


def test_its_interior_and_signed_distance_know_of_no_end():
    x = draw(RING.interior, 300).x
    assert x[:, 0].min() < -0.97
    assert x[:, 0].max() > 2.97
    np.testing.assert_allclose(
        RING.distance(np.array([[-1.0, 0.5], [3.0, 1.9], [0.0, 2.5], [7.0, 1.0]])), [-0.5, -0.1, 0.5, -1]
    )
    assert (TORUS.distance(draw(TORUS.interior, 50).x) < 0).all()


def test_products_and_holes_stay_periodic():
    through_time = TORUS * Box(t=(0, 1))
    assert through_time.periodic == ("x", "y")
    assert faces(through_time.boundary) == {("t", 0), ("t", 1)}
    holed = TORUS - Disk((0.5, 1), 0.2)
    assert holed.periodic == ("x", "y")
    np.testing.assert_allclose(np.hypot(*(draw(holed.sides("x", "y"), 100).x - (0.5, 1)).T), 0.2)
    slotted = RING - Box(x=(0, 1), t=(0.5, 1))
    assert faces(slotted.sides("x")) == {("x", 0), ("x", 1)}
    assert (RING & Box(x=(-1, 3), t=(0, 1))).periodic == ("x",)
    assert faces((RING & Box(x=(-1, 3), t=(0, 1))).boundary) == {("t", 0), ("t", 1)}


WRONG = {
    "unknown": (lambda: Box(x=(0, 1), periodic="y"), "periodic names coordinates, which are x; got 'y'"),
    "sides": (lambda: RING.sides("x"), r"sides\(x\): .* is periodic there and has no sides: leave them out"),
    "side": (lambda: RING.side(x=-1), r"side\(x=-1\): .*it is periodic there"),
    "start": (lambda: Box(t=(0, 1), periodic="t").start("t"), "it is periodic there"),
    "half a union": (lambda: RING | Box(x=(-1, 3), t=(2, 3)), "periodic in the same coordinates"),
    "cut": (lambda: RING & Box(x=(0, 3), t=(0, 2)), "x is periodic, so both shapes must have the same ends there"),
}


@pytest.mark.parametrize(("build", "message"), WRONG.values(), ids=WRONG)
def test_what_a_periodic_shape_does_not_have_is_refused_by_name(build, message):
    with pytest.raises(GeometryError, match=message):
        build()


def test_a_torus_has_an_empty_boundary():
    with pytest.raises(EmptyRegion, match="has no such boundary"):
        draw(TORUS.boundary, 10)


# --- networks


def test_the_inputs_are_the_formula_of_their_docstring():
    x, y = points(), 2 * (points() - BOUNDS[:, 0]) / (BOUNDS[:, 1] - BOUNDS[:, 0]) - 1
    waves = [f(k * pi * y[:, :1]) for k in (1, 2, 3) for f in (torch.cos, torch.sin)]
    inputs = Periodic.of(RING, harmonics=3)
    torch.testing.assert_close(inputs(x), torch.cat([y[:, 1:], *waves], dim=1))
    assert inputs.columns.tolist() == [1, *[0] * 6]
    torch.testing.assert_close(inputs.slopes, torch.tensor([1, *(k * pi for k in (1, 1, 2, 2, 3, 3))], dtype=F64))
    plain = Periodic.of(Box(x=(-1, 3), t=(0, 2)))
    torch.testing.assert_close(plain(x), y)


@networks
def test_every_derivative_is_periodic(make):
    network, x = shaken(make()), points()
    there = x + torch.tensor([4.0, 0.0], dtype=F64)
    here, after = Nested(network, x), Nested(network, there)
    for order in ORDERS:
        for output in range(2):
            found = here.derivative(output, order)
            assert found.abs().max() > 1e-6
            torch.testing.assert_close(
                after.derivative(output, order), found, rtol=1e-9, atol=1e-9 * float(found.detach().abs().max())
            )


@networks
def test_one_forward_pass_gives_all_derivatives(make):
    network, x = shaken(make()), points()
    fast, slow = Jets(network, x, Streams.of(ORDERS)), Nested(network, x)
    for order in ORDERS:
        torch.testing.assert_close(fast.derivative(1, order), slow.derivative(1, order), rtol=1e-9, atol=1e-9)


def test_features_are_their_formula_of_cosines_and_sines():
    network, x = shaken(features(frequency=3.0)), points()
    inputs = network.inputs(x)
    inside = torch.einsum("jd,njd->nj", 3.0 * network.directions, inputs[:, None] - network.centres)
    torch.testing.assert_close(network(x), torch.tanh(inside) @ network.output.weight.T + network.output.bias)
    assert float((network.directions * network.inputs.slopes).abs().max()) <= 1
    torch.testing.assert_close(network.centres[:, 1] ** 2 + network.centres[:, 2] ** 2, torch.ones(12, dtype=F64))
    some = network.first(5)
    torch.testing.assert_close(some.hidden(x), network.hidden(x)[:, :5])


def test_options_that_do_nothing_or_break_periodicity_are_refused():
    with pytest.raises(ValueError, match="1 where no coordinate is periodic; got 2"):
        MLP(BOUNDS, harmonics=2)
    with pytest.raises(ValueError, match=r"one patch along each periodic coordinate; got patches \(2, 2\)"):
        Features(BOUNDS, periodic=(0,), patches=2)


# --- problems


def convection(beta=2.0, exact=None):
    ring = Box(x=(0, 2 * pi), t=(0, 1), periodic="x")
    return Problem(
        ring,
        "u",
        {
            "convection": Term(ring.interior, lambda u: u.t + beta * u.x),
            "start": Term(ring.start("t"), lambda u, x: u - sin(x), weight=10),
        },
        exact=exact or (lambda x, t: sin(x - beta * t)),
    )


def test_a_periodic_problem_is_solved_saved_and_estimated(tmp_path):
    solution = solve(
        convection(),
        network={"kind": "features", "width": 200},
        train={"method": "features", "steps": 30},
        points={"interior": 800},
    )
    assert solution.error["overall"] < 1e-9
    solution.save(tmp_path / "ring.pt")
    loaded = Solution.load(tmp_path / "ring.pt")
    t = np.linspace(0, 1, 5)
    np.testing.assert_allclose(loaded(x=0.3, t=t), solution(x=0.3, t=t))
    np.testing.assert_allclose(loaded(x=0.3 + 2 * pi, t=t), solution(x=0.3, t=t), atol=1e-12)


def test_the_estimate_is_the_true_error_of_a_network_half_trained():
    options = {"network": {"width": 10, "depth": 2}, "points": {"interior": 200, "boundary": 50}}
    solution = solve(convection(), train={"method": "lbfgs", "steps": 60}, **options)
    found = estimate(solution.trial, solution.task)
    assert found.correction == pytest.approx(solution.error["overall"], rel=0.02)


def test_a_network_of_ones_own_must_be_periodic_too():
    own = [layer(2, 8), nn.Tanh(), layer(8, 1)]
    task = Collocation(convection(), interior=20, boundary=10)
    with pytest.raises(
        ProblemError, match=r"network is not periodic in x, as the domain is. Begin it with Periodic.of\(domain\)"
    ):
        task.check(Trial(nn.Sequential(*own)))
    own[0] = layer(3, 8)
    assert task.check(Trial(nn.Sequential(Periodic.of(task.problem.domain), *own))) == []


def test_an_exact_solution_that_differs_between_the_ends_is_refused():
    problem = convection(exact=lambda x, t: x - t)
    network = build("mlp", {}, torch.tensor(problem.domain.bounds), ("x", "t"), 1, periodic=("x",))
    with pytest.raises(ProblemError, match="exact 'u' is not periodic in x"):
        Collocation(problem, interior=20, boundary=10).check(Trial(network))
