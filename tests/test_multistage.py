"""Multistage networks: the sum, the switch from one network to the next, and what it gains."""

from copy import deepcopy
from math import pi

import pytest
import torch
from torch import sin

from pinnsketch.config import make_config
from pinnsketch.network import FASTEST, MLP, Multistage, build
from pinnsketch.run import Run

FIRST = {"method": "natural_gradient", "steps": 40}
SCHEDULE = [FIRST, {"method": "next_stage"}, {"method": "natural_gradient", "steps": 40}]
SOURCE = """
from math import pi
from torch import sin
from pinnsketch import Box, Problem, Term

def problem():
    line = Box(x=(0, 1))
    terms = {
        "poisson": Term(line.interior, lambda u, x: u.xx + 4 * pi**2 * sin(2 * pi * x)),
        "ends": Term(line.boundary, lambda u: u, weight=100),
    }
    return Problem(line, unknowns="u", terms=terms, exact=lambda x: sin(2 * pi * x))
"""


def problem():
    names = {}
    exec(SOURCE, names)
    return names["problem"]()


def made(schedule=SCHEDULE, stages=2, given=None, folder=None, **more):
    config = {
        "problem": "here",
        "network": {"width": 12, "depth": 2, "stages": stages},
        "points": {"interior": 40, "boundary": 2, "resample": 1, "test": 500},
        "train": {"schedule": schedule, "log": 1000},
        "monitor": False,
    }
    return Run(given or problem(), make_config(config | more), folder)


def go(run, steps=10**6):
    for step in run:
        if step.index == steps:
            break
    return run


def parts(run):
    return [[p.detach().clone() for p in network.parameters()] for network in run.trial.network.networks]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_one_stage_is_the_plain_network_and_the_first_of_several_is_drawn_as_that():
    bounds, options = torch.tensor([[0.0, 1.0]]), {"width": 7, "depth": 2}

    def one(**more):
        return build("mlp", {**options, **more}, bounds, ("x",), 2, generator=torch.Generator().manual_seed(3))

    plain, single, several = MLP(bounds, 2, **options, generator=torch.Generator().manual_seed(3)), one(stages=1), one(stages=3)
    assert type(single) is MLP
    assert single.state_dict().keys() == plain.state_dict().keys()
    assert same(single.parameters(), plain.parameters())
    assert same(several.networks[0].parameters(), plain.parameters())
    x = torch.rand(5, 1, dtype=torch.float64)
    assert torch.equal(several(x), plain(x))


def test_units_of_later_stages_are_spread_over_frequencies_and_over_the_box():
    generator = torch.Generator().manual_seed(0)
    networks = [MLP(torch.tensor([[0.0, 2.0], [0.0, 3.0]]), width=400, generator=generator) for _ in range(2)]
    before = networks[1].layers[0].weight.detach().clone()
    Multistage(networks, generator)
    first = networks[1].layers[0]
    factors = (first.weight / before).detach()
    torch.testing.assert_close(factors, (FASTEST ** (torch.arange(400.0, dtype=torch.float64) / 399))[:, None].expand(400, 2))
    assert bool((first.bias.abs() <= first.weight.abs().sum(1)).all())  # each unit is zero somewhere in the box
    assert float(first.bias.std()) > 0


def test_the_sum_is_that_of_the_stages_that_have_begun():
    bounds = torch.tensor([[0.0, 1.0]])
    network = build("mlp", {"width": 5, "depth": 1, "stages": 3}, bounds, ("x",), 2, generator=torch.Generator().manual_seed(0))
    network.sizes[1:] = torch.tensor([[1e-3, 1e-4], [1e-6, 1e-7]])
    x = torch.rand(6, 1, dtype=torch.float64)
    a, b, c = (one(x) for one in network.networks)
    for stage, expected in enumerate((a, a + network.sizes[1] * b, a + network.sizes[1] * b + network.sizes[2] * c)):
        network.begin(stage)
        assert torch.equal(network(x), expected)
        assert [all(p.requires_grad for p in one.parameters()) for one in network.networks] == [k == stage for k in range(3)]


def test_at_the_switch_the_function_stays_and_from_then_on_the_new_network_alone_moves():
    run = go(made(), 40)
    before, x = parts(run), run.task.test_points
    values, loss = run.trial(x), run.course.last.loss
    run = made()
    states = {}
    for step in run:
        if step.index in (40, 41, 43):
            states[step.index] = parts(run), run.trial(x).detach(), step
    assert same(states[40][0][0], before[0])
    torch.testing.assert_close(states[41][1], values.detach(), rtol=1e-15, atol=0)
    assert states[41][2].method == "next_stage"
    assert states[41][2].note
    assert loss > 0
    assert same(states[43][0][0], before[0])
    assert not any(torch.equal(p, q) for p, q in zip(states[43][0][1], states[41][0][1], strict=True))
    assert all(p.grad is None for p in run.trial.network.networks[0].parameters())
    assert all(p.grad is not None for p in run.trial.network.networks[1].parameters())


def test_the_size_is_that_of_the_error():
    run = go(made(), 41)
    x = run.task.test_points
    error = float((run.trial(x) - sin(2 * pi * x)).detach().square().mean().sqrt())
    assert 0.3 * error < float(run.trial.network.sizes[1]) < 3 * error


def test_it_leaves_the_gradient_of_the_loss_by_what_trains_now():
    run = go(made(), 41)
    batch = run.task.batch(40)
    loss = sum(run.task.weights[name] * value for name, value in run.task.losses(run.trial, batch).items())
    parameters = [p for p in run.trial.parameters() if p.requires_grad]
    assert run.course.last.loss == pytest.approx(loss.item(), rel=1e-9)
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-6, atol=1e-6 * float(p.grad.abs().max()))


def test_a_second_network_goes_on_where_one_stalls():
    single = go(made([{**FIRST, "steps": 80}], 1))
    double = go(made())
    errors = [run.task.error(run.trial)["overall"] for run in (single, double)]
    assert errors[1] < errors[0] / 10, errors


@pytest.mark.parametrize("stop", [20, 40, 41, 42, 60])
def test_stopped_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended(stop, tmp_path):
    whole, half = go(made()), go(made(), stop)
    state = deepcopy(half.course.state_dict())
    resumed = made()
    resumed.course.load_state_dict(state)
    go(resumed)
    assert resumed.course.last.index == whole.course.last.index == 81
    assert all(map(same, parts(whole), parts(resumed)))
    assert torch.equal(whole.trial.network.sizes, resumed.trial.network.sizes)
