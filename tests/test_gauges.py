"""What the gauges read equals slow definitions; where a reading is an estimate or an interval, it holds what it says."""

import math
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pinnsketch.gauges import NAMES, chosen
from pinnsketch.gauges.memory import LongMemory
from pinnsketch.gauges.spectrum import LOOKS
from pinnsketch.monitor import Monitor
from pinnsketch.sketch import SignFold

F64 = torch.float64
HALF = 1e-3
"""What half precision may change a cosine by."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build()


def tanh_net(*sizes, dtype=F64, activation=nn.Tanh):
    """Linear layers of these sizes with an activation between them; layers are called 0, 2, 4, ..."""
    pairs = list(pairwise(sizes))
    layers = seeded(lambda: [nn.Linear(a, b) for a, b in pairs])
    between = [activation() for _ in pairs[1:]]
    return nn.Sequential(*(m for pair in zip(layers, [*between, None], strict=True) for m in pair if m)).to(dtype)


def give(network, gradient):
    """Set `p.grad` from one vector."""
    parts = gradient.split([p.numel() for p in network.parameters()])
    for p, part in zip(network.parameters(), parts, strict=True):
        p.grad = part.view_as(p).to(p.dtype).clone()


def flat(module):
    return torch.cat([p.grad.flatten().double() for p in module.parameters()])


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def trained(network, steps, batch=32, lr=3e-3, seed=0):
    """The gradients of a real training by Adam on fresh batches of a noisy regression, a vector each."""
    outputs, inputs = network[-1].out_features, network[0].in_features
    target, found = randn(inputs, outputs, seed=99), []
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        x = randn(batch, inputs, seed=1000 * seed + step)
        y = torch.sin(x @ target) + 0.1 * randn(batch, outputs, seed=7000 + 1000 * seed + step)
        optimizer.zero_grad()
        (network(x.to(network[0].weight.dtype)) - y.to(network[0].weight.dtype)).square().mean().backward()
        found.append(flat(network))
        yield step
        optimizer.step()


def gradients_of(network, steps, **options):
    return [flat(network) for _ in trained(network, steps, **options)]


# --- the sketch ----------------------------------------------------------------------------------------------------------


def test_measure_gives_norms_and_unit_sketches_of_the_linear_sketch():
    fold = SignFold([700, 40, 3000, 5], 64, seed=3)
    vectors = [[randn(20, 35, seed=0)], [randn(40, seed=1)], [randn(1000, seed=2), randn(40, 50, seed=3)], [randn(5, seed=4)]]
    norms, sketch, _ = fold.measure(vectors)
    assert norms.tolist() == pytest.approx([float(torch.cat([p.flatten() for p in v]).norm()) for v in vectors], rel=1e-14)
    torch.testing.assert_close(sketch.double() * norms[:, None], fold(vectors), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 3000, 10**9])
def test_measure_does_not_depend_on_how_many_numbers_are_measured_at_once(monkeypatch, at_once):
    lengths = [700, 40, 3000, 5, 20000, 300]
    vectors = [[randn(n, seed=n)] for n in lengths]
    expected = SignFold(lengths, 64).measure(vectors)
    monkeypatch.setattr("pinnsketch.sketch.charikar2002_sign_fold.AT_ONCE", at_once)
    for a, b in zip(SignFold(lengths, 64).measure(vectors), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_cells_count_those_that_the_energy_fills_and_bound_the_variance_of_inner_products():
    """Energy in k of p cells alone makes k cells of it, and the spread of inner products over the signs goes by 1 / k."""
    size, rows = 128, 40
    for filled in (16, 64, 128):
        x, y = (randn(rows, size, seed=s) * (torch.arange(size) < filled) for s in (0, 1))
        found = []
        for seed in range(400):
            _, sketch, collisions = SignFold([rows * size] * 2, size, seed).measure([[x], [y]])
            cells = 1 / (collisions[:, 0] - 0.95 * collisions[:, 1])
            found.append(float(sketch[0].double() @ sketch[1].double()) - cosine(x.flatten(), y.flatten()))
        assert float(cells[0]) == pytest.approx(filled, rel=0.12)
        spread = float(torch.tensor(found).std())
        assert 0.8 / math.sqrt(filled) < spread < 1.15 / math.sqrt(float(cells.min()))


# --- drift ---------------------------------------------------------------------------------------------------------------


def lag_readings(every, lags, steps, decay=0.8, change=0.6):
    """Readings at each look, with all gradients: an exact network whose gradient turns slowly."""
    network = tanh_net(4, 10, 3)
    monitor = Monitor(network, every=every, lags=lags, decay=decay)
    total = sum(p.numel() for p in network.parameters())
    gradients, g = [], randn(total, seed=50)
    for step in range(steps):
        g = g + change * randn(total, seed=step)
        gradients.append(g)
        give(network, g)
        monitor.update()
        if monitor.looked:
            yield step + 1, gradients, monitor.read(), network


def of_layer(network, name, gradient):
    start = 0
    for layer, module in network.named_modules():
        n = sum(p.numel() for p in module.parameters(recurse=False))
        if layer == name:
            return gradient[start : start + n]
        start += n
    raise KeyError(name)


@pytest.mark.parametrize(("every", "lags", "rounded"), [(1, (1, 2, 7), (1, 2, 7)), (10, (1, 10, 25, 40), (1, 10, 30, 40))])
def test_lag_l_is_read_every_l_updates_and_compares_with_the_gradient_exactly_l_updates_before(every, lags, rounded):
    seen = dict.fromkeys(rounded, 0)
    for now, gradients, reading, network in lag_readings(every, lags, 25 * every):
        for name, layer in reading.layers.items():
            for lag in rounded:
                period = every if lag == 1 else lag
                at = now if lag == 1 else 1 + (now - 1) // period * period  # the update at which it was read last
                if at - lag < 1:
                    assert lag not in layer.lags
                    continue
                a, b = (of_layer(network, name, gradients[k - 1]) for k in (at, at - lag))
                assert layer.lags[lag].value == pytest.approx(cosine(a, b), abs=HALF)
                seen[lag] += 1
            assert set(layer.lags) <= set(rounded)
    assert all(count > 3 for count in seen.values())


def test_a_look_out_of_turn_moves_no_anchor():
    """Lag 10 still refers to exactly 10 updates before, when a look between was asked for."""
    network = tanh_net(4, 10, 3)
    monitor = Monitor(network, every=10, lags=(10, 20))
    gradients = []
    for step in range(41):
        gradients.append(randn(83, seed=step))
        give(network, gradients[-1])
        monitor.update(now=step in (4, 13, 14, 27))
    for lag, value in monitor.read().layers["0"].lags.items():
        assert value.value == pytest.approx(cosine(gradients[40][:50], gradients[40 - lag][:50]), abs=HALF)


def test_drift_compares_with_the_moving_average_of_the_gradients_looked_at_before():
    mean, decay = 0.0, 0.8
    for now, gradients, reading, network in lag_readings(3, (), 40, decay=decay):
        if now > 1:
            for name, layer in reading.layers.items():
                a, b = (of_layer(network, name, g) for g in (gradients[-1], mean))
                assert layer.drift.value == pytest.approx(cosine(a, b), abs=HALF)
        mean = decay * mean + (1 - decay) * gradients[-1]


def test_cosines_of_a_network_of_exact_layers_are_exact_as_a_whole():
    """No layer's sketch makes an error; where the interval of the whole is that of rounding alone, it holds the truth."""
    for seed in range(20):
        network = tanh_net(4, 10, 3)
        monitor = Monitor(network, every=1, lags=(1, 2), seed=seed)
        gradients = [randn(83, seed=s) for s in range(3)]
        for g in gradients:
            give(network, g)
            monitor.update()
        for lag, value in monitor.read().network.lags.items():
            assert value.low <= cosine(gradients[-1], gradients[-1 - lag]) <= value.high


