"""The monitor beside a loop of one's own: mixed precision, accumulation, clipping, L-BFGS, compiled and parallel models."""

import io
import json
import math
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn

from pinnsketch.monitor import Monitor
from pinnsketch.sketch import SignFold

F64 = torch.float64


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def net(dtype=F64, seed=0, width=12):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)


def data(step, n=24, dtype=F64):
    x = randn(n, 3, seed=step)
    return x.to(dtype), torch.sin(x[:, :2] + x[:, 1:]).to(dtype)


def loss_of(network, x, y):
    return (network(x) - y).square().mean()


def near(found, expected, **close):
    """Whether two readings are the same up to rounding, whatever their nesting."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            near(found[key], expected[key], **close)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            near(a, b, **close)
    else:
        assert found == (expected if expected is None else pytest.approx(expected, **({"rel": 1e-9, "abs": 1e-12} | close)))


# --- mixed precision -----------------------------------------------------------------------------------------------------

FULL = {"readings": "full", "lags": (1, 2, 4), "entries": 4}


def scaled_loop(place, every=1, steps=9, change=1.0, enabled=True):
    """Train in float32 with a GradScaler, or without (None), looking at one place in the step: all readings."""
    network, x = net(torch.float32), randn(16, 3, seed=77, dtype=torch.float32)
    monitor = Monitor(network, x, every=every, **FULL)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=enabled) if place else None
    readings = []

    def look(now):
        if now == place or (place is None and now == "scaled"):
            monitor.update(scaler=scaler)
            readings.append(monitor.read().as_dict())

    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(network, *data(step, dtype=torch.float32))
        (scaler.scale(loss) if scaler else loss).backward()
        look("scaled")
        if scaler and place != "scaled":
            scaler.unscale_(optimizer)
        look("unscaled")
        if scaler:
            scaler.step(optimizer)
        else:
            optimizer.step()
        look("stepped")
        if scaler:
            scaler.update(scaler.get_scale() * change if enabled else None)
    return readings


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("change", [1.0, 2.0], ids=["constant scale", "growing scale"])
@pytest.mark.parametrize("place", ["scaled", "unscaled"])
def test_with_a_grad_scaler_it_reads_what_it_reads_without(place, change, every):
    """Before `unscale_` and after; all scales are powers of two, so that even single precision agrees to the bit."""
    plain, scaled = scaled_loop(None, every), scaled_loop(place, every, change=change)
    assert len(plain) == len(scaled) == 9
    for a, b in zip(scaled, plain, strict=True):
        near(without_spectra(a), without_spectra(b), rel=1e-6, abs=1e-9)
    assert plain[-1]["network"]["noise"] is not None


def without_spectra(reading):
    layers = {name: {k: v for k, v in layer.items() if k != "eigenvalues"} for name, layer in reading["layers"].items()}
    return {**reading, "layers": layers}


@pytest.mark.parametrize("change", [1.0, 2.0], ids=["constant scale", "growing scale"])
@pytest.mark.parametrize("place", ["scaled", "unscaled"])
def test_spectra_with_a_grad_scaler_are_those_without(place, change):
    for a, b in zip(scaled_loop(place, change=change), scaled_loop(None), strict=True):
        for name, layer in b["layers"].items():
            greatest = layer["eigenvalues"][0][1]
            near(a["layers"][name]["eigenvalues"], layer["eigenvalues"], rel=1e-5, abs=1e-5 * greatest)


def test_after_the_step_gradients_are_unscaled_too():
    plain, scaled = scaled_loop("unscaled"), scaled_loop("stepped")
    for a, b in zip(scaled, plain, strict=True):
        assert a["network"]["gradient_norm"] == pytest.approx(b["network"]["gradient_norm"], rel=1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_that_unscales_by_itself_is_read_right_before_and_after_its_step(optimizer):
    network = net(torch.float32)
    try:
        method = optimizer(network.parameters(), lr=1e-3, fused=True)
    except RuntimeError as error:
        pytest.skip(str(error))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before, after = (Monitor(network, every=1) for _ in range(2))
    x, y = data(0, dtype=torch.float32)
    norm = float(torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(network, x, y), [*network.parameters()])]).norm())
    scaler.scale(loss_of(network, x, y)).backward()
    before.update(scaler=scaler)
    scaler.step(method)
    after.update(scaler=scaler)
    assert before.read().network.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert after.read().network.gradient_norm == pytest.approx(norm, rel=1e-5)


def test_a_scaler_that_is_switched_off_changes_nothing():
    plain, off = scaled_loop(None), scaled_loop("scaled", enabled=False)
    for a, b in zip(off, plain, strict=True):
        near(a, b, rel=1e-6, abs=1e-9)


def test_steps_that_a_scaler_skips_for_an_overflow_are_no_trouble():
    network = net(torch.float32)
    monitor, clean = (Monitor(network, every=1, **FULL) for _ in range(2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    for step in range(8):
        optimizer.zero_grad()
        scaler.scale(loss_of(network, *data(step, dtype=torch.float32))).backward()
        overflow = step in (0, 3)
        if overflow:
            network[2].weight.grad[0, 0] = math.inf
        monitor.update(scaler=scaler)
        if not overflow:
            clean.update(scaler=scaler)
        before = [p.detach().clone() for p in network.parameters()]
        scaler.step(optimizer)
        assert overflow == all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
        scaler.update()
    seen, expected = monitor.read(), clean.read()
    for layer in (*seen.layers.values(), seen.network):
        assert layer.non_finite == 0
        assert math.isfinite(layer.gradient_norm)
    assert seen.layers["2"].drift == pytest.approx(expected.layers["2"].drift, abs=5e-3)


# --- gradients -----------------------------------------------------------------------------------------------------------


def test_two_micro_batches_are_one_batch():
    whole, halves = net(), net()
    monitors = [Monitor(network, randn(9, 3), every=1, **FULL) for network in (whole, halves)]
    for step in range(5):
        x, y = data(step)
        for network, pieces in ((whole, [(x, y)]), (halves, list(zip(x.split(12), y.split(12), strict=True)))):
            network.zero_grad()
            for piece in pieces:
                (loss_of(network, *piece) / len(pieces)).backward()
        for monitor in monitors:
            monitor.update()
        with torch.no_grad():
            for network in (whole, halves):
                for p, g in zip(network.parameters(), whole.parameters(), strict=True):
                    p -= 0.1 * g.grad
    near(monitors[1].read().as_dict(), monitors[0].read().as_dict(), rel=1e-3, abs=1e-3)
    a, b = (m.read().network.gradient_norm for m in monitors)
    assert a == pytest.approx(b, rel=1e-12)
    assert monitors[0].updates == 5


def test_before_clipping_it_reads_the_gradient_that_was_computed():
    network = net()
    monitor = Monitor(network, every=1)
    loss_of(network, *data(0)).backward()
    monitor.update()
    computed = float(nn.utils.clip_grad_norm_(network.parameters(), 1e-3))
    assert monitor.read().network.gradient_norm == pytest.approx(computed, rel=1e-12)
    monitor.update()
    assert monitor.read().network.gradient_norm == pytest.approx(1e-3, rel=1e-3)


class Tied(nn.Module):
    """A layer that decodes by the weight that encodes, a frozen layer, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=F64))
        self.encode, self.decode = nn.Linear(4, 4, dtype=F64), nn.Linear(4, 4, dtype=F64)
        self.decode.weight = self.encode.weight
        self.frozen, self.spare = nn.Linear(4, 4, dtype=F64).requires_grad_(False), nn.Linear(4, 4, dtype=F64)

    def forward(self, x):
        return self.scale * self.decode(torch.tanh(self.frozen(self.encode(x))))


