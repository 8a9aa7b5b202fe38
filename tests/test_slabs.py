"""Slabs of time: the function in pieces, the points of each, what is matched at t_k, and the run that marches through them."""

from math import pi

import numpy as np
import pytest
import torch
from torch import exp, nn, sin

from pinnsketch import Box, Data, Disk, Problem, Term, Unknown
from pinnsketch.collocation import Collocation
from pinnsketch.config import ConfigError, make_config
from pinnsketch.derivatives import Nested
from pinnsketch.estimate import estimated
from pinnsketch.features import Features
from pinnsketch.jets import Jets, Streams
from pinnsketch.marching import during, time_of
from pinnsketch.methods.wight2020_time_marching import NextSlab
from pinnsketch.network import MLP, build
from pinnsketch.problem import ProblemError
from pinnsketch.replay import replay
from pinnsketch.report.figures import gradients_figure
from pinnsketch.run import Run
from pinnsketch.slabs import Slabs, edges_of
from pinnsketch.solution import Solution
from pinnsketch.trial import Trial

F64 = torch.float64
SQUARE = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=F64)
FIRST = {"method": "natural_gradient", "steps": 4}
LEAST = {"method": "features", "steps": 20, "start": 40}
SOURCE = """
from math import pi
from torch import cos, sin
from pinnsketch import Box, Problem, Term

def problem():
    domain = Box(x=(0, 1), t=(0, 1))
    terms = {
        "wave": Term(domain.interior, lambda u: u.tt - u.xx),
        "ends": Term(domain.sides("x"), lambda u: u, weight=10),
        "start": Term(domain.start("t"), lambda u, x: u - sin(pi * x), weight=10),
        "speed": Term(domain.start("t"), lambda u, x: u.t - pi * sin(pi * x), weight=10),
    }
    return Problem(domain, "u", terms, exact=lambda x, t: sin(pi * x) * (cos(pi * t) + sin(pi * t)))
"""


def wave():
    names = {}
    exec(SOURCE, names)
    return names["problem"]()


def made(given=None, slabs=3, schedule=FIRST, folder=None, source=None, network=None, **more):
    config = {
        "problem": "here",
        "network": {"width": 8, "depth": 2, **(network or {}), "slabs": slabs},
        "points": {"interior": 60, "boundary": 12, "resample": 1, "test": 400},
        "train": {"schedule": schedule if isinstance(schedule, list) else [schedule], "log": 1000},
        "monitor": False,
    }
    return Run(given or wave(), make_config(config | more), folder, source=source)


def by_features(given=None, slabs=2, width=40, **more):
    network = {"kind": "features", "width": width, "depth": None}
    points = {"interior": 5 * width, "boundary": width, "test": 400}
    return made(given, slabs, LEAST | more, network=network, points=points)


def go(run, steps=10**6):
    for step in run:
        if step.index == steps:
            break
    return run


def drawn(count=3, **options):
    options = {"width": 6, "depth": 2, "slabs": count, **options}
    return build("mlp", options, SQUARE, ("x", "t"), 2, time="t", generator=torch.Generator().manual_seed(3))


def points(n=50):
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(1), dtype=F64)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def at(t, n=9):
    return torch.stack([torch.linspace(0.05, 0.95, n, dtype=F64), torch.full((n,), float(t), dtype=F64)], 1)


def jumps(network, order):
    """The largest differences between the networks before and after each t_k, of the derivative of an order in time."""
    found = []
    for k in range(1, len(network.networks)):
        x = at(network.edges[k])
        before, after = (Nested(net, x).derivative(0, (1,) * order) for net in network.networks[k - 1 : k + 1])
        found.append(float((before - after).detach().abs().max()))
    return max(found)


# --- the function ----------------------------------------------------------------------------------------------------------


def test_one_slab_is_the_plain_network_and_the_first_of_several_is_drawn_as_that_on_its_slab():
    plain = MLP(SQUARE, 2, width=6, depth=2, generator=torch.Generator().manual_seed(3))
    assert type(drawn(1)) is MLP
    assert same(drawn(1).parameters(), plain.parameters())
    first = drawn(4).networks[0]
    assert same(first.parameters(), plain.parameters())
    assert torch.equal(first(torch.tensor([[0.3, 0.25]], dtype=F64)), plain(torch.tensor([[0.3, 1.0]], dtype=F64)))