SEEDS = 1000
"""Draws of the signs. Of 1,000 events with probability 0.95, 93 % to 97 % come true but for one case in 270 (2.9 sigma)."""


def coverage(network, gradients, size=509, seeds=SEEDS):
    """How often the 95 % intervals hold the exact cosine, over seeds of the signs, by layer (or the whole) and comparison."""
    monitors = [Monitor(network, readings=["drift"], every=1, lags=(1, 2), size=size, seed=seed) for seed in range(seeds)]
    mean = 0.0
    for g in gradients[:-1]:
        give(network, g)
        for monitor in monitors:
            monitor.update()
        mean = 0.9 * mean + 0.1 * g
    give(network, gradients[-1])
    exact = {"lag 1": gradients[-2], "drift": mean}
    held, width = {}, {}
    for monitor in monitors:
        monitor.update()
        reading = monitor.read()
        for name, layer in (*reading.layers.items(), ("network", reading.network)):
            for what, other in exact.items():
                interval = layer.lags[1] if what == "lag 1" else layer.drift
                a, b = (g if name == "network" else of_layer(network, name, g) for g in (gradients[-1], other))
                held[name, what] = held.get((name, what), 0) + (interval.low <= cosine(a, b) <= interval.high)
                width[name, what] = width.get((name, what), 0) + (interval.high - interval.low)
    return {key: count / seeds for key, count in held.items()}, {key: total / seeds for key, total in width.items()}


def test_intervals_of_cosines_hold_the_truth_in_95_of_100_draws_of_the_signs_on_real_gradients():
    network = tanh_net(64, 64, 16)  # 4,160 and 1,040 parameters
    gradients = gradients_of(network, 12)[-10:]
    found, width = coverage(network, gradients[-4:])
    assert set(found) == {(name, what) for name in ("0", "2", "network") for what in ("lag 1", "drift")}
    # of the small layer two entries meet in each cell, and how they meet is luck of the shape: 92 to 98 % is what it keeps
    assert all(0.92 <= share <= 0.98 for share in found.values()), found
    assert all(0.93 <= share <= 0.97 for (name, _), share in found.items() if name != "2"), found
    assert all(0.05 < w < 2.2 * 1.96 / math.sqrt(509) for w in width.values()), width


def test_intervals_of_a_network_with_small_layers_hold_the_truth_too():
    """Of layers that a sketch holds whole nothing is uncertain but half precision; what remains comes from the big one."""
    network = tanh_net(2, 64, 64, 1)
    found, width = coverage(network, gradients_of(network, 60)[-4:], seeds=400)
    assert all(share >= 0.93 - 0.02 for share in found.values()), found  # 2 % more: 400 draws, not 1,000
    assert {key for key, share in found.items() if share == 1} >= {(n, w) for n in ("0", "4") for w in ("lag 1", "drift")}
    assert all(width[n, w] <= 2.01 * HALF for n in ("0", "4") for w in ("lag 1", "drift"))
    assert width["network", "lag 1"] < 0.2


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.999])
def test_the_moving_average_neither_sticks_nor_drifts_off_over_many_looks(decay):
    network = nn.Linear(10, 10).double()
    monitor, mean, shared = Monitor(network, readings=["drift"], every=1, lags=(), decay=decay), 0.0, randn(110, seed=5)
    for step in range(1500):
        g = randn(110, seed=step) + 0.2 * shared * (1 if step < 700 else -1)
        give(network, g)
        monitor.update()
        if step % 100 == 99:
            assert monitor.read().network.drift.value == pytest.approx(cosine(g, mean), abs=5 * HALF)
        mean = decay * mean + (1 - decay) * g