def test_shared_weights_count_once_frozen_ones_not_and_those_without_a_gradient_as_zero():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = Tied()
    monitor = Monitor(network, randn(8, 4), every=1, readings="full")
    for step in range(3):
        network.zero_grad()
        network(randn(8, 4, seed=step)).square().mean().backward()
        monitor.update()
    reading = monitor.read()
    assert "frozen" not in reading.layers
    assert reading.layers["spare"].gradient_norm == 0
    assert network.spare.weight.grad is None
    total = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm()
    assert reading.network.gradient_norm == pytest.approx(float(total), rel=1e-12)
    assert len(monitor.parameters) == len({id(p) for p in monitor.parameters}) == 6


class Inner(nn.Module):
    """A module called as the network's own parameters are."""

    def __init__(self):
        super().__init__()
        self.scale, self.network = nn.Parameter(torch.ones(3, dtype=F64)), nn.Linear(3, 3, dtype=F64)

    def forward(self, x):
        return self.network(self.scale * x)


def test_no_parameter_is_lost_when_a_submodule_is_called_network():
    network = Inner()
    network(randn(5, 3)).square().sum().backward()
    monitor = Monitor(network, every=1)
    monitor.update()
    total = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    assert monitor.read().network.gradient_norm == pytest.approx(float(total), rel=1e-12)


