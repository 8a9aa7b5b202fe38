"""Laws of random numbers without state, and of the estimators of a weight gradient."""

import math

import pytest
import torch

from pinnsketch.layers import ESTIMATORS
from pinnsketch.layers.bershatsky2022_random_projection import Projection
from pinnsketch.layers.chen2021_quantised import bits_of, restored, rounded
from pinnsketch.layers.estimator import GROUP, parts
from pinnsketch.layers.packing import pack, unpack
from pinnsketch.layers.steele2014_split_mix import integers, key, normal, quarters, round_at_random, seed_of, signs, uniform
from pinnsketch.sketch import ThreeSketch

F64 = torch.float64
UNBIASED = [name for name, e in ESTIMATORS.items() if e.unbiased]
unbiased = pytest.mark.parametrize("name", UNBIASED)


def seed(*numbers):
    return torch.tensor(key(*numbers))


def rows(n, d, o, number=0):
    """Rows with a mean, of uneven norms: x (n, d) and delta (n, o)."""
    g = torch.Generator().manual_seed(number)
    size = torch.rand(n, 1, generator=g, dtype=F64) + 0.2
    x = (torch.randn(n, d, generator=g, dtype=F64) + 0.7) * size
    return x, torch.randn(n, o, generator=g, dtype=F64) * size + 0.3 * x[:, :1]


def reference(number, index):
    """The hash of one index in Python's integers."""
    signed = lambda v: (v + 2**63) % 2**64 - 2**63  # noqa: E731
    v = signed(index * 0x9E3779B97F4A7C15 + number)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0x9E3779B97F4A7C15)):
        v = signed((v ^ (v >> shift)) * factor)
    return v


def test_integers_are_the_hash_of_seed_and_index():
    assert integers(seed(1), 5).tolist() == [reference(int(seed(1)), i) for i in range(5)]


def test_every_bit_is_a_fair_coin_and_no_two_bits_agree_more_than_coins_do():
    count = 2**16
    octets = integers(seed(2), count).view(torch.uint8).view(count, 8, 1)
    bits = ((octets >> torch.arange(8, dtype=torch.uint8)) & 1).view(count, 64).double() * 2 - 1
    assert float(bits.mean(0).abs().max()) * math.sqrt(count) < 4.5
    off = (bits.T @ bits / math.sqrt(count))[tuple(torch.triu_indices(64, 64, 1))]  # 2,016 pairs
    assert float(off.abs().max()) < 5
    assert float(off.square().mean()) == pytest.approx(1, abs=0.12)


def streams():
    counter = torch.tensor(7)
    yield from (seed_of(counter + step, key(0, 0, 0)) for step in range(8))
    yield from (seed_of(counter, key(number, 0, 0)) for number in range(1, 9))
    yield from (seed_of(counter, key(0, layer, 0)) for layer in range(1, 9))
    yield from (seed_of(counter, key(0, 0, process)) for process in range(1, 9))


def test_steps_seeds_layers_and_processes_have_streams_of_their_own():
    found = torch.stack([signs(s, (2**14,), 1.0, F64) for s in streams()])
    off = found @ found.T / 2**7 - 2**7 * torch.eye(len(found), dtype=F64)
    assert float(off.abs().max()) < 5
    shifted = torch.stack([integers(s, 64) for s in streams()])
    assert len(shifted.unique()) == shifted.numel()


def test_signs_of_a_sketch_are_uncorrelated_along_both_axes():
    s = signs(seed(3), (512, 512), 1.0, F64)
    for gram in (s @ s.T, s.T @ s):
        off = (gram / math.sqrt(512))[tuple(torch.triu_indices(512, 512, 1))]
        assert float(off.square().mean()) == pytest.approx(1, abs=0.02)
        assert float(off.abs().max()) < 6


def test_uniform_and_normal_numbers_have_their_laws():
    u, z = uniform(seed(4), (40_000,), F64), normal(seed(4), (40_000,), 2.0, F64) / 2
    law = lambda values, cdf: float((cdf(values.sort().values) - torch.arange(40_000) / 40_000).abs().max()) * 200  # noqa: E731
    assert law(u, lambda v: v) < 1.63  # Kolmogorov & Smirnov, 1 %
    assert law(z, torch.special.ndtr) < 1.63
    halves = z.view(2, -1)  # what Box & Muller make of one hash
    assert abs(float((halves[0] * halves[1]).mean())) * math.sqrt(20_000) < 4
    assert abs(float((halves[0].square() * halves[1].square()).mean() - 1)) < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_draws_are_of_the_dtype_asked_for_and_leave_global_random_numbers_alone(dtype):
    state = torch.get_rng_state()
    for draw in (signs, normal):
        assert draw(seed(5), (3, 70), 0.5, dtype).dtype == dtype
    assert set(signs(seed(5), (3, 70), 0.5, dtype).flatten().tolist()) == {0.5, -0.5}
    assert torch.equal(state, torch.get_rng_state())