def test_gradients_that_meet_in_one_cell_have_a_wide_interval_from_the_second_look_on():
    """The worst case of a fold: all energy in one of p cells, where nothing averages out."""
    network = nn.Linear(40, 40, bias=False).double()
    monitor = Monitor(network, every=1)
    for look in range(4):
        g = torch.zeros(1600, dtype=F64)
        g[[0, 509]] = torch.tensor([1.0, 0.5 + look], dtype=F64)
        give(network, g)
        monitor.update()
        if look:
            for interval in (monitor.read().network.drift, monitor.read().network.lags[1]):
                assert interval.high - interval.low > 0.5
                assert -1 <= interval.low <= interval.value <= interval.high <= 1


def test_an_estimate_of_noise_is_that_of_products_of_consecutive_gradients():
    """`1 / c - 1` with c the average of <g_t, g_t-1> over that of |g_t|^2; for mu + e_t, e_t independent, E |e|^2 / |mu|^2."""
    network, mu = tanh_net(4, 10, 3), randn(83, seed=1)
    for ratio in (0.5, 4.0):
        monitor, inner, square, before, averaged = Monitor(network, every=2), 0.0, 0.0, None, []
        for step in range(600):
            g = mu + math.sqrt(ratio) * float(mu.norm()) / math.sqrt(83) * randn(83, seed=step)
            give(network, g)
            monitor.update()
            if monitor.looked and before is not None:
                inner, square = 0.9 * inner + 0.1 * float(g @ before), 0.9 * square + 0.1 * float(g @ g)
                assert monitor.read().network.noise == pytest.approx(square / inner - 1, rel=1e-2)
                averaged.append((inner, square))
            before = g
        inner, square = np.mean(averaged[20:], axis=0)
        assert square / inner - 1 == pytest.approx(ratio, rel=0.1)


def test_gradients_that_turn_round_or_come_once_have_no_noise_reading():
    network = tanh_net(4, 10, 3)
    monitor = Monitor(network, every=1)
    for step in range(6):
        give(network, (-1) ** step * randn(83))
        monitor.update()
        assert monitor.read().network.noise is None


# --- the long memory -----------------------------------------------------------------------------------------------------


def memory(entries, size=16):
    zeros = lambda *shape, dtype=F64: torch.zeros(shape, dtype=dtype)  # noqa: E731
    return LongMemory(SimpleNamespace(entries=entries, size=size, zeros=zeros))


def shown(gauge, update, vector):
    gauge.make_room(update)
    gauge.look(SimpleNamespace(scaled=vector[None]))


@pytest.mark.parametrize(("entries", "factor"), [(8, 4), (16, 2), (32, 2)])
@pytest.mark.parametrize("every", [1, 10])
def test_the_long_memory_keeps_the_first_and_the_last_and_spreads_ages_evenly_in_their_logarithm(entries, factor, every):
    """N ages in T entries cannot do better than a ratio N^(1/(T-1)) between neighbours; this does within `factor`."""
    gauge, g = memory(entries), randn(16)
    for look in range(3000):
        now = 1 + every * look
        shown(gauge, now, g)
        at, _, _ = gauge.similarity()
        assert len(at) == min(look + 1, entries)
        assert (at[0], at[-1]) == (1, now)
        assert at == sorted(set(at))
        ages = [(now - update) / every + 1 for update in at]
        assert max([1, *(a / b for a, b in pairwise(ages))]) <= factor * (look + 1) ** (1 / (entries - 1))


@pytest.mark.parametrize("entries", [2, 3])
def test_a_long_memory_of_few_entries_keeps_the_first_and_the_last(entries):
    gauge, g = memory(entries), randn(16)
    for now in range(1, 30):
        shown(gauge, now, g)
    at, _, _ = gauge.similarity()
    assert (at[0], at[-1], len(at)) == (1, 29, entries)


@pytest.mark.parametrize("entries", [0, 1])
def test_a_long_memory_of_fewer_than_two_entries_remembers_nothing(entries):
    network = nn.Linear(3, 2).double()
    monitor = Monitor(network, every=1, entries=entries)
    for _ in range(4):
        give(network, randn(8))
        monitor.update()
    at, similar, _ = monitor.similarity()
    assert at == []
    assert similar.shape == (0, 0)


def test_each_entry_of_the_long_memory_is_the_gradient_of_its_update():
    """Below p numbers nothing is lost but half precision, so each pair of updates has its own cosine."""
    gauge, vectors = memory(8), {}
    for now in range(1, 200):
        vectors[now] = randn(16, seed=now) + randn(16, seed=1000)
        shown(gauge, now, vectors[now] * 10.0 ** (now % 40 - 20))
    at, similar, _ = gauge.similarity()
    exact = torch.tensor([[cosine(vectors[a], vectors[b]) for b in at] for a in at], dtype=F64)
    torch.testing.assert_close(similar, exact, rtol=0, atol=HALF)


