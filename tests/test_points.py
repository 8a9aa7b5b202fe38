"""Draws are even, inside, the right number, and pure functions of their seed."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, qmc

from pinnsketch.blocks import draw_by_size
from pinnsketch.geometry import Box, Disk, EmptyRegion, Polygon
from pinnsketch.points import SAMPLERS, draw, grid, latin_hypercube, sobol

RANDOM = [name for name in SAMPLERS if name != "grid"]
L = Polygon([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)])
REGIONS = {
    "interval": Box(x=(2, 3)).interior,
    "thin box": Box(x=(0, 100), y=(0, 1)).interior,
    "disk": Disk((1, 2), 0.5).interior,
    "annulus": (Disk() - Disk(radius=0.95)).interior,
    "L edge": L.boundary,
    "cylinder wall": (Disk() * Box(t=(0, 1))).sides("x", "y"),
    "sliver": Box(x=(0, 1), y=(0, 1)).interior.where(lambda x: x < 0.01),
}
samplers = pytest.mark.parametrize("sampler", SAMPLERS)
random_samplers = pytest.mark.parametrize("sampler", RANDOM)


def cube(d):
    return Box(**dict.fromkeys("xyzabc"[:d], (0, 1)))


@pytest.mark.parametrize("d", [1, 2, 3, 10])
@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 1000])
def test_sobol_points_and_latin_hypercubes_are_those_of_scipy_bit_for_bit(n, d):
    def rng():
        return np.random.default_rng([n, d])

    power = max(n - 1, 1).bit_length()
    np.testing.assert_array_equal(sobol(n, np.ones(d), rng()), qmc.Sobol(d, rng=rng()).random_base2(power)[:n])
    np.testing.assert_array_equal(latin_hypercube(n, np.ones(d), rng()), qmc.LatinHypercube(d, rng=rng()).random(n))


@samplers
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("n", [1, 2, 7, 64, 500])
def test_a_draw_has_the_number_asked_for_and_lies_in_its_region(region, sampler, n):
    points = draw(region, n, sampler)
    assert len(points.x) == n or (sampler == "grid" and len(points.x) >= n)
    if region.has_normal:
        assert points.normal.shape == points.x.shape
        np.testing.assert_allclose(region.shape.distance(points.x), 0, atol=1e-12)
    else:
        assert points.normal is None
        assert (region.shape.distance(points.x) < 0).all()
    assert len(np.unique(points.x, axis=0)) == len(points.x)


@samplers
@pytest.mark.parametrize("d", range(1, 7))
def test_every_sampler_works_in_one_to_six_dimensions(sampler, d):
    inside, edge = draw(cube(d).interior, 100, sampler), draw(cube(d).boundary, 100, sampler)
    assert inside.x.shape[1] == d
    assert (np.abs(inside.x - 0.5) < 0.5).all()
    np.testing.assert_array_equal(np.abs(edge.normal).sum(axis=1), 1)
    np.testing.assert_array_equal(np.abs(edge.x - 0.5).max(axis=1), 0.5)


@samplers
@pytest.mark.parametrize("d", range(2, 7))
def test_a_boundary_draw_misses_no_face(sampler, d):
    normal = draw(cube(d).boundary, 20 * 2**d, sampler).normal
    assert (normal.max(axis=0) == 1).all()
    assert (normal.min(axis=0) == -1).all()


@random_samplers
def test_cells_of_equal_area_get_equal_counts(sampler):
    x = draw(Box(x=(0, 4), y=(-1, 1)).interior, 4096, sampler).x
    counts = np.histogram2d(*x.T, bins=8, range=[(0, 4), (-1, 1)])[0].ravel()
    assert chisquare(counts).pvalue > 1e-3
    if sampler == "sobol":
        np.testing.assert_array_equal(counts, 64)


@random_samplers
def test_rings_of_equal_area_in_a_disk_get_equal_counts(sampler):
    x = draw(Disk(radius=2).interior, 4000, sampler).x
    counts = np.histogram((x**2).sum(axis=1), bins=10, range=(0, 4))[0]
    assert chisquare(counts).pvalue > 1e-3


def test_latin_hypercube_has_one_point_in_every_slice_of_every_axis():
    x = draw(cube(3).interior, 50, "latin_hypercube").x
    np.testing.assert_array_equal(np.sort((x * 50).astype(int), axis=0), np.arange(50)[:, None].repeat(3, axis=1))


@pytest.mark.parametrize("d", range(1, 7))
def test_sobol_integrates_a_smooth_function_better_than_random_points(d):
    def error(sampler):
        runs = [np.prod(np.sin(np.pi * draw(cube(d).interior, 512, sampler, (seed,)).x), axis=1).mean() for seed in range(16)]
        return np.square(np.array(runs) - (2 / np.pi) ** d).mean() ** 0.5

    assert error("sobol") < error("random") / (20 if d < 3 else 3)


def test_sobol_has_less_discrepancy_than_random_points_and_it_falls_faster():
    def discrepancy(sampler, n):
        return np.mean([qmc.discrepancy(draw(cube(2).interior, n, sampler, (seed,)).x, method="L2-star") for seed in range(8)])

    assert discrepancy("sobol", 512) < discrepancy("random", 512) / 4
    assert discrepancy("sobol", 512) / discrepancy("sobol", 64) < 0.8 * discrepancy("random", 512) / discrepancy("random", 64)


@samplers
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_the_same_seed_gives_the_same_points(region, sampler):
    first, again = draw(region, 40, sampler, (3, 1, 4)), draw(region, 40, sampler, (3, 1, 4))
    np.testing.assert_array_equal(first.x, again.x)
    if region.has_normal:
        np.testing.assert_array_equal(first.normal, again.normal)


@random_samplers
@pytest.mark.parametrize("other", [(4, 0, 0), (3, 1, 0), (3, 0, 1)], ids=["seed", "region", "draw"])
def test_another_number_in_the_seed_gives_fresh_points(sampler, other):
    first, fresh = (draw(cube(2).interior, 100, sampler, seed).x for seed in ((3, 0, 0), other))
    assert not np.isin(first, fresh).any()


@pytest.mark.parametrize(("n", "counts"), [(1, (1, 1)), (16, (4, 4)), (17, (5, 4)), (100, (10, 10))])
def test_a_grid_of_a_square_is_regular(n, counts):
    x = draw(cube(2).interior, n, "grid").x
    across, up = ((np.arange(k) + 0.5) / k for k in counts)
    np.testing.assert_allclose(x, [(a, b) for a in across for b in up])


def test_a_grid_has_square_cells_in_a_long_box_and_is_the_same_at_every_draw():
    region = Box(x=(0, 10), y=(0, 1)).interior
    x = draw(region, 250, "grid", (0,)).x
    assert [len(np.unique(column.round(9))) for column in x.T] == [50, 5]
    np.testing.assert_array_equal(x, draw(region, 250, "grid", (1,)).x)


@pytest.mark.parametrize("widths", [(1,), (2, 3), (1e-3, 1, 50), (8, 0.1, 1), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_a_grid_has_at_least_the_number_asked_for_and_no_needless_layer_of_the_widest_axis(widths, n):
    s = grid(n, np.array(widths, dtype=float), np.random.default_rng(0))
    counts = np.array([len(np.unique(column)) for column in s.T])
    assert len(s) == counts.prod() >= n
    widest = np.argsort(widths, kind="stable")[-1]
    assert len(s) - len(s) // counts[widest] < n


def test_a_grid_on_an_edge_is_even_by_length():
    x = draw(Box(x=(0, 3), y=(0, 1)).boundary, 80, "grid").x
    assert [int((x[:, 1] == 0).sum()), int((x[:, 0] == 3).sum())] == [30, 10]
    np.testing.assert_allclose(np.diff(np.sort(x[x[:, 1] == 0, 0])), 0.1)


@samplers
@pytest.mark.parametrize("n", [1, 2, 100])
def test_the_boundary_of_an_interval_is_its_two_ends_once_each(sampler, n):
    points = draw(Box(x=(-1, 4)).boundary, n, sampler)
    np.testing.assert_array_equal(points.x, [[-1], [4]])
    np.testing.assert_array_equal(points.normal, [[-1], [1]])


def test_an_unknown_sampler_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ValueError, match="no sampler 'halton'; the samplers are sobol, latin_hypercube, random, grid"):
        draw(cube(2).interior, 10, "halton")


@pytest.mark.parametrize("n", [0, -3])
def test_fewer_than_one_point_is_refused(n):
    with pytest.raises(ValueError, match=rf"interior of Box\(x=\(0, 1\)\): at least one point is needed; got {n}"):
        draw(cube(1).interior, n)


def test_a_region_too_thin_to_hit_is_refused_before_memory_runs_out():
    thin = cube(2).interior.where(lambda x: x < 5e-6, name="film")
    with pytest.raises(
        EmptyRegion, match=r"film of Box.* is too thin: \d+ of 1,0\d\d,\d\d\d proposed points lie in it, and 500 are"
    ):
        draw(thin, 500, "random")


@pytest.mark.parametrize("power", [0, 2, 12])
def test_points_drawn_by_size_are_all_different_and_their_mean_square_is_that_of_all_on_average(power):
    generator = torch.Generator().manual_seed(1)
    size = torch.rand(200, generator=generator, dtype=torch.float64) ** power
    f, totals = torch.linspace(1, 2, 200, dtype=torch.float64), []
    for offset in torch.rand(2000, generator=generator, dtype=torch.float64).tolist():
        index, factor = draw_by_size(size, 50, offset)
        assert len(index.unique()) == len(index) == 50
        totals.append(float((factor.square() * f[index]).mean()))
    mean, spread = torch.tensor(totals).mean(), torch.tensor(totals).std()
    assert abs(float(mean) - float(f.mean())) < 4 * float(spread) / 2000**0.5 + 1e-6


def test_one_point_in_two_or_more_is_drawn_where_the_size_is():
    size = torch.zeros(400, dtype=torch.float64)
    size[100:120] = 1.0
    index, factor = draw_by_size(size, 100, 0.5)
    inside = (index >= 100) & (index < 120)
    assert int(inside.sum()) == 20
    torch.testing.assert_close(factor[inside].square(), torch.full((20,), 100 / 400, dtype=torch.float64))


def test_sizes_of_zero_are_drawn_evenly():
    index, factor = draw_by_size(torch.zeros(400, dtype=torch.float64), 100, 0.3)
    assert index.diff().unique().tolist() == [4]
    torch.testing.assert_close(factor, torch.ones(100, dtype=torch.float64))


def test_a_point_whose_size_is_no_number_is_drawn():
    for value in (float("nan"), float("inf")):
        size = torch.ones(400, dtype=torch.float64)
        size[17] = value
        index, factor = draw_by_size(size, 100, 0.3)
        assert 17 in index
        assert bool(factor.isfinite().all())