def test_each_point_goes_to_the_network_of_its_slab_and_an_edge_to_the_later_one():
    network = drawn((0.0, 0.2, 0.5, 1.0))
    network.begin(2)
    x = torch.tensor([[0.1, 0.0], [0.2, 0.5], [0.3, 0.49], [0.4, 1.0], [0.5, 0.2], [0.6, 0.1]], dtype=F64)
    numbers = [0, 2, 1, 2, 1, 0]
    assert network.place(x).tolist() == numbers
    expected = torch.cat([network.networks[k](x[i : i + 1]) for i, k in enumerate(numbers)])
    torch.testing.assert_close(network(x), expected, rtol=1e-14, atol=1e-14)


def test_before_its_slab_begins_the_solution_stays_as_it_is():
    network = drawn((0.0, 0.2, 0.5, 1.0))
    late, edge = at(0.7), at(0.2)
    torch.testing.assert_close(network(late), network.networks[0](edge), rtol=1e-14, atol=1e-14)
    streams = Streams.of([(1,), (0, 0)])
    both = torch.cat([late, at(0.1)])
    found, inside = Jets(network, both, streams), Nested(network.networks[0], edge)
    assert bool((found.derivative(0, (1,))[: len(late)] == 0).all())
    torch.testing.assert_close(found.derivative(0, (0, 0))[: len(late)], inside.derivative(0, (0, 0)))


@pytest.mark.parametrize("order", [(), (0,), (1,), (0, 0), (1, 1), (0, 1), (0, 0, 0)])
def test_derivatives_by_jets_are_those_of_each_network_at_its_own_points(order):
    network, x = drawn(), points()
    network.begin(2)
    streams = Streams.of([(1, 1), (0, 0, 0), (0, 1)])
    which = network.place(x)
    assert which.unique().tolist() == [0, 1, 2]
    found, nested = Jets(network, x, streams).derivative(1, order), Nested(network, x).derivative(1, order)
    for k, net in enumerate(network.networks):
        own = which == k
        torch.testing.assert_close(found[own], Nested(net, x[own]).derivative(1, order), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, nested, rtol=1e-10, atol=1e-12)


def test_the_network_of_the_present_slab_alone_trains():
    network = drawn()
    for slab in range(3):
        network.begin(slab)
        assert network.acting is network.networks[slab]
        assert [all(p.requires_grad for p in net.parameters()) for net in network.networks] == [k == slab for k in range(3)]


def test_edges_are_even_or_as_given():
    assert edges_of(4, 0.0, 2.0) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert edges_of((0, 0.5, 2), 0.0, 2.0) == [0.0, 0.5, 2.0]
    for wrong in ((0.1, 1.0), (0.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.0, 0.7, 0.3, 1.0)):
        with pytest.raises(ValueError, match=r"network.slabs: expected edges that rise from 0 to 1.*\[0, 0.5, 1\]; got"):
            edges_of(wrong, 0.0, 1.0)


# --- the points and what is matched ----------------------------------------------------------------------------------------


def test_time_is_what_a_start_names():
    domain = Box(x=(0, 1), s=(0, 1))
    start, other = Term(domain.start("s"), lambda u: u), Term(domain.side(x=0), lambda u: u)
    assert time_of(Problem(domain, "u", {"start": start, "other": other})) == "s"
    assert time_of(Problem(domain, "u", {"other": other})) is None
    domain = Box(x=(0, 1), t=(0, 1))
    assert time_of(Problem(domain, "u", {"start": Term(domain.side(t=0), lambda u: u)})) == "t"


def test_points_lie_in_the_present_slab_and_the_start_is_where_that_begins():
    network = drawn((0.0, 0.2, 0.5, 1.0))
    task = Collocation(wave(), interior=100, boundary=20, slabs=network)
    for slab, (low, high) in enumerate([(0.0, 0.2), (0.2, 0.5), (0.5, 1.0)]):
        network.begin(slab)
        for draw in (0, 1):
            for block in task.batch(draw):
                t = block.x[:, 1]
                assert bool((t >= low).all())
                assert bool((t <= high).all())
                assert bool((t == low).all()) == ("start" in block.terms)
                assert float(t.max() - t.min()) > 0.8 * (high - low) or "start" in block.terms