def test_similarities_lie_within_their_half_width_of_the_true_cosines():
    network = tanh_net(64, 64, 16)
    monitor, kept = Monitor(network, every=3, entries=12), {}
    for step in trained(network, 90):
        monitor.update()
        kept[step + 1] = flat(network)
    at, similar, half = monitor.similarity()
    assert half == pytest.approx(1.96 / math.sqrt(509))
    assert len(at) == 12
    off = torch.tensor([[float(similar[i, j]) - cosine(kept[a], kept[b]) for j, b in enumerate(at)] for i, a in enumerate(at)])
    apart = off[~torch.eye(12, dtype=torch.bool)].abs()
    assert float((apart < half).float().mean()) > 0.9
    assert float(apart.max()) < 2 * half
    assert float(off.diagonal().abs().max()) < HALF


# --- spectra -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_stable_ranks_and_spectra_hold_the_truth_along_a_real_training(dtype):
    network, decay = tanh_net(20, 24, 20, 3, dtype=dtype), 0.9
    monitor = Monitor(network, every=2, readings=["stable_rank", "spectrum"], decay=decay)
    sums, weight, widths, looks = {}, 0.0, [], 0
    for _ in trained(network, 160):
        monitor.update()
        if not monitor.looked:
            continue
        looks += 1
        taken = (looks - 1) % LOOKS == 0  # of a spectrum, which costs more, at one look of LOOKS
        weight = decay * weight + 1 if taken else weight
        for name, layer in monitor.read().layers.items():
            g = network.get_submodule(name).weight.grad.double().numpy()
            values = np.linalg.svd(g, compute_uv=False)
            rank = float((values**2).sum() / values[0] ** 2)
            assert layer.stable_rank[0] <= rank <= layer.stable_rank[1]
            widths.append((layer.stable_rank[1] - layer.stable_rank[0]) / rank)
            sums[name] = decay * sums.get(name, 0) + g @ g.T if taken else sums[name]
            true = np.linalg.eigvalsh(sums[name] / weight)[::-1]
            assert len(layer.eigenvalues) == min(4, len(g))
            for (low, high), value in zip(layer.eigenvalues, true, strict=False):
                assert low <= value * (1 + 1e-12)
                assert value <= high * (1 + 1e-12)
            assert layer.eigenvalues[0][1] - layer.eigenvalues[0][0] < 0.1 * true[0]
            low, high = layer.gradient_rank
            assert low <= true.sum() / true[0] * (1 + 1e-12)
            assert true.sum() / true[0] <= high * (1 + 1e-12)
    assert np.median(widths) < 0.02


def test_a_gradient_of_rank_one_and_one_with_orthogonal_rows_have_stable_rank_one_and_full():
    network = nn.Linear(12, 10, bias=False).double()
    for g, rank in ((torch.outer(randn(10), randn(12)), 1), (torch.linalg.qr(randn(12, 10)).Q.T, 10)):
        monitor = Monitor(network, every=1, readings=["stable_rank", "spectrum"])
        for _ in range(4):
            network.weight.grad = g.clone()
            monitor.update()
        layer = monitor.read().layers["network"]
        assert layer.stable_rank[0] <= rank + 1e-5
        assert layer.stable_rank[1] >= rank - 1e-5
        assert layer.gradient_rank == pytest.approx((rank, rank), rel=1e-6)
        assert layer.stable_rank[1] < 1.0001 if rank == 1 else layer.stable_rank[1] == 10


def test_what_a_gradient_of_zero_has_no_direction_for_is_not_read():
    network = nn.Linear(4, 3).double()
    monitor = Monitor(network, randn(6, 4), every=1, readings="full")
    for _ in range(2):
        monitor.update()
    reading = monitor.read()
    for layer in (*reading.layers.values(), reading.network):
        assert [layer.stable_rank, layer.gradient_rank, layer.drift, layer.noise] == [None] * 4
        assert not layer.lags


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_at_the_very_first_look_can_be_read(bad):
    network = nn.Linear(4, 3).double()
    monitor = Monitor(network, randn(6, 4), every=1, readings="full")
    give(network, randn(15))
    network.weight.grad[1, 1] = bad
    monitor.update(now=True)
    layer = monitor.read().layers["network"]
    assert layer.non_finite == 1
    assert layer.stable_rank is None
    assert layer.gradient_rank is None


def test_bounds_hold_inside_autocast():
    """Products in half precision would give a stable rank of exactly 1 to a gradient of nearly one direction."""
    network = nn.Linear(64, 64, bias=False)
    monitor = Monitor(network, every=1, readings=["stable_rank"])
    for seed in range(10):
        network.weight.grad = (torch.outer(randn(64, seed=seed), randn(64, seed=90 + seed)) + 1e-3 * randn(64, 64)).float()
        with torch.autocast("cpu", torch.bfloat16):
            monitor.update()
        values = np.linalg.svd(network.weight.grad.double().numpy(), compute_uv=False)
        low, high = monitor.read().layers["network"].stable_rank
        assert low <= float((values**2).sum() / values[0] ** 2) <= high


def test_spectra_forget_nothing_when_a_gradient_is_not_finite():
    """The second gradient that a spectrum would take is NaN: it stays what it was after the first."""
    network = nn.Linear(6, 5).double()
    monitor, seen = Monitor(network, every=1, readings=["spectrum", "stable_rank"]), []
    for step in range(LOOKS + 1):
        give(network, randn(35, seed=step))
        if step == LOOKS:
            network.weight.grad[0, 0] = math.nan
        monitor.update()
        seen.append(monitor.read().layers["network"])
    assert seen[-1].eigenvalues == seen[0].eigenvalues
    assert seen[-1].gradient_rank == seen[0].gradient_rank
    give(network, randn(35, seed=99))
    monitor.update()
    assert monitor.read().layers["network"].stable_rank is not None


