"""Sketches with a theorem: equal to their naive formulas, exact where they can be, and within their bounds elsewhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pinnsketch.sketch import BlockSubspace, CountSketch, ErrorRank, FrequentDirections, TwoSidedSketch, cosine_interval
from pinnsketch.sketch import charikar2002_count_sketch as count_sketch
from pinnsketch.sketch.ghashami2016_frequent_directions import flattest, steepest
from pinnsketch.sketch.rutishauser1969_simultaneous_iteration import largest_eigenvalue

F32, F64 = torch.float32, torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(found, wanted, tolerance=1e-12):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), rtol=tolerance, atol=tolerance)


def orthonormal(rows, columns, seed=0):
    return torch.linalg.qr(randn(rows, columns, seed=seed)).Q


def with_spectrum(rows, columns, values, seed=0):
    values = torch.as_tensor(values, dtype=F64)
    return orthonormal(rows, len(values), 2 * seed) * values @ orthonormal(columns, len(values), 2 * seed + 1).T


def drifting(rows, columns, steps, values, noise=1e-2, speed=0.05, seed=0):
    """Matrices with a few slowly turning spikes in noise, as gradients in training are."""
    u, v = randn(rows, len(values), seed=seed), randn(columns, len(values), seed=seed + 1)
    for t in range(steps):
        u = u + speed * randn(*u.shape, seed=seed + 10 + 3 * t)
        v = v + speed * randn(*v.shape, seed=seed + 11 + 3 * t)
        spikes = torch.linalg.qr(u).Q * torch.tensor(values, dtype=F64) @ torch.linalg.qr(v).Q.T
        yield spikes + noise * randn(rows, columns, seed=seed + 12 + 3 * t) / math.sqrt(max(rows, columns))


seeds = st.integers(0, 2**31)
numbers = st.floats(-3, 3)


# --- CountSketch ---------------------------------------------------------------------------------------------------------


def count_slowly(vectors, size, cubic):
    """(S g)_j = sum over h(i) = j of sigma(i) g_i, in Python's exact integers; the places of all vectors number on."""
    sketches, place, prime = [], 0, 2**31 - 1
    for vector in vectors:
        sketch = [0.0] * size
        for i, value in enumerate(vector.tolist()):
            v = sum(c * (place + i) ** power for power, c in enumerate(cubic)) % prime
            if len(vector) <= size:
                sketch[i] = value
            else:
                sketch[(v // 2) % size] += (1 - 2 * (v % 2)) * value
        place += len(vector)
        sketches.append(sketch)
    return torch.tensor(sketches, dtype=F64)


@pytest.mark.parametrize(("lengths", "size"), [((8,), 8), ((1, 7, 8, 9), 8), ((100, 3, 64), 16), ((4000, 17, 3000), 61)])
def test_a_count_sketch_equals_its_naive_loop(lengths, size):
    vectors = [randn(n, seed=n) for n in lengths]
    sketch = CountSketch(lengths, size, seed=4)
    close(sketch([[v] for v in vectors]), count_slowly(vectors, size, sketch._cubic))


def test_a_cubic_near_the_end_of_its_field_does_not_overflow():
    sketch = CountSketch([2**31 - 1], 61, seed=1)
    for start in (0, 2**30, 2**31 - 1 - 50):
        cells, signs = sketch.hash(start, start + 50)
        values = [sum(c * i**power for power, c in enumerate(sketch._cubic)) % (2**31 - 1) for i in range(start, start + 50)]
        assert cells.tolist() == [(v // 2) % 61 for v in values]
        assert signs.tolist() == [1 - 2 * (v % 2) for v in values]


def test_chunks_and_parts_change_nothing(monkeypatch):
    sketch, vector = CountSketch([5, 600], 8, seed=2), randn(600)
    whole = sketch([[randn(5)], [vector]])
    parts = [vector[:240].view(2, 3, 40), vector[240], vector[241:600].view(1, 359)]
    close(sketch([[randn(5)], parts]), whole)
    monkeypatch.setattr(count_sketch, "CHUNK", 7)
    close(sketch([[randn(5)], parts]), whole)


@given(seeds, numbers, numbers)
@settings(max_examples=30, deadline=None)
def test_a_count_sketch_is_linear(seed, a, b):
    sketch = CountSketch([90, 5], 8, seed=seed)
    x, y = ([randn(90, seed=s), randn(5, seed=s + 1)] for s in (0, 10))
    both = sketch([[a * u + b * v] for u, v in zip(x, y, strict=True)])
    close(both, a * sketch([[u] for u in x]) + b * sketch([[v] for v in y]))


def worst_for_folding(n):
    x = torch.zeros(n, dtype=F64)
    x[::16] = 1
    return x


@pytest.mark.parametrize("x", [randn(300), torch.ones(300, dtype=F64), worst_for_folding(300), randn(300) ** 3])
@pytest.mark.parametrize("correlation", [0.0, 0.7, 1.0])
def test_inner_products_of_count_sketches_have_the_mean_and_variance_of_the_theorem_for_any_vectors(x, correlation):
    size, draws = 16, 3000
    y = correlation * x + math.sqrt(1 - correlation**2) * randn(300, seed=9)
    sketches = (CountSketch([300], size, seed) for seed in range(draws))
    found = np.array([float(s([[x]])[0] @ s([[y]])[0]) for s in sketches])
    true = float(x @ y)
    variance = float(x.square().sum() * y.square().sum() + true**2 - 2 * (x * y).square().sum()) / size
    assert found.mean() == pytest.approx(true, abs=4 * math.sqrt(variance / draws))
    squares = (found - true) ** 2
    assert squares.mean() == pytest.approx(variance, abs=4 * squares.std() / math.sqrt(draws))


def test_the_interval_of_a_cosine_covers_it_for_vectors_that_folding_serves_badly():
    x, y = worst_for_folding(4096), randn(4096) * worst_for_folding(4096)
    x, y = x / x.norm(), y - x * (x @ y) / (x @ x)
    y = 0.5 * x + math.sqrt(0.75) * y / y.norm()
    hits = 0
    for seed in range(500):
        sketch = CountSketch([4096], 64, seed)
        a, b = sketch([[x]])[0], sketch([[y]])[0]
        low, high = cosine_interval(float(a @ b / (a.norm() * b.norm())), 64)
        hits += low <= 0.5 <= high
    assert hits >= 0.92 * 500


def test_a_vector_no_longer_than_its_sketch_is_kept_whole():
    sketch = CountSketch([8, 5, 9], 8)
    vectors = [[randn(n, seed=n)] for n in (8, 5, 9)]
    found = sketch(vectors)
    assert sketch.exact == (True, True, False)
    assert torch.equal(found[0], vectors[0][0])
    assert torch.equal(found[1], torch.cat([vectors[1][0], torch.zeros(3, dtype=F64)]))


def test_equal_vectors_of_one_sketch_have_cells_of_their_own_and_the_state_is_four_numbers():
    sketch, x = CountSketch([300, 300], 16, seed=5), randn(300)
    first, second = sketch([[x], [x]])
    assert not torch.equal(first, second)
    assert torch.equal(CountSketch([300], 16, seed=5)([[x]])[0], first)
    assert not torch.equal(CountSketch([300], 16, seed=6)([[x]])[0], first)
    assert sketch([[x.float()], [x.float()]]).dtype == F32
    assert sketch.bytes == 32
    assert not any(isinstance(value, torch.Tensor) for value in vars(sketch).values())


def test_count_sketches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="must be at least 8; got 7"):
        CountSketch([3], 7)
    with pytest.raises(ValueError, match=r"up to 2,147,483,647 numbers in all; got 2,147,483,648\. Use several"):
        CountSketch([2**31 - 1, 1], 8)
    for vectors in ([[randn(3)]], [[randn(3)], [randn(4)], [randn(1)]], [[randn(3)], [randn(5)]]):
        with pytest.raises(
            ValueError, match=r"Expected vectors of lengths \(3, 4\); got \(3,.*make a sketch for these lengths"
        ):
            CountSketch([3, 4], 8)(vectors)


# --- TwoSidedSketch ------------------------------------------------------------------------------------------------------


def two_sided(matrices, **options):
    sketch = TwoSidedSketch(*matrices[0].shape, **{"rank": 2, "seed": 3, **options})
    for matrix in matrices:
        sketch.update(matrix)
    return sketch


@pytest.mark.parametrize("decay", [None, 0.0, 0.8])
def test_the_three_sketches_and_the_error_sketch_equal_their_formulas_on_the_matrix_of_the_stream(decay):
    matrices = [randn(40, 30, seed=i) for i in range(4)]
    sketch, a = two_sided(matrices, decay=decay), torch.zeros(40, 30, dtype=F64)
    for h in matrices:
        a = a + h if decay is None else decay * a + (1 - decay) * h
    assert [tuple(m.shape) for m in (sketch.x, sketch.y, sketch.z, sketch.w)] == [(5, 30), (40, 5), (11, 11), (10, 30)]
    close(sketch.x, sketch.upsilon @ a)
    close(sketch.y, a @ sketch.omega.T)
    close(sketch.z, sketch.phi @ a @ sketch.psi.T)
    close(sketch.w, sketch.theta @ a)
    assert sketch.correction == pytest.approx(1 if decay is None else 1 - decay**4)


def reconstruct_slowly(sketch, a):
    """Q (Phi Q)^+ Z ((Psi P)^+)^T P^T, with pseudo-inverses and numpy."""
    a = a.numpy()
    upsilon, omega, phi, psi = (m.double().numpy() for m in (sketch.upsilon, sketch.omega, sketch.phi, sketch.psi))
    q, p = np.linalg.qr(a @ omega.T)[0], np.linalg.qr((upsilon @ a).T)[0]
    return q @ np.linalg.pinv(phi @ q) @ (phi @ a @ psi.T) @ np.linalg.pinv(psi @ p).T @ p.T


@pytest.mark.parametrize(("m", "n"), [(40, 30), (30, 40), (9, 60), (60, 9), (40, 7), (4, 40), (40, 3), (1, 1), (1, 20)])
def test_the_approximation_equals_its_formula_at_any_shape(m, n):
    a = randn(m, n)
    sketch = two_sided([a])
    q, c, p = sketch.low_rank()
    assert (q.shape, c.shape, p.shape) == ((m, min(m, n, 5)), (min(m, n, 5), min(m, n, 5)), (n, min(m, n, 5)))
    close(q.T @ q, torch.eye(q.shape[1], dtype=F64))
    close(p.T @ p, torch.eye(p.shape[1], dtype=F64))
    close(sketch.reconstruct(), torch.from_numpy(reconstruct_slowly(sketch, a)), 1e-9)
    close(sketch.reconstruct(), q @ c @ p.T)


@pytest.mark.parametrize(("m", "n"), [(60, 50), (20, 90), (90, 8)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_matrix_of_the_target_rank_is_recovered_exactly(m, n, rank):
    a = with_spectrum(m, n, range(1, rank + 1))
    sketch = two_sided([a], rank=rank)
    close(sketch.reconstruct(), a, 1e-9)
    close(sketch.reconstruct(rank), a, 1e-9)
    assert sketch.error()[1] < 1e-10
    if rank > 1:
        assert sketch.error(rank - 1)[0] == pytest.approx(1, rel=0.8)


@pytest.mark.parametrize(("m", "n"), [(5, 40), (40, 5), (5, 5), (3, 4), (2, 30), (1, 1)])
def test_a_matrix_of_any_rank_is_recovered_exactly_if_k_reaches_a_side(m, n):
    sketch = two_sided([randn(m, n, seed=1), randn(m, n, seed=2)])
    close(sketch.reconstruct(), randn(m, n, seed=1) + randn(m, n, seed=2), 1e-9)


SPECTRA = {
    "slow": [1 / i for i in range(1, 41)],
    "fast": [math.exp(-i / 4) for i in range(40)],
    "spiked": [10.0, 8.0, 6.0] + [1.0] * 37,
    "flat": [1.0] * 40,
}


def squared_errors(values, rank, draws=200, **options):
    a = with_spectrum(60, 45, values)
    return np.array(
        [
            float((two_sided([a], rank=rank, probes=1, seed=seed, **options).reconstruct() - a).square().sum())
            for seed in range(draws)
        ]
    )


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_mean_squared_error_is_within_the_theorem_of_tropp_et_al(values, rank):
    errors, k, s = squared_errors(values, rank), 2 * rank + 1, 4 * rank + 3
    tail = [sum(v * v for v in values[j:]) for j in range(len(values) + 1)]
    theorem = (s - 1) / (s - k - 1) * min((k + j - 1) / (k - j - 1) * tail[j] for j in range(k - 1))
    assert theorem <= 6 * tail[rank] * (1 + 1e-12)
    noise = errors.std() / math.sqrt(len(errors))
    assert errors.mean() <= theorem + 3 * noise
    assert errors.mean() + 3 * noise <= 6 * tail[rank]
    assert errors.min() >= tail[k] * (1 - 1e-12)  # the best of rank k


def test_a_core_of_size_k_as_in_the_three_sketches_has_no_bound_and_is_refused():
    for core in (5, 6):
        with pytest.raises(
            ValueError, match=f"A core of s = {core} has no error bound with k = .* = 5: it needs s >= k . 2 = 7"
        ):
            TwoSidedSketch(40, 30, rank=2, core=core)
    least = squared_errors(SPECTRA["spiked"], 3, core=9)
    assert least.mean() > 2 * squared_errors(SPECTRA["spiked"], 3).mean()
    assert TwoSidedSketch(40, 6, rank=2, core=6).phi.shape == (6, 40)  # a full side needs no more


def test_a_map_as_large_as_its_side_is_the_identity_and_others_are_standard_normal():
    sketch = TwoSidedSketch(5, 9, rank=2)
    for identity in (sketch.upsilon, sketch.phi, sketch.psi):
        assert torch.equal(identity, torch.eye(len(identity), dtype=F64))
    sketch = TwoSidedSketch(900, 800, rank=5, probes=7)
    maps = (sketch.upsilon, sketch.omega, sketch.phi, sketch.psi, sketch.theta)
    assert [tuple(a.shape) for a in maps] == [(11, 900), (11, 800), (23, 900), (23, 800), (7, 900)]
    for a in maps:
        assert abs(float(a.mean())) < 4 / math.sqrt(a.numel())
        assert float(a.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / a.numel()))
    together = torch.cat([a[:, :800] for a in maps])
    assert (torch.corrcoef(together) - torch.eye(len(together), dtype=F64)).abs().max() < 5.5 / math.sqrt(800)


@pytest.mark.parametrize("probes", [4, 10])
def test_the_error_estimate_is_unbiased_with_relative_variance_at_most_two_over_q(probes):
    a, ratios, ones = with_spectrum(50, 40, SPECTRA["slow"]), [], []
    two = with_spectrum(50, 40, [2.0, 1.0])
    for seed in range(1200):
        sketch = two_sided([a], probes=probes, seed=seed)
        ratios.append(sketch.error()[0] ** 2 / float((a - sketch.reconstruct()).square().sum()))
        if seed < 600:
            ones.append(two_sided([two], probes=probes, seed=seed).error(1)[0] ** 2)  # what is left has rank one and norm one
    for found, variance in ((ratios, None), (ones, 2 / probes)):
        assert np.mean(found) == pytest.approx(1, abs=4 * np.std(found) / math.sqrt(len(found)))
        assert np.var(found) <= 2 / probes * (1 + 5 * math.sqrt(2 / len(found)) * 1.6)
        if variance:
            assert np.var(found) == pytest.approx(variance, rel=0.3)


def test_errors_are_those_of_the_probes_and_relative_to_the_matrix():
    a = randn(40, 30) + randn(40, 30, seed=1)
    sketch = two_sided([randn(40, 30), randn(40, 30, seed=1)])
    for rank in (None, 1, 4):
        left = (sketch.theta @ (a - sketch.reconstruct(rank))).norm()
        error, relative = sketch.error(rank)
        assert error == pytest.approx(float(left) / math.sqrt(10))
        assert relative == pytest.approx(float(left / (sketch.theta @ a).norm()))


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_truncation_is_the_best_of_its_rank(rank):
    sketch = two_sided([randn(40, 30)])
    u, values, v = np.linalg.svd(sketch.reconstruct().numpy())
    close(sketch.reconstruct(rank), torch.from_numpy(u[:, :rank] * values[:rank] @ v[:rank]), 1e-9)
    q, c, p = sketch.truncate(rank)
    assert (q.shape, c.shape, p.shape) == ((40, rank), (rank, rank), (30, rank))
    close(c, torch.from_numpy(np.diag(values[:rank])), 1e-9)
    for wrong in (0, 6):
        with pytest.raises(ValueError, match=f"Expected a rank of 1 to 5, that of the approximation; got {wrong}"):
            sketch.truncate(wrong)


@given(seeds, st.sampled_from([None, 0.0, 0.9]), st.integers(1, 3), st.sampled_from([(12, 20), (20, 12), (3, 9)]))
@settings(max_examples=30, deadline=None)
def test_the_sketch_of_a_sum_of_streams_is_the_sum_of_their_sketches(seed, decay, count, shape):
    first, second = ([randn(*shape, seed=s + i) for i in range(count)] for s in (0, 50))
    both = [a + b for a, b in zip(first, second, strict=True)]
    options = {"seed": seed, "decay": decay, "rank": 1}
    part = two_sided(first, **options)
    kept = part.x.clone()
    merged, whole = part + two_sided(second, **options), two_sided(both, **options)
    for _ in range(2):
        for name in ("x", "y", "z", "w"):
            close(getattr(merged, name), getattr(whole, name), 1e-11)
        assert merged.correction == whole.correction
        close(merged.reconstruct(), whole.reconstruct(), 1e-6)
        merged.update(both[0])
        whole.update(both[0])
    assert torch.equal(part.x, kept)
    if decay is None:  # an empty stream adds nothing
        close((TwoSidedSketch(*shape, rank=1, seed=seed) + part).reconstruct(), part.reconstruct())


@pytest.mark.parametrize(
    ("options", "word"),
    [({"rank": 3}, "rank, core"), ({"seed": 9}, "seed"), ({"probes": 4}, "probes"), ({"decay": 0.5}, "decay")],
)
def test_two_sided_sketches_of_different_maps_are_not_added(options, word):
    with pytest.raises(ValueError, match=f"Sketches that differ in {word} cannot be added"):
        two_sided([randn(20, 20)]) + two_sided([randn(20, 20)], **options)
    with pytest.raises(ValueError, match="differ in shape cannot be added"):
        two_sided([randn(20, 20)]) + two_sided([randn(20, 21)])
    with pytest.raises(ValueError, match="differ in updates cannot be added"):
        two_sided([randn(9, 9)], decay=0.5) + two_sided([randn(9, 9)] * 2, decay=0.5)


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_moving_average_of_a_constant_stream_is_that_matrix(count, decay):
    a = with_spectrum(20, 15, [3, 2])
    sketch = two_sided([a] * count, decay=decay)
    close(sketch.reconstruct(), a, 1e-10)
    assert sketch.error(1)[0] == pytest.approx(two_sided([a]).error(1)[0])


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_two_sided_sketch_in_single_precision_scales(scale):
    a = with_spectrum(50, 40, [3, 2, 1e-3]).float()
    sketch = two_sided([scale * a], dtype=F32)
    assert {sketch.x.dtype, sketch.z.dtype, sketch.theta.dtype, sketch._right.dtype} == {F32}
    close(sketch.reconstruct() / scale, a.double(), 1e-5)
    error, relative = sketch.error(2)
    assert error / scale == pytest.approx(1e-3, rel=0.9)
    assert relative == pytest.approx(1e-3 / math.sqrt(13), rel=0.9)


def test_a_zero_matrix_is_approximated_without_error():
    sketch = two_sided([torch.zeros(20, 30, dtype=F64)])
    assert torch.equal(sketch.reconstruct(), torch.zeros(20, 30, dtype=F64))
    assert sketch.error() == (0, 0)


def test_a_two_sided_sketch_goes_on_from_its_state_even_at_another_rank_and_counts_its_bytes():
    matrices = [randn(30, 20, seed=i) for i in range(4)]
    whole, first = two_sided(matrices, decay=0.9, rank=3, seed=7), two_sided(matrices[:2], decay=0.9, rank=3, seed=7)
    again = TwoSidedSketch(30, 20, decay=0.9)
    again.load_state_dict(first.state_dict())
    kept = first.z.clone()
    for matrix in matrices[2:]:
        again.update(matrix)
    assert torch.equal(first.z, kept)
    assert (again.rank, again.updates) == (3, 4)
    assert all(torch.equal(getattr(again, name), getattr(whole, name)) for name in ("x", "y", "z", "w", "omega", "theta"))
    assert again.error() == pytest.approx(whole.error())
    held = {value.untyped_storage().data_ptr(): value for value in vars(again).values() if isinstance(value, torch.Tensor)}
    assert again.bytes == sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    assert again.bytes == 8 * (7 * 50 + 15 * 15 + 10 * 20 + (7 + 15) * 50 + 10 * 30)


def test_what_a_two_sided_sketch_cannot_take_is_refused():
    with pytest.raises(ValueError, match="rank=0, probes=10"):
        TwoSidedSketch(3, 3, rank=0)
    for decay in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"Expected a decay of None, or 0 <= decay < 1; got decay={decay}"):
            TwoSidedSketch(3, 3, decay=decay)
    sketch = TwoSidedSketch(4, 3)
    for read in (sketch.low_rank, sketch.error, sketch.reconstruct):
        with pytest.raises(ValueError, match="The sketch is empty: update it at least once"):
            read()
    with pytest.raises(ValueError, match=r"Expected a matrix of shape \(4, 3\); got \(3, 4\)"):
        sketch.update(randn(3, 4))
    sketch.update(torch.full((4, 3), math.nan))
    with pytest.raises(ValueError, match="The sketch is not finite: a matrix it was given was not"):
        sketch.error()


# --- ErrorRank -----------------------------------------------------------------------------------------------------------


def test_the_rank_rises_while_the_error_is_above_the_tolerance_up_to_its_limit():
    rank = ErrorRank(2, 0.1, limit=4)
    assert [rank.update(e) for e in (0.2, 0.1, math.nan, 0.5, math.inf)] == [True, False, True, False, False]
    assert rank.rank == 4


def test_the_rank_falls_where_the_rank_below_is_known_to_do():
    rank = ErrorRank(4, 0.1, least=2)
    assert [rank.update(0.09, smaller) for smaller in (0.11, 0.1, 0.05)] == [False, True, True]
    assert rank.rank == 2
    assert rank.update(0.2, 0.05)  # the rank itself does not do
    assert (rank.rank, rank.patience) == (3, 5)  # what was known was no try
    assert [rank.update(0.09, 0.05) for _ in range(2)] == [True, False]
    assert rank.rank == 2


def test_a_smaller_rank_is_tried_after_patience_and_a_try_that_fails_doubles_it():
    rank, ranks = ErrorRank(3, 0.1, patience=2), []
    for _ in range(200):
        rank.update(0.001 if rank.rank >= 3 else 0.2)
        ranks.append(rank.rank)
    tries = [i for i in range(1, 200) if ranks[i] < ranks[i - 1]]
    assert np.diff([0, *tries]).tolist() == [1, *(2 ** (j + 2) + 1 for j in range(len(tries) - 1))]
    assert ranks.count(2) == len(tries) == 6
    steady = ErrorRank(3, 0.1, patience=2)
    assert not any(steady.update(0.05) for _ in range(50))  # good, and not a quarter


@given(st.lists(st.floats(0, 0.3), max_size=60), st.lists(st.floats(0, 0.3), max_size=60))
@settings(max_examples=50, deadline=None)
def test_an_error_rank_goes_on_from_its_state_within_its_limits(first, then):
    whole, again = (ErrorRank(3, 0.1, least=2, limit=5, patience=2) for _ in range(2))
    for error in first:
        before = whole.rank
        assert whole.update(error) == (whole.rank != before)
        assert 2 <= whole.rank <= 5
    again.load_state_dict(whole.state_dict())
    assert [whole.update(e) for e in then] == [again.update(e) for e in then]
    assert whole.rank == again.rank


def test_the_error_of_a_sketch_drives_the_rank_to_the_least_that_meets_the_tolerance():
    a = with_spectrum(60, 50, [1.0] * 6 + [1e-4] * 40)
    for start in (1, 10):
        rank = ErrorRank(start, 0.01)
        for step in range(40):
            sketch = two_sided([a], rank=rank.rank, seed=step)
            smaller = sketch.error(rank.rank - 1)[1] if rank.rank > 1 else None
            rank.update(sketch.error()[1], smaller)
        assert 3 <= rank.rank <= 6  # k = 2r + 1 must reach 6
        assert sketch.error()[1] <= 0.01


@pytest.mark.parametrize(
    ("options", "message"), [({"least": 3}, "3, 2, 16"), ({"limit": 1}, "1, 2, 1"), ({"least": 0}, "0, 2, 16")]
)
def test_error_ranks_out_of_order_are_refused(options, message):
    with pytest.raises(ValueError, match=f"Expected 1 <= least <= rank <= limit; got {message}"):
        ErrorRank(2, 0.1, **options)
    for tolerance in (0.0, math.nan):
        with pytest.raises(ValueError, match="Expected tolerance > 0 and patience >= 1; got"):
            ErrorRank(2, tolerance)


# --- FrequentDirections --------------------------------------------------------------------------------------------------


def streams(m, n, steps=12):
    """By name: matrices of random, low-rank, spiked and flat covariance."""
    basis = orthonormal(m, m, seed=5)
    return {
        "random": [randn(m, n, seed=i) for i in range(steps)],
        "low rank": [orthonormal(m, min(m, 3)) @ randn(min(m, 3), n, seed=i) for i in range(steps)],
        "spiked": list(drifting(m, n, steps, [5.0, 3.0][: min(m, n)])),
        "flat": [basis[:, (torch.arange(n) + i * n) % m] for i in range(steps)],
        "decaying": [basis * torch.logspace(0, -6, m, dtype=F64) @ randn(m, n, seed=i) for i in range(steps)],
        "on and off": [(i % 4 == 0) * randn(m, n, seed=i) for i in range(steps)],
    }


SHAPES = [(20, 3), (20, 30), (6, 40), (40, 1), (1, 5), (3, 2)]


def covariance(matrices, beta):
    c = 0
    for g in matrices:
        c = beta * c + g @ g.T
    return c


def frequent(matrices, **options):
    sketch = FrequentDirections(len(matrices[0]), **{"size": 5, **options})
    for g in matrices:
        assert sketch.update(g)
    return sketch


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_frequent_directions_equal_their_naive_updates(m, n, beta):
    for matrices in streams(m, n).values():
        sketch, size = FrequentDirections(m, 5, decay=beta), min(5, m)
        b, escaped, trace, weight = np.zeros((m, size)), 0.0, 0.0, 0.0
        for g in matrices:
            sketch.update(g)
            u, s, _ = np.linalg.svd(np.hstack([math.sqrt(beta) * b, g.numpy(), np.zeros((m, m))]), full_matrices=False)
            rho = s[size] ** 2 if m > size else 0.0
            b = u[:, :size] * np.sqrt(np.maximum(s[:size] ** 2 - rho, 0))
            escaped, trace, weight = beta * escaped + rho, beta * trace + float(g.square().sum()), beta * weight + 1
            scale = max(trace, 1e-30)
            np.testing.assert_allclose((sketch.b @ sketch.b.T).numpy() / scale, b @ b.T / scale, atol=1e-12)
            assert float(sketch.escaped) == pytest.approx(escaped, rel=1e-9, abs=1e-12 * scale)
            assert float(sketch.trace) == pytest.approx(trace, rel=1e-12)
            assert float(sketch.weight) == pytest.approx(weight)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("beta", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_what_is_lost_is_between_zero_and_the_escaped_mass_which_is_within_the_theorem_at_every_step(m, n, beta, dtype):
    for matrices in streams(m, n).values():
        sketch, c = FrequentDirections(m, 5, decay=beta, dtype=dtype), torch.zeros(m, m, dtype=F64)
        for g in matrices:
            g = g.to(dtype).double()
            sketch.update(g)
            c = beta * c + g @ g.T
            slack = float(sketch.rounding) + 1e-14 * float(c.trace())
            lost = torch.linalg.eigvalsh(c - sketch.b.double() @ sketch.b.double().T)
            assert float(lost[0]) >= -slack
            assert float(lost[-1]) <= float(sketch.escaped) + slack
            values = torch.linalg.eigvalsh(c).flip(0)
            bounds = [float(values[j:].sum()) / (sketch.size + 1 - j) for j in range(sketch.size + 1)]
            assert float(sketch.escaped) <= min(bounds) + slack
            assert min(bounds) - (sketch.size + 1) * slack <= sketch.bound <= float(c.trace()) / (sketch.size + 1) + slack


def test_the_tail_decays_as_a_covariance_and_the_factor_as_its_root():
    sketch = frequent(streams(20, 30)["random"], decay=0.5)
    b, escaped = sketch.b.clone(), float(sketch.escaped)
    assert escaped > 1
    for t in range(1, 6):
        sketch.update(torch.zeros(20, 4, dtype=F64))
        assert float(sketch.escaped) == pytest.approx(0.5**t * escaped)
        close(sketch.b @ sketch.b.T, 0.5**t * b @ b.T, 1e-10)
    assert float(sketch.weight) == pytest.approx(sum(0.5**j for j in range(17)))


def truths(c):
    values = np.linalg.eigvalsh(c.numpy())[::-1].clip(min=0)
    p = values / values.sum()
    return {
        "stable_rank": 1 / p[0],
        **{("top_share", k): p[:k].sum() for k in {1, min(3, len(p)), len(p)}},
    }


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("size", [1, 5, 64])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_every_reading_is_an_interval_that_holds_the_truth(m, n, size, dtype):
    for beta in (0.7, 1.0):
        for matrices in streams(m, n).values():
            sketch, c = FrequentDirections(m, size, decay=beta, dtype=dtype), torch.zeros(m, m, dtype=F64)
            for t, g in enumerate(matrices):
                g = g.to(dtype).double()
                sketch.update(g)
                c = beta * c + g @ g.T
                if t % 3 != 2:
                    continue
                values = np.linalg.eigvalsh(c.numpy())[::-1]
                low, high = (bound.numpy() for bound in sketch.eigenvalues(m))
                assert (low - 1e-14 * values[0] <= values).all()
                assert (values <= high + 1e-14 * values[0]).all()
                for name, truth in truths(c).items():
                    low, high = getattr(sketch, name)() if isinstance(name, str) else sketch.top_share(name[1])
                    assert low <= truth * (1 + 1e-12), name
                    assert truth <= high * (1 + 1e-12), name
                    if size >= m:  # nothing escapes
                        assert high - low <= (1e-3 if dtype is F32 else 1e-9) * high, name


def test_intervals_narrow_with_size_and_the_first_eigenvalue_is_known_to_one_percent_at_sixteen():
    matrices = list(drifting(64, 64, 40, [5.0, 3.0, 2.0, 1.0], noise=0.3))
    widths = []
    for size in (2, 4, 8, 16, 32):
        sketch = frequent(matrices, size=size, decay=0.9, dtype=F32)
        low, high = sketch.eigenvalues(1)
        widths.append((high - low).item() / high.item())
        for low, high in (sketch.stable_rank(), sketch.top_share(2)):
            assert low <= high
    assert widths == sorted(widths, reverse=True)
    assert widths[3] < 0.01


@given(st.lists(st.floats(0, 5), min_size=1, max_size=8), st.floats(0, 3), st.floats(0, 1), seeds)
@settings(max_examples=200, deadline=None)
def test_every_spectrum_within_bounds_lies_between_the_flattest_and_the_steepest(low, width, share, seed):
    low = np.sort(low)[::-1].copy()
    high = np.minimum(low + width, low[0] + width)
    total = low.sum() + share * (high - low).sum()
    flat, steep = flattest(low, high, total), steepest(low, high, total)
    rng, spectra = np.random.default_rng(seed), [flat, steep]
    for _ in range(5):  # fill at random, in a random order
        left, other = total - low.sum(), low.copy()
        for i in rng.permutation(len(low)):
            step = min(left, (high - low)[i] * rng.random())
            other[i] += step
            left -= step
        for i in rng.permutation(len(low)):
            step = min(left, high[i] - other[i])
            other[i] += step
            left -= step
        spectra.append(other)
    for spectrum in spectra:
        assert spectrum.sum() == pytest.approx(total, abs=1e-9)
        assert (spectrum >= low - 1e-9).all()
        assert (spectrum <= high + 1e-9).all()
        leading = np.cumsum(np.sort(spectrum)[::-1])
        assert (np.cumsum(np.sort(flat)[::-1]) <= leading + 1e-9).all()
        assert (leading <= np.cumsum(np.sort(steep)[::-1]) + 1e-9).all()


def test_readings_of_the_mean_covariance_divide_by_the_weight():
    g = randn(6, 4)
    for count, beta in ((1, 0.5), (30, 0.5), (30, 1.0)):
        sketch = frequent([g] * count, size=6, decay=beta)
        for bound in sketch.eigenvalues(3, mean=True):
            close(bound, torch.linalg.eigvalsh(g @ g.T).flip(0)[:3], 1e-10)
        for bound, mean in zip(sketch.eigenvalues(3), sketch.eigenvalues(3, mean=True), strict=True):
            close(bound, mean * sum(beta**j for j in range(count)), 1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [3, 30])
def test_frequent_directions_refuse_what_is_not_finite_and_stay_as_they_are(bad, n):
    sketch = frequent(streams(20, 30)["random"], decay=0.5)
    before = {name: value.clone() for name, value in sketch.state_dict().items()}
    g = randn(20, n)
    g[4, 2] = bad
    assert not sketch.update(g)
    assert all(torch.equal(value, before[name]) for name, value in sketch.state_dict().items())
    assert sketch.update(g.nan_to_num(0, 0, 0))


def test_zero_gradients_read_as_not_a_number_and_leave_no_trace():
    sketch = frequent([torch.zeros(9, 4, dtype=F64)] * 3)
    for pair in (sketch.stable_rank(), sketch.top_share(2)):
        assert all(math.isnan(x) for x in pair)
    assert all(torch.equal(bound, torch.zeros(4, dtype=F64)) for bound in sketch.eigenvalues(4))
    sketch.update(randn(9, 1))
    assert sketch.stable_rank() == pytest.approx((1, 1))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_frequent_directions_in_single_precision_scale(scale):
    for matrices in streams(20, 30).values():
        one, other = (frequent([(c * g).float() for g in matrices], decay=0.9, dtype=F32) for c in (1.0, scale))
        assert other.b.dtype == F32
        assert other.stable_rank() == pytest.approx(one.stable_rank(), rel=1e-3)
        for a, b in zip(one.eigenvalues(3), other.eigenvalues(3), strict=True):
            close(b / scale**2 / float(one.trace), a / float(one.trace), 1e-4)


@given(seeds, st.integers(1, 8), st.sampled_from([0.5, 1.0]), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_merged_frequent_directions_bound_the_sum_of_the_covariances(seed, size, beta, first, second):
    a, b = ([randn(10, 6, seed=seed + s + i) for i in range(count)] for s, count in ((0, first), (50, second)))
    parts = [frequent([torch.zeros(10, 1), *part], size=size, decay=beta) for part in (a, b)]
    merged = parts[0] + parts[1]
    c = sum(covariance(part, beta) for part in (a, b) if part) + torch.zeros(10, 10, dtype=F64)
    lost = torch.linalg.eigvalsh(c - merged.b @ merged.b.T)
    slack = 1e-13 * (1 + float(c.trace()))
    assert -slack <= float(lost[0])
    assert float(lost[-1]) <= float(merged.escaped) + slack
    values = torch.linalg.eigvalsh(c).flip(0)
    assert all(float(merged.escaped) <= float(values[j:].sum()) / (size + 1 - j) + slack for j in range(size + 1))
    for name in ("trace", "weight"):
        close(getattr(merged, name), getattr(parts[0], name) + getattr(parts[1], name))
    other = parts[1] + parts[0]
    close(other.b @ other.b.T, merged.b @ merged.b.T, 1e-10)
    assert float(other.escaped) == pytest.approx(float(merged.escaped), abs=slack)


def test_frequent_directions_go_on_from_their_state_and_count_their_bytes():
    matrices = streams(20, 30)["spiked"]
    whole, first = frequent(matrices, decay=0.9), frequent(matrices[:6], decay=0.9)
    again = FrequentDirections(20, 5, decay=0.9)
    again.load_state_dict(first.state_dict())
    kept = first.b.clone()
    for g in matrices[6:]:
        again.update(g)
    assert torch.equal(first.b, kept)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.stable_rank() == whole.stable_rank()
    assert again.bytes == 8 * 20 * 5 + 4 * 8


def test_what_frequent_directions_cannot_take_is_refused():
    for options in ({"size": 0}, {"decay": 0.0}, {"decay": 1.1}):
        with pytest.raises(ValueError, match="Expected dimension >= 1, size >= 1 and 0 < decay <= 1; got dimension=3"):
            FrequentDirections(3, **options)
    sketch = FrequentDirections(4)
    for g in (randn(3, 4), randn(4), randn(4, 0)):
        with pytest.raises(ValueError, match=r"Expected a matrix with 4 rows; got shape \("):
            sketch.update(g)
    for read in (sketch.stable_rank, lambda: sketch.eigenvalues(1), lambda: sketch.bound):
        with pytest.raises(ValueError, match="The sketch is empty: update it with a finite matrix at least once"):
            read()
    for read in (sketch.eigenvalues, sketch.top_share):
        with pytest.raises(ValueError, match="Expected 1 <= k <= 4; got k=5"):
            read(5)
    with pytest.raises(ValueError, match="Sketches that differ in size, decay cannot be added"):
        sketch + FrequentDirections(4, 3, decay=0.5)


# --- BlockSubspace -------------------------------------------------------------------------------------------------------


def stable_rank(g):
    values = np.linalg.svd(g.double().numpy(), compute_uv=False)
    return (values**2).sum() / values[0] ** 2


@pytest.mark.parametrize("b", [1, 2, 8, 20])
def test_the_largest_eigenvalue_lies_within_one_part_in_ten_thousand_without_an_eigensolver(b):
    q = orthonormal(b, b)
    ones = torch.ones(b, dtype=F64)
    for values in (ones, ones.cumsum(0), ones * (torch.arange(b) == 0), 1e-90 * ones, 1e90 * randn(b) ** 2):
        s = q * values @ q.T
        low, high = (float(x) for x in largest_eigenvalue(s))
        truth = float(torch.linalg.eigvalsh(s)[-1])
        assert low <= truth * (1 + 1e-13)
        assert truth * (1 - 1e-13) <= high <= low * (1 + 1e-4)
    assert [float(x) for x in largest_eigenvalue(torch.zeros(b, b, dtype=F64))] == pytest.approx([0, 0], abs=1e-300)


@pytest.mark.parametrize(("m", "n"), [(30, 20), (20, 30), (30, 5), (5, 30), (1, 9), (9, 1), (1, 1)])
def test_a_block_follows_its_formula(m, n):
    block, b = BlockSubspace(n, 8, seed=3), min(8, n)
    v = block.v.numpy().copy()
    np.testing.assert_allclose(v.T @ v, np.eye(b), atol=1e-14)
    signs = block._probe.double().numpy()
    assert set(signs.flatten().tolist()) <= {-1.0, 1.0}
    for t in range(4):
        g = randn(m, n, seed=t)
        low, high = block.update(g).tolist()
        v = np.linalg.qr(g.numpy().T @ (g.numpy() @ (v + 1e-3 * signs / math.sqrt(n))))[0]
        y = g.numpy() @ block.v.numpy()
        if b <= m:
            np.testing.assert_allclose(block.v @ block.v.T, v @ v.T, atol=1e-8)
        v = block.v.numpy().copy()
        np.testing.assert_allclose(v.T @ v, np.eye(b), atol=1e-13)
        np.testing.assert_allclose(block.gram, y.T @ y, rtol=1e-12, atol=1e-12)
        f, top = float(g.square().sum()), np.linalg.svd(y, compute_uv=False)[0] ** 2
        assert low == pytest.approx(f / min(f, top + f - (y**2).sum()), rel=2e-5)
        assert high == pytest.approx(min(f / top, min(m, n)), rel=2e-5)


KINDS = {
    "random": lambda m, n, t: randn(m, n, seed=t),
    "positive": lambda m, n, t: randn(m, n, seed=t).abs() + 0.1,
    "rank one": lambda m, n, t: randn(m, 1, seed=t) @ randn(1, n, seed=t + 1),
    "rank two": lambda m, n, t: randn(m, 2, seed=t // 9) @ randn(2, n, seed=t + 1),
    "flat": lambda m, n, t: torch.eye(m, n, dtype=F64).roll(t, 1),
    "spike": lambda m, n, t: 1e-3 * randn(m, n, seed=t) + torch.outer(randn(m), randn(n, seed=t // 20)),
    "decaying": lambda m, n, t: randn(m, n, seed=t) * torch.logspace(0, -8, n, dtype=F64),
    "one entry": lambda m, n, t: torch.zeros(m, n, dtype=F64).index_put(
        (torch.tensor(t % m), torch.tensor(t % n)), torch.tensor(3.0, dtype=F64)
    ),
    "scales": lambda m, n, t: 10.0 ** (t % 50 - 25) * randn(m, n, seed=t),
}


@pytest.mark.parametrize("dtype", [F32, F64])
def test_no_stable_rank_is_outside_its_certified_interval(dtype):
    shapes = [(1, 1), (1, 12), (12, 1), (3, 2), (4, 30), (30, 4), (16, 16), (40, 25)]
    checks = 0
    for i, (m, n) in enumerate(shapes):
        for b in (1, 3, 8):
            for j, kind in enumerate(KINDS.values()):
                block, matrices = BlockSubspace(n, b, seed=i, dtype=dtype), [kind(m, n, t).to(dtype) for t in range(50)]
                found = torch.stack([block.update(g) for g in matrices]).numpy()
                scaled = torch.stack([g.double() / g.double().abs().max() for g in matrices])
                values = np.linalg.svd(scaled.numpy(), compute_uv=False)
                truth = (values**2).sum(axis=1) / values[:, 0] ** 2
                assert (found[:, 0] <= truth * (1 + 1e-14 * n)).all(), (m, n, b, j)
                assert (truth * (1 - 1e-14 * n) <= found[:, 1]).all(), (m, n, b, j)
                assert (found[:, 0] >= 1).all()
                assert (found[:, 1] <= min(m, n)).all()
                assert (found[:, 0] <= found[:, 1]).all()
                checks += len(found)
    assert checks >= 10_000


def test_the_interval_holds_for_so_many_numbers_that_a_plain_sum_in_single_precision_would_leave_it():
    g = (randn(200_000, 4).abs() * torch.tensor([1, 0.9, 0.8, 0.7], dtype=F64)).float()
    low, high = BlockSubspace(4, dtype=F32).update(g).tolist()
    assert low <= stable_rank(g) <= high <= low * (1 + 1e-4)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_block_of_eight_knows_the_stable_rank_of_drifting_gradients_to_one_percent(dtype):
    block, widths = BlockSubspace(64, 8, dtype=dtype), []
    for g in drifting(64, 64, 60, [5.0, 4.0, 3.0, 1.0], noise=0.05):
        low, high = block.update(g.to(dtype)).tolist()
        assert low <= stable_rank(g.to(dtype)) <= high
        widths.append((high - low) / low)
    assert np.median(widths[5:]) <= 0.01


@pytest.mark.parametrize("dtype", [F32, F64])
def test_known_spectra_have_their_stable_rank(dtype):
    tolerance = 1e-3 if dtype is F32 else 1e-9
    for g, truth in (
        (torch.outer(randn(20), randn(30, seed=1)), 1),
        (with_spectrum(20, 30, [2, 2, 2]), 3),
        (with_spectrum(20, 30, [3, 1, 1, 1]), 12 / 9),
        (torch.eye(6), 6),
    ):
        block = BlockSubspace(g.shape[1], 8, dtype=dtype)
        found = [block.update(g.to(dtype)).tolist() for _ in range(4)][-1]
        assert found == pytest.approx([truth, truth], rel=tolerance + 1e-4 * (truth > 1))
    block = BlockSubspace(30, 8, dtype=dtype)
    low, high = block.update(torch.eye(30, dtype=dtype)).tolist()  # flat, and too wide for the block: known as far as it goes
    assert (low, high) == (pytest.approx(30 / 23, rel=1e-3), 30)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_zero_or_a_bad_gradient_reads_as_not_a_number_and_the_block_stays_usable(bad, dtype):
    block, g = BlockSubspace(30, 8, dtype=dtype), randn(20, 30).to(dtype)
    block.update(g)
    v, gram = block.v.clone(), block.gram.clone()
    wrong = torch.zeros_like(g)
    wrong[3, 4] = bad
    assert block.update(wrong).isnan().all()
    assert torch.equal(block.v, v)
    assert torch.equal(block.gram, gram)
    low, high = block.update(g).tolist()
    assert low <= stable_rank(g) <= high


def test_a_block_finds_rows_that_are_at_right_angles_to_all_it_holds():
    block = BlockSubspace(40, 4)
    for start in (0, 20):  # other units are alive in the second half
        g = torch.zeros(30, 40, dtype=F64)
        g[:, start : start + 4] = randn(30, 4)
        found = [block.update(g).tolist() for _ in range(2)]
        assert found[0][0] <= stable_rank(g) <= found[0][1]
        assert found[1] == pytest.approx([stable_rank(g)] * 2, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1e25, 1e37])
def test_a_block_in_single_precision_scales(scale):
    one, other = (BlockSubspace(30, 8, dtype=F32) for _ in range(2))
    for g in drifting(20, 30, 5, [2.0, 1.0]):
        close(other.update((scale * g).float()), one.update(g.float()), 1e-3)
    close(other.gram / scale**2, one.gram, 1e-3)
    double = BlockSubspace(30, 8, dtype=F32)
    low, high = double.update(1e-200 * randn(20, 30)).tolist()  # in float64, and far below what float32 holds
    assert low <= stable_rank(randn(20, 30)) <= high


@given(seeds, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_merged_blocks_hold_the_leading_directions_of_both(seed, b):
    directions = orthonormal(20, 2 * b, seed=seed)
    sizes = torch.arange(2 * b, 0, -1, dtype=F64)
    shards = [orthonormal(30, b, seed=1) * sizes[i::2] @ directions[:, i::2].T for i in (0, 1)]
    blocks = [BlockSubspace(20, b, seed=i) for i in (0, 1)]
    for _ in range(3):
        for block, g in zip(blocks, shards, strict=True):
            block.update(g)
    merged, other = blocks[0] + blocks[1], blocks[1] + blocks[0]
    close(merged.v.T @ merged.v, torch.eye(b, dtype=F64))
    close(merged.v @ merged.v.T, other.v @ other.v.T, 1e-10)
    close(merged.v @ merged.v.T, directions[:, :b] @ directions[:, :b].T, 1e-7)
    close(merged.gram, sizes[:b].square().diag(), 1e-7)
    total = shards[0] + shards[1]
    low, high = merged.update(total).tolist()  # the pass that certifies
    assert low <= stable_rank(total) * (1 + 1e-13)
    assert stable_rank(total) <= high * (1 + 1e-13)


def test_a_block_goes_on_from_its_state_and_counts_its_bytes():
    matrices = list(drifting(20, 30, 8, [2.0, 1.0]))
    whole, first, again = BlockSubspace(30, seed=1), BlockSubspace(30, seed=1), BlockSubspace(30, seed=9)
    for g in matrices[:4]:
        whole.update(g)
        first.update(g)
    again.load_state_dict(first.state_dict())
    kept = first.v.clone()
    for g in matrices[4:]:
        assert torch.equal(again.update(g), whole.update(g))
    assert torch.equal(first.v, kept)
    assert torch.equal(again.v, whole.v)
    held = [value for value in vars(again).values() if isinstance(value, torch.Tensor)]
    assert again.bytes == sum(tensor.untyped_storage().nbytes() for tensor in held) == 30 * 8 * 9 + 8 * 8 * 8


def test_what_a_block_cannot_take_is_refused():
    with pytest.raises(ValueError, match="Expected columns >= 1 and size >= 1; got columns=3, size=0"):
        BlockSubspace(3, 0)
    for g in (randn(4, 3), randn(4), randn(0, 4)):
        with pytest.raises(ValueError, match=r"Expected a matrix with 4 columns; got shape \("):
            BlockSubspace(4).update(g)
    with pytest.raises(ValueError, match=r"Blocks of \(4, 4\) torch.float64 and \(4, 2\) torch.float64 cannot be added"):
        BlockSubspace(4) + BlockSubspace(4, 2)


# --- all of them ---------------------------------------------------------------------------------------------------------


def test_updates_read_no_value_back_from_the_device():
    """On the meta device there are no values: whatever asked for one, to print it or to branch on it, would raise."""
    g = torch.empty(20, 30, device="meta")
    assert BlockSubspace(30, device="meta").update(g).shape == (2,)
    assert FrequentDirections(20, device="meta").update(g).shape == ()
    assert FrequentDirections(20, device="meta").update(g[:, :2]).shape == ()
    TwoSidedSketch(20, 30, rank=2, decay=0.9, device="meta").update(g)
    assert CountSketch([600], 16, device="meta")([[g]]).shape == (1, 16)


def test_sketches_take_no_graph_and_no_global_random_numbers():
    before, g = torch.get_rng_state(), randn(20, 30).requires_grad_()
    block, directions, two = BlockSubspace(30), FrequentDirections(20), TwoSidedSketch(20, 30, rank=2)
    assert not block.update(g).requires_grad
    directions.update(g)
    two.update(g)
    for tensor in (block.v, directions.b, directions.trace, two.x, two.z):
        assert not tensor.requires_grad
    CountSketch([600], 16)([[g.detach()]])
    two.reconstruct()
    assert torch.equal(before, torch.get_rng_state())
