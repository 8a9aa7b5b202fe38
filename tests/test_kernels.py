"""What runs in one kernel on a GPU is what plain code computes: on a GPU, or with TRITON_INTERPRET=1 on a CPU."""

import math
import sys

import pytest
import torch
from torch import nn

from pinnsketch.layers import PackedReLU, frozen, sketch_layers
from pinnsketch.layers import steele2014_split_mix as mix
from pinnsketch.layers.bershatsky2022_random_projection import Projection
from pinnsketch.layers.chen2021_quantised import restored, rounded
from pinnsketch.layers.estimator import Part
from pinnsketch.layers.fused import INTERPRETED, fused
from pinnsketch.layers.packed import SMOOTH, PackedSlope

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a GPU, or Triton's interpreter")
DTYPES = [torch.float32, torch.float64, *([] if INTERPRETED else [torch.bfloat16])]  # which the interpreter truncates
PLACES = ("sketched", "bershatsky2022_random_projection", "chen2021_quantised", "packed")


@pytest.fixture
def plain(monkeypatch):
    """Calls a function with plain code in the place of kernels."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            for place in PLACES:
                patch.setattr(sys.modules[f"pinnsketch.layers.{place}"], "fused", lambda x: None)
            return function(*args)

    return call


def randn(*shape, dtype=torch.float32, number=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number)).to(DEVICE, dtype)


def seed(number=-(2**62) + 12345):
    return torch.tensor(number, device=DEVICE)


def test_there_are_kernels():
    assert fused(randn(1)).__name__ == "pinnsketch.layers.kernels"


def test_counters_and_seeds_are_those_of_plain_code(plain):
    model = [sketch_layers(nn.Linear(3, 2).to(DEVICE)) for _ in range(2)]
    x = randn(8, 3)
    for _ in range(3):
        assert int(model[0].random.next(x)) == int(plain(model[1].random.next, x))
    with frozen(model[0]), frozen(model[1]):
        assert int(model[0].random.next(x)) == int(plain(model[1].random.next, x))
    assert int(model[0].random.counter) == int(model[1].random.counter) == 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("part", [Part(0, 3, 128, 32), Part(0, 1, 60, 7), Part(0, 2, 5, 1), Part(0, 1, 300, 4)])
def test_random_signs_are_the_same_and_centred_ones_to_rounding(part, mean, dtype, plain):
    projection = Projection(mix.signs, mean=mean)
    found = projection._matrix(seed(), mix.STEP // 3, part, dtype)
    expected = plain(projection._matrix, seed(), mix.STEP // 3, part, dtype)
    assert found.shape == (part.count, part.kept, part.size)
    if not mean or part.kept == 1:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("count", [1, 995, 4096])
def test_packed_relu_is_the_same_bit_for_bit(count, inplace, dtype, plain):
    x = randn(count, dtype=dtype)
    x[-1:] = math.nan
    x[:1] = 0.0
    g = randn(count, dtype=dtype, number=1)

    def both():
        leaf = x.clone().requires_grad_()
        y = PackedReLU(inplace)(leaf * 1)
        packed = y.grad_fn.saved_tensors[0]
        return y.detach(), packed, *torch.autograd.grad(y, leaf, g)

    for found, expected in zip(both(), plain(both), strict=True):
        assert torch.equal(found.nan_to_num(7) if found.is_floating_point() else found, expected.nan_to_num(7))


def test_packed_relu_can_be_differentiated_twice():
    assert torch.autograd.gradgradcheck(PackedReLU(), randn(5, 3, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_packed_derivatives_are_the_same_but_for_a_level_where_rounding_decides(name, bits, dtype, plain):
    x, g = 2 * randn(37, 111, dtype=dtype), randn(37, 111, dtype=dtype, number=1)

    def both():
        leaf = x.clone().requires_grad_()
        y = PackedSlope.apply(leaf, seed(), SMOOTH[name], bits)
        packed = y.grad_fn.saved_tensors[0]
        return y.detach(), packed, *torch.autograd.grad(y, leaf, g)

    (y, packed, slope), (plain_y, plain_packed, plain_slope) = both(), plain(both)
    assert torch.equal(y, plain_y)
    assert packed.shape == plain_packed.shape
    assert float((packed != plain_packed).float().mean()) < 1e-3
    same = (packed == plain_packed).all() if bits < 8 else (packed == plain_packed).view_as(x)
    near = {"rtol": 2**-6, "atol": 2**-5} if dtype == torch.bfloat16 else {}  # plain code rounds to it at each operation
    torch.testing.assert_close(slope[same], plain_slope[same], **near)
    step = (SMOOTH[name].high - SMOOTH[name].low) / (2**bits - 1)
    assert bool(((slope - plain_slope).abs() <= (1.02 * step * g.abs()) + 2**-5 * (dtype == torch.bfloat16)).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("shape", [(3, 7), (64, 40)])
def test_numbers_rounded_to_a_few_bits_are_the_same_but_for_a_level(shape, bits, dtype, plain):
    x = randn(*shape, dtype=dtype)
    found, expected = rounded(x, seed(), bits), plain(rounded, x, seed(), bits)
    torch.testing.assert_close(found[1], expected[1])
    assert float((found[0] != expected[0]).float().mean()) < 1e-3
    torch.testing.assert_close(restored(*expected, bits, x.shape), plain(restored, *expected, bits, x.shape))


def test_a_model_gives_the_gradients_that_plain_code_gives(plain):
    parts = [nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.Tanh(), nn.Linear(32, 3)]
    model = sketch_layers(nn.Sequential(*parts)).to(DEVICE)
    x = randn(64, 2, 6, 6)

    def gradients():
        with frozen(model):
            return torch.autograd.grad(model(x).square().mean(), list(model.parameters()))

    for found, expected in zip(gradients(), plain(gradients), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