def test_torchs_lbfgs_with_its_closures_is_one_update_a_step_and_reads_the_gradient_it_leaves():
    network = net()
    monitor, calls = Monitor(network, every=1), []
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=6, line_search_fn="strong_wolfe")
    x, y = data(0)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(network, x, y)
        loss.backward()
        calls.append(float(loss.detach()))
        return loss

    for _ in range(4):
        optimizer.step(closure)
        left = torch.cat([p.grad.flatten() for p in network.parameters()])
        monitor.update()
        reading = monitor.read()
        assert reading.network.gradient_norm == pytest.approx(float(left.norm()), rel=1e-12)
    assert len(calls) > 8
    assert reading.updates == 4


# --- compiled and parallel models ----------------------------------------------------------------------------------------


def test_a_compiled_model_has_the_plain_names_and_the_same_readings():
    plain, inner = net(), net()
    compiled = torch.compile(inner, backend="eager")
    monitors = [Monitor(plain, randn(9, 3), every=1, **FULL), Monitor(compiled, randn(9, 3), every=1, **FULL)]
    for step in range(3):
        for network in (plain, compiled):
            network.zero_grad()
            loss_of(network, *data(step)).backward()
        for monitor in monitors:
            monitor.update()
    a, b = (monitor.read().as_dict() for monitor in monitors)
    assert list(b["layers"]) == ["0", "2", "4"]
    near(b, a, rel=1e-6, abs=1e-6)


def test_a_model_with_a_compiled_part_has_plain_names_too():
    network = nn.Sequential(net(), nn.Linear(2, 1, dtype=F64))
    network[0] = torch.compile(network[0], backend="eager")
    assert list(Monitor(network).read().layers) == ["0.0", "0.2", "0.4", "1"]


