"""The black box and replay: the operation, place, line and point where numbers stop being finite are the planted ones."""

import json
import math
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from command import pinnsketch
from torch import nn

from pinnsketch import checkpoint
from pinnsketch.blackbox import NAME, Box, Recorder
from pinnsketch.checkpoint import CheckpointError
from pinnsketch.config import make_config
from pinnsketch.library import load_problem
from pinnsketch.replay import replay
from pinnsketch.run import Run, RunError

ROOT = Path(__file__).parents[1]
PROBLEM = """from torch import exp, log, nan, sqrt, where
from pinnsketch import Box, Data, Problem, Term, Unknown, diff

def flow({needs}):
    moved = u.x - 1
    return {residual}

def problem():
    domain = Box(x=(-1, 1))
    table = Data({{"x": [-0.5, 0.0, 0.5], "seen": [1.0, 2.0, 3.0]}})
    return Problem(
        domain, "u",
        {{"walls": Term(domain.boundary, lambda u: u), "flow": Term({where}, flow)}},
        parameters={{{parameters}}},
    )
"""
LINE = 6
CONFIG = {
    "problem": "p.py",
    "device": "cpu",
    "network": {"width": 10, "depth": 2},
    "points": {"interior": 11, "boundary": 2, "sampler": "grid", "test": 20},
    "train": {"method": "adam", "steps": 6},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, numbers_only):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def write(residual, needs="u, x", where="domain.interior", parameters=""):
    text = PROBLEM.format(residual=residual, needs=needs, where=where, parameters=parameters)
    assert residual in text.splitlines()[LINE - 1]
    Path("p.py").write_text(text)


def train(disturb=lambda run: None, at=3, folder="r", module=None, **config):
    """The run of p.py whose parameters are disturbed after a step, finished."""
    path = Path("p.py").absolute()
    settings = make_config({**CONFIG, **config}, "a test")
    run = Run(load_problem(path), settings, folder and Path(folder), network=module, source=path, overwrite=True)
    for step in run:
        if step.index == at:
            with torch.no_grad():
                disturb(run)
    run.finish()
    return run


def odd_about(value):
    """Make u = value + an odd function of x, so that it crosses the value exactly at x = 0."""

    def disturb(run):
        for layer in run.trial.network.layers:
            layer.bias.zero_()
        run.trial.network.layers[-1].bias.fill_(value)

    return disturb


def constant(value):
    """Make u the same everywhere."""

    def disturb(run):
        run.trial.network.layers[-1].weight.zero_()
        run.trial.network.layers[-1].bias.fill_(value)

    return disturb


def coefficient(value):
    return lambda run: run.trial.raw["nu"].fill_(value)


def replayed(run):
    """What a replay from the folder finds; the run found the same when it ended."""
    assert run.outcome == "non-finite"
    assert run.trouble is None
    found = replay("r")
    assert found.place.file in (None, str(Path("r/problem.py").absolute()))
    renamed = replace(found.place, file=found.place.file and str(Path("p.py").absolute()))
    assert repr(replace(found, place=renamed)) == repr(run.origin)
    return found


def test_a_division_where_the_unknown_crosses_zero_is_found_at_that_point():
    write("moved / (u - 2)")
    found = replayed(train(odd_about(2.0)))
    assert (found.step, found.method, found.operation) == (4, "adam", "div")
    assert (found.place.phase, found.place.term, found.place.line) == ("residual", "flow", LINE)
    assert (found.bad, found.entries, found.point) == (1, 11, {"x": 0.0})
    assert found.values[1] == 0
    assert math.isinf(found.result)
    assert found.terms == ("flow",)
    assert found.code == "return moved / (u - 2)"
    assert found.advice == "Keep the denominator away from zero, or multiply the equation by it: it is zero at x=0."
    assert found.inputs[1].startswith("(11, 1) from -")
    place = "the residual of term 'flow' (problem.py, line 6)"
    assert f"in {place}, div gives 1 of 11 numbers not finite, first at x=0." in str(found)


@pytest.mark.parametrize("precision", ["float64", "float32", "mixed"])
@pytest.mark.parametrize("function", ["log", "sqrt"])
def test_a_function_outside_its_range_is_found_with_what_it_was_given(function, precision):
    write(f"{function}(u + 3) + moved")
    found = replayed(train(odd_about(-3.0), precision=precision))
    assert (found.operation, found.place.phase, found.place.line) == (function, "residual", LINE)
    assert found.bad in (5, 6)  # half of the points, and log at x = 0
    assert found.values[0] <= 0
    assert f"{function} needs numbers that are positive" in found.advice
    assert f"is given {found.values[0]:.3g} at x=" in found.advice


