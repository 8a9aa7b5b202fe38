"""Shapes against shapely and closed forms; regions by their laws."""

from math import inf, nan, pi

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from pinnsketch.geometry import Box, Disk, EmptyRegion, GeometryError, Polygon
from pinnsketch.points import draw

L = [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)]
STAR = [(0, 0), (2, 0.5), (3, -1), (2.5, 2), (1, 1), (-0.5, 2)]
SLANTED = [(0.1, 0.3), (0.9, -0.4), (1.7, 0.2), (1.3, 0.9)]
SQUARE = Box(x=(0, 2), y=(0, 1))


def circle(x, y, radius):
    return shapely.Point(x, y).buffer(radius, quad_segs=256)


PRIMITIVES = {
    "box": (Box(x=(-1, 1), y=(0, 3)), shapely.box(-1, 0, 1, 3)),
    "disk": (Disk((0.5, -0.2), 0.8), circle(0.5, -0.2, 0.8)),
    "L": (Polygon(L), shapely.Polygon(L)),
    "clockwise": (Polygon(L[::-1]), shapely.Polygon(L)),
    "star": (Polygon(STAR), shapely.Polygon(STAR)),
}
CUTS = {
    "hole": (SQUARE - Disk((0.7, 0.5), 0.3), shapely.box(0, 0, 2, 1) - circle(0.7, 0.5, 0.3)),
    "bite": (SQUARE - Disk((2, 1), 0.5), shapely.box(0, 0, 2, 1) - circle(2, 1, 0.5)),
    "lens": (Disk() & Disk((1, 0)), circle(0, 0, 1) & circle(1, 0, 1)),
    "snowman": (Disk() | Disk((0, 1.2), 0.6), circle(0, 0, 1) | circle(0, 1.2, 0.6)),
    "neighbours": (SQUARE | Box(x=(2, 3), y=(0, 1)), shapely.box(0, 0, 3, 1)),
    "overlap": (SQUARE | Box(x=(1, 3), y=(0, 1)), shapely.box(0, 0, 3, 1)),
    "same": (SQUARE | SQUARE, shapely.box(0, 0, 2, 1)),
    "shared corner": (SQUARE - Box(x=(0, 1), y=(0, 0.5)), shapely.box(0, 0, 2, 1) - shapely.box(0, 0, 1, 0.5)),
    "slanted seam": (Polygon(SLANTED[:3]) | Polygon([SLANTED[0], *SLANTED[2:]]), shapely.Polygon(SLANTED)),
    "three": (
        (SQUARE - Disk((1, 0.5), 0.2)) | Polygon([(2, 0), (3, 0), (2, 1)]),
        (shapely.box(0, 0, 2, 1) - circle(1, 0.5, 0.2)) | shapely.Polygon([(2, 0), (3, 0), (2, 1)]),
    ),
}
PLANE = PRIMITIVES | CUTS
SOLIDS = {
    "interval": Box(x=(-2, 3)),
    "two intervals": Box(x=(0, 1)) | Box(x=(0.5, 2)),
    "brick": Box(x=(0, 1), y=(0, 2), z=(0, 3)),
    "cylinder": Disk(radius=2) * Box(t=(0, 1)),
    "pipe": (Box(x=(-1, 1), y=(-1, 1)) - Disk(radius=0.5)) * Box(t=(0, 1)),
    "drilled": Box(x=(0, 2), y=(0, 2), z=(0, 1)) - Disk((1, 1), 0.5) * Box(z=(-1, 2)),
}

in_the_plane = pytest.mark.parametrize(("shape", "reference"), PLANE.values(), ids=PLANE)
everywhere = pytest.mark.parametrize(
    "shape", [*(shape for shape, _ in PLANE.values()), *SOLIDS.values()], ids=[*PLANE, *SOLIDS]
)


