"""Spectral layers equal the dense ones they come from, have the gradients of their source, and train on bit for bit."""

import io
import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import nn

from pinnsketch import Box, Monitor, Problem, Term, laplacian
from pinnsketch.collocation import Collocation, Plan
from pinnsketch.gradient import Gradient
from pinnsketch.layers.hu2021_lora import LoRALinear, lora_layers
from pinnsketch.layers.lialin2023_relora import ReLoRASchedule
from pinnsketch.layers.zhao2024_spectral import SpectralLinear, SpectralSchedule, adam_groups, dense_layers, spectral_layers
from pinnsketch.network import MLP
from pinnsketch.train import Stage, train
from pinnsketch.trial import Trial

ROOT = Path(__file__).parents[1]
SQUARE = Box(x=(0, 1), y=(0, 1))
LAW = Term(SQUARE.interior, lambda u, x: laplacian(u) + u * u.x - x)
RANK = 2

ways = pytest.mark.parametrize("factored", [False, True], ids=["formed", "factored"])
shapes = pytest.mark.parametrize("shape", [(6, 6), (7, 4), (4, 9)], ids=str)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(shape=(6, 6), rank=RANK, factored=False, skew=0.0):
    """A layer; with a skew, its active vectors have turned, as by training, and are not orthogonal to the others."""
    found = SpectralLinear(drawn(*shape), drawn(shape[0], seed=1), rank, factored)
    with torch.no_grad():
        found.u_active.add_(drawn(*found.u_active.shape, seed=2), alpha=skew)
        found.v_active.add_(drawn(*found.v_active.shape, seed=3), alpha=skew)
    found.normalise()
    return found


def network(width=8, depth=3):
    return MLP(torch.tensor(SQUARE.bounds), width=width, depth=depth, generator=torch.Generator().manual_seed(0))


def pinn(model, n=20):
    return Trial(model), Collocation(Problem(SQUARE, "u", {"law": LAW}), interior=n, sampler="random")


def whole(layer):
    """W as the sum of its directions."""
    return sum(s * torch.outer(u, v) for s, u, v in zip(layer.s, layer.u.T, layer.v.T, strict=True)).detach()


def adam(model, lr=1e-2):
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)


def fit(model, optimizer, schedule, steps, first=0):
    """Regression on points of the step."""
    for step in range(first, first + steps):
        x = drawn(16, 2, seed=step)
        optimizer.zero_grad()
        (model(x) - x.prod(dim=1, keepdim=True).sin()).square().mean().backward()
        optimizer.step()
        schedule.step()


@ways
@shapes
def test_a_spectral_layer_equals_the_dense_one_it_comes_from(shape, factored):
    x, found = drawn(5, shape[1], seed=4), layer(shape, factored=factored)
    torch.testing.assert_close(found(x), x @ drawn(*shape).T + drawn(shape[0], seed=1), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.weight, drawn(*shape), rtol=0, atol=1e-13)