@pytest.mark.parametrize(("precision", "value", "limit"), [("float64", 800, "2e+308"), ("float32", 100, "3e+38")])
def test_an_exponential_that_overflows_is_found_and_says_what_fits(precision, value, limit):
    write("exp(u) + moved")
    found = replayed(train(constant(value), precision=precision))
    assert (found.operation, found.values, found.result) == ("exp", (value,), math.inf)
    assert found.place.line == LINE
    assert f"stay below {limit}" in found.advice
    assert ("float64" in found.advice) == (precision == "float32")


def test_a_data_column_that_is_not_finite_is_named():
    write("u - seen", needs="u, seen", where="table")

    def spoil(run):
        *others, block = run.task.batch()
        column = block.columns["seen"].clone()
        column[1] = math.nan
        spoiled = (*others, replace(block, columns={"seen": column}))
        run.task.batch = lambda draw=0: spoiled

    found = replayed(train(spoil, points={"boundary": 2, "resample": 4, "test": 20}))
    assert (found.place.phase, found.place.term, found.operation) == ("data", "flow", None)
    assert (found.inputs, found.point, found.bad) == (("column seen",), {"x": 0.0}, 1)
    assert str(found.place) == "what the residual of term 'flow' is given"
    assert found.sentence == f"in {found.place}, column seen: 1 of 3 numbers not finite, first at x=0."
    assert found.advice == "Correct column seen: it must be finite at x=0."


def test_a_number_of_the_problem_file_that_is_not_finite_is_found_at_its_line():
    write("moved - (nan if float(u.value.detach().mean()) > 1 else 0)")
    found = replayed(train(constant(2.0)))
    assert (found.place.phase, found.place.line, found.operation) == ("data", LINE, None)
    assert found.advice.startswith("Correct that line")


def test_a_root_at_zero_has_a_finite_loss_and_is_found_in_its_reverse_pass():
    write("sqrt((u - 2)**2) + 0 * moved")
    run = train(constant(2.0))
    found = replayed(run)
    assert math.isfinite(run.metrics()["loss"])
    assert (found.operation, found.place.phase, found.place.of) == ("div", "reverse", "sqrt")
    assert (found.place.term, found.place.line, found.terms) == ("flow", LINE, ("flow",))
    assert found.values == (0.0, 0.0)
    assert math.isnan(found.result)
    assert (found.bad, found.entries) == (11, 11)
    assert found.point["x"] == Box.load(Path("r")).batch[1].x.min()
    assert "sqrt(a + 1e-12)" in found.advice
    assert "in the reverse pass of sqrt, for the residual of term 'flow' (problem.py, line 6)" in found.sentence


def test_a_fractional_power_at_zero_is_found_in_its_reverse_pass():
    write("((u - 2)**2)**0.5 + 0 * moved")
    found = replayed(train(constant(2.0)))
    assert (found.operation, found.place.phase, found.place.of, found.place.line) == ("pow", "reverse", "pow", LINE)
    assert "1e-12" in found.advice


def test_a_value_that_where_leaves_out_is_not_blamed_but_its_slope_is():
    write("where(u > 0, log(u), 0 * u) + moved")
    found = replayed(train(constant(0.0)))
    assert (found.operation, found.place.phase, found.place.of, found.place.line) == ("div", "reverse", "log", LINE)
    assert "torch.where hides values, not slopes" in found.advice


def test_an_operation_before_that_goes_no_further_is_not_blamed():
    write("where(u > 0, log(u.value.detach()), 0 * u) + moved / (u - u.value.detach() + x - x + u - 2)")
    found = replayed(train(odd_about(2.0)))
    assert (found.operation, found.point, found.bad) == ("div", {"x": 0.0}, 1)


@pytest.mark.parametrize(("precision", "lr"), [("float32", 1e6), ("float64", 1e60)])
def test_parameters_blown_up_by_the_step_size_are_named_with_their_size_before(precision, lr):
    write("u.xx - u")
    steps = {"method": "adam", "steps": 6, "lr": lr}
    found = replayed(train(precision=precision, train=steps, network={"width": 10, "depth": 2, "activation": "sin"}))
    assert found.step == 2
    assert found.largest == pytest.approx(lr, rel=1e-2)
    assert found.before < 5
    assert found.place.phase in ("forward", "residual", "loss")
    assert "flow" in found.terms
    assert found.advice.endswith("one step before): lower train.lr.")
    assert f"layer {found.layer} has parameters up to {lr:.2g}" in found.advice


