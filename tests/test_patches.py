"""Patches: windows, the tree, points in boxes, sparse rows, multifrontal QR, and solutions that are sharp."""

from copy import deepcopy
from math import erf, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import sin

from pinnsketch import Box, Data, Disk, Problem, Solution, Stage, Term, Unknown, patches, solve, train
from pinnsketch.collocation import Collocation
from pinnsketch.config import make_config
from pinnsketch.derivatives import Nested
from pinnsketch.jets import Jet, Jets, Streams
from pinnsketch.library import load_problem
from pinnsketch.methods import least_squares as dense
from pinnsketch.methods.multifrontal import Rows, dissected, factored, least_squares
from pinnsketch.methods.patch_system import REST, PatchSystem
from pinnsketch.patches import REACH, VANISHES, Patches
from pinnsketch.points import Cell, draw_within
from pinnsketch.run import Run
from pinnsketch.trial import Trial

PROBLEMS = Path(__file__).parents[1] / "problems"
F64 = torch.float64
BOX = Box(x=(0, 1), t=(-1, 3))
SQUARE = torch.tensor(BOX.bounds)


def tree(splits=((0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (5, 1)), seed=0, **options):
    """A tree of boxes with random output weights."""
    generator = torch.Generator().manual_seed(seed)
    network = Patches(SQUARE, **{"width": 72, "each": 8, "generator": generator, "frequency": 1000.0, **options})
    for box, axis in splits:
        network.split(box, axis)
    with torch.no_grad():
        network.output.weight.copy_(torch.randn(network.output.weight.shape, generator=generator, dtype=F64))
    return network


def points(n=60, seed=2):
    low, high = SQUARE.T
    return low + (high - low) * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def naive(network, x):
    """The windows of all boxes at one point, by their definition."""
    y = ((x - network.center) * network.scale).tolist()
    bumps = []
    for low, high, used in zip(*network.boxes(), network.used, strict=True):
        bump = float(used)
        for z, a, b in zip(y, low.tolist(), high.tolist(), strict=True):
            scale = VANISHES / REACH / (b - a)
            bump *= ((1 if a == -1 else erf((z - a) * scale)) - (-1 if b == 1 else erf((z - b) * scale))) / 2
        bumps.append(bump)
    return np.array(bumps) / sum(bumps)


# --- the network -----------------------------------------------------------------------------------------------------------


def test_windows_of_any_tree_are_those_of_their_definition_and_sum_to_one():
    network, x = tree(), points(200)
    index, meant = network.near(x)
    found = network.windows(x, index, meant)
    whole = torch.zeros(200, len(network.level), dtype=F64).scatter_add_(1, index, found)
    expected = torch.tensor(np.stack([naive(network, point) for point in x]))
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-14)
    assert float((found.sum(1) - 1).abs().max()) < 1e-15
    assert float(found.min()) >= -1e-16
    assert network.radius == pytest.approx(1.0)  # 8 features: polynomials of degree 3 to 1e-9
    assert 1 < meant.sum(1).double().mean() < 5


def test_it_is_the_formula_of_its_docstring():
    network, x = tree(outputs=2), points(10)
    low, high = network.boxes()
    y, half = (x - network.center) * network.scale, (high - low) / 2
    inside = (y[:, None, None] - (low + half)[:, None] - half[:, None] * network.centres) / half[:, None]
    features = torch.tanh((network.directions * inside).sum(3))
    windows = torch.tensor(np.stack([naive(network, point) for point in x]))
    expected = (features * windows[..., None]).flatten(1) @ network.output.weight.T
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"activation": "sin"}, {"outputs": 2}])
def test_derivatives_in_one_pass_equal_nested_ones(options):
    network, x, orders = tree(**options), points(), [(0,), (1, 1), ((0, 1),), (0, 0, 0)]
    fast, slow = Jets(network, x, Streams.of(orders)), Nested(network, x)
    for order in [(), *orders]:
        exact = slow.derivative(0, order).detach()
        torch.testing.assert_close(fast.derivative(0, order).detach(), exact, rtol=1e-9, atol=1e-12 * float(exact.abs().max()))


