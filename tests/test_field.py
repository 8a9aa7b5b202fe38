"""Derivatives against closed forms and against nested torch.func; a Field reads like the paper."""

import operator
from itertools import permutations, product
from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import cos, exp, sin
from torch.func import jacrev, vmap

from pinnsketch import derivatives
from pinnsketch.derivatives import Linked, Nested, degree, order_of, partials
from pinnsketch.field import Field, FieldError, bilaplacian, diff, div, grad, laplacian
from pinnsketch.network import MLP

XYT = ("x", "y", "t")
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
same = torch.testing.assert_close


def points(n=20, d=3, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def fields(forward, x, names="u", coordinates=XYT, engine=None, **options):
    engine = engine or Nested(forward, x)
    return [Field(name, i, coordinates, engine, **options) for i, name in enumerate(names)], engine.columns


def wave(x):
    """u = sin(2x) exp(y) + x t^3 and v = x y t."""
    x, y, t = x.split(1, dim=1)
    return torch.cat([sin(2 * x) * exp(y) + x * t**3, x * y * t], dim=1)


def bind(**options):
    (u, v), columns = fields(wave, points(), "uv", **options)
    return u, v, *columns


def test_dotted_names_are_the_partial_derivatives_of_a_closed_form():
    u, v, x, y, t = bind()
    truth = {
        "x": 2 * cos(2 * x) * exp(y) + t**3,
        "y": sin(2 * x) * exp(y),
        "t": 3 * x * t**2,
        "xx": -4 * sin(2 * x) * exp(y),
        "xy": 2 * cos(2 * x) * exp(y),
        "xt": 3 * t**2,
        "yt": 0 * x,
        "xxy": -4 * sin(2 * x) * exp(y),
        "xxxx": 16 * sin(2 * x) * exp(y),
        "xtt": 6 * t,
        "xttt": 6 + 0 * x,
    }
    for word, expected in truth.items():
        same(getattr(u, word), expected, **TIGHT)
        same(u.d(*word), expected, **TIGHT)
    same(u.value, sin(2 * x) * exp(y) + x * t**3, **TIGHT)
    same(u.d(), u.value)
    same(v.xyt, torch.ones_like(x), **TIGHT)
    same(v.xx, torch.zeros_like(x), **TIGHT)


def test_operators_are_their_closed_forms():
    u, v, x, y, t = bind()
    same(grad(u), torch.cat([u.x, u.y, u.t], dim=1), **TIGHT)
    same(grad(u, "t", "x"), torch.cat([u.t, u.x], dim=1), **TIGHT)
    same(laplacian(u), -3 * sin(2 * x) * exp(y), **TIGHT)
    same(laplacian(u, "t"), 6 * x * t, **TIGHT)
    same(bilaplacian(u), (16 - 2 * 4 + 1) * sin(2 * x) * exp(y), **TIGHT)
    same(bilaplacian(u, "x"), u.xxxx, **TIGHT)
    same(bilaplacian(u, "t", "x", "t"), 16 * sin(2 * x) * exp(y), **TIGHT)
    same(diff(u * v, x), u.x * v + u * v.x, **TIGHT)
    same(diff(u, x, t), u.xt, **TIGHT)
    same(diff(u.x, y), u.xy, **TIGHT)
    same(div(grad(u, "x", "y"), x, y), laplacian(u), **TIGHT)
    same(div((x**2 + y) * grad(u, "x", "y"), x, y), (x**2 + y) * laplacian(u) + 2 * x * u.x + u.y, **TIGHT)
    same(div([u, v, t * u], x, y, t), u.x + v.y + u + t * u.t, **TIGHT)


def test_the_normal_derivative_is_the_gradient_along_the_normal():
    normal = torch.nn.functional.normalize(points(seed=1), dim=1)
    u, _, *_ = bind(normal=normal)
    same(u.n, u.x * normal[:, :1] + u.y * normal[:, 1:2] + u.t * normal[:, 2:], **TIGHT)


def network(seed, outputs=2, activation="tanh", width=6, depth=2):
    bounds = torch.tensor([[-1.0, 1], [-2, 1], [0, 3]])
    generator = torch.Generator().manual_seed(seed)
    return MLP(bounds, outputs, width=width, depth=depth, activation=activation, generator=generator)


def slow_partial(forward, output, order, x):
    """One point at a time, one full Jacobian after another: d^k u / dx_i dx_j ..., `(n, 1)`."""

    def nth(k):
        return (lambda p: forward(p[None])[0, output]) if k == 0 else jacrev(nth(k - 1))

    tensor = vmap(nth(len(order)))(x)
    return tensor[(slice(None), *order)][:, None]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    output=st.integers(0, 1),
    orders=st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=3),
    activation=st.sampled_from(["tanh", "sin", "silu", "gelu"]),
)
def test_every_partial_derivative_of_a_network_equals_the_slow_one(seed, output, orders, activation):
    net, x = network(seed, activation=activation), points(5, seed=seed)
    engine = Nested(net, x)
    for order in orders:
        found = engine.derivative(output, order_of(order))
        same(found, slow_partial(net, output, tuple(order), x), rtol=1e-9, atol=1e-10)


