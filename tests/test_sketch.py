"""A sketch is a linear map: equal to its naive formula, unbiased, exact where it can be, and honest where it cannot."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pinnsketch.sketch import AdaptiveRank, SignFold, ThreeSketch, cosine_interval
from pinnsketch.sketch.antil2025_three_sketch import projections
from pinnsketch.sketch.charikar2002_sign_fold import TABLE

BATCH, IN, OUT, RANK = 24, 12, 15, 2
K = 2 * RANK + 1
LIKE = torch.zeros((), dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def activations(n, seed=0, batch=BATCH):
    return [(randn(batch, IN, seed=1000 * seed + 2 * i), randn(batch, OUT, seed=1000 * seed + 2 * i + 1)) for i in range(n)]


def sketch_of(pairs, **options):
    sketch = ThreeSketch(IN, OUT, **{"rank": RANK, "seed": 3, "layer": 1, **options})
    for inputs, outputs in pairs:
        sketch.update(inputs, outputs)
    return sketch


def close(found, wanted, tolerance=1e-12):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# --- ThreeSketch ---------------------------------------------------------------------------------------------------------


def test_three_sketches_equal_their_naive_updates():
    beta, pairs = 0.8, activations(5)
    sketch = ThreeSketch(IN, OUT, rank=RANK, decay=beta, seed=3, layer=1)
    upsilon, omega, phi = (m.numpy() for m in projections(BATCH, RANK, 3, LIKE))
    x, y, z, psi = np.zeros((IN, K)), np.zeros((OUT, K)), np.zeros((OUT, K)), sketch.psi.numpy()
    for inputs, outputs in pairs:
        sketch.update(inputs, outputs)
        a, b = inputs.numpy(), outputs.numpy()
        x = beta * x + (1 - beta) * a.T @ upsilon  # (5a)
        y = beta * y + (1 - beta) * b.T @ omega  # (5b)
        z = beta * z + (1 - beta) * (b.T @ phi) * (np.ones((OUT, 1)) @ psi[None, :])  # (5c)
        for found, wanted in zip((sketch.x, sketch.y, sketch.z), (x, y, z), strict=True):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-13)


def test_the_sketches_are_the_sketches_of_the_moving_average_of_activations():
    beta, pairs = 0.7, activations(6)
    sketch = sketch_of(pairs, decay=beta)
    weights = [(1 - beta) * beta ** (len(pairs) - j) for j in range(1, len(pairs) + 1)]  # (10)
    a, b = (sum(w * pair[i] for w, pair in zip(weights, pairs, strict=True)) for i in (0, 1))
    upsilon, omega, phi = projections(BATCH, RANK, 3, LIKE)
    close(sketch.x, a.T @ upsilon)  # (9)
    close(sketch.y, b.T @ omega)
    close(sketch.z, b.T @ phi @ torch.diag(sketch.psi))
    assert sum(weights) == pytest.approx(sketch.correction)


def test_projections_and_psi_are_standard_normal_and_layers_share_all_but_psi():
    drawn = torch.stack(projections(2000, RANK, 5, LIKE))
    assert abs(float(drawn.mean())) < 4 / math.sqrt(drawn.numel())
    assert abs(float(drawn.var()) - 1) < 4 * math.sqrt(2 / drawn.numel())
    flat = drawn.permute(1, 0, 2).reshape(2000, -1)
    assert (torch.corrcoef(flat.T) - torch.eye(3 * K, dtype=LIKE.dtype)).abs().max() < 5 / math.sqrt(2000)
    first, second, other = (ThreeSketch(IN, OUT, rank=RANK, seed=s, layer=i) for s, i in ((5, 0), (5, 1), (6, 0)))
    for i in range(3):
        assert torch.equal(first.projections(BATCH)[i], second.projections(BATCH)[i])
        assert not torch.equal(first.projections(BATCH)[i], other.projections(BATCH)[i])
    assert not torch.equal(first.psi, second.psi)
    assert not torch.equal(first.psi, other.psi)
    psi = torch.cat([ThreeSketch(1, 1, rank=4, seed=s, layer=i).psi for s in range(30) for i in range(30)])
    assert abs(float(psi.var()) - 1) < 4 * math.sqrt(2 / len(psi))


def test_projections_drawn_once_serve_all_layers():
    pairs = activations(2)
    own, shared = sketch_of(pairs), sketch_of([])
    drawn = shared.projections(BATCH)
    for inputs, outputs in pairs:
        shared.update(inputs, outputs, drawn)
    assert torch.equal(own.z, shared.z)


def test_the_sketch_of_a_sum_is_the_sum_of_the_sketches():
    first, second = activations(4, seed=1), activations(4, seed=2)
    both = [(a + c, b + d) for (a, b), (c, d) in zip(first, second, strict=True)]
    merged, whole = sketch_of(first) + sketch_of(second), sketch_of(both)
    for name in ("x", "y", "z", "psi"):
        close(getattr(merged, name), getattr(whole, name))
    assert (merged.updates, merged.rank, merged.decay) == (whole.updates, whole.rank, whole.decay)
    close(merged.structure(), whole.structure(), 1e-9)
    merged.update(*both[0])
    whole.update(*both[0])
    close(merged.z, whole.z)


@pytest.mark.parametrize(
    ("options", "word"), [({"rank": 3}, "rank"), ({"decay": 0.5}, "decay"), ({"seed": 9}, "seed"), ({"layer": 0}, "layer")]
)
def test_sketches_of_different_maps_are_not_added(options, word):
    with pytest.raises(ValueError, match=f"Sketches that differ in {word} cannot be added"):
        sketch_of(activations(1)) + sketch_of(activations(1), **options)


def test_sketches_seen_a_different_number_of_times_are_not_added():
    with pytest.raises(ValueError, match="differ in updates cannot be added"):
        sketch_of(activations(1)) + sketch_of(activations(2))


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_a_constant_stream_reads_as_one_batch_whatever_its_length(n, decay):
    pair = activations(1)[0]
    once = sketch_of([pair], decay=0.0)
    for found, wanted in zip(sketch_of([pair] * n, decay=decay).corrected(), (once.x, once.y, once.z), strict=True):
        close(found, wanted, 1e-11)


def test_readings_do_not_mix_up_the_two_sides_of_a_layer():
    (inputs, outputs) = activations(1)[0]
    a, b = sketch_of([(inputs, outputs)]), sketch_of([(3 * inputs, outputs)])
    assert a.energy() == b.energy()
    assert a.stable_rank() == b.stable_rank()
    assert sketch_of([(inputs, 3 * outputs)]).energy() == pytest.approx(3 * a.energy())


def structure_slowly(x, y, z):
    """Equation (6), step by step as in the prose of the paper, with numpy."""
    q_y = np.linalg.qr(y)[0]  # step 0
    q_x = np.linalg.qr(x)[0]
    intermediate = np.linalg.lstsq(q_y, z, rcond=None)[0]  # step 1: Q_Y C_int ~ Z
    p_x = np.linalg.qr(x.T)[0]  # step 2
    core = np.linalg.lstsq(p_x, intermediate.T, rcond=None)[0].T if p_x.shape[0] == p_x.shape[1] else intermediate @ p_x
    if p_x.shape[0] == p_x.shape[1]:  # P_X C^T = C_int^T, so C = C_int P_X for an orthogonal P_X
        np.testing.assert_allclose(core, intermediate @ p_x, atol=1e-10)
    return q_y @ core @ q_x.T


@pytest.mark.parametrize(("d_in", "d_out"), [(IN, OUT), (30, 7), (5, 5), (2, 15), (12, 3), (2, 1), (1, 1)])
def test_structure_and_reconstruction_equal_a_literal_transcription_at_any_widths(d_in, d_out):
    sketch = ThreeSketch(d_in, d_out, rank=RANK, decay=0.6, seed=8)
    for i in range(3):
        sketch.update(randn(BATCH, d_in, seed=i), randn(BATCH, d_out, seed=10 + i))
    x, y, z = (m.numpy() / (1 - 0.6**3) for m in (sketch.x, sketch.y, sketch.z))
    structure = structure_slowly(x, y, z)
    assert structure.shape == sketch.structure().shape == (d_out, d_in)
    np.testing.assert_allclose(sketch.structure().numpy(), structure, rtol=1e-9, atol=1e-10)
    omega = projections(BATCH, RANK, 8, LIKE)[1].numpy()
    found = sketch.reconstruct(BATCH)
    assert found.shape == (BATCH, d_in)
    np.testing.assert_allclose(found.numpy(), omega @ np.linalg.pinv(y) @ structure, rtol=1e-8, atol=1e-9)


def test_the_reconstruction_does_not_recover_even_data_of_exactly_the_target_rank():
    """A fact about equations (6) and (7), not a hope: the cosine with the truth is near 0 (its two-sided parent's is 1)."""
    batch, d, rank, cosines, errors = 128, 60, 4, [], []
    for seed in range(30):
        truth = randn(batch, rank, seed=2 * seed) @ randn(rank, d, seed=2 * seed + 1)
        sketch = ThreeSketch(d, d, rank=rank, seed=seed)
        sketch.update(truth, truth)
        found = sketch.reconstruct(batch)
        cosines.append(float((found * truth).sum() / (found.norm() * truth.norm())))
        errors.append(float((found - truth).norm() / truth.norm()))
    assert abs(np.mean(cosines)) < 4 * np.std(cosines) / math.sqrt(len(cosines))
    assert np.max(np.abs(cosines)) < 0.3
    assert min(errors) > 0.9


def test_even_the_best_use_of_all_three_sketches_keeps_only_their_share_of_the_batch():
    """All three contract the samples, so the best estimate is S S^+ A: relative error sqrt(1 - 3k/N_b), even at rank 1."""
    batch, rank = 128, 4
    errors = []
    for seed in range(40):
        s = torch.cat(projections(batch, rank, seed, LIKE), dim=1)
        truth = randn(batch, 1, seed=500 + seed)
        errors.append(float((s @ torch.linalg.pinv(s) @ truth - truth).square().sum() / truth.square().sum()))
    assert np.mean(errors) == pytest.approx(1 - 27 / 128, abs=4 * np.std(errors) / math.sqrt(len(errors)))


def test_the_stable_rank_of_data_of_rank_one_is_one():
    assert sketch_of([(activations(1)[0][0], randn(BATCH, 1) @ randn(1, OUT, seed=1))]).stable_rank() == pytest.approx(1)


def test_the_stable_rank_is_that_of_the_output_sketch_and_at_most_its_columns():
    for seed in range(20):
        sketch = sketch_of(activations(2, seed=seed), rank=RANK)
        values = np.linalg.svd(sketch.y.numpy(), compute_uv=False)
        assert sketch.stable_rank() == pytest.approx((values**2).sum() / values[0] ** 2)
        assert 1 <= sketch.stable_rank() <= K
    flat = ThreeSketch(400, 400, rank=RANK)
    flat.update(torch.eye(400, dtype=LIKE.dtype), torch.eye(400, dtype=LIKE.dtype))
    assert 0.6 * K < flat.stable_rank() <= K


def test_the_stable_rank_of_zero_activations_is_zero():
    assert sketch_of([(torch.zeros(BATCH, IN, dtype=LIKE.dtype), torch.zeros(BATCH, OUT, dtype=LIKE.dtype))]).stable_rank() == 0


def test_energy_is_activation_size_times_a_constant_of_the_layer_in_the_mean():
    """E |Z|_F^2 = |A|_F^2 |psi|^2 given psi: no gradient is in it."""
    outputs, found = activations(1)[0][1], []
    for seed in range(2000):
        sketch = ThreeSketch(1, OUT, rank=RANK, seed=seed)
        sketch.update(torch.zeros(BATCH, 1, dtype=LIKE.dtype), outputs)
        found.append(sketch.energy() ** 2 / float(outputs.norm() * sketch.psi.norm()) ** 2)
    assert np.mean(found) == pytest.approx(1, abs=4 * np.std(found) / math.sqrt(len(found)))


def test_energy_is_the_size_of_the_third_sketch():
    sketch = sketch_of(activations(3), decay=0.5)
    assert sketch.energy() == pytest.approx(np.linalg.norm(sketch.z.numpy()) / (1 - 0.5**3))


def test_stored_bytes_are_those_of_the_matrices_and_do_not_depend_on_the_batch():
    sizes = set()
    for batch in (1, 10, 1000):
        sketch = sketch_of(activations(2, batch=batch))
        sizes.add(sketch.bytes)
        held = [value for value in vars(sketch).values() if isinstance(value, torch.Tensor)]
        assert sketch.bytes == sum(tensor.untyped_storage().nbytes() for tensor in held)
    assert sizes == {8 * K * (IN + 2 * OUT + 1)}


def test_a_sketch_goes_on_from_its_state():
    pairs = activations(6)
    whole, first = sketch_of(pairs), sketch_of(pairs[:3])
    state = first.state_dict()
    again = ThreeSketch(IN, OUT, rank=RANK, seed=3, layer=1)
    again.load_state_dict(state)
    kept = first.z.clone()
    for pair in pairs[3:]:
        again.update(*pair)
    assert torch.equal(first.z, kept)
    assert again.updates == 6
    for name in ("x", "y", "z", "psi"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert torch.equal(again.reconstruct(BATCH), whole.reconstruct(BATCH))


def test_single_precision_stays_single():
    sketch = sketch_of([(a.float(), b.float()) for a, b in activations(2)], dtype=torch.float32)
    assert {sketch.x.dtype, sketch.z.dtype, sketch.psi.dtype, sketch.reconstruct(3).dtype} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"), [({"rank": 0}, "rank=0"), ({"decay": 1.0}, "decay=1.0"), ({"decay": -0.1}, "-0.1")]
)
def test_rank_and_decay_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"Expected rank >= 1 and 0 <= decay < 1; got .*{message}"):
        ThreeSketch(3, 3, **options)