def test_conditions_on_a_region_hold_in_each_slab():
    domain = Box(x=(0, 1), t=(0, 1))
    late = domain.sides("x").where(lambda x, t: (t > 0.3) | (x < 0.5))
    terms = {"equation": Term(domain.interior, lambda u: u.t), "start": Term(domain.start("t"), lambda u: u)}
    network = drawn(2)
    task = Collocation(Problem(domain, "u", {**terms, "late": Term(late, lambda u: u)}), slabs=network)
    (block,) = [block for block in task.batch() if "late" in block.terms]
    x, t = block.x.T
    assert bool((t < 0.5).all())
    assert bool(((t > 0.3) | (x < 0.5)).all())


def test_a_shape_in_space_through_time_is_cut_as_a_box_is():
    domain = (Disk() * Box(t=(0, 2))) - (Disk(radius=0.5) * Box(t=(0, 2)))
    for region, fixed in ((domain.interior, None), (domain.start("t"), 0.5), (domain.sides("x", "y"), None)):
        part = during(region, "t", 0.5, 0.75)
        assert part.shape.bounds[2].tolist() == [0.5, 0.75]
        assert part.at == fixed
        assert part.shape.bounds[:2].tolist() == domain.bounds[:2].tolist()


@pytest.mark.parametrize("resample", [0, 1])
def test_what_is_matched_is_the_start_of_the_slab_before_value_and_speed(resample):
    network = build("mlp", {"width": 6, "depth": 2, "slabs": 3}, SQUARE, ("x", "t"), 1, time="t")
    network.begin(1)
    problem, task = wave(), Collocation(wave(), interior=20, boundary=8, slabs=network)
    batch = task.batch(resample)
    found = task.residuals(Trial(network), batch)
    block = next(block for block in batch if "start" in block.terms)
    now, before = (Nested(net, block.x) for net in (network.networks[1], network.networks[0]))
    torch.testing.assert_close(found["start"], now.derivative(0, ()) - before.derivative(0, ()))
    torch.testing.assert_close(found["speed"], now.derivative(0, (1,)) - before.derivative(0, (1,)))
    inside = Nested(network.networks[1], batch[0].x)
    torch.testing.assert_close(found["wave"], inside.derivative(0, (1, 1)) - inside.derivative(0, (0, 0)))
    assert problem.terms.keys() == found.keys()
    pieces = [piece for block in batch for piece in (block.piece(0, 5), block.piece(5, len(block.x)))]
    whole = sum(task.losses(Trial(network), (piece,)).get("speed", 0.0) for piece in pieces)
    torch.testing.assert_close(whole, found["speed"].square().mean())


def test_what_is_matched_need_not_be_linear():
    domain = Box(x=(0, 1), t=(0, 1))
    terms = {
        "decay": Term(domain.interior, lambda u: u.t + u),
        "start": Term(domain.start("t"), lambda u, x: exp(u / 2) - exp(1 + sin(pi * x) / 2)),
    }
    problem = Problem(domain, "u", terms, exact=lambda x, t: (2 + sin(pi * x)) * exp(-t))
    run = go(by_features(problem, width=60, steps=60))
    assert run.task.error(run.trial)["overall"] < 1e-7


# --- the run ---------------------------------------------------------------------------------------------------------------


def test_slabs_follow_one_another_and_what_is_done_stays():
    run, seen = made(), {}
    for step in run:
        seen[step.index] = step, [[p.detach().clone() for p in net.parameters()] for net in run.trial.network.networks]
    assert [step.method for step, _ in seen.values()] == [*["natural_gradient"] * 4, "next_slab"] * 2 + ["natural_gradient"] * 4
    assert seen[14][0].last
    assert "the next slab trains" in seen[5][0].note
    assert same(seen[4][1][0], seen[14][1][0])
    assert same(seen[9][1][1], seen[14][1][1])
    assert same(seen[5][1][1], seen[4][1][0])  # it begins with the weights of the one before
    assert not same(seen[5][1][1], seen[6][1][1])


def test_one_slab_is_a_run_without_slabs():
    one, plain = go(made(slabs=1)), go(made(network={}, slabs=1))
    assert type(one.trial.network) is MLP
    assert same(one.trial.parameters(), plain.trial.parameters())
    assert one.course.total == 4


