"""The flow in the corners of the cavity, which the enriched problem lifts out, and the fields that networks are given."""

from pathlib import Path

import pytest
import torch

from pinnsketch import Box, Problem, Term
from pinnsketch.collocation import Collocation
from pinnsketch.derivatives import Nested
from pinnsketch.enrichment import Enrichment
from pinnsketch.features import Features
from pinnsketch.field import Field, laplacian
from pinnsketch.jets import Jets, Streams
from pinnsketch.library import load_problem
from pinnsketch.methods.patch_system import PatchSystem
from pinnsketch.patches import Patches
from pinnsketch.solution import Solution
from pinnsketch.solve import solve
from pinnsketch.train import Stage, train
from pinnsketch.trial import Trial

PROBLEM = Path(__file__).parents[1] / "problems" / "cavity.py"
F64 = torch.float64
SQUARE = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=F64)


def cavity(**parameters):
    return load_problem(PROBLEM, {"enriched": True, **parameters})


def one(side, re=1.0):
    """The lift of one corner, for two corners do not solve the equations together."""
    corner = cavity().lift["u"].__globals__["corner"]
    return lambda x: torch.cat(corner(x[:, :1], x[:, 1:], re, side), dim=1)


def near(side, distance, n=20):
    r = distance * torch.rand(n, 2, generator=torch.Generator().manual_seed(1), dtype=F64).clamp(min=0.1)
    return torch.cat([r[:, :1] if side == 0 else 1 - r[:, :1], 1 - r[:, 1:]], dim=1)


def residuals(side, distance, re=1.0):
    """Those of the lift of a corner, at points up to a distance away."""
    problem, x = cavity(re=re), near(side, distance)
    derivatives = Nested(one(side, re), x)
    u, v, p = (Field(name, k, ("x", "y"), derivatives) for k, name in enumerate("uvp"))
    at = {"u": u, "v": v, "p": p, "re": re}
    terms = {name: problem.terms[name] for name in ("momentum_x", "momentum_y", "continuity")}
    return {name: float(term.residual(**{k: at[k] for k in term.needs}).detach().abs().max()) for name, term in terms.items()}


@pytest.mark.parametrize("side", [0, 1])
def test_near_a_corner_the_residual_of_the_lift_stays_bounded_where_its_terms_grow_as_r_to_the_minus_2(side):
    for distance in (1e-2, 1e-4):
        found = residuals(side, distance)
        assert found["momentum_x"] < 0.1
        assert found["momentum_y"] < 0.1
        assert found["continuity"] < 1e-10 / distance
    x = near(side, 1e-4)
    derivatives = Nested(one(side), x)
    assert float(laplacian(Field("u", 0, ("x", "y"), derivatives)).detach().abs().max()) > 1e6


@pytest.mark.parametrize("side", [0, 1])
def test_the_lift_of_a_corner_has_speed_1_on_the_lid_and_0_on_the_wall(side):
    s = torch.linspace(0.01, 1, 9, dtype=F64)[:, None]
    along = s if side == 0 else 1 - s
    lid, wall = one(side, 50.0)(torch.cat([along, 0 * s + 1], 1)), one(side, 50.0)(torch.cat([0 * s + side, 1 - s], 1))
    torch.testing.assert_close(lid[:, :2], torch.tensor([[1.0, 0.0]], dtype=F64).expand(9, 2), rtol=0, atol=1e-9)
    torch.testing.assert_close(wall[:, :2], torch.zeros(9, 2, dtype=F64), rtol=0, atol=1e-9)


def test_in_the_corner_itself_the_lift_is_finite():
    assert bool(cavity().lifting(torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=F64)).isfinite().all())


def test_another_lid_has_no_singular_corners():
    with pytest.raises(ValueError, match="enriched: expected the lid full, whose corners are singular; got parabola"):
        cavity(lid="parabola")


# --- enrichment ------------------------------------------------------------------------------------------------------------

BOX = Box(x=(0, 1), y=(0, 1))


def root(x, y):
    """Singular in a corner, which features are not."""
    return torch.hypot(x + 1e-3, y + 1e-3) ** 0.5


def other(x, y):
    return root(1 - x, y)


def pair(**more):
    """u = 3 root + other and v = 3 y root, of which a field with one weight for both is given, beside another and nu x^2."""

    def lifted(x, nu):
        return nu * x**2

    terms = {
        "u": Term(BOX.interior, lambda u, x, y, nu: u - 3 * root(x, y) - other(x, y) - nu * x**2),
        "v": Term(BOX.interior, lambda v, x, y: v - 3 * y * root(x, y)),
    }
    fields = [{"u": root, "v": lambda x, y: y * root(x, y)}, other]
    return Problem(BOX, "u v", terms, {"nu": 2.0}, enrichment=fields, lift={"u": lifted}, **more)