# --- units ---------------------------------------------------------------------------------------------------------------

SLOPE = {
    nn.ReLU: lambda z: float(z > 0),
    nn.Tanh: lambda z: 1 - math.tanh(z) ** 2,
    nn.Sigmoid: lambda z: 4 * math.exp(-abs(z)) / (1 + math.exp(-abs(z))) ** 2,
}


def slowly(network, probe, activation):
    """Units of each hidden layer, one after another, and the last layer's."""
    found, x = {}, probe
    for name, layer in network.named_children():
        if not isinstance(layer, nn.Linear):
            continue
        z = layer(x).detach()
        last = name == str(len(network) - 1)
        y = z if last else activation()(z)
        slopes = [[1.0 if last else SLOPE[activation](float(v)) for v in column] for column in z.T]
        flat_everywhere = [max(column) < 0.01 for column in slopes]
        points = [s < 0.01 for column in slopes for s in column]
        centred = (y - y.mean(0)).numpy()
        energy = np.linalg.svd(centred, compute_uv=False) ** 2
        found[name] = {
            "dead": sum(flat_everywhere) / len(flat_everywhere),
            "saturated": sum(points) / len(points),
            "activation_rank": energy.sum() ** 2 / (energy**2).sum(),
            "input_std": tuple(sorted(float(np.std(column.numpy())) for column in x.T)[k] for k in (0, -1)),
        }
        x = y
    return found


def planted(activation, dead=0, rank_one=False, steep=1.0):
    """A network with dead units, a weight of rank one, or steep units, in its second layer."""
    network = tanh_net(3, 20, 16, 1, activation=activation)
    with torch.no_grad():
        second = network[2]
        second.weight.mul_(steep)
        if rank_one:
            second.weight.copy_(torch.outer(randn(16), randn(20)) / 5)
        second.bias[:dead] = -60.0
    return network


PLANTED = {
    "relu": (nn.ReLU, {}), "dead relu": (nn.ReLU, {"dead": 5}), "all dead but one": (nn.ReLU, {"dead": 15}),
    "tanh": (nn.Tanh, {}), "saturated tanh": (nn.Tanh, {"steep": 40.0}), "dead tanh": (nn.Tanh, {"dead": 4, "steep": 5.0}),
    "sigmoid": (nn.Sigmoid, {}), "saturated sigmoid": (nn.Sigmoid, {"steep": 60.0}), "dead sigmoid": (nn.Sigmoid, {"dead": 7}),
    "rank one": (nn.Tanh, {"rank_one": True}), "rank one relu": (nn.ReLU, {"rank_one": True}),
}  # fmt: skip


@pytest.mark.parametrize(("activation", "options"), PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("points", [60, 9])
def test_units_are_counted_as_one_by_one(activation, options, points):
    network, probe = planted(activation, **options), randn(points, 3)
    monitor = Monitor(network, probe, every=1)
    monitor.update()
    for name, expected in slowly(network, probe, activation).items():
        layer = monitor.read().layers[name]
        assert layer.dead == pytest.approx(expected["dead"], abs=1e-12)
        if name != "4":
            saturates = activation is not nn.ReLU
            assert layer.saturated == (pytest.approx(expected["saturated"], abs=1e-12) if saturates else None)
        assert layer.activation_rank == pytest.approx(expected["activation_rank"], rel=1e-9)
        assert layer.input_std == (pytest.approx(expected["input_std"], rel=1e-12) if name == "0" else None)


def test_planted_trouble_of_units_shows():
    def second(network):
        monitor = Monitor(network, randn(60, 3), every=1)
        monitor.update()
        return monitor.read().layers["2"]

    assert second(planted(nn.ReLU, dead=5)).dead >= 5 / 16
    assert second(planted(nn.ReLU)).dead < 0.2
    assert second(planted(nn.Tanh, steep=40.0)).saturated > 0.5
    assert second(planted(nn.Tanh)).saturated == 0
    assert second(planted(nn.Sigmoid, dead=16)).dead == 1
    assert second(planted(nn.Tanh, rank_one=True)).activation_rank < 1.3
    assert second(planted(nn.Tanh)).activation_rank > 2


def test_constant_units_are_dead_whatever_the_activation_and_have_no_rank():
    network = tanh_net(3, 8, 1, activation=nn.GELU)
    with torch.no_grad():
        network[0].weight[:3] = 0
    monitor = Monitor(network, randn(30, 3), every=1)
    monitor.update()
    assert monitor.read().layers["0"].dead == 3 / 8
    assert monitor.read().layers["0"].saturated is None
    with torch.no_grad():
        network[0].weight.zero_()
    monitor.update()
    assert monitor.read().layers["0"].dead == 1
    assert monitor.read().layers["0"].activation_rank is None


def test_outputs_of_one_sign_are_not_taken_for_those_of_relus():
    """The last layer has no activation function: its units live as long as they vary, above zero and below."""
    network = tanh_net(3, 8, 2)
    with torch.no_grad():
        network[2].bias.fill_(50.0)
    monitor = Monitor(network, randn(30, 3), every=1)
    for bias in (50.0, -50.0):
        with torch.no_grad():
            network[2].bias.fill_(bias)
        monitor.update()
        assert monitor.read().layers["2"].dead == 0


def test_units_before_a_frozen_layer_are_seen_before_it():
    network = tanh_net(3, 8, 8, 1, activation=nn.ReLU)
    network[2].requires_grad_(False)
    with torch.no_grad():
        network[0].bias[:4] = -100.0
    monitor = Monitor(network, randn(30, 3), every=1)
    monitor.update()
    assert monitor.read().layers["0"].dead >= 0.5


def test_activation_readings_do_not_depend_on_the_scale_of_linear_outputs():
    for scale in (1e-30, 1.0, 1e30):
        network = nn.Linear(3, 5).double()
        x = randn(20, 3)
        with torch.no_grad():
            network.weight.mul_(scale)
            network.bias.mul_(scale)
            y = network(x)
        monitor = Monitor(network, x, every=1)
        monitor.update()
        energy = np.linalg.svd(((y - y.mean(0)) / scale).numpy(), compute_uv=False) ** 2
        found = monitor.read().layers["network"]
        assert found.activation_rank == pytest.approx(energy.sum() ** 2 / (energy**2).sum(), rel=1e-9)


def test_one_probe_point_has_no_spread():
    network = tanh_net(3, 8, 1)
    monitor = Monitor(network, randn(1, 3), every=1)
    monitor.update()
    for layer in monitor.read().layers.values():
        assert layer.input_std in (None, (0, 0))
        assert layer.activation_rank is None


# --- other networks ------------------------------------------------------------------------------------------------------


class Convolutional(nn.Module):
    def __init__(self, head=True):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2)
        self.head = nn.Linear(24, 3) if head else nn.Flatten()

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).flatten(1))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(2, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.block(self.into(x.view(len(x), 5, 2))).mean(1))


