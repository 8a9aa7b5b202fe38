"""Laws of layers that keep a sketch of their input."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pinnsketch.collocation import Collocation
from pinnsketch.geometry import Box
from pinnsketch.layers import (
    ESTIMATORS,
    AutomaticRank,
    PackedReLU,
    PackedTanh,
    SketchConv2d,
    SketchLinear,
    exact,
    frozen,
    plain_state_dict,
    saved_bytes,
    set_keep,
    sketch_layers,
    sketched,
)
from pinnsketch.layers.packed import SMOOTH, Packed
from pinnsketch.layers.rank import allot
from pinnsketch.network import MLP
from pinnsketch.problem import Problem, ProblemError, Term
from pinnsketch.sketch import AdaptiveRank
from pinnsketch.trial import Trial

F64 = torch.float64


def gen(number=0):
    return torch.Generator().manual_seed(number)


def randn(*shape, number=0, dtype=F64):
    return torch.randn(*shape, generator=gen(number), dtype=dtype)


def drawn(module, number=0):
    """The same module with parameters of its own draw, so that tests need no global random numbers."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(randn(*p.shape, number=number, dtype=p.dtype) / math.sqrt(p.shape[-1]))
    return module


def linear(d=6, o=5, dtype=F64, **options):
    layer = nn.utils.skip_init(SketchLinear, d, o, dtype=dtype)
    options = {"weight_gradient": "sketched", "estimator": "mean+rademacher", "keep": 0.25, "seed": 0} | options
    made = SketchLinear(1, 1, **options)
    layer.sketch_as(made.options, options["seed"])
    return drawn(layer)


def conv(*args, dtype=F64, **options):
    return drawn(SketchConv2d(*args, dtype=dtype, **options))


def net(dtype=F64, activation=nn.Tanh):
    parts = [nn.Linear(7, 20, dtype=dtype), activation(), nn.Linear(20, 20, dtype=dtype), activation()]
    return drawn(nn.Sequential(*parts, nn.Linear(20, 3, dtype=dtype)))


def gradients(model, x, loss=lambda y: y.square().sum()):
    model.zero_grad()
    loss(model(x)).backward()
    return [p.grad.clone() for p in model.parameters()]


# One layer


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("weight_gradient", ["exact", "sketched"])
def test_a_linear_layer_gives_what_nn_linear_gives_bit_for_bit(dtype, weight_gradient):
    layer = linear(33, 17, dtype, weight_gradient=weight_gradient)
    x, g = randn(2, 40, 33, dtype=dtype).requires_grad_(), randn(2, 40, 17, number=1, dtype=dtype)
    y = layer(x)
    plain = functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(y, plain)
    found = torch.autograd.grad(y, [x, layer.bias, layer.weight], g)
    expected = torch.autograd.grad(plain, [x, layer.bias, layer.weight], g)
    for a, b in zip(found[: 3 if weight_gradient == "exact" else 2], expected, strict=False):
        assert torch.equal(a, b)
    assert torch.equal(found[2], expected[2]) == (weight_gradient == "exact")


