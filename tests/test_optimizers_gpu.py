"""The optimizers on a GPU: as on the CPU but for rounding, alone and in the loop, whose evaluations are replayed there."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from pinnsketch import Sketchy, SketchySOAP
from pinnsketch.config import make_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.methods.gupta2018_shampoo import Shampoo
from pinnsketch.methods.jordan2024_muon import Muon
from pinnsketch.methods.vyas2024_soap import SOAP
from pinnsketch.run import Run
from pinnsketch.sketch.symmetric import SMALL, eigh

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
F64 = torch.float64
KINDS = {
    "sketchy": partial(Sketchy, rank=5),
    "sketchy sgd": partial(Sketchy, rank=5, graft="sgd", every=3),
    "sketchy auto": partial(Sketchy, rank="auto"),
    "sketchy blocks": partial(Sketchy, rank=5, block=7),
    "sketchy_soap": partial(SketchySOAP, rank=5, every=1),
    "shampoo": Shampoo,
    "soap": partial(SOAP, every=1),
    "muon": Muon,
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def network(dtype):
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 2)).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64).to(dtype) / 2)
    return net


@kinds
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-6), (torch.float32, 2e-2)], ids=str)
def test_steps_are_those_of_the_cpu(kind, dtype, tolerance):
    """Both are given the same gradients, full of rank, so that rounding is all that can differ."""
    nets = [network(dtype), network(dtype).to("cuda")]
    optimizers = [kind(net.parameters(), lr=1e-2) for net in nets]
    generator, start = torch.Generator().manual_seed(1), [p.detach().clone() for p in nets[0].parameters()]
    for _ in range(12):
        gradients = [torch.randn(p.shape, generator=generator, dtype=F64) for p in nets[0].parameters()]
        for net, optimizer in zip(nets, optimizers, strict=True):
            for p, g in zip(net.parameters(), gradients, strict=True):
                p.grad = g.to(p)
            optimizer.step()
    for a, b, first in zip(nets[0].parameters(), nets[1].parameters(), start, strict=True):
        assert (b.cpu() - a).norm() <= tolerance * (a - first).norm()


@kinds
def test_a_state_goes_from_the_gpu_to_the_cpu_and_on(kind):
    there = network(F64).to("cuda")
    optimizer, generator = kind(there.parameters(), lr=1e-2), torch.Generator().manual_seed(1)

    def step(nets, optimizers):
        gradients = [torch.randn(p.shape, generator=generator, dtype=F64) for p in there.parameters()]
        for net, own in zip(nets, optimizers, strict=True):
            for p, g in zip(net.parameters(), gradients, strict=True):
                p.grad = g.to(p)
            own.step()

    for _ in range(5):
        step([there], [optimizer])
    here = copy.deepcopy(there).cpu()
    again = kind(here.parameters(), lr=1e-2)
    again.load_state_dict(optimizer.state_dict())
    before = [p.detach().clone() for p in here.parameters()]
    for _ in range(4):
        step([there, here], [optimizer, again])
    for a, b, first in zip(there.parameters(), here.parameters(), before, strict=True):
        assert (a.cpu() - b).norm() <= 1e-6 * (b - first).norm()


def test_fused_updates_are_those_of_single_parameters_one_after_another():
    """A group of many parameters is moved in one call; each alone in a group of its own moves as far."""
    together, apart = (network(F64).to("cuda") for _ in range(2))
    one, many = Sketchy(together.parameters(), lr=1e-2), Sketchy([{"params": [p]} for p in apart.parameters()], lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for p, q in zip(together.parameters(), apart.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=F64).to("cuda")
            q.grad = p.grad.clone()
        one.step()
        many.step()
    for p, q in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [SMALL, SMALL + 1])
def test_eigenvectors_of_small_and_of_large_matrices_are_right_and_on_the_gpu(n):
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=F64).to("cuda")
    matrix = x @ x.T
    values, vectors = eigh(matrix)
    assert values.is_cuda
    assert vectors.is_cuda
    torch.testing.assert_close(vectors * values @ vectors.T, matrix, rtol=1e-10, atol=1e-10 * n)


@pytest.mark.parametrize("method", ["sketchy", "sketchy_soap", "soap", "shampoo", "muon"])
def test_a_run_replays_its_evaluations_and_takes_the_steps_of_the_cpu(method, tmp_path):
    def made(device):
        given = {
            "problem": "poisson", "device": device, "monitor": {"every": 1}, "network": {"width": 10, "depth": 2},
            "points": {"interior": 30, "boundary": 10, "resample": 2}, "train": {"method": method, "steps": 12, "lr": 1e-3},
        }  # fmt: skip
        run = Run(load_problem(find_problem("poisson", tmp_path)), make_config(given))
        start = torch.cat([p.detach().cpu().flatten() for p in run.trial.parameters()])
        losses = [step.loss for step in run]
        assert not [note for note in run.gradient.notes if "no CUDA graph" in note]
        assert losses[-1] < 0.9 * losses[0]
        return start, torch.cat([p.detach().cpu().flatten() for p in run.trial.parameters()])

    (first, here), (same, there) = made("cpu"), made("cuda")
    assert torch.equal(first, same)
    if "soap" not in method:  # which makes full steps of what is nothing but rounding in gradients of low rank
        assert (there - here).norm() <= 1e-6 * (here - first).norm()
