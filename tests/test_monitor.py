"""The monitor is invisible to training, of fixed size, exact where it says so, and within its error bounds elsewhere."""

import copy
import gc
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pinnsketch.config import make_config
from pinnsketch.library import load_problem
from pinnsketch.monitor import Monitor
from pinnsketch.network import MLP
from pinnsketch.run import Run
from pinnsketch.sketch import ThreeSketch
from pinnsketch.train import Stage, train

F64 = torch.float64
HALF = 1e-3
"""What half precision may change a cosine by."""
PROBLEMS = Path(__file__).parents[1] / "problems"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


def mlp(width=10, depth=2, outputs=1, seed=0):
    return MLP(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), outputs, width=width, depth=depth, generator=generator(seed))


class Noisy(nn.Module):
    """A network with everything that a careless forward pass would disturb."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.into, self.norm, self.out = nn.Linear(2, 10), nn.BatchNorm1d(10), nn.Linear(10, 1)
        self.dropout = nn.Dropout(0.3)
        self.double()

    def forward(self, x):
        y = self.dropout(torch.tanh(self.norm(self.into(x))))
        return self.out(nn.functional.dropout(y, 0.1, training=True))  # random in evaluation mode too


class Fit:
    """Fit a network to a smooth function at random points; satisfies Task."""

    weights = {"fit": 1.0, "slope": 0.1}  # noqa: RUF012

    def __init__(self, n=40, scale=1.0):
        self.weights, self._n = {name: scale * w for name, w in Fit.weights.items()}, n

    def batch(self, draw):
        return torch.rand(self._n, 2, generator=generator(draw), dtype=F64)

    def losses(self, model, x):
        x = x.clone().requires_grad_()
        u = model(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        return {"fit": (u - x[:, :1].sin()).square().mean(), "slope": (slope - 1).square().mean()}

    def error(self, model):
        with torch.no_grad():
            return {"overall": float((model(self.batch(99)) - 1).norm())}


SCHEDULES = {
    "adam": [Stage("adam", 25)],
    "lbfgs": [Stage("lbfgs", 25)],
    "schedule": [Stage("adam", 13), Stage("lbfgs", 12), Stage("adam", 5)],
}
PAPER = {"readings": ["drift", "memory", "units", "paper"], "adaptive": True}
WATCH = {
    "plain": {},
    "adaptive": PAPER,
    "every step": {"every": 1, "readings": "full", "adaptive": True, "rank": 3, "size": 8, "lags": (1, 3), "entries": 4},
}


def trained(network, schedule, watch=None):
    torch.manual_seed(7)  # of dropout
    task = Fit()
    monitor = None if watch is None else Monitor(network, task.batch(5), **watch)
    log = []
    for step in train(network, task, schedule, resample=7):
        if monitor:
            monitor.update(step.loss, now=step.index == 4)
            if step.index % 3 == 0:
                monitor.read()
        log.append((step.loss, dict(step.losses), *(p.grad.clone() for p in network.parameters())))
    network.eval()
    return log, task.error(network), network.state_dict(), torch.get_rng_state()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a.eq(b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a


@pytest.mark.parametrize("watch", WATCH.values(), ids=WATCH)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("build", [mlp, Noisy])
def test_monitoring_is_bitwise_invisible(build, schedule, watch):
    bare, watched = trained(build(), schedule), trained(build(), schedule, watch)
    assert same(bare, watched)
    assert len(bare[0]) >= 10


def test_a_look_leaves_modes_buffers_graphs_hooks_and_random_numbers_alone():
    network = Noisy()
    network.train()
    network.norm.eval()
    state, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    x = randn(20, 2)
    monitor = Monitor(network, x, every=1, readings="full", adaptive=True)
    for _ in range(3):
        monitor.update(1.0)
        monitor.read()
        monitor.similarity()
        monitor.sketch()
    assert same(state, network.state_dict())
    assert torch.equal(rng, torch.get_rng_state())
    assert [module.training for module in (network, network.into, network.norm, network.dropout)] == [True, True, False, True]
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert not any(tensor.requires_grad for tensor in tensors_of(monitor) if not isinstance(tensor, nn.Parameter))


def test_a_network_that_fails_is_left_as_it_was():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fails = nn.Linear(2, 3).double(), False

        def forward(self, x):
            y = self.layer(x)
            if self.fails:
                raise RuntimeError("no")
            return y

    network = Fails()
    monitor = Monitor(network, randn(4, 2), every=1)
    network.fails = True
    with pytest.raises(RuntimeError, match="no"):
        monitor.update()
    assert network.training
    assert not network.layer._forward_hooks


def run_of(monitor):
    """A short run of the shipped Poisson problem, with everything it leaves behind."""
    config = make_config({
        "problem": "poisson", "network": {"width": 8, "depth": 2}, "points": {"interior": 20, "boundary": 8, "resample": 4,
        "test": 50}, "train": {"schedule": [{"method": "adam", "steps": 14}, {"method": "lbfgs", "steps": 10}], "log": 3},
        "monitor": monitor, "threads": 1,
    })  # fmt: skip
    run = Run(load_problem(PROBLEMS / "poisson.py"), config)
    log = [(step.loss, dict(step.losses), [p.grad.clone() for p in run.trial.parameters()]) for step in run]
    rows = [{word: row[word] for word in ("step", "method", "loss", "losses", "error")} for row in run.history]
    return log, rows, run.trial.state_dict(), run.task.error(run.trial), run


@pytest.mark.parametrize("chosen", ["default", "full"])
def test_a_run_is_bitwise_the_same_with_a_monitor_and_without(chosen):
    rng, others = torch.get_rng_state(), (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    bare, seen = run_of(False), run_of({"readings": chosen, "every": 1, "terms": 3, "lags": [1, 5], "entries": 6})
    assert same(bare[:4], seen[:4])
    assert len(bare[0]) == 24
    assert seen[4].monitor.read().network.terms is not None
    assert same(rng, torch.get_rng_state())
    assert others == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def own_loop(watch):
    """A loop of one's own, with dropout and batch norm; all that it leaves behind after each step."""
    network = Noisy()
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    monitor = None if watch is None else Monitor(network, randn(16, 2), **watch)
    log = []
    for step in range(12):
        u = network(torch.rand(20, 2, dtype=F64))
        losses = {"fit": (u - 1).square().mean(), "size": 0.1 * u.square().mean()}
        optimizer.zero_grad()
        if monitor and step % 4 == 0:
            monitor.split(losses)
        assert all(p.grad is None for p in network.parameters())
        sum(losses.values()).backward()
        held = [p.grad for p in network.parameters()]
        before = [g.clone() for g in held]
        if monitor:
            monitor.update()
            monitor.read()
        assert all(p.grad is g for p, g in zip(network.parameters(), held, strict=True))
        assert same(before, held)
        optimizer.step()
        log.append((before, copy.deepcopy(network.state_dict()), torch.get_rng_state()))
    return log, monitor


