"""Multistage networks: the sum, the switch from one network to the next, and what it gains."""

from math import pi
from pathlib import Path

import pytest
import torch
from torch import sin

from pinnsketch import Box, Problem, Term, Unknown
from pinnsketch.config import ConfigError, make_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.methods.wang2024_multistage import NextStage
from pinnsketch.multistage import FASTEST, Multistage
from pinnsketch.network import MLP, build
from pinnsketch.run import Run
from pinnsketch.solution import Solution

FIRST = {"method": "natural_gradient", "steps": 20}
SCHEDULE = [FIRST, {"method": "next_stage"}]
BRIEF = [{**FIRST, "steps": 6}, {"method": "next_stage"}, {**FIRST, "steps": 6}]
SOURCE = """
from math import pi
from torch import sin
from pinnsketch import Box, Problem, Term, Unknown, laplacian

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


def made(schedule=SCHEDULE, stages=2, given=None, folder=None, source=None, **more):
    config = {
        "problem": "here",
        "network": {"width": 12, "depth": 2, "stages": stages},
        "points": {"interior": 40, "boundary": 2, "resample": 1, "test": 500},
        "train": {"schedule": schedule, "log": 1000},
        "monitor": False,
    }
    return Run(given or problem(), make_config(config | more), folder, source=source)


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
    run, seen = made(BRIEF), {}
    for step in run:
        seen[step.index] = step, run.trial(run.task.test_points).detach(), *parts(run)
    assert seen[7][0].method == "next_stage"
    assert "the next network trains" in seen[7][0].note
    torch.testing.assert_close(seen[7][1], seen[6][1], rtol=1e-15, atol=0)
    assert same(seen[6][3], parts(made(BRIEF))[1])
    assert same(seen[6][2], seen[13][2])
    assert not any(map(torch.equal, seen[7][3], seen[9][3]))
    assert [[p.grad is None for p in network.parameters()] for network in run.trial.network.networks] == [
        [True] * 6,
        [False] * 6,
    ]


def test_the_size_is_that_of_the_error():
    run = go(made())
    x = run.task.test_points
    error = float((run.trial(x) - sin(2 * pi * x)).detach().square().mean().sqrt())
    assert 0.3 * error < float(run.trial.network.sizes[1]) < 3 * error


def test_it_leaves_the_gradient_of_the_loss_by_what_trains_now():
    run = go(made())
    batch = run.task.batch(20)
    loss = sum(run.task.weights[name] * value for name, value in run.task.losses(run.trial, batch).items())
    parameters = [p for p in run.trial.parameters() if p.requires_grad]
    assert run.course.last.loss == pytest.approx(loss.item(), rel=1e-9)
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-6, atol=1e-6 * float(p.grad.abs().max()))


def test_a_second_network_goes_on_where_one_stalls():
    poisson = load_problem(find_problem("poisson", Path.cwd()))
    more = {"points": {"interior": 160, "boundary": 40, "resample": 1, "test": 500}}
    size, once = {"width": 20, "depth": 2}, [{**FIRST, "steps": 80}]
    twice = [{**FIRST, "steps": 40}, {"method": "next_stage"}, {**FIRST, "steps": 40}]
    errors = []
    for schedule, stages in ((once, 1), (twice, 2)):
        run = go(made(schedule, given=poisson, network={**size, "stages": stages}, **more))
        errors.append(run.task.error(run.trial)["overall"])
    assert errors[1] < errors[0] / 3, errors


@pytest.mark.parametrize("stop", [6, 7, 9])
def test_stopped_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended(stop, tmp_path):
    def run(folder):
        watch = {"every": 2, "readings": "full", "terms": 4}
        train = {"schedule": BRIEF, "log": 1, "checkpoint": stop}
        return made(BRIEF, folder=folder, train=train, monitor=watch, source=source)

    source = tmp_path / "poisson.py"
    source.write_text(SOURCE)
    whole = go(run(None))
    go(run(tmp_path / "run"), stop)
    resumed = go(Run.resume(tmp_path / "run"))
    assert resumed.course.last.index == whole.course.last.index == 13
    assert all(map(same, parts(whole), parts(resumed)))
    assert torch.equal(whole.trial.network.sizes, resumed.trial.network.sizes)
    assert resumed.monitor.read() == whole.monitor.read()
    assert resumed.health.state_dict() == whole.health.state_dict()


def test_the_monitor_watches_what_trains():
    run, seen = made(BRIEF, monitor={"every": 1}), {}
    for step in run:
        seen[step.index] = run.monitor.read().layers
    assert all(name.startswith("networks.0.") for name in seen[6])
    assert all(name.startswith("networks.1.") for name in seen[7])
    assert all(layer.gradient_norm > 0 for layer in seen[9].values())


def test_a_solution_that_was_saved_is_the_sum(tmp_path):
    solution = go(made(BRIEF)).finish()
    solution.save(tmp_path / "sum.pt")
    x = torch.linspace(0, 1, 9, dtype=torch.float64).numpy()
    found = Solution.load(tmp_path / "sum.pt")
    assert found.trial.network.stage == 1
    assert (found(x=x) == solution(x=x)).all()


def test_unknown_coefficients_go_on_training():
    line = Box(x=(0, 1))
    terms = {
        "poisson": Term(line.interior, lambda u, x, a: a * u.xx + pi**2 * sin(pi * x)),
        "ends": Term(line.boundary, lambda u: u),
        "middle": Term(line.interior, lambda u, x: u - sin(pi * x)),
    }
    run = made(BRIEF, given=Problem(line, unknowns="u", parameters={"a": Unknown(2.0)}, terms=terms))
    values = {step.index: run.trial.values()["a"] for step in run}
    assert values[6] == values[7] != values[13]


def test_in_single_precision_the_size_is_a_number_above_zero():
    size = go(made(BRIEF, precision="float32"), 7).trial.network.sizes[1]
    assert 0 < float(size) < 10


@pytest.mark.parametrize(("stages", "switches"), [(1, 1), (2, 2)])
def test_a_schedule_with_more_switches_than_networks_is_refused_before_training(stages, switches):
    schedule = [*[FIRST, {"method": "next_stage"}] * switches, FIRST]
    with pytest.raises(ValueError, match=rf"next_stage: expected {switches} more .*Set network: {{stages: {switches + 1}}}"):
        made(schedule, stages)


def test_it_has_no_step_size_that_could_decay():
    with pytest.raises(ValueError, match="no lr"):
        NextStage([]).scale(0.5)


def test_networks_of_other_kinds_have_no_stages():
    with pytest.raises(ConfigError, match="a network of kind features has no stages"):
        make_config({"problem": "poisson", "network": {"kind": "features", "stages": 2}})