@pytest.mark.parametrize(("a", "b"), [(IN + 1, OUT), (IN, OUT - 1)])
def test_activations_of_another_width_are_refused(a, b):
    with pytest.raises(ValueError, match=f"Expected activations of width {IN} and {OUT}; got {a} and {b}"):
        sketch_of([(randn(4, a), randn(4, b))])


@pytest.mark.parametrize("read", ["corrected", "structure", "stable_rank", "energy"])
def test_an_empty_sketch_cannot_be_read(read):
    with pytest.raises(ValueError, match="The sketch is empty: update it at least once before reading it"):
        getattr(sketch_of([]), read)()


# --- AdaptiveRank --------------------------------------------------------------------------------------------------------


def algorithm_1(metrics, r_0, r_min, threshold, step_down, step_up, patience_down, patience_up):
    """Algorithm 1 as the paper has it; yields the rank after each epoch."""
    r, best, good, bad = r_0, math.inf, 0, 0
    for m in metrics:
        if m < best:
            best = m
            good += 1
            bad = 0
        else:
            bad += 1
            good = 0
        if good >= patience_down:
            r = max(r_min, r - step_down)
            good = 0
        if bad >= patience_up:
            r = r + step_up
            bad = 0
        if r > threshold:
            r = r_0
        yield r