@pytest.mark.parametrize(("network", "method"), [("features", "features"), ("patches", "patches")])
def test_a_field_has_one_weight_for_its_unknowns_a_function_one_for_each_and_a_lift_none(network, method, tmp_path):
    problem = pair()
    options = {"kind": network, "width": 60} | ({"each": 20} if network == "patches" else {})
    found = solve(problem, network=options, train={"method": method, "steps": 2}, points={"interior": 200}, monitor=False)
    weights = found.trial.network.singular.weights.weight
    assert weights.shape == (1, 3)
    torch.testing.assert_close(weights.detach()[0], torch.tensor([3.0, 1, 0], dtype=F64), rtol=0, atol=1e-6)
    found.save(tmp_path / "model.pt")
    again = Solution.load(tmp_path / "model.pt", problem=problem)
    assert again(x=0.3, y=0.1) == found(x=0.3, y=0.1)
    assert found(x=0.5, y=0.25)["v"] == pytest.approx(0.75 * float(root(torch.tensor(0.5), torch.tensor(0.25))), rel=1e-6)


def drawn(kind, problem):
    generator = torch.Generator().manual_seed(0)
    options = {"enrichment": problem.enriching, "lift": problem.lifting, "generator": generator}
    network = kind(SQUARE, 2, width=40, **options, **({"each": 20} if kind is Patches else {}))
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    return network


@pytest.mark.parametrize("kind", [Features, Patches])
def test_derivatives_in_one_pass_equal_nested_ones_also_when_asked_again(kind):
    network, x = drawn(kind, pair()), torch.rand(30, 2, dtype=F64, generator=torch.Generator().manual_seed(3))
    orders = [(0,), (1, 1), ((0, 1),)]
    slow = Nested(network, x)
    for _ in range(2):
        fast = Jets(network, x, Streams.of(orders))
        for k in (0, 1):
            for order in [(), *orders]:
                torch.testing.assert_close(fast.derivative(k, order), slow.derivative(k, order), rtol=1e-9, atol=1e-9)
    assert len(network.singular._known) == 4
    x += 0.25  # the same memory, with other points in it
    fast, slow = Jets(network, x, Streams.of(orders)), Nested(network, x)
    torch.testing.assert_close(fast.derivative(0, (1, 1)), slow.derivative(0, (1, 1)), rtol=1e-9, atol=1e-9)


def test_what_is_kept_of_fields_is_bounded(monkeypatch):
    monkeypatch.setattr("pinnsketch.enrichment.MOST", 5)
    network = drawn(Features, pair())
    for n in range(9):
        Jets(network, torch.zeros(n + 1, 2, dtype=F64), Streams.of([(0,)])).derivative(0, (0,))
        assert len(network.singular._known) <= 5


def test_the_jacobian_of_an_enriched_network_is_its_derivative():
    problem = pair()
    trial = Trial(drawn(Patches, problem))
    system = PatchSystem(Collocation(problem, interior=40), trial)
    batch, start = system.task.batch(), system.weights.now
    r, jacobian = system.weights.linearize(batch)
    v = torch.randn(len(start), dtype=F64, generator=torch.Generator().manual_seed(4))
    system.weights.place(start + v)
    torch.testing.assert_close(system.weights.residuals(batch), r + jacobian.dense() @ v)  # they are affine here


def test_a_stage_with_other_parameters_has_the_lift_of_these():
    problem, values, x = pair(), [], torch.full((1, 2), 0.5, dtype=F64)
    trial, task = Trial(drawn(Features, problem)), Collocation(problem, interior=40)
    lift = problem.lifting
    for step in train(trial, task, [Stage("adam", 1, parameters={"nu": 6.0}), Stage("adam", 1)]):
        bare = trial.network.output(trial.network.hidden(x)) + trial.network.singular.weights.weight[0, 0] * 0
        values.append((trial(x) - bare).detach()[0, 0] - Enrichment(problem.enriching, None, F64)(x)[0, 0].detach())
        weights = trial.network.singular.weights.weight[0].detach()
        values[-1] -= weights[0] * root(*x.T)[0] + weights[1] * other(*x.T)[0]
        assert step.finite
    torch.testing.assert_close(torch.stack(values), torch.tensor([6.0, 2.0], dtype=F64) / 4)
    assert float(lift(x)[0, 0]) == 0.5


def test_a_lift_of_what_is_no_unknown_and_a_function_of_what_is_not_there_are_refused():
    terms = {"a": Term(BOX.interior, lambda u: u.x)}
    with pytest.raises(ValueError, match="lift w: 'w' is no unknown; the unknowns are u"):
        Problem(BOX, "u", terms, lift={"w": lambda x: x})
    with pytest.raises(ValueError, match="lift u: it asks for 'z'; it may ask for x, y"):
        Problem(BOX, "u", terms, lift={"u": lambda z: z})
    with pytest.raises(ValueError, match="enrichment, function 2, u: it asks for 'z'"):
        Problem(BOX, "u", terms, enrichment=[lambda x: x, {"u": lambda z: z}])