@ways
@shapes
def test_the_enhanced_gradients_are_those_of_the_source_even_where_a_singular_value_is_zero(shape, factored):
    x, found = drawn(5, shape[1], seed=4), layer(shape, factored=factored, skew=0.3)
    with torch.no_grad():
        found.s[1] = 0
    found(x).tanh().square().sum().backward()
    w = whole(found).requires_grad_()
    (x @ w.T + found.bias.detach()).tanh().square().sum().backward()
    for i in range(len(found.s)):
        torch.testing.assert_close(found.s.grad[i], found.u[:, i] @ w.grad @ found.v[:, i], rtol=1e-12, atol=1e-12)
    for i in range(RANK):
        torch.testing.assert_close(found.u_active.grad[:, i], w.grad @ found.v[:, i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.v_active.grad[:, i], w.grad.T @ found.u[:, i], rtol=1e-12, atol=1e-12)


@ways
def test_in_a_pinn_one_pass_and_nested_differentiation_give_the_gradients_of_the_source(factored):
    model = spectral_layers(network(), RANK, factored=factored)
    dense = network()
    for i in (1, 2):
        dense.layers[i].weight.data.copy_(whole(model.layers[i]))
    trial, task = pinn(model)
    batch = task.batch()
    fast = Gradient(trial, task)(batch).gradient
    assert task.plan(trial, batch[0]).streams is not None
    assert task.notes == []
    task.plans.put(trial, batch[0], Plan())
    slow = Gradient(trial, task)(batch).gradient
    scale = max(float(g.abs().max()) for g in slow)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * scale)
    named = dict(zip((name for name, _ in trial.named_parameters()), fast, strict=True))
    reference = Gradient(Trial(dense), pinn(dense)[1])(batch).gradient
    weights = dict(zip((name for name, _ in Trial(dense).named_parameters()), reference, strict=True))
    for i in (1, 2):
        g, at, where = weights[f"network.layers.{i}.weight"], model.layers[i], f"network.layers.{i}"
        pairs = {"s": (at.u.T @ g @ at.v).diag(), "u_active": g @ at.v[:, :RANK], "v_active": g.T @ at.u[:, :RANK]}
        for name, expected in pairs.items():
            torch.testing.assert_close(named[f"{where}.{name}"], expected, rtol=0, atol=1e-12 * scale)


@shapes
def test_a_new_decomposition_is_orthogonal_and_leaves_the_weight(shape):
    found = layer(shape, skew=0.3)
    before, k = found.weight.detach(), min(shape)
    found.decompose()
    torch.testing.assert_close(found.weight, before, rtol=0, atol=1e-13)
    for vectors in (found.u, found.v):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.s.sort(descending=True).values, torch.linalg.svdvals(before), rtol=0, atol=1e-13)


@shapes
def test_a_new_decomposition_keeps_places_and_signs(shape):
    found = layer(shape)
    with torch.no_grad():
        found.u_active.neg_()
        found.v_active.neg_()
    found.reorder(torch.randperm(min(shape), generator=torch.Generator().manual_seed(5)))
    u, s, v = found.u.detach(), found.s.detach().clone(), found.v.detach()
    found.decompose()
    for a, b in ((found.u, u), (found.s, s), (found.v, v)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@shapes
def test_another_order_leaves_the_weight(shape):
    found = layer(shape, skew=0.3)
    before, k = found.weight.detach(), min(shape)
    u, s = found.u.detach(), found.s.detach().clone()
    order = torch.randperm(k, generator=torch.Generator().manual_seed(5))
    found.reorder(order)
    torch.testing.assert_close(found.weight, before, rtol=0, atol=1e-13)
    assert torch.equal(found.u, u[:, order])
    assert torch.equal(found.s, s[order])


@shapes
def test_the_number_of_trained_parameters_is_that_of_the_source(shape):
    (m, n), k = shape, min(shape)
    for rank in (0, 1, RANK):
        count = sum(p.numel() for p in layer(shape, rank).parameters() if p.requires_grad)
        assert count == rank * (m + n) + k + m


def test_plain_gradient_descent_is_the_update_of_the_source():
    found, lr, interval = layer((5, 6)), 0.002, 3
    model = nn.Sequential(found)
    x, y = drawn(9, 6, seed=4), drawn(9, 5, seed=5)
    u, s, v, b = (t.detach().clone() for t in (found.u, found.s, found.v, found.bias))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = SpectralSchedule(model, optimizer, interval=interval, period=5, uniform=0.0, warm_up=0, seed=7)
    twin = torch.Generator().manual_seed(7)
    active = list(range(RANK))
    for step in range(1, 13):
        optimizer.zero_grad()
        (model(x) - y).square().sum().backward()
        optimizer.step()
        schedule.step()

        delta = 2 * (x @ (u @ s.diag() @ v.T).T + b - y)
        g = delta.T @ x
        du, dv, ds = g @ v, g.T @ u, (u.T @ g @ v).diag()
        s, b = (s - lr * ds).clamp(min=0), b - lr * delta.sum(dim=0)
        for i in active:
            u[:, i] -= lr * du[:, i]
            v[:, i] -= lr * dv[:, i]
            u[:, i] /= u[:, i].norm()
            v[:, i] /= v[:, i].norm()
        if step % 5 == 0:
            found_u, s, vt = torch.linalg.svd(u @ s.diag() @ v.T, full_matrices=False)
            u, v = found_u, vt.T
            assert float(s[-1]) > 1e-3  # else the sign of u v^T were anyone's
            place = (found.u.T @ u).abs().argmax(dim=1)  # draws go by place: take those of the layer
            u, s, v = u[:, place], s[place], v[:, place]
        if step % interval == 0:
            order = torch.multinomial(s / s.sum(), len(s), generator=twin)
            u, s, v = u[:, order], s[order], v[:, order]
        torch.testing.assert_close(found.weight, u @ s.diag() @ v.T, rtol=0, atol=1e-10)


def test_what_adam_keeps_moves_with_its_direction_or_starts_anew():
    model = spectral_layers(network(), RANK)
    optimizer = adam(model)
    schedule = SpectralSchedule(model, optimizer, interval=100, period=100, warm_up=0)
    fit(model, optimizer, schedule, 5)
    at = model.layers[1]
    for kept in ("exp_avg", "exp_avg_sq"):
        optimizer.state[at.s][kept].copy_(torch.arange(8))
    before_u, before_v = at.u.detach(), at.v.detach()
    at.decompose()
    schedule._swap(at)
    schedule._restart.reset()
    now = (before_u.T @ at.u.detach()) * (before_v.T @ at.v.detach())
    came_from = now.argmax(dim=0)
    assert sorted(came_from.tolist()) == list(range(8)) != came_from.tolist()
    assert bool((now.amax(dim=0) > 0.5).all())
    for kept in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[at.s][kept], came_from.double())
        assert not optimizer.state[at.u_active][kept].any()
    assert float(optimizer.state[at.u_active]["step"]) == 0
    assert float(optimizer.state[at.s]["step"]) == 5