rows = st.lists(st.one_of(st.integers(-30, 30), st.just(math.nan), st.just(math.inf)), max_size=80)
small = st.integers(1, 4)


@given(rows, st.integers(2, 16), small, small, small, small)
@settings(max_examples=200, deadline=None)
def test_the_rank_follows_algorithm_1(metrics, rank, down, up, patience_down, patience_up):
    adaptive = AdaptiveRank(rank, 2, 16, down, up, patience_down, patience_up)
    before = rank
    for metric, wanted in zip(metrics, algorithm_1(metrics, rank, 2, 16, down, up, patience_down, patience_up), strict=True):
        restart = adaptive.update(metric)
        assert adaptive.rank == wanted
        assert restart == (wanted != before)
        assert 2 <= adaptive.rank <= 16
        before = wanted


@given(rows, rows)
@settings(max_examples=50, deadline=None)
def test_an_adaptive_rank_goes_on_from_its_state(first, then):
    whole, again = AdaptiveRank(patience_up=2, patience_down=2), AdaptiveRank(patience_up=2, patience_down=2)
    for metric in first:
        whole.update(metric)
    again.load_state_dict(whole.state_dict())
    for metric in then:
        assert whole.update(metric) == again.update(metric)
    assert whole.rank == again.rank


def test_the_rank_falls_to_its_least_on_good_news_and_on_bad_news_rises_to_the_limit_and_starts_over():
    adaptive = AdaptiveRank()
    assert [adaptive.update(-i) for i in range(20)] == [i in (4, 9) for i in range(20)]
    assert adaptive.rank == 2
    seen = {adaptive.rank}
    for _ in range(5 * 7):
        adaptive.update(math.inf)
        seen.add(adaptive.rank)
    assert max(seen) == 16
    for _ in range(5):
        adaptive.update(math.inf)
    assert adaptive.rank == 4