@pytest.mark.parametrize("layer", [0, 1])
def test_an_overflow_inside_the_network_is_found_in_its_layer(layer):
    write("u.xx - u")

    def disturb(run):
        run.trial.network.layers[layer].weight.fill_(1e200 if layer else 1e160)

    found = replayed(train(disturb, network={"width": 10, "depth": 2, "activation": "sin"}))
    assert (found.place.phase, found.place.layer) == ("forward", "layers.1" if layer else "layers.0")
    assert f"the forward pass of layer {found.place.layer}, for the residual of term 'flow'" in found.sentence
    assert (found.point is None) == (layer == 0)  # the derivatives that enter the first layer are the same at all points
    assert "lower train.lr" in found.advice


def test_parameters_that_are_not_finite_are_named_first():
    write("u.xx - u")

    def disturb(run):
        run.trial.network.layers[1].weight[2, 3] = math.inf

    found = replayed(train(disturb))
    assert (found.place.phase, found.place.layer, found.bad, found.entries) == ("parameters", "layers.1", 1, 100)
    assert found.sentence.startswith("in the parameters of layer layers.1")
    assert "lower train.lr" in found.advice


def test_an_unknown_coefficient_driven_to_overflow_is_named():
    write("moved - nu * u", needs="u, x, nu", parameters='"nu": Unknown(1.0, positive=True)')
    found = replayed(train(coefficient(800.0)))
    assert (found.operation, found.place.phase, found.place.layer) == ("exp", "coefficient", "nu")
    assert found.inputs == ("coefficient nu 800",)
    assert found.layer == "coefficient nu"
    assert "in the unknown coefficient nu, exp gives 1 of 1 numbers not finite" in found.sentence


def test_an_unknown_coefficient_that_is_too_large_is_named_where_it_is_used():
    write("moved - 1e10 * (nu * nu) * u", needs="u, x, nu", parameters='"nu": Unknown(1.0)')
    found = replayed(train(coefficient(1e200)))
    assert (found.operation, found.place.phase, found.place.line) == ("mul", "residual", LINE)
    assert found.inputs == ("coefficient nu 1e+200", "coefficient nu 1e+200")
    assert "coefficient nu has parameters up to 1e+200 (1 one step before)" in found.advice


def test_a_loss_that_overflows_is_found_in_the_loss_of_its_term():
    write("1e200 * u + moved")
    found = replayed(train(constant(1.0)))
    assert (found.operation, found.place.phase, found.place.term) == ("pow", "loss", "flow")
    assert found.point is not None


def test_a_derivative_of_an_expression_is_found_at_its_line():
    write("diff(sqrt((u - 2)**2), x) + moved")
    found = replayed(train(odd_about(2.0)))
    assert (found.operation, found.place.phase, found.place.line) == ("div", "residual", LINE)
    assert (found.point, found.bad) == ({"x": 0.0}, 1)


def test_the_first_evaluation_of_lbfgs_is_replayed():
    write("log(u + 3) + moved")
    schedule = {"schedule": [{"method": "adam", "steps": 3}, {"method": "lbfgs", "steps": 3}]}
    found = replayed(train(odd_about(-3.0), train=schedule))
    assert (found.step, found.method, found.operation) == (4, "lbfgs", "log")


def test_in_pieces_the_point_is_that_of_the_piece():
    write("moved / (u - 2)")
    points = {**CONFIG["points"], "chunk": 3}
    found = replayed(train(odd_about(2.0), points=points))
    assert (found.point, found.bad, found.operation) == ({"x": 0.0}, 1, "div")
    assert found.entries < 11


def test_the_points_of_a_later_draw_are_in_the_box():
    write("log(u + 3) + moved")
    points = {"interior": 11, "boundary": 2, "resample": 2, "test": 20}
    run = train(odd_about(-3.0), points=points)
    box = Box.load(Path("r"))
    assert (box.step, box.draw) == (4, 1)
    assert all(torch.equal(mine.x, theirs.x) for mine, theirs in zip(box.batch, run.task.batch(1), strict=True))
    assert not torch.equal(box.batch[1].x, run.task.batch(0)[1].x)
    assert replayed(run).point["x"] in box.batch[1].x.flatten().tolist()