class Named(nn.Module):
    """A network whose output is no tensor."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return {"logits": self.out(torch.tanh(self.into(x)))}


class Mixed(nn.Module):
    """A layer in half precision, whose activations are in single."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(4, 6).bfloat16(), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.into(x.bfloat16()).float()))


OTHERS = {
    "convolutions": (Convolutional, (8, 1, 6, 6), {"head"}),
    "convolutions alone": (lambda: Convolutional(head=False), (8, 1, 6, 6), set()),
    "transformer": (Transformer, (8, 10), {"into", "block.linear1", "block.linear2", "out"}),
    "a dictionary comes out": (Named, (8, 4), {"into"}),
    "two precisions": (Mixed, (8, 4), {"into", "out"}),
    "recurrent": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Unflatten(1, (1, 4)), nn.LSTM(4, 4)), (8, 3), {"0"}),
}


def scalar(output):
    if isinstance(output, dict):
        return sum(map(scalar, output.values()))
    return sum(map(scalar, output)) if isinstance(output, tuple) else output.square().mean()


@pytest.mark.parametrize(("build", "shape", "measured"), OTHERS.values(), ids=OTHERS)
def test_any_network_is_watched_and_gives_what_can_be_given(build, shape, measured):
    network = seeded(build)
    monitor = Monitor(network, randn(*shape, dtype=torch.float32), every=1, readings="full")
    for step in range(3):
        network.zero_grad()
        scalar(network(randn(*shape, seed=step, dtype=torch.float32))).backward()
        monitor.update()
    reading = monitor.read()
    names = [name for name, module in network.named_modules() if list(module.parameters(recurse=False))]
    assert list(reading.layers) == names
    for name, layer in reading.layers.items():
        parameters = list(network.get_submodule(name).parameters(recurse=False))
        norm = torch.cat([p.grad.double().flatten() for p in parameters]).norm()
        assert layer.gradient_norm == pytest.approx(float(norm), rel=1e-6)
        if any(p.ndim > 1 for p in parameters):
            g = next(p.grad for p in parameters if p.ndim > 1).flatten(1).double().numpy()
            values = np.linalg.svd(g, compute_uv=False)
            rank = float((values**2).sum() / values[0] ** 2)
            assert layer.stable_rank[0] * (1 - 1e-9) <= rank <= layer.stable_rank[1] * (1 + 1e-9)
    assert measured <= {name for name, layer in reading.layers.items() if layer.dead is not None}


def test_complex_weights_have_the_norm_of_their_two_parts():
    """Spectral layers (Fourier neural operators) have complex weights."""
    network = nn.Linear(3, 3, dtype=torch.complex64)
    monitor = Monitor(network, every=1)
    for p in network.parameters():
        p.grad = torch.full_like(p, 3 + 4j)
    monitor.update()
    assert monitor.read().network.gradient_norm == pytest.approx(5 * math.sqrt(12), rel=1e-6)


# --- terms ---------------------------------------------------------------------------------------------------------------


class Contribution(SimpleNamespace):
    """What a term gives: gradient and norms."""


def losses_of(network, terms, points=12):
    """By term, the loss at its own points and that of each point alone, so that the first is the sum of the others."""
    found = {}
    for k in range(terms):
        x = randn(points + k, 3, seed=k)
        each = 10.0**k * (network(x) - torch.sin((k + 1) * x[:, :1])).square().mean(1)
        found[f"term{k}"] = each / len(x)
    return found


def gradient(network, loss):
    slopes = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in slopes])


