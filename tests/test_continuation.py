"""A stage may give parameters of the problem other values: a solution is reached from that of an easier problem."""

from pathlib import Path

import pytest
import torch

from pinnsketch import Box, Problem, Term, Unknown
from pinnsketch.collocation import Collocation
from pinnsketch.config import ConfigError, dump_config, make_config
from pinnsketch.library import load_problem
from pinnsketch.network import MLP
from pinnsketch.problem import ProblemError
from pinnsketch.run import Run
from pinnsketch.train import Stage, train
from pinnsketch.trial import Trial

PROBLEMS = Path(__file__).parents[1] / "problems"
BOX = Box(x=(0, 1))


def made(rho=5.0):
    problem = load_problem(PROBLEMS / "reaction.py", {"rho": rho})
    network = MLP(torch.tensor(problem.domain.bounds), 1, width=6, depth=2, generator=torch.Generator().manual_seed(0))
    return Trial(network), Collocation(problem, interior=50, boundary=20)


def flat(trial):
    return torch.cat([p.detach().flatten() for p in trial.parameters()])


STAGES = [Stage("lbfgs", 4, parameters={"rho": 1.0}), Stage("natural_gradient", 3, parameters={"rho": 2.5}), Stage("lbfgs", 3)]


def test_stages_with_other_parameters_train_as_runs_of_problems_that_have_them():
    trial, task = made()
    for _ in train(trial, task, STAGES):
        pass
    apart, _ = made()
    for stage, rho in zip(STAGES, (1.0, 2.5, 5.0), strict=True):
        for _ in train(apart, made(rho)[1], [Stage(stage.method, stage.steps)]):
            pass
    assert torch.equal(flat(trial), flat(apart))


def test_stopped_within_such_a_stage_it_goes_on_bit_for_bit():
    trial, task = made()
    states = [(step.state(), {k: v.clone() for k, v in trial.state_dict().items()}) for step in train(trial, task, STAGES)]
    for state, values in states[1:-1:3]:
        again, task = made()
        again.load_state_dict(values)
        for _ in train(again, task, STAGES, state=state):
            pass
        assert torch.equal(flat(again), flat(trial))


def run(*train):
    config = {"problem": "cavity.py", "network": {"width": 4, "depth": 1}, "points": {"interior": 20, "boundary": 8}}
    problem = load_problem(PROBLEMS / "cavity.py", {"re": 1000.0})
    return Run(problem, make_config({**config, "train": {"schedule": list(train), "log": 1}, "monitor": False}))


def test_a_config_says_so_and_is_read_back():
    found = run({"method": "adam", "steps": 1, "parameters": {"re": 100}}, {"method": "adam", "steps": 1})
    schedule = make_config(make_config({"problem": "x", "train": [{"method": "adam", "parameters": {"re": 2}}]}).model_dump())
    assert schedule.train.stages[0].parameters == {"re": 2.0}
    assert "re: 2.0" in dump_config(schedule)
    losses = [step.losses["momentum_x"] for step in found]
    direct = [step.losses["momentum_x"] for step in run({"method": "adam", "steps": 2})]
    assert losses[0] != direct[0]  # Re 100 in place of 1000
    assert found.task.losses(found.trial, found.task.batch()) is not None
    assert found.finish().problem.parameters["re"] == 1000.0


WRONG = {
    "last": (
        [{"method": "adam", "parameters": {"re": 100}}],
        ProblemError,
        "expected a last stage that solves the problem itself",
    ),
    "unknown": ([{"method": "adam", "parameters": {"nu": 1}}, {"method": "adam"}], ProblemError, r"numbers \(re\); got 'nu'"),
    "no number": ([{"method": "adam", "parameters": {"re": "high"}}, {"method": "adam"}], ConfigError, "re: expected a number"),
}


@pytest.mark.parametrize(("stages", "kind", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_refused(stages, kind, message):
    with pytest.raises(kind, match=message):
        run(*stages)


def test_parameters_that_train_or_that_no_residual_reads_are_refused():
    terms = {"inside": Term(BOX.interior, lambda u, a: u.xx - a * u)}
    task = Collocation(Problem(BOX, "u", terms, {"a": Unknown(1.0), "b": 2.0}))
    with pytest.raises(ProblemError, match=r"numbers \(b\); got 'a'"):
        task.put({"a": 2.0})
    with pytest.raises(ProblemError, match="no residual asks for the parameter 'b' by name"):
        task.put({"b": 3.0})