def test_a_network_of_nested_derivatives_is_followed_too():
    write("u.xx + log(u + 3)")
    network = nn.Sequential(nn.Linear(1, 5), nn.ELU(), nn.Linear(5, 1)).double()

    def disturb(run):
        run.trial.network[0].weight.fill_(1e200)
        run.trial.network[2].weight.fill_(1e200)

    run = train(disturb, module=network, monitor=False)
    assert run.outcome == "non-finite"
    assert run.origin.place.phase == "forward"
    assert (run.origin.place.layer, run.origin.operation, run.origin.largest) == ("2", "addmm", 1e200)


def test_the_box_holds_the_step_as_it_was():
    write("moved / (u - 2)")
    run = train(odd_about(2.0))
    box = Box.load(Path("r"))
    assert (box.step, box.method, box.draw, box.described, box.device) == (4, "adam", 0, True, "cpu")
    assert not math.isfinite(box.loss)
    assert not math.isfinite(box.losses["flow"])
    assert math.isfinite(box.losses["walls"])
    assert all(torch.equal(box.trial[name], value) for name, value in run.trial.state_dict().items())
    assert box.gradient["network.layers.0.weight"] == 10
    assert [block.terms for block in box.batch] == [("walls",), ("flow",)]
    assert box.before.keys() == dict(run.trial.named_parameters()).keys()


def test_the_parameters_one_step_before_are_those():
    write("u.xx - u")
    seen = []
    steps = {"method": "adam", "steps": 6, "lr": 1e60}
    path = Path("p.py").absolute()
    config = make_config({**CONFIG, "train": steps, "network": {"width": 10, "activation": "sin"}}, "a test")
    run = Run(load_problem(path), config, Path("r"), source=path)
    seen.append({name: p.detach().clone() for name, p in run.trial.named_parameters()})
    for _ in run:
        seen.append({name: p.detach().clone() for name, p in run.trial.named_parameters()})
    run.finish()
    before = Box.load(Path("r")).before
    assert run.outcome == "non-finite"
    assert all(torch.equal(before[name], p) for name, p in seen[-3].items())


def test_keeping_the_parameters_before_copies_them_in_place_and_nothing_else():
    write("moved")
    run = train(folder=None)
    recorder = Recorder(run.trial)
    assert recorder.before is None
    places = {p.data_ptr() for p in (*recorder._older, *recorder._newer)}
    for _ in range(5):
        recorder.keep()
    assert {p.data_ptr() for p in (*recorder._older, *recorder._newer)} == places


def test_the_black_box_does_not_change_training(monkeypatch):
    write("moved + u**2")
    schedule = {"schedule": [{"method": "adam", "steps": 5}, {"method": "lbfgs", "steps": 5}]}
    kept = train(train=schedule)
    monkeypatch.setattr(Recorder, "keep", lambda self: None)
    bare = train(train=schedule)
    assert all(torch.equal(a, b) for a, b in zip(kept.trial.parameters(), bare.trial.parameters(), strict=True))
    assert [row["loss"] for row in kept.history] == [row["loss"] for row in bare.history]
    assert not Path("r", NAME).exists()


def test_the_trace_leaves_parameters_gradients_and_network_as_they_were():
    write("moved / (u - 2)")
    run = train(odd_about(2.0))
    before = [(p.detach().clone(), p.grad.clone()) for p in run.trial.parameters()]
    run.trace(run.task.batch())
    for p, (value, gradient) in zip(run.trial.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad.isfinite(), gradient.isfinite())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.trial.modules())


def test_a_step_that_is_finite_when_repeated_is_said_to_be():
    write("moved / (u - 2)")
    train(odd_about(2.0))
    text = Path("r/problem.py").read_text()
    Path("r/problem.py").write_text(text.replace("moved / (u - 2)", "moved * (u - 2)"))
    found = replay("r")
    assert not found.found
    assert str(found).startswith("Step 4 (adam), one operation at a time: everything is finite.")
    assert "on a GPU" in found.advice
    assert pinnsketch("replay", "r").code == 0


def test_an_explanation_that_fails_takes_nothing_along(monkeypatch):
    write("moved / (u - 2)")
    with monkeypatch.context() as broken:
        broken.setattr("pinnsketch.run.trace", None)
        run = train(odd_about(2.0))
    assert (run.outcome, run.origin) == ("non-finite", None)
    assert Path("r/metrics.json").is_file()
    assert replay("r").operation == "div"


def test_a_box_that_cannot_be_written_is_told_and_the_origin_found_all_the_same():
    write("moved / (u - 2)")

    def disturb(run):
        odd_about(2.0)(run)
        Path("r", NAME).mkdir()

    run = train(disturb)
    assert run.trouble.startswith(NAME)
    assert run.origin.operation == "div"