@pytest.mark.parametrize("watch", [{}, {"every": 1, "readings": "full"}], ids=["default", "full"])
def test_a_loop_of_ones_own_with_dropout_and_batch_norm_is_bitwise_the_same(watch):
    (bare, _), (seen, monitor) = own_loop(None), own_loop(watch)
    assert same(bare, seen)
    tensors = [tensor for tensor in tensors_of(monitor) if not isinstance(tensor, nn.Parameter)]
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in tensors)


# --- memory --------------------------------------------------------------------------------------------------------------


def tensors_of(thing, seen=None):
    """All tensors reachable from the attributes of a thing, the network apart."""
    seen = {} if seen is None else seen
    if id(thing) in seen or isinstance(thing, nn.Module):
        return []
    seen[id(thing)] = thing
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, (list, tuple, set)):
        parts = list(thing)
    elif hasattr(thing, "__dict__"):
        parts = list(vars(thing).values())
    else:
        parts = []
    return [tensor for part in parts for tensor in tensors_of(part, seen)]


def held(monitor):
    tensors = [tensor for tensor in tensors_of(monitor) if not isinstance(tensor, nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())


def watched(monitor, network, steps, batch=30):
    for i in range(steps):
        network.zero_grad()
        network(randn(batch, 2, seed=i)).square().mean().backward()
        monitor.update(1.0)
    return monitor


@pytest.mark.parametrize("readings", ["none", "default", "full"])
@pytest.mark.parametrize("probe", [None, 16])
def test_memory_does_not_depend_on_steps_nor_batch_and_is_what_it_says(probe, readings):
    sizes = []
    for batch in (5, 500):
        network = mlp()
        monitor = Monitor(network, None if probe is None else randn(probe, 2), every=1, readings=readings)
        assert monitor.bytes == held(monitor)
        for steps in (2, 98):
            watched(monitor, network, steps, batch)
            sizes.append(monitor.bytes)
            assert monitor.bytes == held(monitor)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(("readings", "updates"), [("default", 3001), ("full", 201)])
def test_memory_is_flat_to_the_byte_over_thousands_of_updates_with_every_lag_and_a_full_long_memory(readings, updates):
    network = nn.Linear(3, 2).double()
    monitor = Monitor(network, randn(8, 3), every=1, readings=readings)
    monitor.note_terms({"a": Gradient(), "b": Gradient()})
    sizes = set()
    for update in range(updates):
        network.weight.grad, network.bias.grad = Gradient.gradient[0] * math.cos(update), Gradient.gradient[1]
        monitor.update()
        if update % 50 == 0:
            monitor.note_terms({"a": Gradient(), "b": Gradient()})
            monitor.read()
            sizes.add(monitor.bytes)
            assert monitor.bytes == held(monitor)
    assert len(sizes) == 1
    assert set(monitor.read().network.lags) == {lag for lag in (1, 10, 100, 1000) if lag < updates}
    assert len(monitor.similarity()[0]) == 32


class Gradient:
    """What a term contributes: a fixed gradient of a layer of three inputs and two outputs."""

    gradient = (randn(2, 3, seed=1), randn(2, seed=2))
    norms = None


def test_no_tensor_outlives_a_look_but_those_that_are_counted():
    network = mlp()
    monitor = watched(Monitor(network, randn(8, 2), every=1, readings="full", lags=(1, 2), entries=4), network, 10)

    def alive():
        gc.collect()
        return sum(t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor and t.layout is torch.strided)

    with_gradients(network)
    before = alive()
    for _ in range(5):
        monitor.update()
        monitor.read()
    assert alive() == before


def test_the_probe_is_all_that_memory_owes_to_the_number_of_probe_points():
    sizes = {n: Monitor(mlp(), randn(n, 2), readings="full").bytes - 8 * 2 * n for n in (2, 16, 1000)}
    assert len(set(sizes.values())) == 1


def test_a_network_of_four_layers_of_50_is_watched_in_100_kilobytes():
    network = mlp(width=50, depth=4)
    probe = torch.rand(128, 2, generator=generator(), dtype=F64)
    monitor = watched(Monitor(network, probe, every=1), network, 2)
    assert monitor.bytes == held(monitor) <= 100_000


def test_a_network_of_four_layers_of_50_is_watched_in_40_kilobytes_without_lags():
    network = mlp(width=50, depth=4)
    monitor = watched(Monitor(network, every=1, readings=["drift"], lags=(), entries=0), network, 2)
    assert monitor.bytes == held(monitor) <= 40_960
    assert watched(Monitor(network, every=1, readings="none"), network, 2).bytes <= monitor.bytes


@pytest.mark.parametrize(("more", "most"), [((), 700_000), (("stable_rank",), 1_300_000)], ids=["default", "stable rank"])
def test_sixteen_layers_of_1024_are_watched_in_a_hundredth_of_their_own_64_megabytes(more, most):
    layers = [nn.utils.skip_init(nn.Linear, 1024, 1024) for _ in range(16)]
    network = nn.Sequential(*layers)
    for p in network.parameters():
        p.data.zero_()
        p.grad = torch.zeros(1).expand_as(p)  # no memory of its own
    monitor = Monitor(network, every=1, readings=["drift", "memory", "units", "terms", *more])
    monitor.update()
    assert monitor.bytes == held(monitor) <= most


# --- exact readings ------------------------------------------------------------------------------------------------------


def with_gradients(network, seed=0, scale=1.0):
    for i, p in enumerate(network.parameters()):
        p.grad = scale * randn(*p.shape, seed=100 * seed + i)


def flat(layer, what=lambda p: p.grad):
    return torch.cat([what(p).detach().reshape(-1) for p in layer.parameters(recurse=False)])


def test_gradient_norms_are_exact():
    network = mlp(width=40)
    monitor = Monitor(network, every=1)
    for seed in range(3):
        with_gradients(network, seed)
        monitor.update()
    for name, layer in monitor.read().layers.items():
        assert layer.gradient_norm == pytest.approx(float(torch.norm(flat(network.get_submodule(name)))), rel=1e-12)


def test_layers_are_named_from_first_to_last():
    assert list(Monitor(mlp(depth=2)).read().layers) == ["layers.0", "layers.1", "layers.2"]


MAGNITUDES = [10.0**k for k in range(-30, 31, 6)]


def wide():
    return nn.utils.skip_init(nn.Linear, 1024, 1024)


def narrow():
    return mlp(width=40).float()


@pytest.mark.parametrize("build", [narrow, wide])
def test_norms_of_single_precision_gradients_are_exact_at_every_magnitude(build):
    network = build()
    monitor = Monitor(network, every=1, readings="none")
    for magnitude in MAGNITUDES:
        for i, p in enumerate(network.parameters()):
            p.grad = (magnitude * randn(*p.shape, seed=i)).float()
        monitor.update()
        reading, squares = monitor.read(), 0
        for name, layer in reading.layers.items():
            exact = np.linalg.norm(flat(network if name == "network" else network.get_submodule(name)).double().numpy())
            assert layer.gradient_norm == pytest.approx(exact, rel=1e-6)
            squares += exact**2
        assert reading.network.gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-6)