def test_each_slab_can_have_stages():
    two = [{**FIRST, "steps": 2}, {"method": "next_stage"}, {**FIRST, "steps": 2}]
    run, seen = made(slabs=2, schedule=two, network={"stages": 2}), {}
    for step in run:
        trained = {name[:20] for name, p in run.trial.network.named_parameters() if p.requires_grad}
        seen[step.index] = [part.stage for part in run.trial.network.networks], trained
    assert [step for step, (_, trained) in seen.items() if len(trained) != 1] == []
    parts = [[f"networks.{slab}.networks.{k}"[:20] for k in range(2)] for slab in range(2)]
    assert [seen[k] for k in (2, 3, 5)] == [([0, 0], {parts[0][0]}), ([1, 0], {parts[0][1]}), ([1, 0], {parts[0][1]})]
    assert [seen[k] for k in (6, 9, 11)] == [([1, 0], {parts[1][0]}), ([1, 1], {parts[1][1]}), ([1, 1], {parts[1][1]})]
    with pytest.raises(ValueError, match=r"next_stage: expected 1 more network to go on with; got 1 in all"):
        made(slabs=2, schedule=two)


def test_a_schedule_that_says_when_is_left_as_it_is():
    own = [{**FIRST, "steps": 3}, {"method": "next_slab"}, {**FIRST, "steps": 2}]
    assert go(made(slabs=2, schedule=own)).course.last.index == 6
    with pytest.raises(ValueError, match=r"next_slab: expected 1 more slab to go on with; got 1 in all.*slabs: 2"):
        made(slabs=1, schedule=own)


def test_at_the_ends_of_slabs_u_and_its_slope_go_on():
    run = go(by_features(width=100))
    assert run.trial.network.slab == 1
    assert run.task.error(run.trial)["overall"] < 1e-7
    assert jumps(run.trial.network, 0) < 1e-7
    assert jumps(run.trial.network, 1) < 1e-6
    assert jumps(run.trial.network, 3) > jumps(run.trial.network, 1)


def test_features_begin_with_what_was_found_before_and_where_that_ends():
    run = by_features()
    for step in run:
        if step.method == "next_slab":
            network = run.trial.network
            before, after = network.networks[network.slab - 1 : network.slab + 1]
            assert torch.equal(before.radius, after.radius)
            assert after.used == before.used > 0
            end = before(at(network.edges[network.slab]))
            for t in network.interval:
                torch.testing.assert_close(after(at(t)), end, rtol=1e-3, atol=1e-3)


def test_a_front_that_features_cannot_hold_at_once_they_march_through():
    domain = Box(x=(0, 1), t=(0, 1))

    def exact(x, t):
        return 1 / (1 + exp(4 * sin(pi * x) - 10 * t))

    terms = {
        "reaction": Term(domain.interior, lambda u: u.t - 10 * u * (1 - u)),
        "start": Term(domain.start("t"), lambda u, x: u - exact(x, 0 * x), weight=10),
    }
    problem = Problem(domain, "u", terms, exact=exact)
    runs = [go(by_features(problem, slabs)) for slabs in (1, 4)]
    errors = [run.task.error(run.trial)["overall"] for run in runs]
    assert errors[1] < errors[0] / 10, errors


TWO = [{**FIRST, "steps": 1}, {"method": "next_stage"}, {**FIRST, "steps": 2}]


@pytest.mark.parametrize(
    ("network", "schedule", "stop"),
    [
        ({"width": 20, "depth": 2}, [FIRST], 12),
        ({"width": 20, "depth": 2, "stages": 2}, TWO, 8),
        ({"width": 20, "depth": 2, "stages": 2}, TWO, 6),
        ({"kind": "features", "width": 20, "depth": None}, [{"method": "features", "steps": 4, "start": 20}], 5),
    ],
    ids=["a network", "its second stage", "its first", "features"],
)
def test_stopped_in_a_slab_and_resumed_it_ends_bit_for_bit_where_it_would_have_ended(network, schedule, stop, tmp_path):
    def run(folder):
        train = {"schedule": schedule, "log": 1, "checkpoint": stop}
        watch = {"every": 2, "readings": "full", "terms": 4}
        points = {"interior": 60, "boundary": 12, "resample": 2}
        return made(folder=folder, source=source, train=train, network=network, monitor=watch, points=points)

    source = tmp_path / "waves.py"
    source.write_text(SOURCE)
    whole = go(run(None))
    go(run(tmp_path / "run"), stop)
    resumed = Run.resume(tmp_path / "run")
    assert resumed.trial.network.slab == stop // 5
    go(resumed)
    assert resumed.course.last.index == whole.course.last.index
    assert same(resumed.trial.parameters(), whole.trial.parameters())
    assert resumed.monitor.read() == whole.monitor.read()
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_the_monitor_watches_what_trains():
    run, seen = made(monitor={"every": 1, "terms": 2}, train={"schedule": [FIRST], "log": 1}), {}
    for step in run:
        seen[step.index] = run.monitor.read().layers
    for index, slab in ((4, 0), (7, 1), (13, 2)):
        assert all(name.startswith(f"networks.{slab}.") for name in seen[index])
        assert all(layer.gradient_norm > 0 for layer in seen[index].values())
    drawn = {}
    for line in gradients_figure(run.finish()).axes[0].lines:
        if not line.get_label().startswith("_"):
            drawn[line.get_label()] = line.get_xdata()[~np.isnan(line.get_ydata())].tolist()
    assert len(drawn) == 9
    for name, steps in drawn.items():
        slab = int(name.split(".")[1])
        assert set(steps) <= set(range(5 * slab, 5 * slab + 6))
        assert steps