# --- SignFold ------------------------------------------------------------------------------------------------------------


def fold_slowly(vectors, size, signs):
    """(S g)_j = sum over i = j mod p of sigma_i g_i; the places of all vectors, padded to rows of p, number on."""
    sketches, place = [], 0
    for vector in vectors:
        sketch = [0.0] * size
        for i, value in enumerate(vector.tolist()):
            sketch[i % size] += float(signs[(place + i) % len(signs)]) * value
        place += -(-len(vector) // size) * size
        sketches.append(sketch)
    return torch.tensor(sketches, dtype=LIKE.dtype)


def signs_of(fold):
    return fold._signs.tolist()


@pytest.mark.parametrize(
    ("lengths", "size"), [((8,), 8), ((1, 7, 8, 9), 8), ((100, 3, 64), 16), ((20_000, 17, 30_000), 64), ((40_000,), 9)]
)
def test_a_fold_equals_its_naive_loop_on_the_same_signs(lengths, size):
    vectors = [randn(n, seed=n) for n in lengths]
    fold = SignFold(lengths, size, seed=4)
    assert set(signs_of(fold)) <= {-1, 1}
    close(fold([[v] for v in vectors]), fold_slowly(vectors, size, signs_of(fold)), 1e-11)


def test_a_vector_may_come_in_parts_of_any_shape():
    fold, vector = SignFold([60], 8), randn(60)
    assert torch.equal(fold([[vector]]), fold([[vector[:24].view(2, 3, 4), vector[24], vector[25:].view(5, 7)]]))


def test_a_fold_is_linear():
    fold = SignFold([50, 5], 8, seed=1)
    a, b = ([[randn(50, seed=s)], [randn(5, seed=s + 1)]] for s in (0, 10))
    both = [[2 * u - 3 * v] for (u,), (v,) in zip(a, b, strict=True)]
    close(fold(both), 2 * fold(a) - 3 * fold(b))


def test_folding_many_layers_at_once_equals_folding_each_at_its_place_in_the_table():
    lengths, size = [100, 20_000, 5, 700], 16
    vectors = [randn(n, seed=n) for n in lengths]
    fold = SignFold(lengths, size, seed=2)
    together, place = fold([[v] for v in vectors]), 0
    for i, (n, vector) in enumerate(zip(lengths, vectors, strict=True)):
        rows = -(-n // size)
        table = signs_of(fold)
        signs = torch.tensor([table[(place + j) % len(table)] for j in range(n)], dtype=LIKE.dtype)
        padded = torch.zeros(rows * size, dtype=LIKE.dtype)
        padded[:n] = signs * vector
        close(together[i], padded.view(rows, size).sum(dim=0), 1e-11)
        place += rows * size


def test_rows_sum_by_vector():
    fold = SignFold([20, 3, 8], 8)
    rows = fold.rows([[torch.full((n,), float(n))] for n in (20, 3, 8)])
    assert rows.shape == (5, 8)
    assert fold.sum_rows(rows.sum(dim=1, keepdim=True)).flatten().tolist() == [400, 9, 64]


def test_a_vector_that_fits_only_has_its_signs_flipped():
    fold = SignFold([8, 5, 9], 8)
    assert fold.exact == (True, True, False)
    x, y = ([[randn(n, seed=s + n)] for n in (8, 5, 9)] for s in (0, 50))
    inner = (fold(x) * fold(y)).sum(dim=1)
    for i in (0, 1):
        assert float(inner[i]) == pytest.approx(float(x[i][0].dot(y[i][0])), abs=1e-14)
    assert float(inner[2]) != pytest.approx(float(x[2][0].dot(y[2][0])), abs=1e-6)


def exact_variance(x, y, size):
    """Var <Sx, Sy> for independent signs: sum over pairs i != j that share a cell of x_i^2 y_j^2 + x_i y_i x_j y_j."""
    total = 0.0
    for cell in range(size):
        a, b = x[cell::size], y[cell::size]
        total += float(a.square().sum() * b.square().sum() + (a * b).sum() ** 2 - 2 * (a * b).square().sum())
    return total


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_inner_products_of_folds_are_unbiased_with_the_variance_of_independent_signs(correlation):
    n, size, seeds = 1000, 32, 3000
    x = randn(n, seed=1)
    y = correlation * x + math.sqrt(1 - correlation**2) * randn(n, seed=2)
    found = np.array([float(s[0].dot(s[1])) for s in (torch.stack([f([[x]])[0], f([[y]])[0]]) for f in folds(n, size, seeds))])
    true, variance = float(x.dot(y)), exact_variance(x, y, size)
    assert found.mean() == pytest.approx(true, abs=4 * math.sqrt(variance / seeds))
    spread = ((found - true) ** 2).std() / math.sqrt(seeds)
    assert ((found - true) ** 2).mean() == pytest.approx(variance, abs=4 * spread)
    # the bound of the docstring, for energy spread evenly over the cells; a random vector's is, but for 1 + O(p/n)
    bound = float(x.square().sum() * y.square().sum() + true**2) / size
    assert variance <= bound * (1 + 2 * size / n)


def folds(n, size, seeds):
    return (SignFold([n], size, seed) for seed in range(seeds))


def test_a_vector_within_one_cell_is_the_worst_case_and_is_still_unbiased():
    size, x = 8, torch.zeros(80, dtype=LIKE.dtype)
    x[::size] = 1
    squares = np.array([float(f([[x]]).square().sum()) for f in folds(80, size, 2000)])
    assert squares.mean() == pytest.approx(10, abs=4 * squares.std() / math.sqrt(2000))
    assert squares.var() > 4 * (2 * 100 / size)  # far above the bound for evenly spread vectors


def test_the_signs_of_a_long_vector_repeat_and_it_is_still_unbiased():
    size, n = 8, 3 * TABLE
    x = randn(n)
    squares = np.array([float(f([[x]]).square().sum()) for f in folds(n, size, 300)])
    assert squares.mean() == pytest.approx(float(x.square().sum()), abs=4 * squares.std() / math.sqrt(300))


@pytest.mark.parametrize("size", [8, 512])
def test_no_two_places_of_equal_sign_by_construction_meet_in_a_cell_within_the_length_served(size):
    assert all(TABLE % d for d in range(2, math.isqrt(TABLE) + 1))  # a prime
    places = torch.arange(TABLE * size)
    met = (places % TABLE) * size + places % size  # the pair (place in the table, cell), as one number
    seen = torch.zeros(TABLE * size, dtype=torch.bool)
    seen[met] = True
    assert seen.all()  # as many pairs as places: none is met twice
    SignFold([TABLE * size], size)  # served
    with pytest.raises(ValueError, match=f"A sketch of {size} numbers serves up to {TABLE * size:,} weights; got "):
        SignFold([3, TABLE * size + 1], size)


@pytest.mark.parametrize("size", [0, 7, TABLE])
def test_a_size_that_would_bias_the_sketch_is_refused(size):
    with pytest.raises(ValueError, match=f"must be at least 8 and no multiple of {TABLE}; got {size}"):
        SignFold([100], size)


def test_a_fold_keeps_a_bounded_table_of_signs():
    small, large = SignFold([1000, 24], 8), SignFold([900_000, 100_000], 512)
    for fold in (small, large):
        held = [value for value in vars(fold).values() if isinstance(value, torch.Tensor)]
        assert fold.bytes == sum(tensor.untyped_storage().nbytes() for tensor in held)
    assert small.bytes == 1024 + 8 * 128
    assert large.bytes == TABLE + 8 * (1758 + 196)


def test_folds_with_the_same_seed_are_the_same_and_with_another_are_not():
    x = [[randn(300)]]
    assert torch.equal(SignFold([300], 16, seed=5)(x), SignFold([300], 16, seed=5)(x))
    assert not torch.equal(SignFold([300], 16, seed=5)(x), SignFold([300], 16, seed=6)(x))


def test_sketching_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    sketch_of(activations(2)).reconstruct(BATCH)
    SignFold([100], 8)([[randn(100)]])
    assert torch.equal(before, torch.get_rng_state())


# --- cosine_interval -----------------------------------------------------------------------------------------------------


def coverage(cosine, n, size=512, seeds=2000):
    x, y = randn(n, seed=1), randn(n, seed=2)
    x, y = x / x.norm(), y - x * (x.dot(y) / x.dot(x))
    y = cosine * x + math.sqrt(1 - cosine**2) * y / y.norm()
    hits = 0
    for fold in folds(n, size, seeds):
        a, b = fold([[x]])[0], fold([[y]])[0]
        low, high = cosine_interval(float(a.dot(b) / (a.norm() * b.norm())), size)
        hits += low <= cosine <= high
    return hits / seeds


@pytest.mark.parametrize("cosine", [-0.3, 0.0, 0.5, 0.99])
def test_the_interval_covers_the_true_cosine_of_folds_in_95_of_100_cases(cosine):
    assert 0.93 <= coverage(cosine, 16_000) <= 0.97


@pytest.mark.parametrize("cosine", [0.0, 0.9])
def test_the_interval_is_a_little_too_wide_where_few_numbers_share_a_cell(cosine):
    assert coverage(cosine, 2550) >= 0.95
    assert coverage(cosine, 600) >= 0.99


@given(st.floats(-1, 1), st.integers(8, 4096))
@settings(deadline=None)
def test_an_interval_holds_its_cosine_lies_in_one_and_narrows_with_size(cosine, size):
    low, high = cosine_interval(cosine, size)
    assert -1 <= low <= cosine + 1e-9
    assert cosine - 1e-9 <= high <= 1
    wide_low, wide_high = cosine_interval(cosine, size, z=3.0)
    assert wide_low <= low <= high <= wide_high
    more_low, more_high = cosine_interval(cosine, 4 * size)
    assert low <= more_low <= more_high <= high
    assert cosine_interval(-cosine, size) == (-high, -low)


def test_an_interval_at_zero_is_the_textbook_one():
    assert cosine_interval(0.0, 402) == pytest.approx((-math.tanh(0.098), math.tanh(0.098)))


def test_an_exact_cosine_of_one_has_a_finite_interval():
    low, high = cosine_interval(1.0000000001, 512)
    assert 0.999999 < low <= high <= 1