def test_after_a_draw_the_vectors_train_as_by_a_new_adam_whose_first_steps_are_shorter():
    model, warm_up = spectral_layers(network(), RANK), 3
    optimizer = adam(model)
    schedule = SpectralSchedule(model, optimizer, interval=4, period=4, warm_up=warm_up)
    fit(model, optimizer, schedule, 4)
    at, fresh = model.layers[1], None
    for age in range(1, 5):
        before = at.u_active.detach().clone()
        twin = nn.Parameter(before.clone())
        new = torch.optim.Adam([twin], lr=1e-2)
        if fresh:
            new.load_state_dict(fresh)
        x = drawn(16, 2, seed=age)
        optimizer.zero_grad()
        (model(x) - x.prod(dim=1, keepdim=True).sin()).square().mean().backward()
        twin.grad = at.u_active.grad.clone()
        new.step()
        fresh = new.state_dict()
        optimizer.step()
        if age == 4:
            break  # the next call draws
        schedule.step()
        expected = torch.lerp(before, twin.detach(), age / (warm_up + 1))
        torch.testing.assert_close(at.u_active, expected / expected.norm(dim=0), rtol=0, atol=1e-13)


@shapes
def test_values_and_vectors_each_move_a_weight_as_far_as_adam_moves_a_dense_one(shape):
    (m, n), lr, found = shape, 1e-3, layer(shape)
    model = nn.Sequential(found)
    optimizer = torch.optim.Adam(adam_groups(model, lr), eps=0)
    before = {name: p.detach().clone() for name, p in found.named_parameters()}
    model(drawn(9, n, seed=4)).tanh().sum().backward()
    optimizer.step()
    moved = {name: p.detach() - before[name] for name, p in found.named_parameters()}
    expected = torch.tensor(lr * (m * n) ** 0.5, dtype=torch.float64)  # each entry of W by lr
    torch.testing.assert_close(moved["s"].norm(), expected)
    torch.testing.assert_close(torch.hypot(moved["u_active"].norm(), moved["v_active"].norm()), expected)
    torch.testing.assert_close(moved["bias"].abs(), torch.full((m,), lr, dtype=torch.float64))