def test_a_split_halves_one_box_and_boxes_fill_the_domain():
    network = tree()
    low, high = (edge[network.used] for edge in network.boxes())
    assert len(network.leaves) == 7
    assert float((high - low).prod(1).sum()) == 4
    x = ((points(300) - network.center) * network.scale)[:, None]
    assert bool((((x > low) & (x < high)).all(2).sum(1) == 1).all())


def test_boxes_that_are_too_wide_beside_others_are_found():
    network = tree(())
    right = network.split(0, 0)
    assert network.unbalanced() == []
    network.split(network.split(0, 0), 0)
    assert network.unbalanced() == [(right, 0)]
    network.split(right, 0)
    assert network.unbalanced() == []


def test_a_width_below_that_of_one_patch_is_refused():
    with pytest.raises(ValueError, match="expected a width of 80 features or more, those of one patch; got 50"):
        Patches(SQUARE, width=50)


RING = Box(x=(0, 1), t=(-1, 3), periodic="x")
TORUS = Box(x=(0, 1), t=(-1, 3), periodic="x t")


def around(network, x):
    """The windows of all boxes at one point, by their definition: sums over whole turns of the windows of images."""
    y = ((x - network.center) * network.scale).tolist()
    bumps = []
    for low, high, used in zip(*network.boxes(), network.used, strict=True):
        bump = float(used)
        for z, a, b, wraps in zip(y, low.tolist(), high.tolist(), network.wraps.tolist(), strict=True):
            scale = VANISHES / REACH / (b - a)
            ends = [(a + turn, b + turn) for turn in (-2, 0, 2)] if wraps else [(-99 if a == -1 else a, 99 if b == 1 else b)]
            bump *= sum(erf((z - a) * scale) - erf((z - b) * scale) for a, b in ends) / 2
        bumps.append(bump)
    return np.array(bumps) / sum(bumps)


@pytest.mark.parametrize("periodic", [(0,), (1,), (0, 1)])
def test_windows_that_wrap_around_are_those_of_their_definition_and_sum_to_one(periodic):
    network, x = tree(((0, 0), (0, 1), (1, 0), (2, 1), (3, 0)), periodic=periodic), points(200)
    index, meant = network.near(x)
    found = network.windows(x, index, meant)
    whole = torch.zeros(200, len(network.level), dtype=F64).scatter_add_(1, index, found)
    torch.testing.assert_close(whole, torch.tensor(np.stack([around(network, point) for point in x])), rtol=0, atol=1e-14)
    assert float((found.sum(1) - 1).abs().max()) < 1e-15


def test_across_the_seam_the_network_and_its_derivatives_go_on():
    network = tree(((0, 0), (1, 0), (2, 1), (3, 0)), periodic=(0,), frequency=1e4)
    assert len(network.leaves) == 6
    low, high = points(40), points(40)
    low[:, 0], high[:, 0] = 0, 1
    orders = [(), (0,), (0, 0), (0, 0, 0), (0, 1), (0, 0, 0, 0)]
    before, after = (Jets(network, x, Streams.of(orders)) for x in (high, low))
    for order in orders:
        here, there = (jets.derivative(0, order).detach() for jets in (before, after))
        assert float((here - there).abs().max()) < 1e-12 * float(there.abs().max())
    index, meant = network.near(low)
    middle = (network.boxes()[0] + network.boxes()[1])[:, 0] / 2
    assert all(float(middle[k[m]].min()) < 0 < float(middle[k[m]].max()) for k, m in zip(index, meant, strict=True))