SHAPES = {
    "plain": ((3, 4, 3), {}), "strided": ((3, 4, 3), {"stride": 2, "padding": 1}),
    "tall": ((3, 4, (3, 1)), {"padding": (2, 0)}),
    "grouped": ((4, 6, 3), {"groups": 2, "bias": False}), "dilated": ((3, 4, 3), {"dilation": 2, "padding": 2}),
    "same": ((3, 4, 3), {"padding": "same"}), "same, even": ((3, 4, (4, 2)), {"padding": "same"}),
    "valid": ((3, 4, 3), {"padding": "valid"}), "circular": ((3, 4, 3), {"padding": 1, "padding_mode": "circular"}),
    "reflect": ((3, 4, 3), {"padding": "same", "padding_mode": "reflect"}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
@pytest.mark.parametrize(("args", "options"), SHAPES.values(), ids=SHAPES)
def test_a_convolution_gives_what_nn_conv2d_gives_bit_for_bit_and_its_mean_image_is_exact(args, options):
    layer = conv(*args, **options)
    image = randn(1, args[0], 8, 7)
    x = image.expand(12, -1, -1, -1).clone().requires_grad_()  # images that are all their mean: nothing is left to be sketched
    y = layer(x)
    with exact(layer):
        plain = layer(x)
    assert torch.equal(y, plain)
    parameters = [x, *layer.parameters()]
    g = randn(*y.shape, number=1)
    for a, b in zip(torch.autograd.grad(y, parameters, g), torch.autograd.grad(plain, parameters, g), strict=True):
        torch.testing.assert_close(a, b)


def test_the_variance_of_a_convolution_is_that_of_its_pairs():
    """E |G~ - G|^2 = 1/q sum over i != j of (|G_ij|^2 + <G_ij, G_ji>)."""
    layer = conv(2, 3, 3, padding=1, estimator="rademacher", keep=0.5)
    x, g = randn(8, 2, 4, 4), randn(8, 3, 4, 4, number=1)
    each = partial(torch.nn.grad.conv2d_weight, weight_size=layer.weight.shape, padding=1)
    pairs = torch.stack([torch.stack([each(a[None], grad_output=d[None]) for d in g]) for a in x]).flatten(2)
    grams = torch.einsum("ijp,ijp->ij", pairs, pairs) + torch.einsum("ijp,jip->ij", pairs, pairs)
    formula = float(grams.sum() - grams.diagonal().sum()) / 4
    exact_gradient = each(x, grad_output=g)
    total, squares, count = 0, 0.0, 2000
    for _ in range(count):
        (found,) = torch.autograd.grad(layer(x), [layer.weight], g)
        total, squares = total + found, squares + float((found - exact_gradient).square().sum())
    assert float((total / count - exact_gradient).norm()) <= 4 * math.sqrt(formula / count)
    assert squares / count == pytest.approx(formula, rel=0.06)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("ema", "quantised")])
def test_every_estimator_serves_convolutions_without_bias(name):
    layer = conv(2, 3, 3, estimator=name, keep=0.5)
    x, g = randn(10, 2, 5, 5) + 0.5, randn(10, 3, 3, 3, number=1)
    found = torch.stack([torch.autograd.grad(layer(x), [layer.weight], g)[0] for _ in range(800)])
    with exact(layer):
        (expected,) = torch.autograd.grad(layer(x), [layer.weight], g)
    error = float(found.var(0).sum() / 800) ** 0.5
    assert float((found.mean(0) - expected).norm()) <= 4 * error


@pytest.mark.parametrize("make", [lambda: linear(5, 4), lambda: conv(2, 3, 3, padding=1)], ids=["linear", "conv"])
@pytest.mark.parametrize("weight_gradient", ["exact", "sketched"])
def test_gradients_by_input_and_bias_are_right_once_and_twice(make, weight_gradient):
    layer = make()
    layer.options.weight_gradient = weight_gradient
    x = randn(8, 5) if isinstance(layer, SketchLinear) else randn(8, 2, 4, 3)
    parts = (x.requires_grad_(), layer.bias.detach().clone().requires_grad_())

    def function(x, bias):
        return torch.func.functional_call(layer, {"bias": bias}, (x,)).sin()

    with frozen(layer):
        assert torch.autograd.gradcheck(function, parts)
        assert torch.autograd.gradgradcheck(function, parts)
    if weight_gradient == "exact":
        given = (*parts, layer.weight.detach().clone().requires_grad_())

        def whole(x, bias, weight):
            return torch.func.functional_call(layer, {"bias": bias, "weight": weight}, (x,)).sin()

        assert torch.autograd.gradgradcheck(whole, given)


def test_a_loss_of_derivatives_gets_every_part_of_its_weight_gradient_in_the_mean():
    """|du/dx|^2 by nested differentiation, the last layer included: unbiased, none lost."""
    model = sketch_layers(net(), activations="exact", keep=0.5)
    x = randn(16, 7).requires_grad_()

    def loss(y):
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return slope.square().sum()

    found = [gradients(model, x, loss) for _ in range(600)]
    with exact(model):
        expected = gradients(model, x, loss)
    for k, whole in enumerate(expected):
        draws = torch.stack([g[k] for g in found])
        assert float((draws.mean(0) - whole).norm()) <= 4 * float(draws.var(0).sum() / 600) ** 0.5 + 1e-9 * float(whole.norm())
        assert float(whole.norm()) > 0