@pytest.mark.parametrize("method", ["adam", "lbfgs", "dsgnar", "ssbroyden", "spring"])
def test_any_method_marches_and_leaves_the_gradient_of_its_loss(method):
    run = made(slabs=2, schedule={"method": method, "steps": 3}, points={"interior": 60, "boundary": 12})
    for step in run:
        if step.index == 4:
            after = run.trial.acting
            batch = run.task.batch()
            loss = sum(run.task.weights[name] * value for name, value in run.task.losses(after, batch).items())
            given = [p for p in run.trial.parameters() if p.requires_grad]
            for p, g in zip(given, torch.autograd.grad(loss, given), strict=True):
                torch.testing.assert_close(p.grad, g)
            start = float(loss.detach())
    assert step.index == 7
    found = run.task.losses(run.trial, run.task.batch())
    assert sum(run.task.weights[name] * value.item() for name, value in found.items()) < start


def test_a_solution_that_was_saved_has_its_slabs(tmp_path):
    for slabs in (2, [0, 0.2, 1]):
        solution = go(made(slabs=slabs, schedule={**FIRST, "steps": 1})).finish()
        solution.save(tmp_path / "slabs.pt")
        found, t = Solution.load(tmp_path / "slabs.pt"), torch.linspace(0, 1, 13, dtype=F64).numpy()
        assert isinstance(found.trial.network, Slabs)
        assert found.trial.network.slab == len(found.trial.network.networks) - 1
        assert (found(x=0.3, t=t) == solution(x=0.3, t=t)).all()
    assert solution.plot() is not None


# --- the estimate ----------------------------------------------------------------------------------------------------------


def test_the_estimate_sees_jumps_which_no_residual_sees():
    run = go(by_features())
    with torch.no_grad():
        run.trial.network.networks[1].output.bias.add_(1e-3)
    estimate, error = estimated(run.trial, run.task), run.task.error(run.trial)["overall"]
    assert error > 1e-4
    assert estimate["correction"] == pytest.approx(error, rel=0.2)


def test_the_estimate_knows_jumps_of_equations_of_second_order_in_time():
    run = go(by_features(width=80))
    found, error = estimated(run.trial, run.task), run.task.error(run.trial)["overall"]
    assert 0.2 * error < found["correction"] < 5 * error
    assert error < found["limit"] < 100 * error
    network, plain = run.trial.network, run.trial.network.networks[1]
    for edge in (None, 0.5):
        network.networks[1] = Moved(plain, edge)
        network.begin(1)
        error, found = run.task.error(run.trial)["overall"], estimated(run.trial, run.task)
        assert error > 1e-4
        assert found["correction"] == pytest.approx(error, rel=0.05)
        assert error < found["limit"] < 2 * error


class Moved(nn.Module):
    """A network and 1e-3 sin(pi x), by which it jumps, or 1e-3 sin(pi x) (t - edge), by whose speed it does."""

    def __init__(self, network, edge):
        super().__init__()
        self.network, self.edge = network, edge

    def forward(self, x):
        more = 1e-3 * torch.sin(pi * x[:, :1])
        return self.network(x) + (more if self.edge is None else more * (x[:, 1:] - self.edge))


def test_while_slabs_have_not_begun_there_is_no_estimate():
    run = made()
    assert estimated(run.trial, run.task)["why"] == "1 of 3 slabs of time have begun: there is no solution yet"


# --- what is refused -------------------------------------------------------------------------------------------------------


def test_a_problem_without_time_has_no_slabs():
    line = Box(x=(0, 1))
    terms = {"poisson": Term(line.interior, lambda u: u.xx), "ends": Term(line.boundary, lambda u: u)}
    with pytest.raises(ValueError, match=r"expected a problem in time, with a term at domain.start.*Leave slabs out"):
        made(Problem(line, "u", terms))