def test_a_periodic_coordinate_begins_halved_so_that_no_window_meets_itself():
    network = Patches(SQUARE, width=40, each=8, periodic=(0, 1))
    assert sorted(network.place[network.used].tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    with pytest.raises(ValueError, match="expected a width of 32 features or more, those of 4 patches, with which periodic"):
        Patches(SQUARE, width=31, each=8, periodic=(0, 1))


def test_boxes_that_touch_across_the_seam_are_balanced():
    network = tree((), periodic=(0,))
    left, right = network.leaves
    outer = network.split(right, 0)
    assert network.unbalanced() == []
    network.split(outer, 0)
    assert network.unbalanced() == [(left, 0)]
    plain = tree(((0, 0), (1, 0), (2, 0)))
    assert plain.unbalanced() == []


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_sides_of_boxes_are_exact_powers_of_two(device):
    network = Patches(SQUARE, width=80 * 50).to(device)
    for _ in range(48):
        network.split(int(network.count) - 1, 0)
    low, high = network.boxes()
    order = low[:49, 0].argsort()
    assert (high - low)[order, 0].tolist() == [2.0**-k for k in range(48)] + [2.0**-47]
    assert high[order[-1], 0] == 1.0


def test_boxes_end_exactly_where_the_domain_ends():
    bounds = torch.tensor([[0.1, 0.3], [-1 / 3, 0.7]], dtype=F64)
    network = Patches(bounds, width=400)
    for box in (0, 1, 2):
        network.split(box, box % 2)
    low, high = (corner[network.used] for corner in network.corners())
    assert torch.equal(low.amin(0), bounds[:, 0])
    assert torch.equal(high.amax(0), bounds[:, 1])
    domain = Box(x=(0.1, 0.3), t=(-1 / 3, 0.7))
    terms = {f"{end}": Term(domain.side(**end), lambda u: u) for end in ({"x": 0.1}, {"x": 0.3}, {"t": -1 / 3}, {"t": 0.7})}
    task = Collocation(Problem(domain, "u", terms))
    drawn = task.within(PatchSystem(task, Trial(network)).cells(network.leaves), 10, 10)
    assert [len(part.cell.unique()) for part in drawn] == [1, 2, 2, 3]


# --- points ------------------------------------------------------------------------------------------------------------------

SHAPES = {"box": BOX, "L": Box(x=(0, 1), t=(-1, 3)) - Box(x=(0.5, 2), t=(-2, 1)), "disk": Disk((0.5, 1), 0.5, ("x", "t"))}


def cells(network):
    low, high = (edge / network.scale + network.center for edge in network.boxes())
    return [Cell(low[k].numpy(), high[k].numpy(), (k,)) for k in network.leaves]


@pytest.mark.parametrize("region", [s.interior for s in SHAPES.values()] + [s.boundary for s in SHAPES.values()], ids=str)
def test_points_in_boxes_lie_there_and_the_measures_of_parts_add_up_to_the_whole(region):
    whole = draw_within(region, Cell(*np.array(BOX.bounds).T), 2000)[1]
    boxes = [cell for cell in cells(tree()) if draw_within(region.shape.interior, cell, 20)[1]]
    parts = [draw_within(region, cell, 500) for cell in boxes]
    for (found, measure), cell in zip(parts, boxes, strict=True):
        assert cell.holds(found.x).all()
        assert len(found.x) == (500 if measure > 1e-9 else 0)
        distance = region.shape.distance(found.x)
        assert np.abs(distance).max(initial=0) < 1e-9 if region.has_normal else (distance < 0).all()
    assert sum(measure for _, measure in parts) == pytest.approx(whole, rel=0.05)


def test_a_tiny_box_at_a_corner_has_its_part_of_the_boundary():
    corner = np.array([0.5, 1.0])
    found, measure = draw_within(SHAPES["L"].boundary, Cell(corner - 1e-5, corner + 1e-5), 40)
    assert len(found.x) == 40
    assert measure == pytest.approx(2e-5 / 19, rel=0.4)  # of the perimeters of both boxes
    assert {tuple(n) for n in found.normal.tolist()} == {(1.0, 0.0), (0.0, -1.0)}


def test_with_factors_squares_of_residuals_add_up_to_their_mean_over_the_domain():
    terms = {
        "inside": Term(BOX.interior, lambda u, x, t: u + x * t),
        "sides": Term(BOX.boundary, lambda u, x, t: u + t, weight=3),
        "data": Term(Data({"x": [0.1, 0.9], "t": [0.0, 2.0]}), lambda u: u + 2),
    }
    task = Collocation(Problem(BOX, "u", terms))
    network = tree()
    torch.nn.init.zeros_(network.output.weight)
    system = PatchSystem(task, Trial(network))
    drawn = task.within(system.cells(network.leaves), 500, 200)
    found = [float(r.square().sum()) for r in system.residuals(drawn)]
    assert found == pytest.approx([(1 / 3) * (7 / 3), 3 * (2 * 28 / 3 + 1 + 9) / 10, 4], rel=0.02)


# --- the solve ---------------------------------------------------------------------------------------------------------------


def sparse(seed=0, q=1, ill=1.0):
    """Random rows that meet neighbours in a row of blocks and block 9."""
    rng = np.random.default_rng(seed)
    sizes, rows = {k: 3 + k % 2 for k in range(8)} | {9: 2}, []
    for k in range(8):
        blocks = tuple(b for b in (k, k + 1, 9) if b in sizes)
        entries = rng.standard_normal((9, sum(sizes[b] for b in blocks)))
        entries[:, 1] = entries[:, 0] + ill * entries[:, 1]
        rows.append(Rows(blocks, torch.tensor(entries), torch.tensor(rng.standard_normal((9, q)))))
    return rows, sizes


def whole(rows, sizes):
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    a = torch.zeros(sum(len(r.entries) for r in rows), sum(sizes.values()), dtype=F64)
    n = 0
    for r in rows:
        column = 0
        for b in r.blocks:
            a[n : n + len(r.entries), starts[b] : starts[b] + sizes[b]] = r.entries[:, column : column + sizes[b]]
            column += sizes[b]
        n += len(r.entries)
    return a, torch.cat([r.right for r in rows])


ORDERS = (
    [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,), (9,)],
    [(7, 0, 3), (5,), (1, 2), (4, 6, 9)],
    [(0,), (2,), (4,), (6,), (1, 5), (3, 7), (9,)],
    [(3, 1, 2, 0, 9, 4, 7, 5, 6)],
)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ill", [1.0, 1e-6])
def test_the_multifrontal_solution_is_the_dense_one_in_any_order(order, ill):
    rows, sizes = sparse(q=2, ill=ill)
    a, b = whole(rows, sizes)
    found = least_squares(rows, sizes, order)
    x = torch.cat([found[k] for k in sizes])
    for column in (0, 1):
        expected = dense.least_squares(a, b[:, column])
        torch.testing.assert_close(x[:, column], expected, rtol=1e-9 / ill, atol=1e-9)