def test_entries_of_all_magnitudes_in_one_layer_and_layers_of_all_magnitudes_in_one_network_do_not_disturb_each_other():
    network = narrow()
    monitor = Monitor(network, every=1)
    scales = [1e-25, 1.0, 1e25]
    for i, (layer, scale) in enumerate(zip(network.layers, scales, strict=True)):
        for k, p in enumerate(layer.parameters()):
            spread = 10.0 ** (10 * torch.rand(p.shape, generator=generator(k), dtype=F64) - 5)
            p.grad = (scale * spread * randn(*p.shape, seed=10 * i + k)).float()
    monitor.update()
    for name, layer in monitor.read().layers.items():
        exact = np.linalg.norm(flat(network.get_submodule(name)).double().numpy())
        assert layer.gradient_norm == pytest.approx(exact, rel=1e-6)


SCALES = [-1.0, 2.0**-20, 2.0**20, -1e-6, 1e3]


@pytest.mark.parametrize("c", SCALES)
def test_readings_of_gradients_scale_with_the_loss_and_those_of_activations_do_not_move(c):
    """Norms by |c|, eigenvalues by c^2; directions and shares stay, to the bit where c is a power of two."""
    network = mlp(width=30)
    readings, similar = [], []
    for factor in (1.0, c):
        monitor = Monitor(network, randn(20, 2), every=1, readings="full", lags=(1, 2))
        for i in range(4):
            network.zero_grad()
            u = network(randn(30, 2, seed=i))
            losses = {"size": factor * u.square().mean(), "fit": factor * (u - 1).square().mean()}
            monitor.split(losses)
            sum(losses.values()).backward()
            monitor.update()
        readings.append(monitor.read())
        similar.append(monitor.similarity()[1])
    exact = math.log2(abs(c)).is_integer()
    close = {"rel": 0 if exact else 1e-10, "abs": 0 if exact else 1e-10}
    rounded = {"rel": 0, "abs": 0 if exact else 2 * HALF}
    one, other = readings
    pairs = [*((layer, other.layers[name]) for name, layer in one.layers.items()), (one.network, other.network)]
    for a, b in pairs:
        assert b.gradient_norm == pytest.approx(abs(c) * a.gradient_norm, **close)
        assert b.drift == pytest.approx(a.drift, **rounded)
        assert b.lags.keys() == a.lags.keys() == {1, 2}
        for lag in a.lags:
            assert b.lags[lag] == pytest.approx(a.lags[lag], **rounded)
        for word in ("update_ratio", "dead", "saturated", "activation_rank", "input_std", "paper"):
            assert getattr(b, word) == getattr(a, word)
        assert b.terms["norms"] == pytest.approx({term: abs(c) * norm for term, norm in a.terms["norms"].items()}, **close)
        for word in ("ratio", "cosines", "alignment"):
            assert b.terms[word] == pytest.approx(a.terms[word], **close)
    for a, b in pairs[:-1]:
        assert a.paper is not None
        assert b.stable_rank == pytest.approx(a.stable_rank, rel=0 if exact else 1e-5, abs=0)  # it works in float32
        assert b.gradient_rank == pytest.approx(a.gradient_rank, rel=1e-9)
        for (low, high), (less, more) in zip(a.eigenvalues, b.eigenvalues, strict=True):
            assert (less, more) == pytest.approx((c * c * low, c * c * high), rel=1e-9, abs=c * c * 1e-9 * a.eigenvalues[0][0])
    torch.testing.assert_close(similar[0], similar[1], rtol=0, atol=rounded["abs"])


