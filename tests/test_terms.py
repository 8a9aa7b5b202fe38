"""What each term contributes to the gradient, and each point to that, equals what a reverse pass for each of them gives."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pinnsketch import Box, Data, Problem, Term, Unknown, laplacian
from pinnsketch.blocks import Part
from pinnsketch.collocation import Collocation
from pinnsketch.derivatives import Nested
from pinnsketch.gradient import Gradient
from pinnsketch.jets import Outer
from pinnsketch.library import load_problem
from pinnsketch.monitor import Monitor
from pinnsketch.network import MLP
from pinnsketch.trial import Trial

F64 = torch.float64
PROBLEMS = Path(__file__).parents[1] / "problems"
SQUARE = Box(x=(0, 1), y=(0, 1))
DATA = Data({"x": [0.1, 0.2, 0.7], "y": [0.3, 0.1, 0.5], "seen": [1.0, 0.0, 2.0], "sure": [1.0, 0.5, 0.2]})


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def made(problem, network=None, **options):
    bounds = torch.tensor(problem.domain.bounds)
    generator = torch.Generator().manual_seed(0)
    network = network or MLP(bounds, len(problem.unknowns), width=6, depth=2, generator=generator)
    options = {"interior": 13, "boundary": 6} | options
    return Collocation(problem, **options), Trial(network, problem.coefficients)


def shipped(name, **parameters):
    return load_problem(PROBLEMS / f"{name}.py", parameters)


def columns(u, v):
    return torch.cat([laplacian(u) - v, u * v.y, v.x + u.yy], dim=1)


def square(terms, unknowns="u", **parameters):
    terms = {"law": Term(SQUARE.interior, terms)} if callable(terms) else terms
    return Problem(SQUARE, unknowns, terms, parameters=parameters)


def measured():
    law, data = Term(SQUARE.interior, lambda u: laplacian(u)), Term(DATA, lambda u, seen, sure: sure * (u - seen), weight=5)
    return square({"law": law, "data": data})


def several():
    return square({"law": Term(SQUARE.interior, columns, weight=3), "u": Term(SQUARE.boundary, lambda u: u)}, "u v")


CASES = {
    "poisson": lambda: shipped("poisson"),
    "kovasznay": lambda: shipped("kovasznay"),
    "burgers": lambda: shipped("burgers"),
    "inverse": lambda: shipped("inverse_diffusivity", probes=7),
    "several columns": several,
    "data": measured,
    "coefficient": lambda: square(lambda u, k: k * laplacian(u) + k**2 * u, k=Unknown(0.7, positive=True)),
}


def slowly(task, trial, parameters):
    """By term, the gradient of each point's part of its weighted loss, `(n, P)`: a reverse pass for each point."""
    found = {}
    for block in task.batch():
        names = task.namespace(Nested(trial.network, block.x), trial.coefficients, block)
        for name in block.terms:
            residual = task.evaluate(name, names, len(block.x))
            rows = []
            for one in task.weights[name] / residual.numel() * residual.square().sum(1):
                slopes = torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
                rows.append(torch.cat([slope.flatten() for slope in slopes]))
            found[name] = torch.stack(rows)
    return {name: found[name] for name in task.problem.terms}


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def near(found, expected, tolerance=1e-10):
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm()) + 1e-300


def correct(task, trial, parameters=None, norms=True):
    """Compare with the slow way, twice: when the forward pass is tried at a few points, and later."""
    parameters = [p for p in trial.parameters() if p.requires_grad] if parameters is None else parameters
    for _ in range(2):
        found = task.by_term(trial, task.batch(), parameters)
        expected = slowly(task, trial, parameters)
        assert list(found) == list(expected)
        for name, rows in expected.items():
            assert [g.shape for g in found[name].gradient] == [p.shape for p in parameters]
            near(flat(found[name].gradient), rows.sum(0))
            assert (found[name].norms is not None) == (norms is True or name in norms)
            if found[name].norms is not None:
                torch.testing.assert_close(found[name].norms, rows.norm(dim=1), rtol=1e-10, atol=1e-14)
    return found


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient_and_norms_of_each_term_are_those_of_a_reverse_pass_for_each_point(case):
    task, trial = made(case())
    correct(task, trial)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_terms_add_up_to_the_gradient_of_the_weighted_loss(case):
    problem = case()
    task, trial = made(problem, weights={name: 0.3 + k for k, name in enumerate(problem.terms)})
    parameters = [p for p in trial.parameters() if p.requires_grad]
    total = sum(flat(part.gradient) for part in task.by_term(trial, task.batch(), parameters).values())
    near(total, flat(Gradient(trial, task)(task.batch()).gradient), 1e-13)