@pytest.mark.parametrize("make", [lambda: linear(5, 4), lambda: conv(2, 3, 3)], ids=["linear", "conv"])
def test_the_derivative_of_a_sketched_weight_gradient_is_an_error(make):
    layer = make()
    x = (randn(8, 5) if isinstance(layer, SketchLinear) else randn(8, 2, 5, 5)).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"weight gradient of a sketched layer was differentiated again.*weight_gradient=\"exact\""
    ):
        slope.square().sum().backward()
    plain = torch.ones_like(layer(x))  # the last layer, whose delta depends on nothing
    (slope,) = torch.autograd.grad(layer(x), layer.weight, plain, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again"):
        slope.square().sum().backward()


def test_options_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match=r"weight_gradient: expected exact or sketched; got 'sketch'"):
        SketchLinear(2, 2, weight_gradient="sketch")
    with pytest.raises(ValueError, match=r"There is no estimator 'mean'; the estimators are rademacher, gaussian, rows, mean"):
        SketchLinear(2, 2, estimator="mean")
    with pytest.raises(ValueError, match=r"keep: expected a share of the input above 0 and at most 1; got 0"):
        SketchConv2d(2, 2, 3, keep=0)
    with pytest.raises(ValueError, match=r"estimator: ema, as its source has it, is for linear layers"):
        SketchConv2d(2, 2, 3, estimator="ema")


def test_evaluation_few_rows_no_gradient_and_a_share_of_one_are_exact_and_draw_nothing():
    layer = linear()
    x, g = randn(8, 6), randn(8, 5, number=1)

    def is_exact():
        (found,) = torch.autograd.grad(layer(x[:rows]), [layer.weight], g[:rows])
        return torch.equal(found, g[:rows].T @ x[:rows])

    rows = 3
    assert is_exact()  # a quarter of three rows is no row
    rows = 8
    layer.eval()
    assert is_exact()
    layer.train()
    layer.options.keep = 1.0
    assert is_exact()
    layer.options.keep = 0.25
    with torch.no_grad():
        layer(x)
    assert int(layer.random.counter) == 0
    assert not is_exact()
    assert int(layer.random.counter) == 1


def test_the_moving_average_of_the_source_is_kept_in_the_layer_and_resumes():
    layer = linear(estimator="ema")
    x = randn(64, 6)
    for number in range(3):
        layer(randn(64, 6, number=number)).square().sum().backward()
    other = linear(estimator="ema")
    other.load_state_dict(layer.state_dict())
    found = [torch.autograd.grad(one(x).square().sum(), one.weight)[0] for one in (layer, other)]
    assert torch.equal(*found)
    assert saved_bytes(lambda: layer(x)) == 8  # the seed
    assert float(layer.average_x.norm()) > 0


# Random numbers of a model


def test_layers_and_steps_draw_different_numbers_and_equal_seeds_the_same():
    model = sketch_layers(net(), activations="exact", keep=0.5)
    x = randn(64, 7)
    first, second = gradients(model, x), gradients(model, x)
    again = gradients(sketch_layers(net(), activations="exact", keep=0.5), x)
    other = gradients(sketch_layers(net(), activations="exact", keep=0.5, seed=1), x)
    for k in (0, 2, 4):
        assert torch.equal(first[k], again[k])
        assert not torch.equal(first[k], second[k])
        assert not torch.equal(first[k], other[k])
    seeds = {name: int(module.random.next(x)) for name, module in model.named_modules() if hasattr(module, "random")}
    assert len(set(seeds.values())) == 3