@pytest.mark.parametrize("uniform", [0.0, 0.5])
def test_directions_are_drawn_by_their_law(uniform):
    s, draws = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64), 4000
    model = nn.Sequential(layer((4, 4)))
    schedule = SpectralSchedule(model, adam(model), uniform=uniform, seed=3)
    p = ((1 - uniform) * s / s.sum() + uniform / len(s)).tolist()
    counts = torch.zeros(4)
    for _ in range(draws):
        order = schedule.draw(s)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        counts[order[:RANK]] += 1
    for i in range(4):  # the first of two, or the second after another
        chance = sum(p[a] * p[b] / (1 - p[a]) for a, b in permutations(range(4), 2) if i in (a, b))
        assert abs(counts[i] / draws - chance) < 4 * (chance * (1 - chance) / draws) ** 0.5


def test_a_direction_whose_singular_value_is_zero_is_drawn_only_with_a_uniform_share():
    s = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    model = nn.Sequential(layer((4, 4)))
    alone, mixed = (SpectralSchedule(model, adam(model), uniform=share) for share in (0.0, 0.5))
    assert all(set(alone.draw(s)[:2].tolist()) == {0, 1} for _ in range(100))
    assert {int(mixed.draw(s)[0]) for _ in range(100)} == {0, 1, 2, 3}


def test_a_singular_value_at_zero_comes_back_where_that_lowers_the_loss():
    model = nn.Sequential(layer((4, 4)))
    at, target = model[0], drawn(4, 4)
    with torch.no_grad():
        at.s.zero_()
    optimizer = torch.optim.SGD([at.s, at.u_active, at.v_active], lr=0.05)
    schedule = SpectralSchedule(model, optimizer, interval=5, period=5, warm_up=0)
    start = float((at.weight.detach() - target).norm())
    for _ in range(300):
        optimizer.zero_grad()
        (at.weight - target).square().sum().backward()
        optimizer.step()
        schedule.step()
    assert float((at.weight.detach() - target).norm()) < 1e-3 * start


def test_singular_values_never_fall_below_zero_and_vectors_stay_normal():
    model = spectral_layers(network(), RANK)
    optimizer = adam(model, lr=0.5)
    schedule, reached = SpectralSchedule(model, optimizer, interval=3, period=7), False
    for step in range(30):
        fit(model, optimizer, schedule, 1, step)
        for at in (model.layers[1], model.layers[2]):
            assert float(at.s.detach().min()) >= 0
            reached |= bool((at.s == 0).any())
            for vectors in (at.u, at.v):
                assert torch.allclose(vectors.norm(dim=0), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-12)
    assert reached


@pytest.mark.parametrize("stop", [1, 4, 7, 10, 13])
@pytest.mark.parametrize("kind", ["spectral", "relora"])
def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_ends(kind, stop):
    def made():
        if kind == "spectral":
            model = spectral_layers(network(), RANK)
            optimizer = adam(model)
            return model, optimizer, SpectralSchedule(model, optimizer, interval=4, period=5, warm_up=2)
        model = lora_layers(network(), RANK)
        optimizer = adam(model)
        return model, optimizer, ReLoRASchedule(model, optimizer, interval=4, warm_up=2)

    unbroken = made()
    fit(*unbroken, 16)
    first = made()
    fit(*first, stop)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = made()
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    fit(*second, 16 - stop, stop)
    expected = unbroken[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second[0].state_dict().items())


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    model = spectral_layers(network(), RANK)
    optimizer = adam(model)
    fit(model, optimizer, SpectralSchedule(model, optimizer, interval=2, period=2), 4)
    lora = lora_layers(network(), RANK)
    optimizer = adam(lora)
    fit(lora, optimizer, ReLoRASchedule(lora, optimizer, interval=2), 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("convert", [spectral_layers, lora_layers])
def test_converters_change_a_copy_of_the_layers_that_match(convert):
    kind = SpectralLinear if convert is spectral_layers else LoRALinear
    given, x = network(), drawn(5, 2)
    state = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    for pattern, expected in (("*", [1, 2]), ("layers.2", [2]), ("layers.[0-1]", [1])):
        model = convert(given, RANK, pattern)
        assert [i for i, inner in enumerate(model.layers) if isinstance(inner, kind)] == expected
        torch.testing.assert_close(model(x), given(x), rtol=0, atol=1e-13)
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.state_dict().items())
    assert all(type(inner) is nn.Linear for inner in given.layers)


