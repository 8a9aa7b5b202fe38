"""Law 4: every derivative in one forward pass equals nested differentiation to rounding, for values and for training."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pinnsketch import Box, Problem, Term, diff, laplacian
from pinnsketch.collocation import Collocation, Trial
from pinnsketch.derivatives import Nested
from pinnsketch.jets import RULES, Jet, Jets, NoRule, Streams
from pinnsketch.jets.streams import partitions
from pinnsketch.network import ACTIVATIONS, MLP

F64 = torch.float64


def mlp(d=2, outputs=2, seed=0, **options):
    bounds = torch.tensor([[-1.0, 2.0]] * d, dtype=F64)
    options = {"width": 7, "depth": 2} | options
    return MLP(bounds, outputs, generator=torch.Generator().manual_seed(seed), **options)


def points(n=5, d=2, seed=0):
    return 0.2 + torch.rand(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def one(*order):
    return frozenset([tuple(sorted(order))])


def agree(found, expected, tolerance=1e-10):
    found, expected = found.detach(), expected.detach()
    assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def compare(forward, x, wanted, outputs=1, parameters=()):
    """Jets against nested differentiation: derivatives, and their gradient with respect to parameters."""
    jets, nested = Jets(forward, x, Streams.of(wanted)), Nested(forward, x)
    for output, orders in itertools.product(range(outputs), wanted):
        fast, slow = jets.derivative(output, orders), nested.derivative(output, orders)
        agree(fast, slow)
        agree(jets.value(output), nested.value(output))
        if parameters and slow.requires_grad:
            pairs = zip(*(torch.autograd.grad(y.square().sum(), parameters, retain_graph=True, allow_unused=True,
                                              materialize_grads=True) for y in (fast, slow)), strict=True)  # fmt: skip
            for ours, theirs in pairs:
                agree(ours, theirs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=15, deadline=None)
@given(
    orders=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    depth=st.integers(1, 3),
)
def test_any_mixed_partials_up_to_order_four_of_any_network_equal_nested_ones(activation, orders, seed, depth):
    network = mlp(3, seed=seed, activation=activation, depth=depth)
    compare(network, points(4, 3, seed), {one(*order) for order in orders}, 2, list(network.parameters()))


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_collapsed_laplacian_is_the_sum_of_the_second_derivatives(activation, d):
    network, x = mlp(d, 1, activation=activation), points(6, d)
    whole = frozenset((i, i) for i in range(d))
    compare(network, x, {whole}, 1, list(network.parameters()))
    apart = Jets(network, x, Streams.of({one(i, i) for i in range(d)}))
    agree(Jets(network, x, Streams.of({whole})).derivative(0, whole), sum(apart.derivative(0, one(i, i)) for i in range(d)))


def test_a_collapsed_laplacian_carries_as_many_streams_as_coordinates_and_one():
    for d in (1, 2, 10, 100):
        assert len(Streams.of({frozenset((i, i) for i in range(d))})) == d + 1


def test_streams_hold_what_is_wanted_and_what_that_is_made_of_and_nothing_else():
    assert Streams.of({one(0)}).wanted == (one(0),)
    assert set(Streams.of({one(0, 1)}).wanted) == {one(0), one(1), one(0, 1)}
    assert set(Streams.of({one(0, 0, 1)}).wanted) == {one(0), one(1), one(0, 0), one(0, 1), one(0, 0, 1)}
    assert len(Streams.of(())) == 0


@pytest.mark.parametrize(("order", "bell"), [((), 1), ((0,), 1), ((0, 1), 2), ((0, 1, 2), 5), ((0, 0, 1, 1), 15)])
def test_partitions_are_as_many_as_bells_number(order, bell):
    found = partitions(order)
    assert len(found) == bell
    assert all(sorted(itertools.chain(*blocks)) == sorted(order) for blocks in found)


EXPRESSIONS = {
    "tanh": torch.tanh,
    "method": lambda x: x.sin().tanh(),
    "sin cos": lambda x: torch.sin(x) * torch.cos(x),
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "powers": lambda x: x**3 + x**-2 + x**2.5 + x**1 + x**0,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "softplus": functional.softplus,
    "arithmetic": lambda x: (2 * x - 3) / (x + 1) - (1 - x) * (4 / x) + (-x),
    "product": lambda x: x[:, :1] * x[:, 1:] * x[:, :1],
    "quotient": lambda x: x[:, :1] / (1 + x[:, 1:] * x[:, 1:]),
    "cat": lambda x: torch.cat([x, torch.sin(x), x * x], dim=1),
    "reshape": lambda x: x.reshape(-1, 2, 1).reshape(len(x.value) if isinstance(x, Jet) else len(x), 2),
    "sum": lambda x: (x * x).sum(dim=1, keepdim=True),
    "mean": lambda x: torch.mean(x * torch.exp(x), dim=-1, keepdim=True),
    "matmul": lambda x: x @ torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64),
    "tensors": lambda x: (x - torch.tensor([0.1, 0.2], dtype=F64)) * torch.tensor([3.0, 5.0], dtype=F64),
    "layer norm": lambda x: functional.layer_norm(torch.cat([x, x * x, x**3], 1), (6,), torch.arange(6.0, dtype=F64)),
}
ORDERS = {one(0), one(1), one(0, 1), one(0, 0), one(0, 0, 1), one(0, 0, 1, 1), one(1, 1, 1, 1), frozenset([(0, 0), (1, 1)])}


@pytest.mark.parametrize("function", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_rule_equals_nested_differentiation(function):
    x = points()
    compare(function, x, ORDERS, function(x).shape[1])


CLOSED = {
    "exp": (lambda x: torch.exp(2 * x), lambda x, k: 2**k * torch.exp(2 * x)),
    "sin": (lambda x: torch.sin(3 * x), lambda x, k: 3**k * torch.sin(3 * x + k * math.pi / 2)),
    "power": (lambda x: x**4, lambda x, k: math.perm(4, k) * x ** (4 - k)),
    "log": (torch.log, lambda x, k: (-1) ** (k - 1) * math.factorial(k - 1) * x**-k),
}


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize(("function", "derivative"), CLOSED.values(), ids=CLOSED)
def test_every_closed_form_is_met(function, derivative, k):
    x = points(9, 1)
    agree(Jets(function, x, Streams.of({one(*[0] * k)})).derivative(0, one(*[0] * k)), derivative(x, k), 1e-12)


def test_whole_powers_have_whole_derivatives_at_zero():
    x = torch.zeros(1, 1, dtype=F64)
    jets = Jets(lambda x: x**2, x, Streams.of({one(0, 0, 0)}))
    assert [float(jets.derivative(0, one(*[0] * k))) for k in (1, 2, 3)] == [0.0, 2.0, 0.0]


class Residual(nn.Module):
    """A network of other makings: residual blocks, layer norm, gating, its own submodules."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(2, 6, dtype=F64), nn.Linear(6, 6, dtype=F64)
        self.norm, self.act, self.last = nn.LayerNorm(6, dtype=F64), nn.SiLU(), nn.Linear(6, 1, dtype=F64)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = h + self.act(self.second(self.norm(h))) * torch.sigmoid(h)
        return self.last(h)