def noted(network, terms):
    """A reading after noting terms with the norms of their points, and the gradients `{term: (points, P)}`."""
    monitor = Monitor(network, every=1)
    rows = {name: torch.stack([gradient(network, one) for one in each]) for name, each in losses_of(network, terms).items()}
    sizes = [p.shape for p in network.parameters()]
    parts = {}
    for name, each in rows.items():
        pieces = each.sum(0).split([s.numel() for s in sizes])
        parts[name] = Contribution(gradient=[g.view(s) for g, s in zip(pieces, sizes, strict=True)], norms=each.norm(dim=1))
    monitor.update()
    monitor.note_terms(parts)
    return monitor.read(), rows


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_terms_are_compared_layer_by_layer_and_as_a_whole(terms):
    network = tanh_net(3, 7, 5, 1)
    reading, rows = noted(network, terms)
    for name in (*reading.layers, "network"):
        own = {term: each.sum(0) if name == "network" else of_layer(network, name, each.sum(0)) for term, each in rows.items()}
        found = (reading.network if name == "network" else reading.layers[name]).terms
        norms = {term: float(g.norm()) for term, g in own.items()}
        assert found["norms"] == pytest.approx(norms, rel=1e-12)
        assert found["ratio"] == pytest.approx(max(norms.values()) / min(norms.values()), rel=1e-12)
        pairs = {f"{a}, {b}": cosine(own[a], own[b]) for a, b in combinations(own, 2)}
        assert found["cosines"] == pytest.approx(pairs, abs=1e-12)
        if terms == 1:
            assert found["alignment"] is None
        else:
            mean = sum(g / g.norm() for g in own.values()) / terms
            assert found["alignment"] == pytest.approx(2 * float(mean.square().sum()) - 1, abs=1e-12)
        if terms == 2:
            assert found["alignment"] == pytest.approx(next(iter(pairs.values())), abs=1e-12)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_noise_is_the_variance_of_the_gradient_over_its_square_by_brute_force(terms):
    """The sample covariance of a mean, added up over terms with points of their own; and the square without that bias."""
    reading, rows = noted(tanh_net(3, 7, 5, 1), terms)
    variance = sum(float((len(each) * each).var(0).sum()) / len(each) for each in rows.values())
    square = float(sum(each.sum(0) for each in rows.values()).square().sum()) - variance
    assert square > 0
    assert reading.network.terms["noise"] == pytest.approx(variance / square, rel=1e-10)


def test_noise_predicts_how_gradients_of_fresh_points_scatter():
    """On average over draws of the points, the variance that is read off one draw is that of the gradient over all draws."""
    network, n, draws, found = tanh_net(2, 6, 1), 40, [], []
    for draw in range(150):
        x = randn(n, 2, seed=draw)
        rows = torch.stack([gradient(network, one) for one in (network(x) - x[:, :1].sin()).square()[:, 0] / n])
        draws.append(rows.sum(0))
        monitor = Monitor(network)
        pieces = draws[-1].split([p.numel() for p in network.parameters()])
        monitor.note_terms({"fit": Contribution(gradient=list(pieces), norms=rows.norm(dim=1))})
        noise = monitor.read().network.terms["noise"]
        found.append(float(draws[-1].square().sum()) * noise / (1 + noise))
    assert float(np.mean(found)) == pytest.approx(float(torch.stack(draws).var(0).sum()), rel=0.2)


@pytest.mark.parametrize("n", [5, 100, 101, 1000])
def test_top_share_is_that_of_the_first_percent_of_points(n):
    network = nn.Linear(2, 1).double()
    monitor = Monitor(network)
    norms = randn(n).abs()
    monitor.note_terms({"fit": Contribution(gradient=[randn(1, 2), randn(1)], norms=norms)})
    ordered = sorted(norms.tolist(), reverse=True)
    share = sum(ordered[: math.ceil(n / 100)]) / sum(ordered)
    assert monitor.read().network.terms["top_share"] == {"fit": pytest.approx(share, rel=1e-12)}


def test_terms_without_norms_of_points_are_compared_all_the_same():
    network = nn.Linear(2, 1).double()
    monitor = Monitor(network)
    given = {"a": [randn(1, 2), randn(1)], "b": [randn(1, 2, seed=1), randn(1, seed=1)]}
    monitor.note_terms({
        "a": Contribution(gradient=given["a"], norms=None), "b": Contribution(gradient=given["b"], norms=randn(9).abs())
    })  # fmt: skip
    found = monitor.read().network.terms
    assert list(found["norms"]) == ["a", "b"]
    assert list(found["top_share"]) == ["b"]
    assert found["noise"] is None


def test_a_term_without_gradient_has_no_cosine_and_an_infinite_ratio():
    network = nn.Linear(2, 1).double()
    monitor = Monitor(network)
    monitor.note_terms({
        "a": Contribution(gradient=[randn(1, 2), randn(1)], norms=None),
        "b": Contribution(gradient=[torch.zeros(1, 2, dtype=F64), torch.zeros(1, dtype=F64)], norms=None),
    })  # fmt: skip
    found = monitor.read().network.terms
    assert found["ratio"] == math.inf
    assert found["cosines"] == {}
    assert found["alignment"] is None


def test_terms_that_are_not_finite_are_not_compared():
    network = nn.Linear(2, 1).double()
    monitor = Monitor(network)
    monitor.note_terms({"a": Contribution(gradient=[randn(1, 2) / 0, randn(1)], norms=None)})
    assert monitor.read().network.terms is None