def test_fronts_hold_the_triangle_of_the_dense_decomposition():
    rows, sizes = sparse()
    a, _ = whole(rows, sizes)
    fronts, _ = factored(rows, sizes, [(0, 1), (2,), (3, 4, 5), (6,), (7, 9)])
    expected = torch.linalg.qr(a, mode="r").R.diagonal().abs()
    torch.testing.assert_close(torch.cat([front.own.diagonal().abs() for front in fronts]), expected)


def test_dissection_orders_all_blocks_and_keeps_fronts_small():
    side = 16
    centres = [(i, j) for i in range(side) for j in range(side)]
    joined = {
        k: {m for m, (a, b) in enumerate(centres) if max(abs(a - i), abs(b - j)) <= 1} for k, (i, j) in enumerate(centres)
    }
    order = [block for group in dissected(range(side * side), joined, centres) for block in group]
    assert sorted(order) == list(range(side * side))
    met, largest = {k: set(joined[k]) for k in order}, 0
    for k in order:  # elimination of a graph
        rest = met.pop(k) - {k}
        largest = max(largest, len(rest))
        for m in rest:
            met[m] = (met[m] | rest) - {k}
    assert largest <= 2.5 * side  # in the order of rows and columns it is as small; in a random one, 5 times as large


def nonlinear(u, a):
    return u.t + a * u * u.x - 0.1 * u.xx


def system(parameters=None, unknowns="u", splits=((0, 0), (0, 1), (1, 0)), **terms):
    terms = terms or {"inside": Term(BOX.interior, nonlinear), "start": Term(BOX.start("t"), lambda u, x: u - sin(pi * x))}
    problem = Problem(BOX, unknowns, terms, {"a": Unknown(1.5)} if parameters is None else parameters)
    trial = Trial(tree(splits, width=48, outputs=len(unknowns.split())), problem.coefficients)
    return PatchSystem(Collocation(problem), trial)


def ring():
    terms = {"inside": Term(RING.interior, nonlinear), "start": Term(RING.start("t"), lambda u, x: u - sin(2 * pi * x))}
    problem = Problem(RING, "u", terms, {"a": 1.5})
    return PatchSystem(Collocation(problem), Trial(tree(((0, 0), (1, 1), (2, 0), (1, 0)), width=48, periodic=(0,))))


def coupled():
    terms = {"one": Term(BOX.interior, lambda u, v: u.t - v.x * u), "two": Term(BOX.interior, lambda u, v: v.xx + u)}
    return system({}, "u v", **terms)