@pytest.mark.parametrize("chunk", [1, 4, 5, 12])
@pytest.mark.parametrize("case", ["poisson", "kovasznay", "data"])
def test_points_in_pieces_give_what_they_give_together(case, chunk):
    (whole, trial), (pieces, _) = made(CASES[case]()), made(CASES[case](), chunk=chunk)
    parameters = list(trial.parameters())
    together, cut = (task.by_term(trial, task.batch(), parameters) for task in (whole, pieces))
    assert list(together) == list(cut)
    for name, part in together.items():
        near(flat(cut[name].gradient), flat(part.gradient), 1e-13)
        torch.testing.assert_close(cut[name].norms, part.norms, rtol=1e-10, atol=1e-15)


def test_parts_of_one_term_add_gradients_and_follow_each_other_in_norms():
    a, b = (Part([randn(2, 3, seed=s), randn(2, seed=s)], randn(4, seed=s).abs()) for s in (0, 1))
    both = a + b
    assert torch.equal(both.gradient[0], a.gradient[0] + b.gradient[0])
    assert torch.equal(both.norms, torch.cat([a.norms, b.norms]))
    assert (a + Part(b.gradient, None)).norms is None
    assert (Part(a.gradient, None) + b).norms is None


# --- by torch.func, with the equations written out --------------------------------------------------------------------------