@pytest.mark.parametrize("convert", [spectral_layers, lora_layers])
def test_converters_say_which_layers_there_are(convert):
    with pytest.raises(ValueError, match=r"matches 'head' .* more than 2 rows and columns; .* 'layers.1' \(8, 8\)"):
        convert(network(), RANK, "head")
    with pytest.raises(ValueError, match=r"more than 8 rows and columns"):
        convert(network(), 8)
    with pytest.raises(ValueError, match="rank: expected 0 or more; got -1"):
        convert(network(), -1)


def test_a_layer_that_is_used_twice_is_converted_once_and_a_lone_one_too():
    inner = nn.Linear(6, 6, dtype=torch.float64)
    model = spectral_layers(nn.Sequential(inner, nn.Tanh(), inner), RANK)
    assert isinstance(model[0], SpectralLinear)
    assert model[0] is model[2]
    assert isinstance(spectral_layers(inner, RANK), SpectralLinear)


def test_a_network_that_has_trained_is_made_dense_again():
    model, x = spectral_layers(network(), RANK), drawn(5, 2)
    optimizer = adam(model)
    fit(model, optimizer, SpectralSchedule(model, optimizer, interval=2, period=3), 5)
    dense = dense_layers(model)
    assert torch.equal(dense(x), model(x))
    assert all(type(inner) is nn.Linear for inner in dense.layers)
    assert isinstance(model.layers[1], SpectralLinear)
    assert all(p.requires_grad for p in dense.parameters())
    assert dense_layers(spectral_layers(nn.Linear(4, 4, bias=False), RANK)).bias is None


def test_with_rank_zero_singular_values_and_biases_train_in_every_layer():
    model = spectral_layers(network(), 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"layers.{i}.{what}" for i in range(4) for what in ("s", "bias")}
    trial, task = pinn(model)
    before = model.layers[1].u.clone()
    steps = list(train(trial, task, [Stage("adam", 20), Stage("lbfgs", 5)]))
    assert steps[-1].loss < steps[0].loss
    assert torch.equal(model.layers[1].u, before)


def test_a_schedule_needs_its_layers():
    with pytest.raises(ValueError, match=r"no SpectralLinear: convert it by spectral_layers"):
        SpectralSchedule(network(), adam(network()))
    with pytest.raises(ValueError, match=r"no LoRALinear: convert it by lora_layers"):
        ReLoRASchedule(network(), adam(network()))


def test_monitoring_spectral_layers_is_bitwise_invisible_and_sees_them():
    ended = []
    for watched in (False, True):
        model = spectral_layers(network(), RANK)
        optimizer = adam(model)
        schedule = SpectralSchedule(model, optimizer, interval=3, period=3)
        monitor = Monitor(model, every=1) if watched else None
        for step in range(8):
            x = drawn(16, 2, seed=step)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if monitor:
                monitor.update()
            optimizer.step()
            schedule.step()
        ended.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in ended), strict=True))
    grads = [p.grad for p in model.layers[1].parameters()]
    expected = sum(float(g.square().sum()) for g in grads) ** 0.5
    assert monitor.read().layers["layers.1"].gradient_norm == pytest.approx(expected, rel=1e-12)