@pytest.mark.parametrize("made", [system, coupled, ring])
def test_rows_by_patches_are_those_of_the_whole_jacobian(made):
    found = made()
    rows, loss = found.rows()
    outputs, each = found.network.output.out_features, found.network.each
    sizes = dict.fromkeys(range(6), outputs * each) | ({REST: 1} if made is system else {})
    a, b = whole(rows, sizes)
    r, jacobian = zip(*(found.weights.linearize((part.block,)) for part in found.points()), strict=True)
    factor = torch.cat([part.factor.repeat(len(s) // len(part.factor)) for s, part in zip(r, found.points(), strict=True)])
    matrix = torch.cat([j.dense() for j in jacobian]) * factor[:, None]
    order = [m * 48 + k * each + j for k in range(6) for m in range(outputs) for j in range(each)]
    matrix = matrix[:, [*order, *range(outputs * 48, matrix.shape[1])]]
    torch.testing.assert_close(a.T @ a, matrix.T @ matrix)
    torch.testing.assert_close(a.T @ b[:, 0], -matrix.T @ (torch.cat(r) * factor))
    assert loss == pytest.approx(found.loss(), rel=1e-12)


def test_residuals_are_weighed_by_the_size_of_their_patch_and_data_is_not():
    data = Data({"x": np.linspace(-0.9, 0.9, 40), "t": np.linspace(0.1, 0.9, 40)})
    terms = {
        "inside": Term(BOX.interior, nonlinear),
        "start": Term(BOX.start("t"), lambda u: u),
        "seen": Term(data, lambda u: u - 1),
    }
    found = system({"a": 1.0}, splits=((0, 0), (0, 1)), **terms)
    low, high = found.network.boxes()
    size = ((high - low) / 2)[found.network.leaves].prod(1).sqrt()
    powers = {"inside": 1.0, "start": 0.5, "seen": 0.0}
    even = found.task.within(found.cells(found.network.leaves), 24, 9, 0)
    assert [part.block.terms for part in even] == [(name,) for name in terms]
    for part, weighed in zip(even, found.points(), strict=True):
        expected = part.factor * size[part.cell] ** powers[part.block.terms[0]]
        torch.testing.assert_close(weighed.factor.sort().values, expected.sort().values)
    assert len(size.unique()) > 1


def test_products_with_a_jacobian_of_patches_are_those_of_its_rows():
    found = system()
    block = found.task.batch()[0].piece(0, 30)
    _, jacobian = found.weights.linearize((block,))
    a, v, w = jacobian.dense(), torch.randn(49, dtype=F64), torch.randn(30, dtype=F64)
    r = found.weights.residuals((block,))
    start = found.weights.now
    found.weights.place(start + 1e-6 * v)
    torch.testing.assert_close((found.weights.residuals((block,)) - r) / 1e-6, a @ v, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(jacobian.times(v), a @ v)
    torch.testing.assert_close(jacobian.transposed(w), a.T @ w)
    torch.testing.assert_close(jacobian.gram(), a @ a.T)
    torch.testing.assert_close(jacobian.norms(), a.norm(dim=1))


@pytest.mark.parametrize("made", [system, coupled, ring])
def test_the_solution_by_patches_is_that_of_the_whole_jacobian(made):
    found = made()
    rows, _ = found.rows()
    outputs, each = found.network.output.out_features, found.network.each
    x = found.least(rows, outputs * each)
    sizes = {k: len(part) for k, part in sorted(x.items()) if k != REST} | ({REST: 1} if REST in x else {})
    a, b = whole(rows, sizes)
    expected = dense.least_squares(a, b[:, 0])
    y = torch.cat([x[k] for k in sizes])[:, 0]
    assert float((a @ y - b[:, 0]).norm()) == pytest.approx(float((a @ expected - b[:, 0]).norm()), rel=1e-9)
    torch.testing.assert_close(a @ y, a @ expected, rtol=1e-6, atol=1e-9 * float(b.norm()))


def test_a_whole_step_that_raises_the_loss_is_kept_where_the_next_one_lowers_it():
    """u = 1 and v = u^2 (Rosenbrock 1960): from zero the first step meets one, the second the other."""
    terms = {"one": Term(BOX.interior, lambda u: u - 1), "two": Term(BOX.interior, lambda u, v: 10 * (v - u.value**2))}
    network = Patches(SQUARE, 2, width=20, each=20, generator=torch.Generator().manual_seed(0))
    found = PatchSystem(Collocation(Problem(BOX, "u v", terms)), Trial(network))
    assert found.loss() == pytest.approx(1)
    assert found.solve(affine=False).loss < 1e-6
    assert float((network(points(20)) - 1).detach().abs().max()) < 1e-3


# --- refinement --------------------------------------------------------------------------------------------------------------


def test_a_box_is_halved_along_the_coordinate_in_which_the_function_oscillates():
    for axis in (0, 1):
        found = system(splits=())
        with torch.no_grad():
            found.network.directions[:, :, axis] *= 40
            found.network.directions[:, :, 1 - axis] *= 0.1
        assert found.axis(0) == axis


def test_after_a_refinement_the_function_is_what_it_was_and_boxes_outside_of_the_domain_are_none():
    domain = SHAPES["L"]
    problem = Problem(
        domain, "u", {"sides": Term(domain.boundary, lambda u: u), "inside": Term(domain.interior, lambda u: u.x)}
    )
    network = Patches(SQUARE, width=800, generator=torch.Generator().manual_seed(0))
    found, x = PatchSystem(Collocation(problem), Trial(network)), points(200)
    x = x[torch.tensor(domain.distance(x.numpy()) < 0)]
    with torch.no_grad():
        network.output.weight[:, :80] = torch.linspace(-1, 1, 80)
    before = network(x).detach()
    found.refine([(0, 0)], fit=True)
    found.refine([(0, 1), (1, 1)], fit=True)
    assert len(network.leaves) == 3
    assert float((network(x).detach() - before).norm()) < 1e-7 * float(before.norm())


def run(name, parameters=None, network=None, **train):
    config = {
        "problem": f"{name}.py",
        "network": {"kind": "patches", "width": 400, "each": 20, **(network or {})},
        "points": {"interior": 60, "boundary": 20},
        "train": {"method": "patches", "steps": 40, **train},
        "monitor": False,
    }
    return Run(load_problem(PROBLEMS / f"{name}.py", parameters or {}), make_config(config))


def corner(rounds, each=30):
    """The error on the L-shape after halvings, along both coordinates, of boxes for which something is true."""
    found = run("poisson_l_shape", network={"width": 40 * each, "each": each})
    system = PatchSystem(found.task, found.trial)
    for chosen in rounds:
        for axis in (0, 1):
            low, high = system.network.boxes()
            boxes = [k for k in system.network.leaves if chosen(low[k], high[k])]
            system.refine([(k, axis) for k in boxes], fit=False)
    system.weights.trace(found.task.batch())
    system.solve(affine=True)
    return len(system.network.leaves), found.task.error(found.trial)["overall"]


def at_corner(low, high):
    return bool((low <= 0).all() and (high >= 0).all())


def test_patches_that_halve_towards_a_corner_lower_the_error_geometrically_where_uniform_ones_do_not():
    errors = [corner([at_corner] * n) for n in (2, 4, 6)]
    assert [count for count, _ in errors] == [9, 21, 33]
    assert errors[1][1] < 0.5 * errors[0][1]
    assert errors[2][1] < 0.5 * errors[1][1]
    count, uniform = corner([lambda low, high: True] * 2 + [lambda low, high: low[0] < 0])
    assert count > 21
    assert uniform > 1.5 * errors[1][1]


def test_an_enrichment_beside_patches_is_found_and_saved(tmp_path):
    problem = load_problem(PROBLEMS / "poisson_l_shape.py", {"enriched": True})
    network = {"kind": "patches", "width": 80, "each": 20}
    found = solve(problem, network=network, train={"method": "patches"}, monitor=False)
    assert found.error["overall"] < 1e-10
    weights = found.trial.network.singular.weights.weight[0]
    torch.testing.assert_close(weights.detach(), torch.tensor([1.0, 0, 0, 0], dtype=F64), rtol=0, atol=1e-7)
    found.save(tmp_path / "model.pt")
    assert Solution.load(tmp_path / "model.pt", problem=problem)(x=-0.3, y=0.1) == found(x=-0.3, y=0.1)


def test_with_an_enrichment_too_the_function_is_after_a_refinement_what_it_was():
    problem = load_problem(PROBLEMS / "poisson_l_shape.py", {"enriched": True})
    network = Patches(SQUARE, width=400, enrichment=problem.enriching, generator=torch.Generator().manual_seed(0))
    found, x = PatchSystem(Collocation(problem), Trial(network)), points(200)
    x = x[torch.tensor(problem.domain.distance(x.numpy()) < 0)]
    with torch.no_grad():
        network.output.weight[:, :80] = torch.linspace(-1, 1, 80)
        network.singular.weights.weight.fill_(2.0)
    before = network(x).detach()
    found.refine([(0, 0)], fit=True)
    assert float((network(x).detach() - before).norm()) < 1e-7 * float(before.norm())


def test_the_method_finds_the_corner():
    found = run("poisson_l_shape", network={"width": 320})
    assert "all 320 features are used" in [step.note for step in found][-1]
    network = found.trial.network
    low, high = network.boxes()
    finest = max(network.leaves, key=lambda k: int(network.level[k].sum()))
    assert int(network.level[finest].sum()) >= 4
    assert at_corner(low[finest], high[finest])


def test_a_front_is_resolved_by_nested_iteration():
    steps = run("burgers", {"nu": 0.1 / pi}, {"width": 640, "each": 40})
    history = [(step.note, steps.task.error(steps.trial)["overall"]) for step in steps]
    assert history[-1][0]
    assert history[-1][1] < 1e-3 < 0.1 < history[0][1]
    level = steps.trial.network.level[steps.trial.network.used]
    assert int(level[:, 0].max()) > int(level[:, 1].max())


def periodic(dimensions=1):
    """Convection on a ring, or diffusion on a torus, whose solutions sharpen nowhere."""
    if dimensions == 1:
        domain = Box(x=(0, 1), t=(0, 0.3), periodic="x")
        terms = {
            "convection": Term(domain.interior, lambda u: u.t + u.x),
            "start": Term(domain.start("t"), lambda u, x: u - sin(2 * pi * x), weight=100),
        }
        return Problem(domain, "u", terms, exact=lambda x, t: sin(2 * pi * (x - t)))

    def exact(x, y):
        return sin(2 * pi * (x - y)) + torch.cos(2 * pi * y)

    domain = Box(x=(0, 1), y=(0, 1), periodic="x y")

    def poisson(u, x, y):
        return u - (u.xx + u.yy) / 100 - exact(x, y) - (4 * pi**2 / 100) * (exact(x, y) + sin(2 * pi * (x - y)))

    return Problem(domain, "u", {"poisson": Term(domain.interior, poisson)}, exact=exact)


@pytest.mark.parametrize(("dimensions", "width"), [(1, 1200), (2, 960)])
def test_a_linear_periodic_problem_is_solved_far_below_what_one_patch_could_hold(dimensions, width):
    network = {"kind": "patches", "width": width, "each": 120}
    solution = solve(periodic(dimensions), network=network, train={"method": "patches"}, monitor=False)
    assert solution.error["overall"] < 1e-9
    assert len(solution.trial.network.leaves) > 2**dimensions


def test_unknown_coefficients_are_solved_for_with_the_weights():
    problem = load_problem(PROBLEMS / "inverse_diffusivity.py", {"noise": 1e-9})
    network = {"kind": "patches", "width": 240, "each": 60}
    solution = solve(problem, network=network, train={"method": "patches", "steps": 11}, monitor=False)
    assert solution.coefficients["a"] == pytest.approx(0.3, abs=1e-6)


def test_stopped_at_any_step_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended():
    def made():
        found = run("burgers", {"nu": 0.3 / pi}, {"width": 120})
        return found.trial, found.task

    model, task = made()
    stages, states = [Stage("patches", 9, {"bulk": 0.5})], []
    for step in train(model, task, stages):
        states.append((step.state(), {name: value.clone() for name, value in model.state_dict().items()}))
    assert len(states) > 5
    for state, values in states[1:-1:3]:
        again, task = made()
        again.load_state_dict(values)
        for _ in train(again, task, stages, state=state):
            pass
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_next_slab_begins_with_the_boxes_in_which_the_last_one_ends_and_the_values_there():
    found = run("burgers", {"nu": 0.3 / pi}, {"width": 200, "each": 25, "slabs": [0, 0.1, 1]})
    for step in found:
        if step.method == "next_slab":
            break
    slabs = found.trial.network
    before, after = slabs.networks
    low, high = before.corners()
    ends = [k for k in before.leaves if high[k, 1] == 0.1]
    assert 1 < len(ends) < len(before.leaves)
    assert sorted(after.corners()[0][after.used][:, 0].tolist()) == sorted(low[ends][:, 0].tolist())
    assert after.corners()[0][after.used][:, 1].eq(0.1).all()
    assert after.corners()[1][after.used][:, 1].eq(1.0).all()
    x = torch.linspace(-0.98, 0.98, 50, dtype=F64)[:, None]
    at = {t: torch.cat([x, torch.full_like(x, t)], 1) for t in (0.1, 0.7)}
    with torch.no_grad():
        values = before(at[0.1])
        for there in at.values():
            assert float((after(there) - values).norm()) < 1e-4 * float(values.norm())
    drawn = PatchSystem(found.task, found.trial.acting).points()
    assert all(float(part.block.x[:, 1].min()) >= 0.1 for part in drawn)
    start = drawn[[part.block.terms for part in drawn].index(("start",))]
    assert len(start.cell.unique()) == len(ends)
    expected = before(start.block.x) + sin(pi * start.block.x[:, :1])
    torch.testing.assert_close(start.block.columns["before start"], expected)


def test_patches_in_slabs_of_time_solve_a_problem_and_go_on_from_any_checkpoint():
    def made():
        return run("reaction", network={"width": 480, "each": 60, "slabs": [0, 0.6, 1]})

    marched, states = made(), []
    for step in marched:
        states.append((step.method, deepcopy(marched.course.state_dict())))
    assert [method for method, _ in states].count("next_slab") == 1
    assert marched.task.error(marched.trial)["overall"] < 1e-3
    middle = [method for method, _ in states].index("next_slab")
    for _, state in (states[middle - 1], states[middle + 2]):
        again = made()
        again.course.load_state_dict(state)
        for _ in again:
            pass
        final = marched.trial.state_dict()
        assert all(torch.equal(value, final[name]) for name, value in again.trial.state_dict().items())


def test_a_saved_solution_has_its_tree(tmp_path):
    network = {"kind": "patches", "width": 160, "each": 20}
    found = solve("poisson_disk", network=network, train={"method": "patches"}, monitor={"every": 1})
    assert len(found.trial.network.leaves) > 2
    found.save(tmp_path / "model.pt")
    loaded = Solution.load(tmp_path / "model.pt")
    assert loaded(x=0.3, y=0.1) == found(x=0.3, y=0.1)


@pytest.mark.parametrize(("kind", "method"), [("features", "patches"), ("patches", "features")])
def test_the_method_of_another_kind_is_refused(kind, method):
    with pytest.raises(ValueError, match=f"method {method}: expected a network of kind {method}"):
        solve("poisson", network={"kind": kind, "width": 100}, train={"method": method}, monitor=False)


def test_rounding_of_another_device_changes_neither_how_many_steps_are_made_nor_what_they_lead_to(monkeypatch):
    """Products with weights are off by so many units of rounding, and anew each time they are formed."""
    plain, generator, units = patches.sparse_linear, torch.Generator().manual_seed(0), [0]

    def rough(x, weight, columns):
        taken = weight[:, columns].detach()

        def off(part):
            size = torch.einsum("...nk,onk->...no", part.detach().square(), taken.square()).sqrt()
            return units[0] * torch.finfo(F64).eps * size * torch.randn(size.shape, generator=generator, dtype=F64)

        y = plain(x, weight, columns)
        return y.like(y.value + off(x.value), y.parts + off(x.whole)) if isinstance(x, Jet) else y + off(x)

    monkeypatch.setattr(patches, "sparse_linear", rough)
    steps, residuals = [], []
    for units[0] in (0, 40):
        found = run("cavity", {"lid": "parabola"}, {"width": 200, "each": 50})
        steps.append(sum(1 for _ in found._train()))
        residuals.append(float(PatchSystem(found.task, found.trial).indicators().norm()))
    assert steps[1] <= steps[0] + 2
    assert residuals[1] == pytest.approx(residuals[0], rel=0.1)