def test_gradients_through_a_derivative_reach_the_weights():
    net, x = network(0), points(4)
    weights = dict(net.named_parameters())

    def slow_loss(values):
        def u(p):
            return torch.func.functional_call(net, values, p[None])[0, 0]

        return vmap(lambda p: jacrev(jacrev(u))(p)[0, 1])(x).square().sum()

    ((u, _), _) = fields(net, x, "uv")
    found = torch.autograd.grad(u.xy.square().sum(), weights.values(), materialize_grads=True, allow_unused=True)
    truth = torch.func.grad(slow_loss)(weights)
    for gradient, name in zip(found, weights, strict=True):
        same(gradient, truth[name], rtol=1e-9, atol=1e-10)


@given(seed=st.integers(0, 999), letters=st.text("xyt", min_size=2, max_size=3))
@settings(max_examples=15, deadline=None)
def test_mixed_partials_are_symmetric(seed, letters):
    (u,), columns = fields(network(seed, outputs=1), points(4, seed=seed))
    for order in permutations(letters):
        same(diff(u, *(columns[XYT.index(letter)] for letter in order)), u.d(*letters), **TIGHT)
        assert u.d(*order) is u.d(*letters)


@pytest.fixture
def calls(monkeypatch):
    made, differentiate = [], derivatives.differentiate
    monkeypatch.setattr(derivatives, "differentiate", lambda y, columns: made.append(y) or differentiate(y, columns))
    return made


def test_a_derivative_read_twice_is_computed_once(calls):
    u, v, *_ = bind()
    assert u.x is u.x
    assert len(calls) == 1
    assert u.xy is u.yx
    assert len(calls) == 2
    assert v.x is not u.x
    assert len(calls) == 3


def test_one_pass_gives_all_first_derivatives_and_second_ones_build_on_it(calls):
    u, *_ = bind()
    _ = grad(u), u.t, u.x
    assert len(calls) == 1
    _ = u.xx, u.xy, u.xt
    assert len(calls) == 2
    _ = u.yy, u.yt
    assert len(calls) == 3


def test_the_network_runs_once_for_all_unknowns_and_derivatives():
    runs = []
    (u, v), _ = fields(lambda x: runs.append(x) or wave(x), points(), "uv")
    _ = u * v, u.xx, v.t, grad(v), laplacian(u)
    assert len(runs) == 1


BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
COMPARISON = [operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("operation", [*BINARY, *COMPARISON], ids=lambda f: f.__name__)
def test_arithmetic_gives_the_plain_tensors_that_it_gives_on_values_from_both_sides(operation):
    (u, v), (x, *_) = fields(lambda x: wave(x).abs() + 0.5, points(), "uv")
    for other in (v, x, 2, 0.5, np.float64(0.5), torch.tensor(2.0, dtype=torch.float64)):
        plain = other.value if isinstance(other, Field) else other
        for found, expected in (
            (operation(u, other), operation(u.value, plain)),
            (operation(other, u), operation(plain, u.value)),
        ):
            assert type(found) is torch.Tensor
            assert found.shape == (20, 1)
            same(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("operation", [operator.neg, operator.pos, abs, lambda u: u[3:5], lambda u: u[:, 0]])
def test_unary_operations_and_indexing_give_plain_tensors(operation):
    u, *_ = bind()
    assert type(operation(u)) is torch.Tensor
    same(operation(u), operation(u.value), rtol=0, atol=0)


def test_torch_functions_give_plain_tensors():
    u, v, x, *_ = bind()
    a, b = u.value, v.value
    for found, expected in [
        (torch.sin(u), a.sin()),
        (torch.cat([u, v], 1), torch.cat([a, b], 1)),
        (torch.stack((u, x)), torch.stack((a, x))),
        (torch.where(x > 0, u, v), torch.where(x > 0, a, b)),
        (torch.maximum(x, u), torch.maximum(x, a)),
        (torch.nn.functional.relu(u), a.relu()),
        (torch.sum(input=u), a.sum()),
        (x.mul(u), x * a),
        (x - u, x - a),
    ]:
        assert type(found) is torch.Tensor
        same(found, expected, rtol=0, atol=0)


FLAT = {
    "constant without graph": lambda x: torch.full((len(x), 1), 3.0, dtype=x.dtype),
    "of y alone": lambda x: x[:, 1:2] ** 2,
    "linear": lambda x: 2 * x[:, 1:2],
    "trained constant": lambda x: torch.ones(1, 1, dtype=x.dtype, requires_grad=True).expand(len(x), 1),
}


@pytest.mark.parametrize("forward", FLAT.values(), ids=FLAT)
def test_what_does_not_depend_on_a_coordinate_has_zero_derivatives_along_it(forward):
    (u,), (x, *_) = fields(forward, points())
    for word in ("x", "t", "xx", "xy", "xt", "ttt"):
        same(getattr(u, word), torch.zeros_like(x), rtol=0, atol=0)
    same(diff(u, x), torch.zeros_like(x), rtol=0, atol=0)


def test_single_precision_stays_single():
    (u, _), _ = fields(wave, points().float(), "uv")
    assert {tensor.dtype for tensor in (u.value, u.xx, u * 2, u.yt)} == {torch.float32}


@pytest.mark.parametrize("wanted", [False, True])
def test_the_points_given_are_left_alone(wanted):
    x = points().requires_grad_(wanted)
    (u, _), _ = fields(wave, x, "uv")
    u.x.sum().backward()
    assert x.requires_grad == wanted
    assert x.grad is None


def polar(x):
    return x[:, :1] ** 2 * sin(x[:, 1:])


def test_coordinates_with_long_names_work_by_attribute_and_by_d():
    (u,), (r, theta) = fields(polar, points(d=2), coordinates=("r", "theta"))
    same(u.theta, r**2 * cos(theta), **TIGHT)
    same(u.d("theta", "theta"), -(r**2) * sin(theta), **TIGHT)
    same(u.d("theta", "r"), 2 * r * cos(theta), **TIGHT)
    same(u.rr, 2 * sin(theta), **TIGHT)
    same(laplacian(u, "theta"), u.d("theta", "theta"), **TIGHT)
    same(grad(u), torch.cat([u.r, u.theta], dim=1), **TIGHT)


def linked(engine, x, names="u", **options):
    reads = set()
    return *fields(None, x, names, engine=Linked(engine, x, reads), **options), reads


def test_what_a_residual_reads_is_noted_once_whatever_the_order():
    (u, v), _, reads = linked(Nested(wave, points()), points(), "uv")
    _ = u * u.x + u.yx + u.d("x", "y") + v.tt
    assert reads == {(0, ()), (0, (0,)), (0, (0, 1)), (1, (2, 2))}


def test_operators_are_noted_as_groups_and_the_partials_of_one_coordinate_as_such():
    (u,), _, reads = linked(Nested(wave, points()), points())
    _ = laplacian(u), laplacian(u, "y", "x"), laplacian(u, "t"), bilaplacian(u), bilaplacian(u, "y")
    assert reads == {(0, order) for order in (((0, 1),), (2, 2), ((0, 1), (0, 1)), (1, 1, 1, 1))}


def order_words(words):
    return {order_of(map(XYT.index, word.strip("1"))) for word in words.split()}


EXPRESSIONS = {
    "diff": (lambda u, v, x, y, t: diff(u * u.x, x), order_words("1 x xx")),
    "diff of diff": (lambda u, v, x, y, t: diff(y * u * diff(u**2, x), y), order_words("1 x y xy")),
    "diff of a group": (lambda u, v, x, y, t: diff(laplacian(u), t, x), {((0, 1),), (2, (0, 1)), (0, 2, (0, 1))}),
    "diff of a coordinate": (lambda u, v, x, y, t: diff(x * y, y) * u, order_words("1")),
    "div": (lambda u, v, x, y, t: div((x * y + t) * grad(u, "x", "y"), x, y), order_words("x y xx yy")),
    "div of components": (lambda u, v, x, y, t: div([(1 + u * u) * u.x, x * u.y], x, y), order_words("1 x y xx yy")),
}


@pytest.mark.parametrize(("expression", "orders"), EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_reads_what_its_derivative_is_made_of_and_nothing_else(expression, orders):
    (u, v), columns, reads = linked(Nested(wave, points()), points(), "uv")
    expression(u, v, *columns)
    assert reads == {(0, order) for order in orders}


@pytest.mark.parametrize(
    ("expression", "along"),
    [(lambda u, x: u * u.xx, False), (lambda u, x: diff(u, x), True), (lambda u, x: diff(x * x, x), True)],
)
def test_links_tell_whether_anything_was_differentiated_along_the_points(expression, along):
    (u,), (x, *_), _ = linked(Nested(wave, points()), points())
    expression(u, x)
    assert u._derivatives.differentiated == along


def test_a_derivative_keeps_its_graph_when_a_reverse_pass_without_one_came_first():
    net = network(0)
    (u, _), (x, *_), _ = linked(Nested(net, points()), points(), "uv")
    torch.autograd.grad(u.value.sum(), x, retain_graph=True)
    assert torch.autograd.grad(u.x.square().sum(), net.layers[0].weight)[0].abs().max() > 0


ORDERS = st.lists(st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True).map(tuple), max_size=4)


@given(parts=ORDERS, seed=st.randoms())
def test_an_order_is_written_in_one_way_whatever_the_order_of_its_parts(parts, seed):
    order = order_of(parts)
    mixed = [part if isinstance(part, int) else tuple(seed.sample(part, len(part))) for part in seed.sample(parts, len(parts))]
    assert order_of(order) == order_of(mixed) == order
    assert all(isinstance(part, int) or len(part) > 1 for part in order)


@given(parts=ORDERS)
def test_an_order_stands_for_the_sum_over_all_choices_of_a_coordinate_from_each_group(parts):
    choices = [[(part,)] if isinstance(part, int) else [(axis, axis) for axis in part] for part in parts]
    slow = sorted(tuple(sorted(sum(choice, ()))) for choice in product(*choices))
    assert sorted(partials(order_of(parts))) == slow
    assert {len(axes) for axes in slow} == {degree(order_of(parts))}


def test_orders_of_the_usual_operators():
    assert order_of([]) == ()
    assert order_of([1, 0, 1]) == (0, 1, 1)
    assert order_of([(1, 0), 2]) == (2, (0, 1))
    assert order_of([(1,), 0]) == (0, 1, 1)
    assert partials(()) == [()]
    assert sorted(partials(((0, 1), (0, 1)))) == [(0, 0, 0, 0), (0, 0, 1, 1), (0, 0, 1, 1), (1, 1, 1, 1)]
    assert [degree(order) for order in ((), (0, 1), ((0, 1),), (0, (0, 1)), ((0, 1), (0, 1)))] == [0, 2, 2, 3, 4]


def test_a_burgers_residual_of_an_exact_solution_vanishes():
    """The travelling wave u = c - a tanh(a (x - c t) / (2 nu)) solves u_t + u u_x = nu u_xx."""
    c, a, nu = 0.3, 0.8, 0.1 / pi
    (u,), _ = fields(
        lambda z: c - a * torch.tanh(a * (z[:, :1] - c * z[:, 1:]) / (2 * nu)), points(d=2), coordinates=("x", "t")
    )
    same(u.t + u * u.x - nu * u.xx, torch.zeros(20, 1, dtype=torch.float64), rtol=0, atol=1e-10)


WRONG = {
    "letter": (lambda u: u.z, r"u\.z: 'z' is no coordinate here; the coordinates are x, y, t"),
    "second letter": (lambda u: u.xz, r"u\.xz: 'z' is no coordinate here"),
    "tensor method": (lambda u: u.shape, r"u\.shape: 's' is no coordinate here.*For the values use u itself"),
    "by d": (lambda u: u.d("x", "theta"), r"u\.d\('x', 'theta'\): 'theta' is no coordinate here; the coordinates are x, y, t"),
    "gradient": (lambda u: grad(u, "z"), "'z' is no coordinate here"),
    "normal": (lambda u: u.n, r"u\.n: an interior has no normal; put this term on a boundary"),
    "two columns": (lambda u: diff(grad(u), u._derivatives.columns[0]), r"must have shape \(n, 1\); got \(20, 3\)"),
    "components": (
        lambda u: div(grad(u), u._derivatives.columns[0]),
        "3 components and 1 coordinates; name one coordinate per component",
    ),
}


@pytest.mark.parametrize(("read", "message"), WRONG.values(), ids=WRONG)
def test_what_an_unknown_does_not_have_is_refused_by_name(read, message):
    u, *_ = bind()
    with pytest.raises(ValueError, match=message):
        read(u)


def test_a_derivative_that_is_not_there_is_a_field_error():
    u, *_ = bind()
    with pytest.raises(FieldError, match=r"use u itself, for coordinates with long names u\.d\(\"name\", \.\.\.\)"):
        _ = u.velocity


def test_a_laplacian_over_time_alone_asks_for_its_coordinates():
    (u,), _ = fields(sin, points(d=1), coordinates=("t",))
    with pytest.raises(FieldError, match=r"laplacian\(u\): there is no coordinate but t"):
        laplacian(u)
    same(laplacian(u, "t"), u.tt)


def test_a_field_says_what_it_is():
    u, *_ = bind()
    assert repr(u) == "<unknown u(x, y, t)>"
    assert not hasattr(u, "__array__")