def test_terms_are_dated_and_stay_until_noted_again():
    network = nn.Linear(2, 1).double()
    monitor = Monitor(network, every=1)
    for update in range(5):
        give(network, randn(3))
        monitor.update()
        if update == 2:
            monitor.note_terms({"a": Contribution(gradient=[randn(1, 2), randn(1)], norms=None)})
    assert monitor.read().network.terms["updates"] == 3


# --- names ---------------------------------------------------------------------------------------------------------------


def test_readings_are_chosen_by_word_or_by_name():
    assert chosen("none") == ()
    assert chosen("full") == NAMES
    assert set(chosen("default")) < set(NAMES)
    assert chosen(["units", "drift"]) == ("units", "drift")


def test_only_what_was_asked_for_is_read():
    network, probe = tanh_net(3, 6, 1), randn(9, 3)
    fields = {
        "drift": ("drift", "lags"), "units": ("dead", "saturated", "activation_rank", "input_std"),
        "stable_rank": ("stable_rank",), "spectrum": ("eigenvalues", "gradient_rank"), "paper": ("paper",),
    }  # fmt: skip
    for name in fields:
        monitor = Monitor(network, probe, every=1, readings=[name])
        for step in range(3):
            give(network, randn(31, seed=step))
            monitor.update()
        layer = monitor.read().as_dict()["layers"]["0"]
        assert set(layer) == {"gradient_norm", "update_ratio", "non_finite", *fields[name]}
        assert monitor.similarity() is None


# --- covariance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.9, 1.0])
@pytest.mark.parametrize("soap", [False, True], ids=["sketchy", "sketchy_soap"])
def test_the_sketch_of_the_optimizer_is_read_and_holds_the_eigenvalues_of_the_covariance(soap, decay):
    from pinnsketch import Sketchy, SketchySOAP

    if soap and decay == 1.0:
        decay = 0.99
    network = tanh_net(7, 9, 8)
    optimizer = (SketchySOAP if soap else Sketchy)(network.parameters(), rank=3, betas=(0.9, decay), every=1, lr=1e-3)
    monitor = Monitor(network, readings=["covariance"], every=1, sketches=optimizer.sketches)
    bare = Monitor(network, readings="none", every=1)
    slow = {p: [torch.zeros(n, n, dtype=F64) for n in p.shape] for p in network.parameters()}
    for step in range(12):
        give(network, randn(sum(p.numel() for p in network.parameters()), seed=step))
        for p, kept in slow.items():
            for a, c in enumerate(kept):
                g = p.grad.movedim(a, 0).reshape(len(c), -1)
                c.mul_(decay).add_(g @ g.T)
        optimizer.step()
        monitor.update()
    weight = sum(decay**j for j in range(12))
    reading = monitor.read()
    assert monitor.bytes == bare.bytes
    for name, layer in (("0", network[0]), ("2", network[2])):
        found = reading.layers[name].covariance
        assert list(found) == (["weight"] if soap else ["weight", "bias"])
        for word, axes in found.items():
            for c, rank, pairs, escaped, outside in zip(slow[getattr(layer, word)], *axes.values(), strict=True):
                true = torch.linalg.eigvalsh(c).flip(0) / weight
                assert rank == min(3, len(c))
                assert all(low <= value <= high for (low, high), value in zip(pairs, true.tolist(), strict=False))
                assert 0 < escaped < 1
                kept = optimizer.sketches(getattr(layer, word))[0]
                b = next(s.b for s in kept if s.dimension == len(c) and abs(float(s.trace) - float(c.trace())) < 1e-6)
                assert outside == pytest.approx(1 - float(b.square().sum() / c.trace()), rel=1e-6)


def test_a_method_without_sketches_has_no_covariance_to_read_and_reading_makes_no_state():
    from pinnsketch import Sketchy

    network = tanh_net(3, 4, 2)
    optimizer = Sketchy(network.parameters())
    monitor = Monitor(network, every=1, sketches=optimizer.sketches)
    give(network, randn(26))
    monitor.update()
    assert monitor.read().layers["0"].covariance is None
    assert not optimizer.state
    monitor.sketches = None
    assert monitor.read().layers["0"].covariance is None


@pytest.mark.parametrize("method", ["sketchy", "sketchy_soap"])
def test_a_run_reads_the_sketches_of_its_method_and_is_not_changed_by_that(method, tmp_path):
    from pinnsketch.config import make_config
    from pinnsketch.library import find_problem, load_problem
    from pinnsketch.report.figures import covariance_figure
    from pinnsketch.report.tables import metrics_table
    from pinnsketch.run import Run

    def made(monitor):
        points = {"interior": 20, "boundary": 8, "test": 20}
        train = {"method": method, "steps": 8, "log": 2, "rank": 4}
        given = {
            "problem": "poisson",
            "points": points,
            "train": train,
            "monitor": monitor,
            "network": {"width": 8, "depth": 2},
        }
        run = Run(load_problem(find_problem("poisson", tmp_path)), make_config(given))
        list(run)
        return run, run.finish()

    (watched, solution), (bare, _) = made({"every": 1}), made(False)
    assert all(torch.equal(a, b) for a, b in zip(watched.trial.parameters(), bare.trial.parameters(), strict=True))
    rows = [row["layers"]["layers.1"]["covariance"]["weight"] for row in watched.history]
    assert all(row["rank"] == [4, 4] for row in rows)
    assert covariance_figure(solution) is not None
    labels = list(metrics_table(solution.metrics).columns[0].cells)
    assert "sketches of layers.1.weight" in labels
    assert covariance_figure(bare.finish()) is None