@pytest.mark.parametrize(
    "network",
    [Residual(), nn.Sequential(nn.Linear(2, 5), nn.GELU(), nn.Linear(5, 5), nn.Softplus(), nn.Linear(5, 1)).double()],
    ids=["residual", "sequential"],
)
def test_a_module_made_of_known_operations_works_unchanged(network):
    compare(network, points(), ORDERS, 1, list(network.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_reverse_pass_of_activations_passes_gradcheck(dtype):
    if dtype == torch.float32:
        x = points().float()
        assert Jets(mlp().float(), x, Streams.of({one(0, 0)})).derivative(0, one(0, 0)).dtype == dtype
        return
    streams = Streams.of({one(0, 0, 1), frozenset([(0, 0), (1, 1)])})
    value, parts = points(2, 2).requires_grad_(), torch.randn(len(streams), 2, 2, dtype=F64).requires_grad_()
    for rule in (torch.tanh, torch.sin, functional.silu, functional.gelu):

        def through(v, p, rule=rule):
            jet = RULES[rule](Jet(v, p, streams))
            return jet.value, jet.parts

        assert torch.autograd.gradcheck(through, (value, parts))


@pytest.mark.parametrize(
    "function",
    [torch.erf, torch.special.erf, lambda x: x.relu(), lambda x: torch.sum(x), lambda x: x.sum(0), lambda x: x**x,
     lambda x: x.reshape(-1), lambda x: torch.cat([x, x], dim=0), lambda x: functional.gelu(x, approximate="tanh"),
     lambda x: functional.softplus(x, beta=2.0)],
)  # fmt: skip
def test_what_has_no_rule_says_so(function):
    with pytest.raises(NoRule, match="no rule"):
        Jets(function, points(), Streams.of({one(0)})).value(0)


def test_a_derivative_that_was_not_announced_is_refused():
    with pytest.raises(NoRule, match="not announced"):
        Jets(mlp(), points(), Streams.of({one(0)})).derivative(0, one(1))


def test_third_derivatives_of_layer_norm_are_those_of_a_difference_quotient():
    """torch's own are not, so nested differentiation composes layer_norm from elementary operations."""
    x, h = points(), 1e-5
    step = torch.tensor([[0.0, h]], dtype=F64)
    normed = EXPRESSIONS["layer norm"]

    def second(x):
        return Nested(lambda x: normed(x)[:, 1:2], x).derivative(0, one(0, 0)).detach()

    quotient = (second(x + step) - second(x - step)) / (2 * h)
    for engine in (Nested(normed, x), Jets(normed, x, Streams.of({one(0, 0, 1)}))):
        agree(engine.derivative(1, one(0, 0, 1)), quotient, 1e-6)


class NoRules(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 4, dtype=F64)

    def forward(self, x):
        return torch.special.erf(self.layer(x)).sum(1, keepdim=True)


SQUARE = Box(x=(0, 1), y=(0, 1))


def task(residual):
    terms = {"law": Term(SQUARE.interior, residual), "sides": Term(SQUARE.boundary, lambda u: u.n + u)}
    return Collocation(Problem(SQUARE, "u", terms), interior=20, boundary=8)


def slowly(task, trial, batch):
    found = {}
    for block in batch:
        names = task.namespace(trial.network, trial.coefficients, block)
        found |= {name: task.evaluate(name, names, len(block.x)) for name in block.terms}
    return found


@pytest.mark.parametrize(
    ("residual", "notes"),
    [
        (lambda u, x: u.xx + u.yy + u * u.x + x, 0),
        (lambda u: laplacian(u) + u.xy, 0),
        (lambda u, x: diff(u * u.x, x), 1),
        (lambda u, x: diff(x * x, x) * u, 1),
        (lambda u, x: torch.autograd.grad(u.value.sum(), x, create_graph=True)[0], 1),
    ],
    ids=["usual", "laplacian", "diff", "diff of a coordinate", "autograd"],
)
def test_a_residual_gives_the_same_by_either_way_and_falls_back_with_one_note(residual, notes):
    collocation, trial = task(residual), Trial(mlp(2, 1))
    batch = collocation.batch()
    for _ in range(2):
        for name, found in collocation.residuals(trial, batch).items():
            agree(found, slowly(collocation, trial, batch)[name])
    assert len(collocation.notes) == notes
    assert all("law: derivatives by nested differentiation, which is slower" in note for note in collocation.notes)


def test_a_network_without_rules_falls_back_and_says_which_operation():
    collocation, trial = task(lambda u: u.xx), Trial(NoRules())
    assert any("no rule for" in warning for warning in collocation.check(trial))
    batch = collocation.batch()
    for name, found in collocation.residuals(trial, batch).items():
        agree(found, slowly(collocation, trial, batch)[name])


def test_a_residual_that_reads_more_than_when_it_was_traced_is_served_all_the_same():
    asked = []

    def fickle(u):
        asked.append(1)
        return u.x if len(asked) < 4 else u.x + u.xx

    collocation, trial = task(fickle), Trial(mlp(2, 1))
    batch = collocation.batch()
    first = collocation.residuals(trial, batch)["law"]
    later = collocation.residuals(trial, batch)["law"]
    nested = Nested(trial.network, batch[0].x)
    agree(first, nested.derivative(0, one(0)))
    agree(later, nested.derivative(0, one(0)) + nested.derivative(0, one(0, 0)))