def test_what_needs_all_times_at_once_is_refused():
    domain = Box(x=(0, 1), t=(0, 1))
    terms = {"equation": Term(domain.interior, lambda u: u.t), "start": Term(domain.start("t"), lambda u: u)}

    def refused(words, more, **given):
        with pytest.raises(ProblemError, match=words):
            made(Problem(domain, "u", terms | more, **given))

    refused("term 'end' is put on end.t., which has the end of t in it", {"end": Term(domain.end("t"), lambda u: u)})
    refused("term 'edge' is put on boundary, which has the end", {"edge": Term(domain.boundary, lambda u: u)})
    data = Data({"x": [0.5], "t": [0.5], "seen": [1.0]})
    refused("term 'data' is put on data", {"data": Term(data, lambda u, seen: u - seen)})
    growth = {"growth": Term(domain.interior, lambda u, a: u.t - a * u)}
    refused("the coefficient 'a' is unknown", growth, parameters={"a": Unknown(1.0)})


def test_a_domain_that_changes_with_time_is_refused():
    domain = Box(x=(0, 1), t=(0, 1)) - Box(x=(0.5, 2), t=(0.5, 2))
    terms = {"equation": Term(domain.interior, lambda u: u.t), "start": Term(domain.start("t"), lambda u: u)}
    with pytest.raises(ProblemError, match="expected a domain that is the same at all times"):
        made(Problem(domain, "u", terms))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many", [], [0.5], ["a", "b"]])
def test_slabs_are_a_number_or_edges(wrong):
    with pytest.raises(ConfigError, match=r"network.slabs: expected a whole number"):
        make_config({"problem": "wave", "network": {"slabs": wrong}})


def test_it_has_no_step_size_that_could_decay():
    with pytest.raises(ValueError, match="no lr"):
        NextSlab([]).scale(0.5)


def test_features_are_used_up_to_the_last_with_a_weight():
    network = Features(SQUARE, width=12, patches=2)
    assert network.used == 0
    nn.init.ones_(network.output.bias)
    assert network.used == 0
    network.output.weight.data[0, 5] = 1.0
    assert network.used == 8


@pytest.mark.usefixtures("numbers_only")
def test_a_step_that_is_not_finite_is_explained_and_repeated_in_its_slab(tmp_path):
    source = tmp_path / "waves.py"
    source.write_text(SOURCE)
    run = made(folder=tmp_path / "run", source=source, schedule={"method": "adam", "steps": 4})
    for step in run:
        if step.index == 7:
            run.trial.network.acting.layers[1].weight.data[2, 3] = torch.nan
    run.finish()
    assert step.index == 8
    assert not step.finite
    assert run.origin.place.layer.startswith("networks.1.layers.1")
    assert replay(tmp_path / "run").place == run.origin.place


def test_a_slab_is_not_judged_beside_the_losses_of_those_before_nor_a_solve_by_its_losses_at_all():
    run, first = made(None, 3, monitor={"every": 1}), {}
    for step in run:
        first.setdefault(run.trial.network.slab, step.losses)
        assert run.course.health.state_dict()["first"] == first[run.trial.network.slab]
    assert len(first) == 3
    network, points = {"kind": "features", "width": 40, "depth": None}, {"interior": 200, "boundary": 40, "test": 400}
    solved = go(made(None, 4, LEAST, network=network, points=points, monitor={"every": 1}))
    assert solved.course.health, solved.course.health.findings


def test_features_in_the_next_slab_begin_where_the_last_ones_ended_beside_a_lift_too():
    box = Box(x=(0, 1), t=(0, 1))
    terms = {
        "decay": Term(box.interior, lambda u, x: u.t + u - x.sin()),
        "start": Term(box.start("t"), lambda u, x: u - 3 * x),
    }
    problem = Problem(box, "u", terms, lift={"u": lambda x, t: 5 * (x * t).exp()})
    config = {
        "problem": "decay.py",
        "network": {"kind": "features", "width": 60, "slabs": 2},
        "points": {"interior": 200, "boundary": 40},
        "train": {"method": "features"},
        "monitor": False,
    }
    run = Run(problem, make_config(config))
    next(step for step in run if step.method == "next_slab")
    x = torch.cartesian_prod(torch.linspace(0, 1, 9, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
    with torch.no_grad():
        before, after = (network(x) for network in run.trial.network.networks)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
