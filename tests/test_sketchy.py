"""Sketchy and its kin: the dense formulas at full rank, the theorem of Frequent Directions below, and ordinary optimizers."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn

from pinnsketch import Sketchy, SketchySOAP
from pinnsketch.config import ConfigError, make_config
from pinnsketch.methods.gupta2018_shampoo import Shampoo
from pinnsketch.methods.jordan2024_muon import Muon, orthogonal
from pinnsketch.methods.vyas2024_soap import SOAP
from pinnsketch.train import Stage

F64 = torch.float64
KINDS = {
    "sketchy": partial(Sketchy, rank=3),
    "sketchy rmsprop": partial(Sketchy, rank=3, graft="rmsprop", every=2),
    "sketchy auto": partial(Sketchy, rank="auto"),
    "sketchy_soap": partial(SketchySOAP, rank=3),
    "sketchy_soap auto": partial(SketchySOAP, rank="auto", every=1),
    "shampoo": Shampoo,
    "soap": partial(SOAP, every=1),
    "muon": Muon,
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
SHAPES = [(6, 9), (7, 1), (5,), (), (4, 3, 2), (1, 1)]


def gradients(shape, count, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, shape[0], dtype=F64).view(-1, *[1] * (len(shape) - 1)) if shape else 1.0
    return [(scale * torch.randn(shape, generator=generator, dtype=F64)).to(dtype) for _ in range(count)]


def path(kind, shape, grads, **options):
    p = nn.Parameter(torch.zeros(shape, dtype=grads[0].dtype))
    optimizer, places = kind([p], **options), []
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
        places.append(p.detach().clone())
    return places, optimizer, p


# --- equal to dense formulas ---------------------------------------------------------------------------------------------


def power(c, exponent, eps):
    values, vectors = torch.linalg.eigh(c)
    return vectors @ torch.diag((values.clamp(min=0) + eps * values[-1]) ** exponent) @ vectors.T


def shampoo_slowly(grads, lr, betas, eps, graft):
    """Matrices alone: everything written out."""
    left, right = (torch.zeros(n, n, dtype=F64) for n in grads[0].shape)
    x, m, v, weight = torch.zeros_like(grads[0]), torch.zeros_like(grads[0]), torch.zeros_like(grads[0]), 0.0
    for t, g in enumerate(grads, 1):
        left, right, weight = betas[1] * left + g @ g.T, betas[1] * right + g.T @ g, betas[1] * weight + 1
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        mean = m / (1 - betas[0] ** t)
        step = power(left / weight, -0.25, eps) @ mean @ power(right / weight, -0.25, eps)
        size = {
            "none": step,
            "sgd": mean,
            "adam": mean / ((v / (1 - betas[1] ** t)).sqrt() + 1e-8),
            "rmsprop": mean / (v.sqrt() + 1e-8),
        }[graft]
        x = x - lr * step * size.norm() / step.norm()
        yield x


@pytest.mark.parametrize("graft", ["none", "sgd", "adam", "rmsprop"])
@pytest.mark.parametrize(("kind", "options"), [(Shampoo, {}), (Sketchy, {"rank": 99})], ids=["shampoo", "sketchy"])
def test_shampoo_and_sketchy_at_full_rank_are_the_dense_formula(kind, options, graft):
    grads = gradients((6, 9), 30)
    given = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "graft": graft}
    found, _, _ = path(kind, (6, 9), grads, **given, **options)
    for a, b in zip(found, shampoo_slowly(grads, **given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [2, 1024])
@pytest.mark.parametrize("every", [1, 3])
def test_sketchy_at_full_rank_is_shampoo_for_any_order_and_block(shape, block, every):
    grads = gradients(shape, 12)
    given = {"lr": 0.1, "betas": (0.9, 0.95), "every": every, "block": block}
    for a, b in zip(path(Sketchy, shape, grads, rank=99, **given)[0], path(Shampoo, shape, grads, **given)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [3, 1024])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("shape", [(6, 6), *SHAPES[1:]], ids=str)
def test_sketchy_soap_at_full_rank_is_soap(shape, every, block):
    grads = gradients(shape, 12)  # each of full rank: where the first is not, eigenvectors of 0 are any
    given = {"lr": 0.1, "betas": (0.9, 0.95), "every": every, "block": block}
    found, expected = (path(*kind, shape, grads, **given)[0] for kind in [(partial(SketchySOAP, rank=99),), (SOAP,)])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_soap_is_adam_in_the_eigenbasis():
    grads, betas, lr = gradients((6, 9), 20), (0.8, 0.9), 0.1
    x, m, v = (torch.zeros(6, 9, dtype=F64) for _ in range(3))
    left, right = torch.zeros(6, 6, dtype=F64), torch.zeros(9, 9, dtype=F64)
    found, _, _ = path(SOAP, (6, 9), grads, lr=lr, betas=betas, every=1)
    for t, (g, place) in enumerate(zip(grads, found, strict=True), 1):
        left, right = betas[1] * left + g @ g.T, betas[1] * right + g.T @ g
        u, w = (torch.linalg.eigh(c)[1].flip(1) for c in (left, right))
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * (u.T @ g @ w) ** 2
        root = (v / (1 - betas[1] ** t)).sqrt()
        floor = 1e-8 + torch.finfo(F64).eps ** 0.5 * root.square().mean().sqrt()  # to which the basis is known
        z = (u.T @ m @ w / (1 - betas[0] ** t)) / (root + floor)
        x = x - lr * u @ z @ w.T
        if t == 1:  # g alone leaves rounding beside its singular values
            x = place
        torch.testing.assert_close(place, x, rtol=1e-6, atol=1e-6)


def test_muon_makes_singular_values_nearly_one_and_leaves_adam_to_vectors():
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    u, _, w = torch.linalg.svd(x, full_matrices=False)
    for turned, like in ((orthogonal(x, 5), x), (orthogonal(x.T, 5).T, x)):
        inner = u.T @ turned @ w.T
        assert turned.shape == like.shape
        assert (inner.diagonal() - 1).abs().max() < 0.35
        torch.testing.assert_close(inner, inner.diagonal().diag(), rtol=0, atol=1e-10)
    grads = gradients((5,), 10)
    expected, p = [], nn.Parameter(torch.zeros(5, dtype=F64))
    adam = torch.optim.Adam([p], lr=0.1)
    for g in grads:
        p.grad = g.clone()
        adam.step()
        expected.append(p.detach().clone())
    for a, b in zip(path(Muon, (5,), grads, lr=0.1)[0], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


# --- below full rank -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.7, 0.99, 1.0])
def test_the_sketch_bounds_the_covariance_and_its_tail_decays_as_a_covariance(beta):
    shape, grads = (12, 8), gradients((12, 8), 40)
    _, optimizer, p = path(Sketchy, shape, grads, rank=3, betas=(0.9, beta))
    ((left, right),) = optimizer.sketches(p)
    for sketch, unfolded in ((left, grads), (right, [g.T for g in grads])):
        c = torch.zeros(len(unfolded[0]), len(unfolded[0]), dtype=F64)
        for g in unfolded:
            c = beta * c + g @ g.T
        gap = c - sketch.b @ sketch.b.T
        values = torch.linalg.eigvalsh(gap)
        assert values[0] > -1e-10 * values[-1]
        assert values[-1] <= float(sketch.escaped) * (1 + 1e-10)
        true = torch.linalg.eigvalsh(c).flip(0)
        bound = min(float(true[j:].sum()) / (3 + 1 - j) for j in range(4))
        assert 0 < float(sketch.escaped) <= bound * (1 + 1e-10)


def test_a_step_below_full_rank_is_the_inverse_root_of_sketch_and_tail():
    grads, betas, eps = gradients((12, 8), 15), (0.0, 0.9), 1e-5
    places, optimizer, p = path(Sketchy, (12, 8), grads, rank=3, lr=1.0, betas=betas, eps=eps, graft="none")
    ((left, right),) = optimizer.sketches(p)

    def root(sketch):
        c = (sketch.b @ sketch.b.T + sketch.escaped * torch.eye(len(sketch.b), dtype=F64)) / sketch.weight
        return power(c, -0.25, eps)

    torch.testing.assert_close(places[-2] - places[-1], root(left) @ grads[-1] @ root(right), rtol=1e-9, atol=1e-9)


def test_from_the_first_step_on_what_is_outside_the_sketch_moves_too():
    """With every gradient after the first unseen, the complement gets the power of the tail, relative eps and all."""
    grads = [torch.outer(torch.eye(6, dtype=F64)[k], torch.ones(4, dtype=F64)) for k in (0, 1)]
    places, _, _ = path(Sketchy, (6, 4), grads, rank=2, betas=(0.0, 0.9), every=10, graft="sgd", lr=1.0)
    moved = places[0] - places[1]
    torch.testing.assert_close(moved, grads[1], rtol=1e-6, atol=1e-9)


def test_sketchy_keeps_k_times_m_plus_n_numbers():
    m, n, k = 40, 24, 5
    _, optimizer, p = path(Sketchy, (m, n), gradients((m, n), 3), rank=k, betas=(0.0, 0.9), graft="sgd")
    tensors = [
        value for axes in optimizer.state[p]["axes"] for axis in axes for value in axis.values() if torch.is_tensor(value)
    ]
    assert sum(t.numel() for t in tensors) == k * (m + n)
    assert not any(torch.is_tensor(value) for value in optimizer.state[p].values())


def test_a_blocked_vector_keeps_k_numbers_for_each_entry():
    _, optimizer, p = path(Sketchy, (50,), gradients((50,), 3), rank=4, block=20)
    assert [tuple(sketch.b.shape) for (sketch,) in optimizer.sketches(p)] == [(20, 4), (20, 4), (10, 4)]


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_sketched_frame_of_soap_is_tight(rank):
    """F^T F = I along each axis, so that without curvature a step is the gradient."""
    from pinnsketch.methods.feinberg2023_sketchy import TightFrame

    _, optimizer, p = path(SketchySOAP, (8, 5), gradients((8, 5), 6), rank=rank)
    frame, x = TightFrame(), torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    axis = optimizer.state[p]["parts"][0]["axes"][0]
    torch.testing.assert_close(frame.synthesise(axis, frame.analyse(axis, x)), x, rtol=1e-12, atol=1e-12)
    assert float(frame.analyse(axis, x).square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-12)


def test_what_rounding_leaves_outside_the_frame_does_not_move():
    direction = torch.outer(torch.arange(1.0, 7.0, dtype=F64), torch.ones(4, dtype=F64))
    grads = [direction * (1 + 0.1 * k) for k in range(5)]
    places, _, _ = path(SketchySOAP, (6, 4), grads, rank=2, lr=1.0)
    unit = direction / direction.norm()
    outside = places[-1] - (places[-1] * unit).sum() * unit
    assert outside.norm() < 1e-6 * places[-1].norm()


@pytest.mark.parametrize(("rank", "k"), [(2, 4), (12, 16), (24, 24)])
def test_a_rank_of_its_own_is_what_the_gradients_have(rank, k):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(24, rank, generator=generator, dtype=F64))[0]
    grads = [basis @ torch.randn(rank, 30, generator=generator, dtype=F64) for _ in range(25)]
    _, optimizer, p = path(Sketchy, (24, 30), grads, rank="auto", betas=(0.9, 0.95))
    ((left, _),) = optimizer.sketches(p)
    assert left.size == k
    c = sum(0.95 ** (24 - j) * g @ g.T for j, g in enumerate(grads))
    values = torch.linalg.eigvalsh(c - left.b @ left.b.T)
    assert values[0] > -1e-9
    assert values[-1] <= float(left.escaped) + 1e-9
    _, optimizer, p = path(SketchySOAP, (24, 30), grads, rank="auto", betas=(0.9, 0.95))
    kept = optimizer.state[p]["parts"][0]
    assert kept["axes"][0]["u"].shape == (24, k)
    rows, columns = (u.shape[1] + (len(u) if u.shape[1] < len(u) else 0) for u in (axis["u"] for axis in kept["axes"]))
    assert kept["square"].shape == (rows, columns)


def test_soap_in_single_precision_does_not_move_along_rounding():
    """Gradients of rank 2 in one axis: a change of their last digits changes no step by more than a little."""
    grads = [g @ torch.diag(torch.tensor([1.0, 1.0, 0.0])) for g in gradients((9, 3), 8, dtype=torch.float32)]
    noise = gradients((9, 3), 8, seed=1, dtype=torch.float32)
    near = [g + 1e-7 * g.norm() * n / n.norm() for g, n in zip(grads, noise, strict=True)]
    (*_, end), (*_, other) = (path(SOAP, (9, 3), each, lr=0.1, every=1)[0] for each in (grads, near))
    assert (other - end).norm() < 0.02 * end.norm()


def test_what_leaves_the_frame_takes_its_second_moment_along():
    from pinnsketch.methods.feinberg2023_sketchy import TightFrame

    frame, group = TightFrame(), {"rank": 2, "betas": (0.9, 0.5)}
    state = frame.begin(torch.zeros(5, 1, dtype=F64), 5, group)
    one = torch.eye(5, dtype=F64)
    frame.update(state, one[:, :2] * torch.tensor([3.0, 2.0], dtype=F64), group)
    square = frame.analyse(state, one[:, :2] * 7).square()
    carry = frame.update(state, one[:, 2:4] * 100, group)  # new directions in place of the old
    expected = torch.zeros(7, 2, dtype=F64)
    expected[0, 0] = expected[1, 1] = 49.0  # a place inside keeps what it had
    expected[2, 0] = expected[3, 1] = 49.0  # and where the directions are now, outside, it is known too
    torch.testing.assert_close(carry(square), expected, rtol=0, atol=1e-9)


# --- ordinary optimizers -------------------------------------------------------------------------------------------------


def model(dtype=F64):
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64).to(dtype) / 2)
    x = torch.randn(40, 3, generator=generator, dtype=F64).to(dtype)
    return net, x, torch.stack([x.sin().sum(1), x[:, 0] * x[:, 1]], dim=1)


def fit(net, x, y, optimizer, steps):
    def closure():
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss

    return [optimizer.step(closure).item() for _ in range(steps)]


@kinds
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_it_fits_by_a_closure_in_groups_with_sizes_of_their_own(kind, dtype):
    net, x, y = model(dtype)
    groups = [{"params": list(net[0].parameters()), "lr": 2e-2}, {"params": list(net[2].parameters())}]
    optimizer = kind(groups, lr=1e-2)
    losses = fit(net, x, y, optimizer, 150)
    assert losses[-1] < 0.2 * losses[0]
    assert [group["lr"] for group in optimizer.param_groups] == [2e-2, 1e-2]
    assert all(p.dtype == dtype for p in net.parameters())


@kinds
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_a_state_saved_and_loaded_goes_on_bit_for_bit(kind, dtype):
    net, x, y = model(dtype)
    optimizer = kind(net.parameters(), lr=1e-2)
    fit(net, x, y, optimizer, 7)
    file, other = io.BytesIO(), copy.deepcopy(net)
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = kind(other.parameters(), lr=0.5)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert fit(net, x, y, optimizer, 9) == fit(other, x, y, again, 9)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


@kinds
def test_parameters_without_a_gradient_stay_and_decay_is_apart_from_the_gradient(kind):
    used, idle = (nn.Parameter(torch.ones(3, 2, dtype=F64)) for _ in range(2))
    optimizer = kind([used, idle], lr=0.1, weight_decay=0.5)
    used.grad = torch.zeros_like(used)
    optimizer.step()
    torch.testing.assert_close(used.detach(), torch.full((3, 2), 0.95, dtype=F64))
    assert torch.equal(idle.detach(), torch.ones(3, 2, dtype=F64))


@kinds
def test_scaling_the_loss_changes_no_step(kind):
    net, x, y = model()
    other = copy.deepcopy(net)
    for made, factor in ((net, 1.0), (other, 1024.0)):
        optimizer = kind(made.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            (factor * (made(x) - y).square().mean()).backward()
            optimizer.step()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Sketchy, {"rank": 0}, r"Expected rank above 0; got 0"),
        (
            Sketchy,
            {"betas": (1.0, 0.9)},
            r"betas in \[0, 1\) and \(0, 1\]; got lr=0.001, betas=\(1.0, 0.9\)",
        ),
        (SketchySOAP, {"betas": (0.9, 1.0)}, r"betas in \[0, 1\) and \(0, 1\); got"),
        (Shampoo, {"lr": -1.0}, r"Expected lr >= 0"),
        (Sketchy, {"graft": "adagrad"}, r"Expected graft none, sgd, adam or rmsprop; got 'adagrad'"),
        (Muon, {"momentum": 1.0}, r"Expected momentum in \[0, 1\); got 1.0"),
    ],
)
def test_what_no_option_can_be_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind([nn.Parameter(torch.zeros(2, 2))], **options)


def test_they_are_methods_with_options():
    for name in ("sketchy", "sketchy_soap", "shampoo", "soap", "muon"):
        config = make_config({"problem": "poisson", "train": {"method": name, "steps": 3, "lr": 0.01, "betas": [0.9, 0.99]}})
        assert config.train.schedule[0].stage() == Stage(name, 3, {"lr": 0.01, "betas": (0.9, 0.99)})
    for wrong in ("big", 0, 1.5):
        with pytest.raises(ConfigError, match="rank: expected auto or a whole number above 0"):
            make_config({"problem": "poisson", "train": {"method": "sketchy", "rank": wrong}})
    assert make_config({"problem": "poisson", "train": {"method": "soap"}}).train.schedule[0].options == {}
    made = make_config({"problem": "poisson", "train": {"method": "sketchy", "rank": "auto"}})
    assert made.train.schedule[0].stage().options == {"rank": "auto"}
    made = make_config({"problem": "poisson", "train": {"method": "sketchy", "rank": 8, "graft": "sgd", "decay": "cosine"}})
    assert made.train.schedule[0].options == {"rank": 8, "graft": "sgd"}
    with pytest.raises(ConfigError, match=r"graft: there is no graft 'adan'; did you mean 'adam'"):
        make_config({"problem": "poisson", "train": {"method": "sketchy", "graft": "adan"}})