def test_rounding_at_random_has_the_number_as_its_mean_and_stays_in_range():
    level = torch.tensor([0.0, 0.01, 1.5, 7.99, 254.75, 255.0], dtype=torch.float32)
    draws = torch.stack([round_at_random(level.clone(), seed(i), 255).double() for i in range(10_000)])
    share = level.double() - level.double().floor()
    error = (share * (1 - share) / 10_000).sqrt()
    assert bool(((draws.mean(0) - level).abs() <= 4 * error + 2.0**-16).all())
    assert bool(((draws - level).abs() < 1).all())
    high = torch.full((2**20,), 255.0)
    assert bool((round_at_random(high, seed(6), 255) == 255).all())
    assert int(quarters(seed(6), (2**20,)).max()) == 2**15 - 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packed_numbers_come_out_as_they_went_in(bits):
    levels = torch.randint(0, 2**bits, (1001,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack(levels, bits)
    assert packed.numel() == -(-1001 * bits // 8)
    assert torch.equal(unpack(packed, bits, 1001), levels)


@pytest.mark.parametrize("n", [1, 5, 127, 128, 129, 130, 257, 1000, 4096, 4099])
@pytest.mark.parametrize("keep", [0.01, 0.0625, 0.25, 0.9])
@pytest.mark.parametrize("width", [2, 50, 512, 10**6])
def test_parts_hold_every_row_once_and_keep_no_more_than_the_share(n, keep, width):
    found = parts(n, keep, width)
    assert [p.start for p in found] == [sum(q.count * q.size for q in found[:i]) for i in range(len(found))]
    assert sum(p.count * p.size for p in found) == n
    assert all(p.size <= max(GROUP, math.ceil(4 / keep)) for p in found)
    assert len(found) <= 2
    for p in found:
        assert p.kept == max(1, math.floor(keep * p.size + 1e-9))
        assert p.kept <= max(8, width / 8) + 1


def draws(name, x, delta, keep, count):
    """Sum of the estimates, mean of their squared errors, mean of the formula (which depends on the seed for one of them)."""
    estimate, exact = ESTIMATORS[name], delta.T @ x
    total, squares, formula = torch.zeros_like(exact), 0.0, 0.0
    once = None if name == "lowrank+rademacher" else estimate.variance(delta, x, keep, seed(0))
    for i in range(count):
        s = seed(11, i)
        left, right = estimate.factors(delta, estimate.save(x, s, keep), s, keep)
        found = left.T @ right
        total, squares = total + found, squares + float((found - exact).square().sum())
        if once is None and i % 10 == 0:
            formula += 10 * float(estimate.variance(delta, x, keep, s))
    return total, squares / count, formula / count if once is None else float(once)


@unbiased
def test_the_mean_of_four_thousand_draws_is_the_gradient_and_their_variance_the_formula(name):
    x, delta = rows(16, 4, 3)
    keep = 0.4 if name != "quantised" else 0.15
    total, squares, formula = draws(name, x, delta, keep, 4_000)
    assert float((total / 4_000 - delta.T @ x).norm()) <= 4 * math.sqrt(formula / 4_000)
    assert squares == pytest.approx(formula, rel=0.05)


@unbiased
def test_variances_of_groups_add_up(name):
    x, delta = rows(263, 6, 3)  # groups of 30, and one of 23
    _, squares, formula = draws(name, x, delta, 0.25, 1000)
    assert squares == pytest.approx(formula, rel=0.08)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("n", "dtype"), [(128, torch.float32), (1000, F64), (4096, torch.bfloat16), (333, torch.float16)])
@pytest.mark.parametrize("keep", [0.25, 0.125])
def test_bytes_kept_are_within_the_share(name, n, dtype, keep):
    x = torch.ones(n, 256, dtype=dtype)
    if name == "quantised" and keep == 0.125 and x.element_size() == 2:
        keep = 0.25  # 1 bit of 16 and the scales is more than 0.125 with 2 bits
    if name == "ema":
        n = 128
        x = x[:128].double()
    saved = ESTIMATORS[name].save(x, seed(0), keep)
    assert sum(t.nbytes for t in saved) <= keep * x.nbytes
    assert sum(t.nbytes for t in saved) >= 0.35 * keep * x.nbytes


def dense(projection, n, keep, width):
    """The whole S, block by block."""
    whole = torch.zeros(sum(p.count * p.kept for p in parts(n, keep, width)), n, dtype=F64)
    row = 0
    for part, s in projection.matrices(seed(1), n, keep, width, F64):
        for k in range(part.count):
            at = part.start + k * part.size
            whole[row : row + part.kept, at : at + part.size] = s[k]
            row += part.kept
    return whole


@pytest.mark.parametrize("name", ["rademacher", "gaussian", "mean+rademacher"])
@pytest.mark.parametrize("n", [20, 263])
def test_a_projection_keeps_s_times_x_with_s_block_diagonal(name, n):
    x, delta = rows(n, 5, 3)
    s, estimate = dense(ESTIMATORS[name], n, 0.25, 5), ESTIMATORS[name]
    saved = estimate.save(x, seed(1), 0.25)
    torch.testing.assert_close(saved[0], s @ x)
    left, right = estimate.factors(delta, saved, seed(1), 0.25)
    torch.testing.assert_close(left.T @ right, (s @ delta).T @ (s @ x))


def test_the_mean_row_is_exact():
    estimate = ESTIMATORS["mean+rademacher"]
    x = torch.ones(300, 4, dtype=F64) * torch.tensor([1.0, -2, 3, 0.5], dtype=F64)
    delta = rows(300, 4, 3)[1]
    left, right = estimate.factors(delta, estimate.save(x, seed(2), 0.25), seed(2), 0.25)
    torch.testing.assert_close(left.T @ right, delta.T @ x)
    assert float(estimate.variance(delta, x, 0.25, seed(2))) < 1e-20


def test_rows_of_low_rank_are_exact_when_so_many_directions_are_kept():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=g, dtype=F64) @ torch.randn(3, 60, generator=g, dtype=F64)
    delta, estimate = rows(100, 4, 5)[1], ESTIMATORS["lowrank+rademacher"]
    left, right = estimate.factors(delta, estimate.save(x, seed(3), 0.25), seed(3), 0.25)
    torch.testing.assert_close(left.T @ right, delta.T @ x, rtol=1e-6, atol=1e-6)


def test_each_row_of_a_sample_is_a_row_and_none_is_taken_twice():
    x = torch.arange(263, dtype=F64)[:, None]
    (found,) = ESTIMATORS["rows"].save(x, seed(4), 0.25)
    assert len(found.unique()) == len(found)
    assert set(found.flatten().tolist()) <= set(range(263))


def test_a_projection_mispaired_has_mean_zero_and_about_the_variance():
    x, delta = rows(24, 5, 4)
    estimate: Projection = ESTIMATORS["mean+rademacher"]
    total, squares = torch.zeros(4, 5, dtype=F64), 0.0
    for i in range(3000):
        left, right = estimate.factors(delta, estimate.save(x, seed(i), 0.25), seed(i), 0.25)
        found = estimate.mispaired(left, 24, 0.25, 5).T @ right
        total, squares = total + found, squares + float(found.square().sum())
    d, a = (t - t.mean(0) for t in (delta, x))
    leading = float(d.square().sum() * a.square().sum()) / 5
    assert float((total / 3000).norm()) <= 4 * math.sqrt(leading / 3000)
    assert squares / 3000 == pytest.approx(leading, rel=0.06)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_rounded_numbers_lie_within_a_step_and_the_ends_of_a_run_are_exact(bits):
    x = torch.randn(5, 103, generator=torch.Generator().manual_seed(0))
    found = restored(*rounded(x, seed(7), bits), bits, x.shape)
    runs = torch.cat([x.flatten(), x.flatten()[-1:].expand(-x.numel() % 256)]).view(-1, 256)
    step = (runs.amax(1) - runs.amin(1)) / (2**bits - 1)
    assert bool(((found - x).abs().flatten() <= step.repeat_interleave(256)[: x.numel()] * (1 + 1e-5)).all())
    same = torch.full((3, 300), 1.7)
    assert torch.equal(restored(*rounded(same, seed(7), bits), bits, same.shape), same)


def test_too_small_a_share_for_one_bit_is_refused():
    with pytest.raises(ValueError, match=r"quantised: expected keep >= 0.0391, which is 1 bit of 32 and the scales; got 0.03"):
        bits_of(torch.ones(2, 2), 0.03)


def test_the_moving_average_reconstructs_by_the_equations_of_its_source():
    x, delta = rows(40, 8, 6)
    y = rows(40, 6, 6, 1)[0]
    estimate, three = ESTIMATORS["ema"], ThreeSketch(8, 6, rank=4, decay=0.0)
    saved = estimate.save(x, seed(8), 0.25, y)
    three.x, three.y, three.z, three.updates = *saved, 1
    left, right = estimate.factors(delta, saved, seed(8), 0.25)
    whole, _ = estimate.factors(torch.eye(40, dtype=F64), saved, seed(8), 0.25)  # Omega^T
    torch.testing.assert_close(saved[1], y.T @ whole.T)  # (5b)
    torch.testing.assert_close(left.T @ right, delta.T @ (whole.T @ torch.linalg.pinv(three.y) @ three.structure()))  # (7), (8)
    with pytest.raises(ValueError, match=r"ema: the estimate is biased"):
        estimate.variance(delta, x, 0.25, seed(8))


def test_the_moving_average_of_the_source_is_biased():
    x, delta = rows(40, 4, 3)
    found = [ESTIMATORS["ema"].factors(delta, ESTIMATORS["ema"].save(x, seed(i), 0.25), seed(i), 0.25) for i in range(300)]
    total = sum(left.T @ right for left, right in found) / 300
    assert float((total - delta.T @ x).norm()) > 0.5 * float((delta.T @ x).norm())