def move(network, seed, size=0.1):
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.add_(size * randn(*p.shape, seed=1000 * seed + i))


@pytest.mark.parametrize("every", [1, 10])
def test_update_ratios_of_small_layers_are_exact_and_of_one_step(every):
    network = mlp(width=15)  # 15 * 16 = 240 parameters at most
    monitor = Monitor(network, every=every)
    for i in range(2 * every + 1):
        before = copy.deepcopy(network)
        move(network, i)
        with_gradients(network, i)
        monitor.update()
    for name, layer in monitor.read().layers.items():
        now, old = (flat(n.get_submodule(name), lambda p: p) for n in (network, before))
        assert layer.update_ratio == pytest.approx(float((now - old).norm() / now.norm()), rel=1e-12)


def test_update_ratios_of_big_layers_lie_within_four_standard_errors_of_the_truth():
    off = []
    for seed in range(40):
        network = mlp(width=60, depth=1, outputs=40)
        monitor = Monitor(network, every=1, size=64, seed=seed)
        before = copy.deepcopy(network)
        move(network, seed)
        monitor.update()
        now, old = (flat(n.layers[1], lambda p: p) for n in (network, before))
        off.append(monitor.read().layers["layers.1"].update_ratio / float((now - old).norm() / now.norm()) - 1)
    each = math.sqrt(2) / math.sqrt(2 * 64)  # two lengths, each 1/sqrt(2 p) off
    assert max(map(abs, off)) < 4 * each
    assert 0.3 * each < torch.tensor(off).std() < 1.5 * each
    assert abs(sum(off) / len(off)) < 4 * each / math.sqrt(len(off)) + 1 / 64