def test_frozen_repeats_the_draw_of_the_next_step_and_leaves_the_counters():
    model = sketch_layers(net(), keep=0.5)
    x = randn(64, 7)
    with frozen(model):
        first, second = gradients(model, x), gradients(model, x)
    third = gradients(model, x)
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def train(model, steps, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in steps:
        optimizer.zero_grad()
        model(randn(32, 7, number=step)).square().mean().backward()
        optimizer.step()
    return optimizer


def test_training_that_is_resumed_ends_bit_for_bit_where_it_would_have_ended():
    whole = sketch_layers(net())
    train(whole, range(6))
    half = sketch_layers(net())
    optimizer = train(half, range(3))
    state = copy.deepcopy((half.state_dict(), optimizer.state_dict()))
    rest = sketch_layers(net())
    rest.load_state_dict(state[0])
    optimizer = torch.optim.Adam(rest.parameters(), lr=1e-2)
    optimizer.load_state_dict(state[1])
    train(rest, range(3, 6), optimizer)
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("estimator", ["mean+rademacher", "ema"])
def test_state_dicts_go_from_plain_models_to_sketched_ones_and_back_strictly(estimator):
    plain, model = net(), sketch_layers(net(), estimator=estimator)
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(1)
    model.load_state_dict(plain.state_dict())
    assert set(plain_state_dict(model)) == set(plain.state_dict()) < set(model.state_dict())
    fresh = net()
    fresh.load_state_dict(plain_state_dict(model))
    for a, b in zip(fresh.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    single = linear()
    nn.utils.skip_init(nn.Linear, 6, 5, dtype=F64).load_state_dict(plain_state_dict(single))


def test_training_leaves_global_random_numbers_alone():
    plain, state = net(), torch.get_rng_state()
    train(sketch_layers(plain, estimator="lowrank+rademacher"), range(2))
    assert torch.equal(state, torch.get_rng_state())


# What works around a layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_outputs_are_those_of_plain_layers_and_sketches_are_of_its_precision(dtype):
    plain = drawn(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)))
    model = sketch_layers(plain)
    x = randn(64, 2, 6, 6, dtype=torch.float32)
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(model(x), plain(x))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(x)
    y.float().square().mean().backward()
    assert y.dtype == dtype
    assert {t.dtype for t in kept} <= {dtype, torch.int64, torch.uint8}
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_checkpointing_sketches_anew_and_stays_unbiased():
    model = sketch_layers(net(), keep=0.5)
    x = randn(32, 7).requires_grad_()
    found = []
    for _ in range(400):
        model.zero_grad()
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
        found.append(model[2].weight.grad.clone())
    with exact(model):
        expected = gradients(model, x)[2]
    draws = torch.stack(found)
    assert float((draws.mean(0) - expected).norm()) <= 4 * float(draws.var(0).sum() / 400) ** 0.5


def test_functional_call_with_other_parameters_and_buffers_works():
    model = sketch_layers(net(), keep=0.5)
    x = randn(32, 7)
    given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with frozen(model):
        expected = gradients(model, x)
        y = torch.func.functional_call(model, given, (x,))
        found = torch.autograd.grad(y.square().sum(), [*given.values()])
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    counter = {f"{name}": b.clone() for name, b in model.named_buffers()}
    torch.func.functional_call(model, {**given, **counter}, (x,))
    assert all(int(b) == 0 for b in model.buffers())
    assert all(int(c) == 1 for c in counter.values())