def scatter(shape, n=2000, seed=0):
    low, high = shape.bounds.T
    return low - 0.2 + np.random.default_rng(seed).random((n, len(low))) * (high - low + 0.4)


def slow_distance(reference, x):
    points = shapely.points(x)
    return np.where(shapely.contains(reference, points), -1, 1) * shapely.distance(reference.boundary, points)


@pytest.mark.parametrize(("shape", "reference"), PRIMITIVES.values(), ids=PRIMITIVES)
def test_the_signed_distance_of_a_primitive_shape_is_exact(shape, reference):
    x = scatter(shape)
    np.testing.assert_allclose(shape.distance(x), slow_distance(reference, x), atol=1e-5)


@in_the_plane
def test_the_signed_distance_has_the_right_sign_and_never_overestimates(shape, reference):
    x = scatter(shape)
    truth, found = slow_distance(reference, x), shape.distance(x)
    clear = np.abs(truth) > 1e-4
    assert (np.sign(found) == np.sign(truth))[clear].all()
    assert (np.abs(found) <= np.abs(truth) + 1e-5).all()


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.1, 4)), min_size=1, max_size=4), st.integers(0, 99))
def test_the_distance_to_a_box_is_that_to_its_nearest_point_outside_and_to_its_nearest_face_inside(intervals, seed):
    box = Box(**{"xyzt"[i]: (low, low + width) for i, (low, width) in enumerate(intervals)})
    low, high = box.bounds.T
    x = scatter(box, 50, seed)
    outside = np.linalg.norm(x - np.clip(x, low, high), axis=1)
    nearest_face = np.minimum(x - low, high - x).min(axis=1)
    np.testing.assert_allclose(box.distance(x), np.where(outside > 0, outside, -nearest_face), atol=1e-12)


@in_the_plane
def test_the_hit_rate_of_the_bounding_box_gives_the_area(shape, reference):
    n, box = 20_000, np.ptp(shape.bounds, axis=1).prod()
    rate = shape.interior.embed(np.random.default_rng(1).random((n, 2)))[2].mean()
    assert rate * box == pytest.approx(reference.area, abs=4 * box * (rate * (1 - rate) / n) ** 0.5 + 1e-4)


@everywhere
def test_normals_are_unit_a_step_along_them_leaves_and_a_step_back_enters(shape):
    points = draw(shape.boundary, 400, "random")
    np.testing.assert_allclose(np.linalg.norm(points.normal, axis=1), 1)
    np.testing.assert_allclose(shape.distance(points.x), 0, atol=1e-12)
    assert (shape.distance(points.x + 1e-6 * points.normal) > 0).all()
    assert (shape.distance(points.x - 1e-6 * points.normal) < 0).all()


@pytest.mark.parametrize(
    ("shape", "sign"), [(Disk((1, 0.5), 0.3), 1), (SQUARE - Disk((1, 0.5), 0.3), -1)], ids=["disk", "hole"]
)
def test_normals_point_away_from_a_disk_and_into_a_hole(shape, sign):
    points = draw(shape.boundary, 400)
    radial = (points.x - (1, 0.5)) / 0.3
    round_ = np.isclose(np.hypot(*radial.T), 1)
    assert round_.sum() > 50
    np.testing.assert_allclose(points.normal[round_], sign * radial[round_], atol=1e-12)