def test_a_look_out_of_turn_reads_no_update_ratio_but_all_else():
    network = mlp()
    monitor = Monitor(network, every=10)
    for seed in range(4):
        with_gradients(network, seed)
        monitor.update(now=seed == 3)
    layer = monitor.read().layers["layers.1"]
    assert layer.update_ratio is None
    assert layer.gradient_norm == pytest.approx(float(flat(network.layers[1]).norm()), rel=1e-12)
    assert layer.drift is not None


def test_it_looks_at_the_first_of_every_so_many_updates():
    network = mlp()
    monitor = Monitor(network, every=4)
    norms = []
    for i in range(1, 11):
        with_gradients(network, 0, scale=i)
        monitor.update()
        norms.append(monitor.read().layers["layers.0"].gradient_norm)
    assert [round(norm / norms[0]) for norm in norms] == [1, 1, 1, 1, 5, 5, 5, 5, 9, 9]
    assert monitor.read().updates == 10


# --- drift ---------------------------------------------------------------------------------------------------------------


def drifts(gradients, decay=0.9, size=509, width=12):
    network = mlp(width=width)
    monitor = Monitor(network, every=1, decay=decay, size=size)
    for g in gradients:
        with_gradients(network, 3, scale=g)
        monitor.update()
    return monitor.read().layers


def test_drift_is_one_for_a_constant_gradient_whatever_its_size():
    for layer in drifts([1, 1, 5, 0.01]).values():
        assert layer.drift.value == pytest.approx(1, abs=HALF)
        assert layer.drift.low >= 0.9
        assert layer.drift.high == 1


def test_drift_is_minus_one_when_the_gradient_turns_round():
    for layer in drifts([1, 1, 1, -1]).values():
        assert layer.drift.value == pytest.approx(-1, abs=HALF)
        assert layer.drift.low == -1
        assert layer.drift.high <= -1 + 2 * HALF