def beside(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(sketch_layers(net(), activations="exact"))
    local = sketch_layers(net(), activations="exact")
    train(model, range(2))
    x = randn(32, 7)
    own = gradients(local, x)[2]
    torch.save((own, [p.detach() for p in model.parameters()], [b.clone() for b in model.buffers()]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="there is no gloo")
def test_two_processes_draw_different_numbers_and_keep_equal_parameters(tmp_path):
    torch.multiprocessing.spawn(beside, (str(tmp_path),), nprocs=2)
    (a, left, counters), (b, right, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert not torch.equal(a, b)
    assert all(torch.equal(p, q) for p, q in zip(left, right, strict=True))
    assert [int(c) for c in counters] == [2, 2, 2]


# Packed activations


@pytest.mark.parametrize("inplace", [False, True])
def test_a_packed_relu_is_relu_bit_for_bit_in_an_eighth_of_a_byte(inplace):
    x = torch.cat([randn(30, 33).flatten(), torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan], dtype=F64)])
    g = torch.cat([randn(990, number=1), torch.tensor([math.inf] * 5, dtype=F64)])
    x.requires_grad_()
    plain = torch.relu(x)
    y = PackedReLU(inplace)(x * 1)
    assert torch.equal(y.nan_to_num(), plain.nan_to_num())
    (found,), (expected,) = torch.autograd.grad(y, x, g), torch.autograd.grad(plain, x, g)
    assert torch.equal(found, expected)
    z = x * 1
    assert saved_bytes(lambda: PackedReLU()(z)) == -(-995 // 8)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("bits", [8, 1])
def test_a_packed_activation_is_exact_forward_and_right_in_the_mean_backward(name, bits):
    layer, smooth = Packed(name, bits), SMOOTH[name]
    x = torch.linspace(-4, 4, 65, dtype=F64).requires_grad_()
    assert torch.equal(layer(x), smooth.function(x))
    (expected,) = torch.autograd.grad(smooth.function(x).sum(), x)
    assert smooth.low <= float(expected.min())
    assert float(expected.max()) <= smooth.high
    found = torch.stack([torch.autograd.grad(layer(x).sum(), x)[0] for _ in range(1000)])
    step = (smooth.high - smooth.low) / (2**bits - 1)
    assert float((found - expected).abs().max()) <= step * (1 + 1e-6)
    share = ((expected - smooth.low) / step) % 1
    error = step * (share * (1 - share) / 1000).sqrt()
    assert bool(((found.mean(0) - expected).abs() <= 4.5 * error + 2e-5 * step).all())
    big = randn(64, 64).requires_grad_()
    assert saved_bytes(lambda: layer(big)) == 64 * 64 * bits // 8


def test_a_packed_activation_of_many_numbers_in_any_order_is_rounded_piece_by_piece_as_at_once(monkeypatch):
    x, g = randn(70, 41).T.requires_grad_(), randn(70, 41, number=1).T
    layer = Packed("silu", 2)
    with frozen(layer):
        (whole,) = torch.autograd.grad(layer(x), x, g)
        monkeypatch.setattr("pinnsketch.layers.packed.PIECE", (64, 64))
        (pieces,) = torch.autograd.grad(layer(x), x, g)
    assert torch.equal(whole, pieces)


def test_bounds_of_derivatives_hold_everywhere():
    x = torch.linspace(-30, 30, 600_001, dtype=F64)
    for smooth in SMOOTH.values():
        slope = smooth.slope(x, smooth.function(x))
        assert smooth.low <= float(slope.min())
        assert float(slope.max()) <= smooth.high


def test_a_packed_activation_that_is_differentiated_twice_is_an_error_and_relu_is_not():
    x = randn(8, 8).requires_grad_()
    for delta_depends in (True, False):
        y = PackedTanh()(x)
        (slope,) = torch.autograd.grad(y.square().sum() if delta_depends else y.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"packed activation was differentiated again.*plain activation"):
            slope.sum().backward()
    assert torch.autograd.gradgradcheck(PackedReLU(), x)


def test_activations_that_are_not_known_are_refused():
    with pytest.raises(
        ValueError, match=r"There is no packed activation 'elu'; there are tanh, sigmoid, sin, silu, gelu, and Pack"
    ):
        Packed("elu")
    with pytest.raises(ValueError, match=r"bits: expected one of 8, 4, 2, 1; got 3"):
        PackedTanh(3)


# Whole models


def test_a_converted_model_shares_parameters_and_leaves_the_given_one_as_it_was():
    plain = net()
    before = str(plain)
    model = sketch_layers(plain)
    assert str(plain) == before
    assert [id(p) for p in plain.parameters()] == [id(p) for p in model.parameters()]
    assert sketched(model) == ["0", "1", "2", "3", "4"]
    assert sketched(plain) == []
    assert not any(hasattr(module, "options") for module in plain.modules())


def test_layers_are_chosen_by_name_and_activations_before_exact_ones_stay():
    model = sketch_layers(net(), "[02]")
    assert sketched(model) == ["0", "1", "2"]
    assert type(model[3]) is nn.Tanh
    assert type(model[4]) is nn.Linear
    with pytest.raises(ValueError, match=r"pattern: no layer is named 'layers.\*'; the layers are 0, 2, 4"):
        sketch_layers(net(), "layers.*")
    with pytest.raises(ValueError, match=r"activations: expected exact or packed; got 'half'"):
        sketch_layers(net(), activations="half")


def test_layers_of_a_class_of_their_own_and_fused_attention_are_left_alone():
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, activation="gelu")
    model = sketch_layers(block)
    assert sketched(model) == ["linear1", "linear2", "activation"]
    x = randn(8, 32, 16, dtype=torch.float32)
    assert torch.equal(model(x), block(x))
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_networks_of_this_project_are_packed_too():
    model = sketch_layers(MLP(torch.tensor([[0.0, 1], [0, 1]]), width=32, depth=3, generator=gen()))
    assert sketched(model)[-1] == "_activation"
    plain = MLP(torch.tensor([[0.0, 1], [0, 1]]), width=32, depth=3, generator=gen())
    x = randn(256, 2)
    assert torch.equal(model(x), plain(x))
    assert saved_bytes(lambda: model(x)) < 0.4 * saved_bytes(lambda: plain(x))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_the_bytes_that_a_model_keeps_are_those_of_sketches_and_packed_activations(activation):
    plain = net(torch.float32, activation)
    x = randn(256, 7, dtype=torch.float32)
    assert saved_bytes(lambda: plain(x)) == 4 * 256 * (7 + 20 + 20)
    model, bits = sketch_layers(plain), 8 if activation is nn.Tanh else 1
    assert saved_bytes(lambda: model(x)) == 4 * 64 * (7 + 20 + 20) + 3 * 8 + 2 * 256 * 20 * bits // 8


def test_each_storage_counts_once_and_parameters_do_not():
    w = nn.Parameter(randn(50, 50))
    x = randn(10, 50).requires_grad_()
    assert saved_bytes(lambda: (x @ w) + (x @ w.T)) == x.nbytes
    assert saved_bytes(lambda: x.sin() * x) == x.nbytes + x.nbytes  # x, and sin x


# Shares


def test_shares_are_allotted_by_lagrange_and_none_is_above_one():
    found = allot({"a": 4.0, "b": 1.0}, {"a": 10_000, "b": 10_000}, 0.375)
    assert found == {"a": 0.5, "b": 0.25}
    found = allot({"a": 100.0, "b": 1.0, "c": 1.0}, {"a": 100, "b": 10_000, "c": 2_500}, 0.25)
    assert found["a"] == 1.0
    assert found["c"] / found["b"] == pytest.approx(2, rel=0.1)
    assert sum(found[k] * n for k, n in {"a": 100, "b": 10_000, "c": 2_500}.items()) <= 0.25 * 12_600


def test_automatic_rank_lowers_the_variance_at_equal_memory_and_its_budget_rises():
    g = gen(5)
    plain = nn.Sequential(
        nn.Linear(64, 8, dtype=F64), nn.Tanh(), nn.Linear(8, 64, dtype=F64), nn.Tanh(), nn.Linear(64, 1, dtype=F64)
    )
    drawn(plain)
    x = torch.randn(128, 64, generator=g, dtype=F64) * torch.linspace(0, 3, 64, dtype=F64)
    model = sketch_layers(plain, activations="exact")

    def relative():
        """By layer, E |G~ - G|^2 / |G|^2."""
        with exact(model):
            whole = gradients(model, x)
        draws = [gradients(model, x) for _ in range(200)]
        return {
            str(k): float(sum((d[k] - whole[k]).square().sum() for d in draws)) / 200 / float(whole[k].square().sum())
            for k in (0, 2, 4)
        }

    before = relative()
    rank = AutomaticRank(model, keep=0.25)
    assert not rank.update(0.0)  # nothing seen yet
    for _ in range(100):
        gradients(model, x)
    assert rank.update(0.0)
    for name, found in rank.relative.items():
        assert found == pytest.approx(0.25 * before[name], rel=0.3)
    numbers = {"0": 64, "2": 8, "4": 64}
    assert sum(rank.keep[k] * n for k, n in numbers.items()) <= 0.25 * 136 + 1e-9
    assert sum(relative().values()) < sum(before.values())
    state = copy.deepcopy(rank.state_dict())
    for _ in range(20):
        gradients(model, x)
    rank.update(1.0)
    assert 0.4 < sum(rank.keep[k] * n for k, n in numbers.items()) / 136 <= 0.5
    rank.load_state_dict(state)
    assert rank.keep == state["keep"]
    with pytest.raises(ValueError, match=r"AutomaticRank: no layer of the model is sketched by a random projection"):
        AutomaticRank(plain)


def test_the_adaptive_rank_of_the_source_can_set_the_share():
    model, rank = sketch_layers(net()), AdaptiveRank(rank=4, patience_up=2)
    changes = [rank.update(1.0) and set_keep(model, 3 * (2 * rank.rank + 1) / 128) for _ in range(4)]
    assert changes.count(True) == 1
    assert model[0].options.keep == 3 * 13 / 128


# Problems


def poisson():
    square = Box(x=(0, 1), y=(0, 1))
    return Problem(
        square,
        unknowns="u",
        terms={"poisson": Term(square.interior, lambda u, x: u.xx + u.yy - x), "edge": Term(square.boundary, lambda u: u)},
    )


def network(**options):
    return sketch_layers(MLP(torch.tensor([[0.0, 1], [0, 1]]), width=24, depth=3, generator=gen()), **options)


def slopes(task, trial, batch):
    losses = sum(task.losses(trial, batch).values())
    return torch.autograd.grad(losses, list(trial.parameters()))


@pytest.mark.parametrize("activations", ["exact", "packed"])
def test_a_problem_trains_by_the_forward_pass_with_gradients_right_in_the_mean(activations):
    task, trial = Collocation(poisson(), interior=128, boundary=64), Trial(network(keep=0.5, activations=activations))
    batch = task.batch()
    assert task.check(trial) == []
    with exact(trial):
        expected = slopes(task, trial, batch)
    found = [slopes(task, trial, batch) for _ in range(150)]
    for k, whole in enumerate(expected):
        draws = torch.stack([g[k] for g in found])
        error = float(draws.var(0).sum() / 150) ** 0.5
        assert float((draws.mean(0) - whole).norm()) <= 4 * error + 1e-9 * float(whole.norm())
        assert error > 0 or k % 2


def test_a_problem_keeps_a_quarter_of_the_bytes():
    task, trial = Collocation(poisson(), interior=512, boundary=128), Trial(network())
    batch = task.batch()
    task.residuals(trial, batch)
    found = saved_bytes(lambda: task.losses(trial, batch))
    with exact(trial):
        assert found < 0.27 * saved_bytes(lambda: task.losses(trial, batch))


def test_evaluations_beside_training_leave_the_random_numbers_where_they_were():
    task, trial = Collocation(poisson(), interior=64, boundary=32), Trial(network())
    batch = task.batch()
    task.check(trial)
    task.by_term(trial, batch, list(trial.parameters()))
    task.residual_size(trial, batch[0].x)
    task.error(trial)
    assert all(int(b) == 0 for name, b in trial.named_buffers() if name.endswith("counter"))


class Turned(nn.Module):
    """A network with an operation that has no rule in the forward pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.asinh(self.inner(x))


def test_nested_differentiation_of_a_sketched_network_is_refused_with_the_reason():
    task, trial = Collocation(poisson(), interior=64, boundary=32), Trial(Turned(network()))
    words = (
        r"Terms poisson: expected derivatives by one forward pass, since the weight gradients of layers inner.layers.0, .* are "
        r"sketched; got nested differentiation \(no rule for asinh\).*Use weight_gradient: exact"
    )
    for _ in range(2):
        with pytest.raises(ProblemError, match=words):
            task.losses(trial, task.batch())
    plain = Trial(Turned(MLP(torch.tensor([[0.0, 1], [0, 1]]), width=8, depth=2, generator=gen())))
    assert set(task.losses(plain, task.batch())) == {"poisson", "edge"}


def test_a_sketched_network_is_not_compiled_and_says_why():
    from pinnsketch.gradient import Gradient

    task, trial = Collocation(poisson(), interior=64, boundary=32), Trial(network())
    gradient = Gradient(trial, task, compile=True)
    gradient(task.batch())
    assert gradient.notes == [
        "Operations are run one by one, which is slower: not compiled (it has sketched layers, whose random numbers change "
        "from step to step)."
    ]


def test_rows_of_the_jacobian_are_exact_whatever_is_sketched():
    task, trial = Collocation(poisson(), interior=16, boundary=16), Trial(network())
    plain = Trial(MLP(torch.tensor([[0.0, 1], [0, 1]]), width=24, depth=3, generator=gen()))
    batch = task.batch()
    (r, found), (s, expected) = task.linearize(trial, batch), task.linearize(plain, batch)
    torch.testing.assert_close(r, s)
    torch.testing.assert_close(found.dense(), expected.dense())