@in_the_plane
def test_boundary_points_are_even_by_length_and_shared_edges_count_once(shape, reference):
    rings = shapely.get_parts(reference.boundary)
    points = shapely.points(draw(shape.boundary, 3000, "random", seed=(5,)).x)
    ring = np.argmin([shapely.distance(ring, points) for ring in rings], axis=0)
    before = np.cumsum([0, *shapely.length(rings)])
    position = before[ring] + shapely.line_locate_point(rings[ring], points)
    assert kstest(position / before[-1], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("sampler", ["sobol", "latin_hypercube", "grid"])
def test_low_discrepancy_boundaries_split_by_arc_length(sampler):
    points = draw((SQUARE - Disk((0.7, 0.5), 0.3)).boundary, 2000, sampler)
    on_hole = np.hypot(*(points.x - [0.7, 0.5]).T) < 0.3 + 1e-9
    assert on_hole.mean() == pytest.approx(0.6 * pi / (6 + 0.6 * pi), abs=0.01)


def test_faces_of_a_brick_get_points_by_area():
    normal = draw(SOLIDS["brick"].boundary, 6000, "random").normal
    counts = [(normal[:, axis] == sign).sum() for axis in range(3) for sign in (-1, 1)]
    areas = np.repeat([6, 3, 2], 2)
    assert chisquare(counts, areas / areas.sum() * 6000).pvalue > 1e-3


def test_wall_and_lids_of_a_cylinder_get_points_by_area_and_are_even_in_it():
    points = draw(SOLIDS["cylinder"].boundary, 6000, "random")
    wall = points.normal[:, 2] == 0
    areas = np.array([4 * pi, 4 * pi, 4 * pi])  # 2 pi r h, pi r^2, pi r^2 with r = 2, h = 1
    counts = [wall.sum(), (points.normal[:, 2] == -1).sum(), (points.normal[:, 2] == 1).sum()]
    assert chisquare(counts, areas / areas.sum() * 6000).pvalue > 1e-3
    assert kstest(points.x[wall, 2], "uniform").pvalue > 1e-3
    assert kstest((points.x[~wall, :2] ** 2).sum(axis=1) / 4, "uniform").pvalue > 1e-3


def test_an_interval_has_two_ends():
    box = Box(x=(-2, 3))
    points = draw(box.boundary, 100)
    np.testing.assert_array_equal(points.x, [[-2], [3]])
    np.testing.assert_array_equal(points.normal, [[-1], [1]])
    np.testing.assert_array_equal(draw(box.side(x=3), 100).x, [[3]])
    np.testing.assert_array_equal(draw(box.start("x"), 100).x, [[-2]])
    np.testing.assert_array_equal(draw(box.end("x"), 100).normal, [[1]])


def test_overlapping_intervals_keep_the_outer_ends_only():
    np.testing.assert_array_equal(draw(SOLIDS["two intervals"].boundary, 9).x, [[0], [2]])


def faces(region):
    """The (coordinate, value, outward sign) of every flat face that draws of a region hit."""
    points = draw(region, 300)
    axis = np.abs(points.normal).argmax(axis=1)
    rows = np.arange(len(axis))
    names = np.array(region.coordinates)[axis]
    return set(zip(names.tolist(), points.x[rows, axis].tolist(), points.normal[rows, axis].tolist(), strict=True))


def test_faces_of_a_box_in_space_and_time_are_where_their_names_say():
    box = Box(x=(-1, 1), y=(0, 2), z=(3, 4), t=(0, 5))
    x, y, z = {("x", -1, -1), ("x", 1, 1)}, {("y", 0, -1), ("y", 2, 1)}, {("z", 3, -1), ("z", 4, 1)}
    assert faces(box.sides("x")) == x
    assert faces(box.sides("z", "x")) == x | z
    assert faces(box.side(y=2)) == {("y", 2, 1)}
    assert faces(box.start("t")) == faces(box.side(t=0)) == {("t", 0, -1)}
    assert faces(box.end("t")) == {("t", 5, 1)}
    assert faces(box.boundary) == x | y | z | {("t", 0, -1), ("t", 5, 1)}


def test_faces_of_a_plane_box_are_where_their_names_say():
    box = Box(x=(-1, 1), t=(0, 1))
    assert faces(box.sides("x")) == {("x", -1, -1), ("x", 1, 1)}
    assert faces(box.side(x=-1)) == {("x", -1, -1)}
    assert faces(box.start()) == {("t", 0, -1)}
    assert faces(box.end()) == {("t", 1, 1)}


def test_a_disk_through_time_has_a_round_wall_a_start_and_an_end():
    domain = Disk() * Box(t=(0, 1))
    wall, start, end = draw(domain.sides("x", "y"), 200), draw(domain.start(), 200), draw(domain.end(), 200)
    np.testing.assert_allclose(np.hypot(wall.x[:, 0], wall.x[:, 1]), 1)
    np.testing.assert_allclose(wall.normal, np.c_[wall.x[:, :2], np.zeros(200)], atol=1e-12)
    assert 0 < wall.x[:, 2].min() < 0.02
    assert 0.98 < wall.x[:, 2].max() < 1
    for lid, t in ((start, 0), (end, 1)):
        assert (lid.x[:, 2] == t).all()
        assert (np.hypot(lid.x[:, 0], lid.x[:, 1]) < 1).all()
        np.testing.assert_array_equal(lid.normal, np.tile([0, 0, 2 * t - 1], (200, 1)))


def test_time_may_come_first_in_a_product():
    domain = Box(t=(0, 1)) * Disk()
    assert domain.coordinates == ("t", "x", "y")
    assert (draw(domain.start(), 50).x[:, 0] == 0).all()
    np.testing.assert_allclose(np.hypot(*draw(domain.sides("x", "y"), 50).x[:, 1:].T), 1)


def test_flat_faces_survive_a_cut():
    assert faces((SQUARE - Disk((0, 0.5), 0.2)).side(x=0)) == {("x", 0, -1)}
    left = draw((SQUARE - Disk((0, 0.5), 0.2)).side(x=0), 200).x
    assert (np.abs(left[:, 1] - 0.5) > 0.2).all()


def test_where_keeps_what_every_condition_accepts():
    part = SQUARE.boundary.where(lambda x: x > 0.5).where(lambda y, x, half=0.5: y + x < 2 * half + 0.5, name="corner")
    x = draw(part, 300).x
    assert ((x[:, 0] > 0.5) & (x.sum(axis=1) < 1.5)).all()
    assert str(part) == "corner of Box(x=(0, 2), y=(0, 1))"
    assert (draw(SQUARE.interior.where(lambda y: y < 0.1), 300).x[:, 1] < 0.1).all()
    np.testing.assert_array_equal(draw(Box(x=(0, 1)).boundary.where(lambda x: x > 0.5), 5).x, [[1]])


def test_regions_and_shapes_are_values():
    def same():
        return (SQUARE - Disk((1, 0.5), 0.2)) * Box(t=(0, 1))

    for part in (lambda s: s.interior, lambda s: s.boundary, lambda s: s.sides("x", "y"), lambda s: s.start()):
        assert part(same()) == part(same())
        assert hash(part(same())) == hash(part(same()))
    assert len({same().interior, same().boundary, same().start(), same().end(), same().interior}) == 4
    assert Polygon(L) == Polygon(np.array(L))
    assert Disk([0, 0]) == Disk()
    assert hash(Disk([0, 0])) == hash(Disk())
    assert Box(x=(0, 1)).interior != Box(x=(0, 2)).interior


def test_repeated_vertices_change_nothing():
    assert Polygon([L[0], L[0], *L[1:], L[0]]) == Polygon(L)


WRONG = {
    "inside-out interval": (lambda: Box(x=(1, 0)), r"x runs from 1 to 0; the first end must be the smaller one: x=\(0, 1\)"),
    "empty interval": (lambda: Box(x=(1, 1)), "x runs from 1 to 1; the first end must be the smaller one"),
    "infinite end": (lambda: Box(t=(0, inf)), "t runs from 0 to inf; both ends must be finite"),
    "nan end": (lambda: Box(t=(nan, 1)), "t runs from nan to 1; both ends must be finite"),
    "no pair": (lambda: Box(x=3), r"x must be a pair of numbers, as in x=\(0, 1\); got 3"),
    "three ends": (lambda: Box(x=(0, 1, 2)), r"x must be a pair of numbers.*got \(0, 1, 2\)"),
    "no interval": (lambda: Box(), r"needs at least one interval, as in Box\(x=\(0, 1\)\)"),
    "called n": (lambda: Box(n=(0, 1)), "cannot be called 'n'"),
    "called d": (lambda: Box(x=(0, 1), d=(0, 1)), "cannot be called 'd'"),
    "called value": (lambda: Box(value=(0, 1)), "cannot be called 'value'"),
    "ambiguous": (lambda: Box(x=(0, 1), y=(0, 1), xy=(0, 1)), r"u\.xy would be ambiguous. Rename 'xy'"),
    "twice": (lambda: Disk() * Box(x=(0, 1)), "must have different names; got x, y, x"),
    "self-crossing": (
        lambda: Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]),
        r"Self-intersection\[0.5 0.5\]; list the vertices in order",
    ),
    "two vertices": (lambda: Polygon([(0, 0), (1, 1)]), "at least three vertices are needed; got 2"),
    "infinite vertex": (lambda: Polygon([(0, 0), (1, inf), (1, 1)]), "every vertex must be a pair of finite numbers"),
    "negative radius": (lambda: Disk(radius=-1), "radius must be positive and finite; got -1"),
    "infinite radius": (lambda: Disk(radius=inf), "radius must be positive and finite; got inf"),
    "center in space": (lambda: Disk((0, 0, 0)), r"center must be two finite numbers; got \(0, 0, 0\)"),
    "disk in space": (lambda: Disk(coordinates=("x", "y", "z")), "Disk: two coordinates are needed; got x, y, z"),
    "other coordinates": (lambda: Disk() | Box(x=(0, 1), z=(0, 1)), "must have the same coordinates; got x, y and x, z"),
    "side elsewhere": (lambda: Box(x=(-1, 1)).side(x=0), r"side\(x=0\): no face of .* lies there; its faces lie at -1, 1"),
    "side of a disk": (lambda: Disk().side(x=1), r"side\(x=1\): .*it has no flat face there"),
    "two sides": (lambda: SQUARE.side(x=0, y=0), r"side\(\) takes one coordinate and its value"),
    "no sides": (lambda: SQUARE.sides(), "its coordinates are x, y"),
    "unknown sides": (lambda: SQUARE.sides("z"), "'z' is no coordinate of .*; its coordinates are x, y"),
    "no start": (lambda: SQUARE.start(), "'t' is no coordinate of .*; its coordinates are x, y"),
    "unknown condition": (
        lambda: draw(SQUARE.interior.where(lambda t: t > 0), 5),
        "the condition asks for 't'; the coordinates are x, y",
    ),
}


@pytest.mark.parametrize(("build", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_exist_is_refused_by_name(build, message):
    with pytest.raises(GeometryError, match=message):
        build()


EMPTY = {
    "disjoint": ((SQUARE & Box(x=(5, 6), y=(0, 1))).interior, r"interior of \(Box.* & Box.*\) is empty: none of .* lies in it"),
    "nothing left": ((SQUARE - SQUARE).interior, "interior of .* is empty"),
    "no boundary left": ((SQUARE - SQUARE).boundary, "boundary of .* is empty"),
    "impossible": (SQUARE.interior.where(lambda x: x > 9, name="far"), "far of .* is empty.*Check its shape and conditions"),
    "impossible end": (Box(x=(0, 1)).boundary.where(lambda x: x > 9), "is empty: none of its 2 end points lies in it"),
    "no such wall": (Disk().sides("x"), r"sides\(x\) of Disk.* is empty: this shape has no such boundary"),
}


@pytest.mark.parametrize(("region", "message"), EMPTY.values(), ids=EMPTY)
def test_an_empty_region_is_refused_by_name(region, message):
    with pytest.raises(EmptyRegion, match=message):
        draw(region, 10)