def test_drift_of_alternating_gradients_is_against_their_mean():
    """The mean after g, -g, g, ... has the sign of the last one, so the next is always against it."""
    for n in (2, 3, 6, 7):
        for layer in drifts([(-1) ** i for i in range(n)], decay=0.5).values():
            assert layer.drift.value == pytest.approx(-1, abs=HALF)


def test_drift_is_the_cosine_with_the_moving_average_exactly_for_small_layers_and_in_its_interval_for_big_ones():
    network, decay = mlp(width=40), 0.7
    monitor, means = Monitor(network, every=1, decay=decay), {}
    shared = randn(2000)
    for seed in range(5):
        with_gradients(network, seed)
        for p in network.parameters():
            p.grad += 0.7 * shared[: p.numel()].view_as(p)
        monitor.update()
        now = {name: flat(network.get_submodule(name)) for name in monitor.read().layers}
        true = {n: float(torch.cosine_similarity(g, means[n], dim=0)) if means else 0.0 for n, g in now.items()}
        means = {n: decay * means.get(n, 0) + (1 - decay) * g for n, g in now.items()}
    layers = monitor.read().layers
    small, big = layers["layers.0"].drift, layers["layers.1"].drift  # 120 and 1,640 parameters
    assert small.value == pytest.approx(true["layers.0"], abs=HALF)
    assert small.high - small.low <= 2.01 * HALF
    assert big.value != pytest.approx(true["layers.1"], abs=1e-9)
    assert big.value == pytest.approx(true["layers.1"], abs=4 / math.sqrt(509))
    assert 0.5 / math.sqrt(509) < big.high - big.low < 6 / math.sqrt(509)


@pytest.mark.parametrize("looks", [[], [1.0]])
def test_there_is_no_drift_before_the_second_look(looks):
    for layer in drifts(looks).values():
        assert layer.drift is None
        assert not layer.lags


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_there_is_no_drift_of_a_gradient_of_zero(dtype):
    network = mlp().to(dtype)
    monitor = Monitor(network, every=1)
    for _ in range(3):
        monitor.update()
    assert [layer.drift for layer in monitor.read().layers.values()] == [None] * 3


# --- what a layer is -----------------------------------------------------------------------------------------------------


def test_a_layer_without_a_gradient_reads_zero():
    network = mlp()
    monitor = Monitor(network, every=1)
    with_gradients(network)
    network.layers[1].weight.grad = network.layers[1].bias.grad = network.layers[2].weight.grad = None
    monitor.update()
    layers = monitor.read().layers
    assert layers["layers.1"].gradient_norm == 0
    assert layers["layers.2"].gradient_norm == pytest.approx(float(network.layers[2].bias.grad.norm()), rel=1e-12)