def test_the_gradients_of_a_low_rank_change_are_those_of_the_source():
    dense, x = nn.Linear(6, 5, dtype=torch.float64), drawn(9, 6)
    found = lora_layers(nn.Sequential(dense), RANK, scale=3.0)[0]
    with torch.no_grad():
        found.b.copy_(drawn(5, RANK))
        dense.weight.add_(3.0 * found.b @ found.a)
    found(x).tanh().sum().backward()
    dense(x).tanh().sum().backward()
    torch.testing.assert_close(found.b.grad, 3.0 * dense.weight.grad @ found.a.T)
    torch.testing.assert_close(found.a.grad, 3.0 * found.b.T @ dense.weight.grad)
    assert sum(p.numel() for p in found.parameters()) == RANK * (5 + 6) + 5


def test_a_merge_leaves_the_weight_and_starts_anew():
    model = lora_layers(network(), RANK)
    optimizer = adam(model)
    schedule, at = ReLoRASchedule(model, optimizer, interval=4), model.layers[1]
    fit(model, optimizer, schedule, 3)
    base = at.base.clone()
    x = drawn(16, 2, seed=3)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    assert torch.equal(at.base, base)
    before, old = schedule._restart._before[0], at.a.detach().clone()
    schedule.step()
    assert not at.b.any()
    assert not torch.equal(at.a, old)
    assert not torch.equal(at.a, before)
    assert torch.equal(at.weight, at.base)
    assert not torch.equal(at.base, base)
    assert all(not value.any() for value in optimizer.state[at.a].values())


def test_the_tables_of_the_spectral_page_are_the_committed_results():
    page = (ROOT / "docs" / "spectral.md").read_text()
    committed = json.loads((ROOT / "benchmarks" / "results" / "spectral.json").read_text())
    found = {row["name"]: row["value"] for row in committed["rows"]}

    def table(header):
        lines = page[page.index(header) :].split("\n\n")[0].splitlines()[2:]
        return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]

    equal, transfer = table("| problem | way"), table("| to | what trains")
    assert len(equal) == 12
    for problem, way, count, error, ratio, step in equal:
        name = f"{problem}, {way}"
        assert count == f"{found[f'{name}: numbers that train']:,}"
        assert error == f"{found[f'{name}: error']:.2e}"
        assert ratio == (f"{found[f'{name}: error / dense']:.2f}" if way != "dense" else "1")
        assert step == (f"{found[f'{name}: a step / dense']:.2f}" if way != "dense" else "1")
    assert len(transfer) == 8
    for problem, what, count, *errors in transfer:
        name = f"{problem}, {what}"
        assert count == f"{found[f'{name}: numbers that train']:,}"
        assert errors == [f"{found[f'{name}: error after {step} steps']:.2e}" for step in (0, 50, 150)]
    flat = " ".join(page.split())
    sst, short = (found[f"Burgers, SST, {what}: error / dense"] for what in ("one step size for all", "every 20 steps"))
    assert f"is {sst:.2f} times that of dense layers instead of {found['Burgers, SST: error / dense']:.2f}" in flat
    assert f"it is {short:.2f}" in flat
    spreads = [max(errors) / min(errors) for errors in committed["errors"]["Burgers"].values()]
    assert f"is {min(spreads):.1f} to {max(spreads):.1f} times the smallest" in flat
    zero = [found[f"{problem}, SST: singular values at zero"] for problem in ("Poisson", "Burgers", "digits")]
    assert "at the end: {} of 450, {} of 576, {} of 960".format(*zero) in flat
    assert f"{found['whole benchmark, one thread']:.0f} s for everything" in flat


def test_goals_that_are_met():
    rows = json.loads((ROOT / "benchmarks" / "results" / "spectral.json").read_text())["rows"]
    goals = [row for row in rows if row["goal"]]
    assert len(goals) == 2
    assert all(row["met"] and row["value"] <= 1.1 for row in goals)
