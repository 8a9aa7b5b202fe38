"""The Jacobian of residuals by parameters equals the one of a reverse pass for each row, and so does all that is made of it."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pinnsketch import Box, Data, Problem, Term, Unknown, diff, div, grad, laplacian
from pinnsketch.collocation import Collocation
from pinnsketch.derivatives import Nested
from pinnsketch.gradient import Gradient
from pinnsketch.jets import Jacobian, Outer
from pinnsketch.network import MLP
from pinnsketch.problem import ProblemError
from pinnsketch.trial import Trial

F64 = torch.float64
SQUARE = Box(x=(0, 1), y=(0, 1))
DATA = Data({"x": [0.1, 0.2, 0.7], "y": [0.3, 0.1, 0.5], "seen": [1.0, 0.0, 2.0], "sure": [1.0, 0.5, 0.2]})


def mlp(outputs=1, **options):
    options = {"width": 5, "depth": 2, "generator": torch.Generator().manual_seed(0)} | options
    return MLP(torch.tensor(SQUARE.bounds), outputs, **options)


def made(terms, unknowns="u", network=None, dtype=F64, interior=7, **parameters):
    terms = {"law": Term(SQUARE.interior, terms)} if callable(terms) else terms
    problem = Problem(SQUARE, unknowns, terms, parameters=parameters)
    network = mlp(len(problem.unknowns), dtype=dtype) if network is None else network
    return Collocation(problem, interior=interior, boundary=6, dtype=dtype), Trial(network, problem.coefficients)


def slowly(task, trial):
    """Scaled residuals by nested differentiation, and the gradient of each at each point by a reverse pass of its own."""
    parameters, residuals, rows = [p for p in trial.parameters() if p.requires_grad], [], []
    for block in task.batch():
        names = task.namespace(Nested(trial.network, block.x), trial.coefficients, block)
        for name in block.terms:
            residual = task.evaluate(name, names, len(block.x))
            for entry in ((task.weights[name] / residual.numel()) ** 0.5 * residual).T.flatten():
                slopes = [torch.zeros_like(p) for p in parameters]
                if entry.requires_grad:
                    slopes = torch.autograd.grad(
                        entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                residuals.append(entry.detach())
                rows.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(residuals), torch.stack(rows)


def agree(found, expected, tolerance=1e-10):
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def correct(task, trial, tolerance=1e-10):
    """Compare with the slow way, twice: when the forward pass is tried at a few points, and later; and give the Jacobian."""
    for _ in range(2):
        r, found = task.linearize(trial, task.batch())
        slow_r, slow = slowly(task, trial)
        agree(r, slow_r, tolerance)
        agree(found.dense(), slow, tolerance)
        assert found.shape == slow.shape
        losses = task.losses(trial, task.batch())
        agree(r.square().sum(), sum(task.weights[name] * loss.detach() for name, loss in losses.items()), tolerance)
    return found


def by_forward_pass(task, trial):
    return {task.plan(trial, block).rows for block in task.batch()}


def poisson(weights=(1.0, 100.0, 0.3)):
    law, sides, flux = weights
    return {
        "law": Term(SQUARE.interior, lambda u, x: laplacian(u) + u * u.x - x, weight=law),
        "sides": Term(SQUARE.boundary, lambda u, y: u - y, weight=sides),
        "flux": Term(SQUARE.boundary, lambda u, n: u.n + u * n[:, :1], weight=flux),
        "again": Term(SQUARE.boundary, lambda u: u.n, weight=flux, points=4),
    }


def stokes(u, v, p):
    return torch.cat([laplacian(u) - p.x, laplacian(v) - p.y + u * v, u.x + v.y], dim=1)


def measured(u, seen, sure):
    return sure * (u - seen)


PROBLEMS = {
    "interior and sides": (poisson(), "u", {}),
    "system": ({"law": Term(SQUARE.interior, stokes), "p": Term(SQUARE.boundary, lambda p, n: p.n * n)}, "u v p", {}),
    "coefficient": (lambda u, k: k * laplacian(u) + k**2 * u, "u", {"k": Unknown(0.7)}),
    "positive coefficient": (lambda u, k, x, y: div(k * x * grad(u), x, y), "u", {"k": Unknown(0.7, positive=True)}),
    "coefficient in one of two": ({**poisson(), "k": Term(SQUARE.interior, lambda u, k: k * u, points=3)}, "u",
                                  {"k": Unknown(0.0)}),
    "data": ({"law": Term(SQUARE.interior, lambda u: u.x), "data": Term(DATA, measured, weight=3)}, "u", {}),
    "mixed and third": (lambda u, x: torch.cat([u.xxy * u + x * u.yyy, u.xy + u.xxx], dim=1), "u", {}),
    "diff and div": (lambda u, x, y: diff(u * u.x, x) + div((1 + u**2) * grad(u), x, y), "u", {}),
    "values alone": (lambda u, x: u**2 - x, "u", {}),
}  # fmt: skip


@pytest.mark.parametrize(("terms", "unknowns", "parameters"), PROBLEMS.values(), ids=PROBLEMS)
def test_each_row_is_the_gradient_of_a_residual_at_a_point_and_their_squares_add_up_to_the_loss(terms, unknowns, parameters):
    task, trial = made(terms, unknowns, **parameters)
    correct(task, trial)
    assert by_forward_pass(task, trial) == {True}


def test_single_precision_agrees_to_five_digits():
    task, trial = made(poisson(), dtype=torch.float32)
    assert correct(task, trial, tolerance=1e-5).dense().dtype == torch.float32
    assert by_forward_pass(task, trial) == {True}


class Made(nn.Module):
    """Two layers of 2 and 4 units, with a function of the module between them and the output."""

    def __init__(self, between, bias=True, **more):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(2, 4, bias=bias, dtype=F64), nn.Linear(4, 4, bias=bias, dtype=F64)
        self.last, self.between = nn.Linear(4, 1, bias=bias, dtype=F64), between
        for name, part in more.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.last(self.between(self, torch.tanh(self.first(x))))


def weight(*shape):
    return nn.Parameter(torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(1)))


def plain(m, h):
    return torch.tanh(m.second(h))


NETWORKS = {
    "a layer used twice": (Made(lambda m, h: plain(m, plain(m, h) * h)), True),
    "no bias": (Made(plain, bias=False), True),
    "a product with a parameter at the end": (Made(lambda m, h: plain(m, h) @ m.w, w=weight(4, 4)), True),
    "a scale at the end": (Made(lambda m, h: plain(m, h) * m.scale, scale=weight(4)), True),
    "a layer that is not used": (Made(plain, spare=nn.Linear(4, 4, dtype=F64)), True),
    "a product with a parameter": (Made(lambda m, h: torch.sin(h @ m.w), w=weight(4, 4)), False),
    "a scale of activations": (Made(lambda m, h: plain(m, m.scale * h), scale=weight(4)), False),
    "layer norm": (Made(lambda m, h: plain(m, m.norm(h)), norm=nn.LayerNorm(4, dtype=F64)), False),
    "an operation without a rule": (Made(lambda m, h: torch.special.erf(m.second(h))), False),
    "a weight of a layer and of a product": (Made(lambda m, h: torch.tanh(m.second(h)) @ m.second.weight), False),
    "a layer of a hidden axis": (Made(lambda m, h: torch.tanh(m.second(h[:, None, :]))[:, 0]), False),
}


@pytest.mark.parametrize(("network", "fast"), NETWORKS.values(), ids=NETWORKS)
def test_any_network_has_the_right_jacobian_by_rows_where_the_forward_pass_does_not_give_it(network, fast):
    task, trial = made(poisson(), network=network)
    correct(task, trial)
    assert by_forward_pass(task, trial) == {fast}


@pytest.mark.parametrize("frozen", ["layers.0.weight", "layers.1.weight", "layers.1.bias", "layers.2.bias"])
def test_a_frozen_parameter_has_no_columns(frozen):
    task, trial = made(poisson())
    whole = correct(task, trial).dense().split([p.numel() for p in trial.parameters()], dim=1)
    task, trial = made(poisson())
    trial.network.get_parameter(frozen).requires_grad_(False)
    found = correct(task, trial)
    kept = [part for part, p in zip(whole, trial.parameters(), strict=True) if p.requires_grad]
    agree(found.dense(), torch.cat(kept, dim=1))


def test_a_parameter_that_no_residual_depends_on_has_zero_columns():
    task, trial = made(lambda u: laplacian(u), network=NETWORKS["a layer that is not used"][0])
    sizes = {name: p.numel() for name, p in trial.named_parameters()}
    parts = dict(zip(sizes, correct(task, trial).dense().split(list(sizes.values()), dim=1), strict=True))
    assert {name for name, part in parts.items() if not part.any()} == {
        "network.last.bias", "network.spare.weight", "network.spare.bias"
    }  # fmt: skip


def test_a_residual_that_mixes_points_is_refused():
    task, trial = made({"law": Term(SQUARE.interior, lambda u: u - u.value.mean())})
    with pytest.raises(ProblemError, match="Terms law: a residual mixes points, so it has no Jacobian row for each"):
        task.linearize(trial, task.batch())


def test_a_piece_of_a_batch_has_the_rows_of_the_batch_at_its_points():
    task, trial = made(poisson())
    (inside, *_), rows = task.batch(), task.linearize(trial, task.batch())[1].dense()[:7]
    for a, b in ((0, 3), (3, 7)):
        agree(task.linearize(trial, (inside.piece(a, b),))[1].dense(), rows[a:b])


def test_twice_the_residuals_through_the_transposed_is_the_gradient_of_the_loss():
    task, trial = made(PROBLEMS["coefficient in one of two"][0], k=Unknown(0.4))
    r, found = task.linearize(trial, task.batch())
    values = Gradient(trial, task)(task.batch())
    agree(2 * found.transposed(r), torch.cat([g.flatten() for g in values.gradient]))


def test_norms_are_those_of_gradients_point_by_point_of_torch_func():
    task, trial = made(lambda u: laplacian(u), interior=20)
    parameters = {name: p.detach() for name, p in trial.network.named_parameters()}

    def residual(parameters, x):
        def value(x):
            return torch.func.functional_call(trial.network, parameters, (x[None],))[0, 0]

        return torch.func.jacrev(torch.func.jacrev(value))(x).trace()

    slopes = torch.func.vmap(torch.func.grad(residual), (None, 0))(parameters, task.batch()[0].x)
    norms = torch.cat([slope.flatten(1) for slope in slopes.values()], dim=1).norm(dim=1)
    agree(task.linearize(trial, task.batch())[1].norms() * 20**0.5, norms)


# --- the linear map, without a network ------------------------------------------------------------------------------------


def row_by_row(outer):
    """Rows as they are defined."""
    channels, c, n, _ = outer.g.shape
    rows = [sum(torch.outer(outer.g[s, i, k], outer.x[s, k]) for s in range(channels)) for i in range(c) for k in range(n)]
    return torch.stack(rows).flatten(1)


@st.composite
def maps(draw):
    """A Jacobian with blocks of any size, in which some parameters are absent; and its entries."""
    size = st.integers(1, 4)
    shapes = draw(st.lists(st.tuples(size, size), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    blocks, dense = [], []
    for _ in range(draw(st.integers(1, 3))):
        c, n = draw(size), draw(size)
        present = draw(st.lists(st.sampled_from(range(len(shapes))), unique=True))
        blocks.append({})
        for k in present:
            (o, i), s = shapes[k], draw(size)
            x, g = (torch.randn(shape, dtype=F64, generator=generator) for shape in ((s, n, i), (s, c, n, o)))
            blocks[-1][k] = Outer(x, g)
        empty = [torch.zeros(c * n, o * i, dtype=F64) for o, i in shapes]
        dense.append(torch.cat([row_by_row(blocks[-1][k]) if k in present else empty[k] for k in range(len(shapes))], 1))
    blocks = [(torch.ones(len(rows), dtype=F64), block) for rows, block in zip(dense, blocks, strict=True)]
    return Jacobian(blocks, [torch.Size(shape) for shape in shapes]), torch.cat(dense), generator


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("most", [0, 2**26], ids=["by outer products", "by rows that are held"])
@settings(max_examples=60, deadline=None)
@given(drawn=maps())
def test_products_and_norms_are_those_of_the_dense_matrix(most, drawn):
    found, dense, generator = drawn
    v, w = (torch.randn(size, dtype=F64, generator=generator) for size in (dense.shape[1], dense.shape[0]))
    assert found.shape == dense.shape
    assert found.held is None  # until there is a kernel
    with mock.patch("pinnsketch.jets.jacobian.HELD", most):
        near(found.gram(), dense @ dense.T)
    assert (found.held is None) == (most == 0)
    near(found.dense(), dense)
    near(found.times(v), dense @ v)
    near(found.transposed(w), dense.T @ w)
    near(found.norms(), dense.norm(dim=1))


@pytest.mark.parametrize("most", [0, 2**26], ids=["by outer products", "by rows that are held"])
@pytest.mark.parametrize("passes", [-(10**9), 100, 10**9], ids=["by channels", "as it is", "by rows"])
@settings(max_examples=40, deadline=None)
@given(drawn=maps())
def test_the_gram_matrix_is_that_of_the_dense_matrix_either_way(passes, most, drawn):
    found, dense, _ = drawn
    with mock.patch("pinnsketch.jets.outer.PASSES", passes), mock.patch("pinnsketch.jets.jacobian.HELD", most):
        near(found.gram(), dense @ dense.T)


def test_rows_are_held_where_layers_are_narrow_and_not_where_channels_spare_much_of_a_kernel():
    generator = torch.Generator().manual_seed(0)
    for width, held in ((10, True), (200, False)):
        x, g = (torch.randn(shape, dtype=F64, generator=generator) for shape in ((2, 5, width), (2, 1, 5, width)))
        jacobian = Jacobian([(torch.ones(5, dtype=F64), {0: Outer(x, g)})], [torch.Size((width, width))])
        near(jacobian.gram(), jacobian.dense() @ jacobian.dense().T)
        assert (jacobian.held is not None) == held


@pytest.mark.parametrize("held", [1, 2**26], ids=["point by point", "at once"])
@settings(max_examples=40, deadline=None)
@given(drawn=maps())
def test_the_normal_matrix_is_that_of_the_dense_matrix_however_few_rows_are_held(held, drawn):
    found, dense, _ = drawn
    with mock.patch("pinnsketch.jets.jacobian.HELD", held):
        near(found.normal(), dense.T @ dense)


@settings(max_examples=30, deadline=None)
@given(drawn=maps(), channels=st.integers(1, 3))
def test_rows_of_a_parameter_used_twice_add_up(drawn, channels):
    for outer in (outer for block in drawn[0]._blocks for outer in block.values()):
        other = Outer(2 * outer.x[:1].repeat(channels, 1, 1), outer.g[:1].repeat(channels, 1, 1, 1))
        near(outer.join(other).rows(), outer.rows() + other.rows())


# --- faults that are known ------------------------------------------------------------------------------------------------


def test_a_block_that_no_parameter_acts_on_has_zero_rows():
    terms = {"law": Term(SQUARE.interior, lambda u, k: k * u.x), "sides": Term(SQUARE.boundary, lambda u: u)}
    task, trial = made(terms, k=Unknown(0.7))
    trial.network.requires_grad_(False)
    correct(task, trial)


sizes = pytest.mark.parametrize("size", [1.0, 1e-9])


@sizes
def test_a_residual_of_any_size_that_mixes_points_is_known(size):
    task, trial = made(lambda u: size * (u - u.value.mean()))
    assert not task.plan(trial, task.batch()[0]).apart


@sizes
def test_a_residual_of_any_size_has_the_right_jacobian(size):
    correct(*made(lambda u: size * laplacian(u), network=NETWORKS["a weight of a layer and of a product"][0]))


@pytest.mark.parametrize("first", [Collocation.linearize, Collocation.residuals])
def test_a_residual_that_reads_more_than_when_it_was_traced_has_its_jacobian_all_the_same(first):
    later = []
    task, trial = made(lambda u: u.x + u.xx if later else u.x)
    task.linearize(trial, task.batch())
    later.append(True)
    first(task, trial, task.batch())
    correct(task, trial)