def test_a_run_with_a_network_from_python_cannot_be_replayed_and_says_so():
    write("log(u + 3) + moved")
    network = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def disturb(run):
        run.trial.network[2].bias.fill_(-30.0)

    run = train(disturb, module=network)
    assert run.origin.operation == "log"
    with pytest.raises(RunError, match="r: the network was made from objects in Python, which only that program has"):
        replay("r")
    Path("r/problem.py").unlink()
    train_box = Box.load(Path("r"))
    replace(train_box, described=True).save(Path("r"))
    with pytest.raises(RunError, match="r: the problem was made from objects in Python"):
        replay("r")


def test_a_healthy_run_has_nothing_to_replay():
    write("moved")
    train()
    ended = pinnsketch("replay", "r")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "Error: r holds a run that stayed finite (solved): there is nothing to replay."


def test_a_folder_without_a_run_or_without_its_box_is_told_apart():
    assert pinnsketch("replay", "no").err == "Error: There is no folder no: give the folder of a run."
    Path("empty").mkdir()
    assert "empty holds no blackbox.pt, nor a finished run" in pinnsketch("replay", "empty").err
    write("moved / (u - 2)")
    train(odd_about(2.0))
    Path("r", NAME).unlink()
    assert "r holds a run that went non-finite, but no blackbox.pt" in pinnsketch("replay", "r").err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"torn", "r/blackbox.pt cannot be read"),
        ({"format": 7}, "r/blackbox.pt has format 7; this version reads 1"),
        ({"format": 1, "batch": []}, "r/blackbox.pt is no black box of pinnsketch"),
        ({"format": 1}, "r/blackbox.pt is no black box of pinnsketch"),
        ([], "r/blackbox.pt holds a list"),
    ],
)
def test_a_damaged_box_is_refused(content, message):
    write("moved / (u - 2)")
    train(odd_about(2.0))
    path = Path("r", NAME)
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        replay("r")
    ended = pinnsketch("replay", "r")
    assert ended.code == 2
    assert message in ended.err


def test_a_folder_whose_files_do_not_fit_together_is_refused():
    write("moved / (u - 2)")
    train(odd_about(2.0))
    config = Path("r/config.yaml").read_text()
    Path("r/config.yaml").write_text(config.replace("width: 10", "width: 11"))
    with pytest.raises(RunError, match=r"r/blackbox.pt does not fit r/config.yaml: was that changed\?"):
        replay("r")
    Path("r/config.yaml").write_text(config)
    Path("r/problem.py").write_text(Path("r/problem.py").read_text().replace('"flow"', '"other"'))
    with pytest.raises(RunError, match=r"r/blackbox.pt has the terms flow, walls; r/problem.py has other ones"):
        replay("r")


def test_an_old_box_does_not_outlive_the_run_it_belongs_to():
    write("moved / (u - 2)")
    train(odd_about(2.0))
    assert Path("r", NAME).is_file()
    train()
    assert not Path("r", NAME).exists()
    checkpoint.save(Path("r", NAME), {})
    train()
    assert not Path("r", NAME).exists()


def test_the_command_ends_with_place_and_advice_and_replay_repeats_it_in_another_process():
    write("u - 100 + 0 * exp(20 * u)")
    Path("c.yaml").write_text(
        "problem: p.py\nnetwork: {width: 10, depth: 2}\npoints: {interior: 11, boundary: 2, test: 20}\n"
        "train: {method: adam, steps: 200, lr: 1.0}\ndevice: cpu\n"
    )
    ended = pinnsketch("solve", "c.yaml", "--out", "r")
    assert ended.code == 3
    assert "Training went non-finite at step" in ended.err
    assert "term 'flow'" in ended.err
    assert "(p.py, line 6)" in ended.err
    assert ended.err.endswith("Look closer with: pinnsketch replay r")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pinnsketch", "replay", "r", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["place"]["term"] == "flow"
    assert found["place"]["line"] == LINE
    assert found["code"] == "return u - 100 + 0 * exp(20 * u)"
    assert found["sentence"] in pinnsketch("replay", "r").out
    assert found["step"] == json.loads(Path("r/metrics.json").read_text())["steps"]


def test_an_origin_is_frozen():
    write("moved / (u - 2)")
    with pytest.raises(FrozenInstanceError):
        train(odd_about(2.0)).origin.step = 3