class Odd(nn.Module):
    """A parameter of its own, one weight in two layers, a frozen layer, a layer half frozen, and an empty one."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(randn(1, 4, seed=9))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.frozen, self.part, self.activation = nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh()
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.part.bias.requires_grad_(False)
        self.double()

    def forward(self, x):
        for layer in (self.first, self.second, self.frozen, self.part):
            x = self.activation(layer(x)) + self.shift
        return x


def test_shared_weights_count_once_and_frozen_ones_not_at_all():
    network = Odd()
    monitor = Monitor(network, randn(8, 4), every=1)
    network(randn(5, 4)).square().sum().backward()
    monitor.update()
    layers = monitor.read().layers
    assert list(layers) == ["network", "first", "second", "part"]
    norms = {
        "network": network.shift.grad.norm(),
        "first": torch.cat([network.first.weight.grad.flatten(), network.first.bias.grad]).norm(),
        "second": network.second.bias.grad.norm(),
        "part": network.part.weight.grad.norm(),
    }
    assert {n: layer.gradient_norm for n, layer in layers.items()} == pytest.approx({n: float(v) for n, v in norms.items()})
    assert layers["network"].dead is None
    assert layers["part"].dead is not None


@pytest.mark.parametrize("network", [nn.Tanh(), nn.Linear(2, 1).requires_grad_(False)], ids=["none", "frozen"])
def test_a_network_with_nothing_that_trains_is_refused(network):
    with pytest.raises(ValueError, match="Monitor: the network has no parameters that train; there is nothing to watch"):
        Monitor(network)


class Squashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x):
        return self.factor * x


def test_a_network_without_linear_layers_has_no_activation_readings():
    network = Squashed()
    monitor = Monitor(network, randn(8, 2), every=1)
    with_gradients(network)
    monitor.update()
    layer = monitor.read().layers["network"]
    assert (layer.dead, layer.activation_rank, layer.input_std, layer.paper) == (None, None, None, None)
    assert layer.gradient_norm == abs(float(network.factor.grad))


def test_a_network_that_is_one_linear_layer_has_its_activations_read():
    network = nn.Linear(2, 5).double()
    monitor = Monitor(network, randn(8, 2), every=1, readings="full")
    monitor.update()
    assert 1 <= monitor.read().layers["network"].paper["stable_rank"] <= 9
    assert 1 <= monitor.read().layers["network"].activation_rank <= 2 + 1e-9


class Attention(nn.Module):
    """Linear layers whose inputs are no rows of points are left out of the activation readings."""

    def __init__(self):
        super().__init__()
        self.into, self.mix, self.once, self.out = (nn.Linear(a, b).double() for a, b in ((2, 6), (2, 2), (3, 6), (6, 1)))

    def forward(self, x):
        y = self.mix(self.into(x).view(len(x), 3, 2)).reshape(len(x), 6)
        return self.out(y + self.once(torch.ones(1, 3, dtype=F64)))


def test_layers_whose_inputs_are_no_rows_of_points_have_no_activation_readings():
    monitor = Monitor(Attention(), randn(8, 2), every=1, readings="full")
    monitor.update()
    assert {name for name, layer in monitor.read().layers.items() if layer.paper is not None} == {"out"}
    assert {name for name, layer in monitor.read().layers.items() if layer.dead is not None} >= {"out"}


# --- activations ---------------------------------------------------------------------------------------------------------


def test_activation_stable_ranks_are_those_of_the_outputs_of_layers_on_the_probe():
    network, probe = mlp(depth=2), randn(30, 2)
    monitor = Monitor(network, probe, every=1, rank=3, decay=0.8, seed=5, readings=["paper"])
    hidden, inputs = [], network.inputs(probe)
    for layer in network.layers[:-1]:
        hidden.append((inputs, torch.tanh(layer(inputs)).detach()))
        inputs = hidden[-1][1]
    hidden.append((inputs, network(probe).detach()))
    for _ in range(2):
        monitor.update()
    for i, (before, after) in enumerate(hidden):
        slow = ThreeSketch(before.shape[1], after.shape[1], rank=3, decay=0.8, seed=5, layer=i)
        slow.update(before, after)
        found = monitor.read().layers[f"layers.{i}"].paper
        assert found == pytest.approx({"stable_rank": slow.stable_rank(), "energy": slow.energy()}, rel=1e-9)


def test_without_probe_points_there_are_no_activation_readings():
    monitor = watched(Monitor(mlp(), every=1, readings="full"), mlp(), 2)
    for layer in monitor.read().layers.values():
        assert (layer.dead, layer.saturated, layer.activation_rank, layer.input_std, layer.paper) == (None,) * 5


def test_an_adaptive_rank_follows_the_loss_and_starts_its_sketches_again():
    network, probe = mlp(), randn(20, 2)
    monitor = Monitor(network, probe, every=1, rank=4, **PAPER)
    monitor.update(1.0)
    sizes = []
    for i in range(24):
        monitor.update(float(-1 - i if i < 9 else 0))
        sizes.append(monitor.bytes)
    columns = [2 * r + 1 for r in [4] * 3 + [3] * 5 + [2] * 5 + [4] * 5 + [6] * 5 + [8]]
    wide = 2 + 10 + 10 + 2 * (10 + 10 + 1) + 3  # rows of x, of y and z, and psi, of all three layers
    assert [size - sizes[0] for size in sizes] == [8 * wide * (k - 9) for k in columns]


def test_a_fixed_rank_does_not_follow_the_loss():
    monitor = Monitor(mlp(), randn(20, 2), every=1, readings="full")
    monitor.update(1.0)
    sizes = set()
    for i in range(12):
        monitor.update(float(-i))
        sizes.add(monitor.bytes)
    assert len(sizes) == 1


# --- trouble -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_looks_at_non_finite_gradients_are_counted_by_layer_and_leave_the_averages_clean(bad):
    network = mlp()
    monitor, clean = Monitor(network, every=1), Monitor(network, every=1)
    for i in range(6):
        with_gradients(network, i)
        if i not in (2, 3):
            clean.update()
        else:
            network.layers[1].weight.grad[3, 4] = bad
        monitor.update()
        if i == 3:
            layer = monitor.read().layers["layers.1"]
            assert not math.isfinite(layer.gradient_norm)
            assert layer.drift is None
    layers = monitor.read().layers
    assert [layer.non_finite for layer in layers.values()] == [0, 2, 0]
    for name, layer in layers.items():
        if name == "layers.1":  # the others saw two gradients more
            assert layer.drift == pytest.approx(clean.read().layers[name].drift, abs=2 * HALF)


def test_infinities_of_both_signs_do_not_cancel():
    network = mlp()
    monitor = Monitor(network, every=1)
    with_gradients(network)
    network.layers[0].weight.grad[0, 0], network.layers[0].weight.grad[1, 0] = math.inf, -math.inf
    monitor.update()
    assert [layer.non_finite for layer in monitor.read().layers.values()] == [1, 0, 0]


def test_a_step_that_went_wrong_is_read_through_train():
    class Breaks(Fit):
        def losses(self, model, x):
            return {name: value / (0 if self._n == 0 else 1) for name, value in super().losses(model, x).items()}

    network, task = mlp(), Breaks()
    monitor = Monitor(network, every=10)
    for step in train(network, task, [Stage("adam", 20)]):
        task._n = 0 if step.index == 3 else task._n
        monitor.update(step.loss, now=not step.finite)
    assert not step.finite
    assert step.index == 4
    assert [layer.non_finite for layer in monitor.read().layers.values()] == [1, 1, 1]


# --- state ---------------------------------------------------------------------------------------------------------------


def test_a_monitor_goes_on_from_its_state_and_reads_the_same():
    network = mlp(width=25)
    options = {"every": 3, "readings": "full", "lags": (1, 6), "entries": 5, "adaptive": True, "seed": 2}
    whole = Monitor(network, randn(20, 2), **options)

    def run(monitors, steps):
        for i in steps:
            move(network, i, 0.01)
            with_gradients(network, i)
            for monitor in monitors:
                monitor.update(float(-i))

    run([whole], range(35))
    again = Monitor(network, randn(20, 2), **options)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert again.read() == whole.read()
    assert same(list(again.similarity()), list(whole.similarity()))
    assert again.bytes == whole.bytes
    run([whole, again], range(35, 80))
    assert again.read() == whole.read()
    assert same(again.state_dict(), whole.state_dict())


def test_loading_a_state_does_not_tie_two_monitors_together():
    network = mlp()
    first, second = (Monitor(network, randn(9, 2), every=1) for _ in range(2))
    watched(first, network, 2)
    second.load_state_dict(first.state_dict())
    state, reading = copy.deepcopy(first.state_dict()), first.read()
    network.layers[0].weight.grad[0, 0] = math.nan
    for _ in range(3):
        second.update()
    assert first.read() == reading
    assert same(first.state_dict(), state)


def test_readings_come_as_plain_words_and_numbers():
    network = mlp()
    reading = watched(Monitor(network, randn(9, 2), every=1), network, 2).read().as_dict()
    assert reading["updates"] == 2
    always = {"gradient_norm", "update_ratio", "non_finite", "drift", "lags"}
    assert set(reading["layers"]["layers.1"]) == {*always, "dead", "saturated", "activation_rank"}
    assert set(reading["layers"]["layers.0"]) == {*always, "dead", "saturated", "activation_rank", "input_std"}
    assert always <= set(reading["network"])
    assert json.loads(json.dumps(reading))["layers"]["layers.1"]["gradient_norm"] > 0


def test_everything_that_is_read_can_be_written_as_json():
    network = mlp()
    monitor = Monitor(network, randn(9, 2), every=1, readings="full")
    u = network(randn(5, 2))
    monitor.split({"a": u.square().mean(), "b": (u - 1).square().mean()})
    reading = watched(monitor, network, 3).read().as_dict()
    json.dumps(reading, allow_nan=False)
    assert set(reading["layers"]["layers.1"]) >= {"stable_rank", "eigenvalues", "gradient_rank", "paper", "terms"}
