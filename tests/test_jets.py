"""Law 4: every derivative in one forward pass equals nested differentiation to rounding, for values and for training."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pinnsketch.derivatives import Nested, degree, order_of
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


def agree(found, expected, tolerance=1e-10, least=1.0):
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * max(least, float(expected.abs().max()))


def slopes(y, parameters):
    return torch.autograd.grad(y.square().sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


def compare(forward, x, wanted, outputs=1, parameters=()):
    """Jets against nested differentiation: values, derivatives, and their gradient with respect to parameters."""
    jets, nested = Jets(forward, x, Streams.of(wanted)), Nested(forward, x)
    for output, order in itertools.product(range(outputs), [(), *wanted]):
        fast, slow = jets.derivative(output, order), nested.derivative(output, order)
        agree(fast, slow)
        if parameters and slow.requires_grad:
            for ours, theirs in zip(slopes(fast, parameters), slopes(slow, parameters), strict=True):
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
    compare(network, points(4, 3, seed), {order_of(order) for order in orders}, 2, list(network.parameters()))


class Polynomial(nn.Module):
    """A random network whose layers multiply: cubes of the coordinates, and tanh of them times the coordinates."""

    def __init__(self, d, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.cubes, self.waves = (nn.Linear(d, 4, dtype=F64) for _ in range(2))
        self.last = nn.Linear(8, 2, dtype=F64)

    def forward(self, x):
        h = torch.tanh(self.waves(x))
        return self.last(torch.cat([self.cubes(x) ** 3, h * self.cubes(x) * h], dim=1))


def orders_over(d):
    """Orders of degree 1 to 4 over d coordinates, groups among them."""
    coordinate = st.integers(0, d - 1)
    part = coordinate | st.frozensets(coordinate, min_size=1).map(tuple)
    return st.lists(part, min_size=1, max_size=4).map(order_of).filter(lambda order: degree(order) <= 4)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), d=st.integers(1, 3), seed=st.integers(0, 1000), polynomial=st.booleans())
def test_any_orders_with_groups_up_to_degree_four_equal_nested_ones(data, d, seed, polynomial):
    wanted = data.draw(st.lists(orders_over(d), min_size=1, max_size=3))
    network = Polynomial(d, seed) if polynomial else mlp(d, seed=seed)
    compare(network, points(4, d, seed), set(wanted), 2, list(network.parameters()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_of_degree_five_and_six_equal_nested_ones(activation):
    network = mlp(1, 1, activation=activation, width=4, depth=1)
    compare(network, points(3, 1), {(0,) * 5, (0,) * 6}, 1, list(network.parameters()))


@pytest.mark.parametrize("engine", [Jets, Nested])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_group_is_the_sum_of_its_partials_in_values_and_in_training(activation, d, engine):
    network, x, every = mlp(d, 1, activation=activation), points(6, d), range(d)
    group, parameters = tuple(every), list(network.parameters())
    sums = {(group,): [(i, i) for i in every], (group, group): [(i, i, j, j) for i in every for j in every]}
    sums |= {(k, group): [(k, i, i) for i in every] for k in every} | {
        (k, k, group): [(k, k, i, i) for i in every] for k in every
    }
    sums = {order_of(order): [order_of(part) for part in parts] for order, parts in sums.items()}
    found = engine(network, x, *([Streams.of(sums)] if engine is Jets else []))
    nested = Nested(network, x)
    for order, parts in sums.items():
        fast, slow = found.derivative(0, order), sum(nested.derivative(0, part) for part in parts)
        agree(fast, slow, least=0.0)
        agree(*(torch.cat([s.flatten() for s in slopes(y, parameters)]) for y in (fast, slow)), least=0.0)


def test_a_laplacian_of_five_coordinates_is_the_sum_of_second_derivatives_carried_apart():
    network, x, group = mlp(5, 1), points(6, 5), (tuple(range(5)),)
    compare(network, x, {group}, 1, list(network.parameters()))
    apart = Jets(network, x, Streams.of((i, i) for i in range(5)))
    agree(Jets(network, x, Streams.of([group])).derivative(0, group), sum(apart.derivative(0, (i, i)) for i in range(5)))


def test_a_laplacian_carries_as_many_streams_as_coordinates_and_one():
    for d in (1, 2, 10, 100):
        assert len(Streams.of([order_of([range(d)])])) == d + 1


def test_a_bilaplacian_carries_all_u_i_and_u_ij_the_laplacian_its_slopes_and_itself():
    for d in (2, 3, 10):
        group = tuple(range(d))
        streams = Streams.of([(group, group)])
        assert len(streams) == d + d * (d + 1) // 2 + 1 + d + 1
        seconds = itertools.combinations_with_replacement(group, 2)
        assert set(streams.orders) == {*((i,) for i in group), *seconds, (group,), *((i, group) for i in group), (group, group)}
    assert Streams.of([order_of([(0,), (0,)])]).orders == ((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0))


def test_streams_hold_what_is_wanted_and_what_that_is_made_of_and_nothing_else():
    assert Streams.of([(0,)]).orders == ((0,),)
    assert set(Streams.of([(0, 1)]).orders) == {(0,), (1,), (0, 1)}
    assert set(Streams.of([(0, 0, 1)]).orders) == {(0,), (1,), (0, 0), (0, 1), (0, 0, 1)}
    assert len(Streams.of([])) == len(Streams.of([()])) == 0


@pytest.mark.parametrize(("n", "bell"), [(0, 1), (1, 1), (2, 2), (3, 5), (4, 15)])
def test_partitions_are_as_many_as_bells_number(n, bell):
    found = partitions(n)
    assert len(found) == len({frozenset(map(frozenset, blocks)) for blocks in found}) == bell
    assert all(sorted(itertools.chain(*blocks)) == list(range(n)) for blocks in found)


def constant(*shape):
    return torch.linspace(-1, 2, math.prod(shape), dtype=F64).reshape(shape)


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
    "erf": torch.erf,
    "arithmetic": lambda x: (2 * x - 3) / (x + 1) - (1 - x) * (4 / x) + (-x),
    "product": lambda x: x[:, :1] * x[:, 1:] * x[:, :1],
    "quotient": lambda x: x[:, :1] / (1 + x[:, 1:] * x[:, 1:]),
    "cat": lambda x: torch.cat([x, torch.sin(x), x * x], dim=1),
    "reshape": lambda x: x.reshape(-1, 2, 1).reshape(len(x.value) if isinstance(x, Jet) else len(x), 2),
    "sum": lambda x: (x * x).sum(dim=1, keepdim=True),
    "mean": lambda x: torch.mean(x * torch.exp(x), dim=-1, keepdim=True),
    "matmul": lambda x: x @ torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64),
    "tensors": lambda x: (x - torch.tensor([0.1, 0.2], dtype=F64)) * torch.tensor([3.0, 5.0], dtype=F64),
    "einsum of one jet": lambda x: torch.einsum("ni,ijk,nj->nk", x * x, constant(2, 3, 4), constant(5, 3)),
    "einsum of two jets": lambda x: torch.einsum("ni,kij,nj->nk", x.sin(), constant(3, 2, 2), x * x),
    "einsum of coordinates": lambda x: torch.einsum("ni,nj->nij", x, x).reshape(5, 4),
    "matmul of two jets": lambda x: (x.exp()[:, None, :] @ torch.einsum("ni,nj->nij", x, x * x))[:, 0],
    "matmul of a tensor and a jet": lambda x: (constant(5, 3, 2) @ (x * x)[:, :, None])[:, :, 0],
    "coordinates times features": lambda x: x * torch.tanh(x @ constant(2, 2)) + torch.tanh(x) * x[:, 1:],
    "coordinates and features": lambda x: torch.cat([x, torch.tanh(x @ constant(2, 3)), constant(5, 2)], dim=-1),
    "columns": lambda x: x[:, 0:1] * x[:, 1:2].exp() + x[:, [1, 0]] * x[..., :1] + x[:, None, 1],
    "narrow jet and wide tensor": lambda x: (x[:, :1] + constant(5, 3)) * (constant(5, 3) - (x * x)[:, 1:]),
    "wide jet and narrow tensor": lambda x: (x * x + constant(5, 1)) * (constant(5, 1) + x) / constant(5, 1),
    "narrow and wide jets": lambda x: x[:, :1] + torch.cat([x, x * x], dim=1) - (x * x)[:, 1:],
    "layer norm": lambda x: functional.layer_norm(torch.cat([x, x * x, x**3], 1), (6,), torch.arange(6.0, dtype=F64)),
}
ORDERS = {(0,), (1,), (0, 1), (0, 0), (0, 0, 1), (0, 0, 1, 1), (1, 1, 1, 1), ((0, 1),), (1, (0, 1)), ((0, 1), (0, 1))}


@pytest.mark.parametrize("function", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_rule_equals_nested_differentiation(function):
    x, affine = points(), torch.tensor([[1.0, 1.0], [0.1, 0.2]], dtype=F64, requires_grad=True)
    compare(function, x, ORDERS, function(x).shape[1])
    compare(lambda x: function(x * affine[0] + affine[1]), x, ORDERS, function(x).shape[1], [affine])


def test_points_share_one_row_of_streams_until_their_derivatives_differ():
    x, streams = Jet.seed(points(), Streams.of(ORDERS)), Streams.of(ORDERS)
    for jet, rows in (
        (x, 1),
        (functional.linear(2 * x - 1, constant(3, 2)), 1),
        (x * constant(5, 1), 5),
        (x.sin(), 5),
        (x * x, 5),
    ):
        assert jet.parts.shape[:2] == (len(streams), rows)
        assert jet.whole.shape == (len(streams), *jet.shape)


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
    agree(Jets(function, x, Streams.of([(0,) * k])).derivative(0, (0,) * k), derivative(x, k), 1e-12)


def test_whole_powers_have_whole_derivatives_at_zero():
    x = torch.zeros(1, 1, dtype=F64)
    jets = Jets(lambda x: x**2, x, Streams.of([(0, 0, 0)]))
    assert [float(jets.derivative(0, (0,) * k)) for k in (1, 2, 3)] == [0.0, 2.0, 0.0]


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
        assert Jets(mlp().float(), x, Streams.of([(0, 0)])).derivative(0, (0, 0)).dtype == dtype
        return
    streams = Streams.of([(0, 0, 1), ((0, 1), (0, 1))])
    value = points(2, 2).requires_grad_()
    for rule, rows in itertools.product((torch.tanh, torch.sin, functional.silu, functional.gelu), (1, 2)):
        parts = torch.randn(len(streams), rows, 2, dtype=F64).requires_grad_()

        def through(v, p, rule=rule):
            jet = RULES[rule](Jet(v, p, streams))
            return jet.value, jet.parts

        assert torch.autograd.gradcheck(through, (value, parts))


@pytest.mark.parametrize(
    "function",
    [torch.erfc, torch.special.erf, lambda x: x.relu(), lambda x: torch.sum(x), lambda x: x.sum(0), lambda x: x**x,
     lambda x: x[0:3], lambda x: x[1], lambda x: x[torch.arange(5) > 2], lambda x: x[[0, 1]], lambda x: x[::2, 0:1],
     lambda x: torch.einsum("ni,nj,nk->n", x, x, x), lambda x: torch.einsum("ni,ni", x, x),
     lambda x: x.reshape(-1), lambda x: torch.cat([x, x], dim=0), lambda x: functional.gelu(x, approximate="tanh"),
     lambda x: functional.softplus(x, beta=2.0)],
)  # fmt: skip
def test_what_has_no_rule_says_so(function):
    with pytest.raises(NoRule, match="no rule"):
        Jets(function, points(), Streams.of([(0,)])).derivative(0, ())


def test_a_derivative_that_was_not_announced_is_refused():
    with pytest.raises(NoRule, match="not announced"):
        Jets(mlp(), points(), Streams.of([(0,)])).derivative(0, (1,))


def test_third_derivatives_of_layer_norm_are_those_of_a_difference_quotient():
    """torch's own are not, so nested differentiation composes layer_norm from elementary operations."""
    x, h = points(), 1e-5
    step = torch.tensor([[0.0, h]], dtype=F64)
    normed = EXPRESSIONS["layer norm"]

    def second(x):
        return Nested(lambda x: normed(x)[:, 1:2], x).derivative(0, (0, 0)).detach()

    quotient = (second(x + step) - second(x - step)) / (2 * h)
    for engine in (Nested(normed, x), Jets(normed, x, Streams.of([(0, 0, 1)]))):
        agree(engine.derivative(1, (0, 0, 1)), quotient, 1e-6)