def beside(rank, folder):
    """One of two processes: train in DistributedDataParallel on half of each batch; leave readings and local sketches."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network, alone = nn.parallel.DistributedDataParallel(net()), net()
    monitor, local = (Monitor(model, randn(9, 3), every=1, **FULL) for model in (network, alone))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    sketches = []
    for step in range(4):
        half = [t.split(12)[rank] for t in data(step)]
        optimizer.zero_grad()
        loss_of(network, *half).backward()
        monitor.update()
        alone.load_state_dict(network.module.state_dict())
        alone.zero_grad()
        loss_of(alone, *half).backward()
        mine = local.sketch() / 2
        distributed.all_reduce(mine)
        sketches.append((mine, monitor.sketch()))
        optimizer.step()
    torch.save((monitor.read().as_dict(), sketches), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="there is no gloo")
def test_each_of_two_processes_reads_what_one_with_the_whole_batch_reads_and_sketches_add_up(tmp_path):
    torch.multiprocessing.spawn(beside, (str(tmp_path),), nprocs=2)
    network = net()
    monitor = Monitor(network, randn(9, 3), every=1, **FULL)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(network, *data(step)).backward()
        monitor.update()
        whole = monitor.sketch()
        optimizer.step()
    for rank in (0, 1):
        reading, sketches = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        near(reading, monitor.read().as_dict(), rel=1e-3, abs=1e-3)
        assert reading["network"]["gradient_norm"] == pytest.approx(monitor.read().network.gradient_norm, rel=1e-9)
        for summed, averaged in sketches:
            torch.testing.assert_close(summed, averaged, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sketches[-1][0], whole, rtol=1e-9, atol=1e-12)


def test_the_sketch_is_linear_in_the_gradient_and_of_fixed_size():
    network = net()
    monitor, parts = Monitor(network, size=64), []
    for step in (0, 1):
        network.zero_grad()
        loss_of(network, *data(step)).backward()
        parts.append((monitor.sketch(), [p.grad.clone() for p in network.parameters()]))
    (a, left), (b, right) = parts
    for p, g, h in zip(network.parameters(), left, right, strict=True):
        p.grad = 3 * g - 2 * h
    assert a.shape == (3, 64)
    torch.testing.assert_close(monitor.sketch(), 3 * a - 2 * b, rtol=1e-12, atol=1e-12)


# --- state ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readings", ["default", "full"])
def test_a_loop_resumed_from_files_goes_on_bit_for_bit(readings):
    """What is saved loads with `weights_only=True`, and all that is read afterwards is the same."""

    def steps(network, optimizer, monitor, which):
        for step in which:
            losses = {"fit": loss_of(network, *data(step)), "size": 0.1 * network(data(step)[0]).square().mean()}
            if step % 3 == 0:
                monitor.split(losses)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            monitor.update()
            optimizer.step()

    def fresh(seed):
        network = net(seed=seed)
        options = {"readings": readings, "every": 2, "lags": (1, 4), "entries": 5}
        return network, torch.optim.Adam(network.parameters(), lr=1e-2), options

    network, optimizer, options = fresh(0)
    whole = Monitor(network, randn(9, 3), **options)
    steps(network, optimizer, whole, range(11))
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "adam": optimizer.state_dict(), "monitor": whole.state_dict()}, file)
    steps(network, optimizer, whole, range(11, 24))

    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    network, optimizer, options = fresh(1)
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["adam"])
    again = Monitor(network, randn(9, 3), **options)
    again.load_state_dict(saved["monitor"])
    steps(network, optimizer, again, range(11, 24))
    assert again.read() == whole.read()
    assert again.similarity()[0] == whole.similarity()[0]
    assert torch.equal(again.similarity()[1], whole.similarity()[1])
    assert again.bytes == whole.bytes


# --- writers -------------------------------------------------------------------------------------------------------------


class Writer:
    """As strict as a SummaryWriter: a text, a number, a step."""

    def __init__(self):
        self.rows = []

    def add_scalar(self, tag, value, step):
        assert type(tag) is str
        assert type(value) is float
        assert type(step) is int
        self.rows.append((tag, value, step))


def test_scalars_are_numbers_that_a_writer_takes():
    network = net()
    monitor, writer = Monitor(network, randn(9, 3), every=1, **FULL), Writer()
    for step in range(6):
        network.zero_grad()
        loss_of(network, *data(step)).backward()
        monitor.update()
        for tag, value in monitor.read().scalars().items():
            writer.add_scalar(tag, value, step)
    tags = {tag for tag, _, _ in writer.rows}
    expected = {f"{name}/{word}" for name in ("0", "2", "4", "network") for word in ("gradient_norm", "update_ratio", "drift")}
    assert tags >= {*expected, "0/dead", "2/stable_rank_low", "2/gradient_rank_high", "network/lag_1", "network/lag_4"}
    final = {tag: value for tag, value, step in writer.rows if step == 5}
    assert final["2/gradient_norm"] == monitor.read().layers["2"].gradient_norm
    assert final["network/lag_4"] == monitor.read().network.lags[4].value
    json.dumps(final, allow_nan=False)


def test_scalars_tell_a_network_from_a_layer_that_is_the_network_itself():
    network = Tied()
    network(randn(8, 4)).square().mean().backward()
    monitor = Monitor(network, every=1)
    monitor.update()
    reading, scalars = monitor.read(), monitor.read().scalars()
    norms = [layer.gradient_norm for layer in (*reading.layers.values(), reading.network)]
    assert sorted(v for tag, v in scalars.items() if tag.endswith("/gradient_norm")) == pytest.approx(sorted(norms))


# --- messages ------------------------------------------------------------------------------------------------------------

WITHOUT = "Monitor: the network has no parameters that train; there is nothing to watch"
LOSS = "Monitor: an adaptive rank follows the loss; give it, as in monitor.update\\(loss\\)"
NEEDS = "Monitor: adaptive=True chooses the rank of the activation sketches; it needs probe points"
WORD = "Monitor: readings must be default, full, none or a list of drift, memory, units, .*; got 'all'"
NAME = "there is no reading 'drif'; the readings are drift, memory, units, stable_rank, spectrum, covariance, paper, terms"
REFUSED = {
    "nothing trains": (WITHOUT, lambda: Monitor(nn.Tanh())),
    "all is frozen": (WITHOUT, lambda: Monitor(nn.Linear(2, 1).requires_grad_(False))),
    "word": (WORD, lambda: Monitor(net(), readings="all")),
    "name": (NAME, lambda: Monitor(net(), readings=["drif"])),
    "adaptive without a probe": (NEEDS, lambda: Monitor(net(), adaptive=True, readings="full")),
    "adaptive without a loss": (LOSS, lambda: Monitor(net(), randn(4, 3), adaptive=True, readings="full").update()),
    "small sketch": ("The size of a sketch must be at least 8 and no multiple of 16381; got 7", lambda: Monitor(net(), size=7)),
    "bad sketch": ("must be at least 8 and no multiple of 16381; got 32762", partial(SignFold, [5], 2 * 16381)),
    "long vector": ("A sketch of 8 numbers serves up to 131,048 weights; got 131,049", partial(SignFold, [131_049], 8)),
}


@pytest.mark.parametrize(("message", "make"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_in_words(message, make):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("options", [{"every": 0}, {"lags": (0,)}, {"lags": (-3,)}, {"entries": -1}, {"decay": 1.5}], ids=str)
def test_numbers_that_make_no_sense_are_refused_in_words(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Monitor(net(), **options)


def test_an_adaptive_rank_reads_what_it_chooses_the_rank_for():
    monitor = Monitor(net(), randn(4, 3), every=1, adaptive=True)
    monitor.update(1.0)
    assert all(layer.paper is not None for layer in monitor.read().layers.values())


def test_any_probe_that_the_network_takes_is_taken_and_gradients_need_none():
    for probe in (None, randn(1, 3), randn(200, 3)):
        network = net()
        monitor = Monitor(network, probe, every=1, readings="full")
        loss_of(network, *data(0)).backward()
        monitor.update()
        assert monitor.read().network.gradient_norm > 0
        assert (monitor.read().layers["0"].dead is None) == (probe is None)


def test_a_look_asked_for_at_a_regular_update_reads_what_a_regular_look_reads():
    network = net()
    asked, regular = (Monitor(network, every=2) for _ in range(2))
    for step in range(5):
        network.zero_grad()
        loss_of(network, *data(step)).backward()
        with torch.no_grad():
            for p in network.parameters():
                p -= 0.1 * p.grad
        regular.update()
        asked.update(now=step == 4)
    assert asked.read() == regular.read()
    assert asked.read().network.update_ratio is not None
    assert set(asked.read().network.lags) == {1}


def watched(folder, **monitor):
    from pinnsketch.config import make_config
    from pinnsketch.library import find_problem, load_problem
    from pinnsketch.run import Run

    points = {"interior": 20, "boundary": 8, "test": 20}
    train = {"method": "adam", "steps": 6, "log": 2}
    source = find_problem("poisson", folder)
    config = make_config({"problem": str(source), "points": points, "train": train, "monitor": monitor})
    return Run(load_problem(source), config, folder / "run")


def test_a_run_writes_its_readings_for_tensorboard_if_asked(tmp_path, monkeypatch):
    written = {}

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "run" / "tensorboard")

        def add_scalar(self, name, value, step):
            written[name, step] = value

        def close(self):
            written["closed"] = True

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    run = watched(tmp_path, tensorboard=True)
    for _ in run:
        pass
    run.finish()
    assert written.pop("closed")
    assert {step for _, step in written} == {1, 2, 4, 6}
    assert written["network/gradient_norm", 6] == pytest.approx(run.monitor.read().network.gradient_norm)


def test_tensorboard_that_is_not_installed_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ValueError, match=r"^monitor.tensorboard needs a package: pip install tensorboard. Or set it to false.$"
    ):
        watched(tmp_path, tensorboard=True)
    assert not (tmp_path / "run").exists()