def func_norms(network, residual, x, factor):
    """Norms of the gradient of `factor * residual(u, x)^2` at each point, u a function of one point and of the parameters."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters, x):
        def u(x):
            return torch.func.functional_call(network, parameters, (x[None],))[0]

        return factor * residual(u, x).square().sum()

    slopes = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    return torch.cat([slope.flatten(1) for slope in slopes.values()], dim=1).norm(dim=1)


def first_and_second(u, x):
    return torch.func.jacrev(u)(x), torch.func.jacrev(torch.func.jacrev(u))(x)


def burgers(u, x):
    first, second = first_and_second(u, x)
    return first[0, 1] + u(x)[0] * first[0, 0] - 0.01 / torch.pi * second[0, 0, 0]


def momentum_x(u, x):
    first, second = first_and_second(u, x)
    return u(x)[0] * first[0, 0] + u(x)[1] * first[0, 1] + first[2, 0] - second[0].trace() / 40


def continuity(u, x):
    first, _ = first_and_second(u, x)
    return first[0, 0] + first[1, 1]


@pytest.mark.parametrize(
    ("problem", "term", "residual"),
    [("burgers", "burgers", burgers), ("kovasznay", "momentum_x", momentum_x), ("kovasznay", "continuity", continuity)],
)
def test_norms_are_those_of_per_sample_gradients_of_torch_func(problem, term, residual):
    task, trial = made(shipped(problem), weights={term: 2.5})
    block = next(block for block in task.batch() if term in block.terms)
    part = task.by_term(trial, task.batch(), list(trial.network.parameters()))[term]
    expected = func_norms(trial.network, residual, block.x, 2.5 / len(block.x))
    torch.testing.assert_close(part.norms, expected, rtol=1e-10, atol=0)


def test_norms_of_a_laplacian_are_those_of_per_sample_gradients_of_torch_func():
    task, trial = made(square(lambda u, x: laplacian(u) - torch.sin(x)))
    expected = func_norms(
        trial.network, lambda u, x: first_and_second(u, x)[1][0].trace() - torch.sin(x[0]), task.batch()[0].x, 1 / 13
    )
    part = task.by_term(trial, task.batch(), list(trial.network.parameters()))["law"]
    torch.testing.assert_close(part.norms, expected, rtol=1e-10, atol=0)


def test_single_precision_norms_agree_to_five_digits():
    problem = shipped("poisson")
    task, trial = made(problem)
    double = task.by_term(trial, task.batch(), list(trial.parameters()))
    task, trial = made(problem, trial.network.float(), dtype=torch.float32)
    single = task.by_term(trial, task.batch(), list(trial.parameters()))
    for name, part in double.items():
        torch.testing.assert_close(single[name].norms.double(), part.norms, rtol=1e-5, atol=1e-6 * float(part.norms.max()))


# --- where the forward pass does not give it ------------------------------------------------------------------------------


class Made(nn.Module):
    def __init__(self, between, **more):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(2, 4, dtype=F64), nn.Linear(4, 1, dtype=F64)
        self.between = between
        for name, part in more.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.last(self.between(self, torch.tanh(self.first(x))))


def twice(m, h):
    return torch.tanh(m.mid(torch.tanh(m.mid(h))))


NETWORKS = {
    "an operation without a rule": (lambda: Made(lambda m, h: torch.special.erf(h)), set()),
    "a hidden axis": (lambda: Made(lambda m, h: torch.tanh(m.mid(h[:, None]))[:, 0], mid=nn.Linear(4, 4, dtype=F64)), set()),
    "a product": (lambda: Made(lambda m, h: torch.tanh(h @ m.w), w=nn.Parameter(randn(4, 4))), {"sides"}),
    "layer norm": (lambda: Made(lambda m, h: m.norm(h), norm=nn.LayerNorm(4, dtype=F64)), {"law", "sides"}),
    "a layer used twice": (lambda: Made(twice, mid=nn.Linear(4, 4, dtype=F64)), {"law", "sides"}),
    "a layer that is not used": (lambda: Made(lambda m, h: h, spare=nn.Linear(4, 4, dtype=F64)), {"law", "sides"}),
}


@pytest.mark.parametrize(("network", "known"), NETWORKS.values(), ids=NETWORKS)
def test_gradients_are_right_for_any_network_and_norms_are_right_or_none(network, known):
    terms = {"law": Term(SQUARE.interior, lambda u, x: laplacian(u) - x), "sides": Term(SQUARE.boundary, lambda u: u, weight=9)}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        correct(*made(square(terms), network()), norms=known)


def test_a_residual_that_mixes_points_has_no_norms_but_the_right_gradient():
    task, trial = made(square(lambda u: u - u.value.mean()))
    parameters = list(trial.parameters())
    part = task.by_term(trial, task.batch(), parameters)["law"]
    assert part.norms is None
    near(flat(part.gradient), flat(Gradient(trial, task)(task.batch()).gradient), 1e-13)


def test_a_network_without_its_coefficients_can_be_asked_for():
    """The monitor watches the network: the same gradients and norms, of its parameters alone."""
    problem = CASES["coefficient"]()
    task, trial = made(problem)
    correct(task, trial, parameters=list(trial.network.parameters()))


def test_a_term_that_depends_on_no_weight_contributes_nothing():
    law, known = Term(SQUARE.interior, lambda u: laplacian(u)), Term(SQUARE.interior, lambda u, k: k + 0 * u.value, points=5)
    problem = square({"law": law, "known": known}, k=Unknown(0.7))
    task, trial = made(problem)
    found = correct(task, trial, parameters=list(trial.network.parameters()))
    assert float(flat(found["known"].gradient).norm()) == 0


def test_it_leaves_gradients_graphs_and_random_numbers_alone():
    task, trial = made(shipped("kovasznay"))
    rng = torch.get_rng_state()
    for p in trial.parameters():
        p.grad = torch.ones_like(p)
    found = task.by_term(trial, task.batch(), list(trial.parameters()))
    assert all(bool((p.grad == 1).all()) for p in trial.parameters())
    assert torch.equal(rng, torch.get_rng_state())
    for part in found.values():
        assert not part.norms.requires_grad
        assert not any(g.requires_grad for g in part.gradient)


def test_losses_after_it_are_bitwise_those_before_it():
    task, trial = made(shipped("burgers"))
    other, again = made(shipped("burgers"))
    task.by_term(trial, task.batch(), list(trial.parameters()))
    for a, b in zip(Gradient(trial, task)(task.batch()).gradient, Gradient(again, other)(other.batch()).gradient, strict=True):
        assert torch.equal(a, b)


# --- what the monitor makes of it ----------------------------------------------------------------------------------------


def test_the_monitor_takes_terms_in_the_order_of_its_parameters():
    task, trial = made(shipped("kovasznay"))
    monitor = Monitor(trial.network, every=1)
    monitor.note_terms(task.by_term(trial, task.batch(), monitor.parameters))
    reading = monitor.read()
    rows = slowly(task, trial, monitor.parameters)
    sizes = [p.numel() for p in monitor.parameters]
    for k, (name, layer) in enumerate(reading.layers.items()):
        start = sum(sizes[: 2 * k])
        for term, each in rows.items():
            norm = each[:, start : start + sizes[2 * k] + sizes[2 * k + 1]].sum(0).norm()
            assert layer.terms["norms"][term] == pytest.approx(float(norm), rel=1e-9), name
    for term, each in rows.items():
        norms = each.norm(dim=1)
        assert reading.network.terms["top_share"][term] == pytest.approx(float(norms.max() / norms.sum()), rel=1e-9)


def test_split_gives_the_comparison_that_by_term_gives():
    task, trial = made(shipped("kovasznay"), weights={"continuity": 7.0})
    ours, theirs = (Monitor(trial.network, every=1) for _ in range(2))
    ours.note_terms(task.by_term(trial, task.batch(), ours.parameters))
    theirs.split({name: task.weights[name] * loss for name, loss in task.losses(trial, task.batch()).items()})
    a, b = ours.read(), theirs.read()
    for left, right in ((a.network, b.network), *zip(a.layers.values(), b.layers.values(), strict=True)):
        for word in ("norms", "cosines"):
            assert right.terms[word] == pytest.approx(left.terms[word], rel=1e-9, abs=1e-12)
        for word in ("ratio", "alignment"):
            assert right.terms[word] == pytest.approx(left.terms[word], rel=1e-9, abs=1e-12)


# --- outer products ------------------------------------------------------------------------------------------------------


def test_squared_norms_of_outer_products_are_those_of_their_rows():
    for s, c, n, o, i in ((1, 1, 1, 1, 1), (3, 2, 5, 4, 6), (2, 3, 7, 1, 3)):
        outer = Outer(randn(s, n, i), randn(s, c, n, o, seed=1))
        torch.testing.assert_close(outer.squares(), outer.rows().square().sum(1), rtol=1e-12, atol=1e-12)
