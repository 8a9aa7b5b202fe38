"""What `method: auto` chooses, and that it says why."""

from pathlib import Path

import pytest
import torch

from pinnsketch import Box, Problem, Term, solve
from pinnsketch.automatic import choose
from pinnsketch.config import make_config, read_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.run import Run


def shipped(name):
    return load_problem(find_problem(name, Path.cwd()))


def chosen(problem, monkeypatch, limit=1.0, own=None, **given):
    """The choice where the features that are tried have an error that is not above a limit."""
    tried = []

    def attempt(config, make, network):
        tried.append(tuple(network.values()))
        return config, limit, None

    monkeypatch.setattr("pinnsketch.automatic._try_features", attempt)
    config = make_config({"problem": "x.py", "monitor": False, **given})
    found, why, _ = choose(config, lambda config: Run(problem, config, network=own), own is not None)
    return found, why, tried


def methods(config):
    return [stage.method for stage in config.train.schedule]


def test_a_smooth_problem_is_solved_to_nine_digits_with_nothing_said(tmp_path):
    solution = solve("poisson", monitor=False, out=tmp_path / "run")
    assert solution.error["overall"] < 1e-9
    assert solution.error["overall"] < solution.estimate["limit"]
    assert "random features by least squares" in solution.metrics["chosen"]
    assert methods(read_config(tmp_path / "run" / "config.yaml")) == ["features"]


def test_features_that_were_tried_are_not_solved_for_again_and_end_where_a_run_of_them_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("pinnsketch.automatic.FEW", {"width": 100})
    monkeypatch.setattr("pinnsketch.automatic.GOOD", 1.0)
    given = {"problem": "x.py", "train": {"log": 1}, "points": {"test": 200}}
    run = Run(shipped("heat"), make_config(given), tmp_path / "run")
    solves = [step.index for step in run]
    plain = Run(shipped("heat"), run.config)
    assert [step.index for step in plain][-1:] == solves
    assert [row["step"] for row in run.history] == [row["step"] for row in plain.history]
    assert run.metrics()["note"] == plain.metrics()["note"]
    for a, b in zip(run.trial.state_dict().values(), plain.trial.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert run.finish().outcome == "solved"
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("name", "draw", "tries"),
    [
        ("poisson_l_shape", "even", [(500,), (2000,)]),
        ("burgers", "residual", [(500,)]),
        ("inverse_diffusivity", "residual", [(500,)]),
        ("heat", "even", [(500,), (1000, 8), (2000,)]),
    ],
)
def test_where_features_do_not_do_a_network_is_trained(name, draw, tries, monkeypatch):
    found, why, tried = chosen(shipped(name), monkeypatch)
    assert methods(found) == ["natural_gradient", "polish"]
    assert (found.points.resample, found.points.draw) == (1, draw)
    assert tried == tries
    assert "linear" in why


def test_what_the_user_has_set_is_left_as_it_is(monkeypatch):
    points = {"interior": 123, "boundary": 45}
    found, _, tried = chosen(shipped("heat"), monkeypatch, network={"width": 9}, points=points, train={"seed": 3, "log": 7})
    assert (found.network.width, found.points.interior, found.points.boundary) == (9, 123, 45)
    assert (found.train.seed, found.train.log) == (3, 7)
    assert tried == []


def test_large_networks_and_residuals_without_rows_are_trained_by_first_order_methods(monkeypatch):
    found, why, _ = chosen(shipped("heat"), monkeypatch, network={"width": 200})
    assert methods(found) == ["adam", "lbfgs"]
    assert "121,401 parameters" in why
    found, why, _ = chosen(shipped("heat"), monkeypatch, precision="mixed")
    assert methods(found) == ["adam", "lbfgs"]
    assert "one precision" in why
    line = Box(x=(0, 1))
    terms = {"mean": Term(line.interior, lambda u: u - u.value.mean() + u.xx), "ends": Term(line.boundary, lambda u: u - 1)}
    found, why, _ = chosen(Problem(line, "u", terms), monkeypatch)
    assert methods(found) == ["adam", "lbfgs"]
    assert "no Jacobian row" in why


def test_a_network_of_ones_own_is_trained(monkeypatch):
    own = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    found, _, tried = chosen(shipped("heat"), monkeypatch, own=own, limit=0.0)
    assert methods(found) == ["natural_gradient", "polish"]
    assert tried == []


def test_the_words_method_auto_and_nothing_mean_the_same():
    said = make_config({"problem": "x.py", "train": {"method": "auto", "seed": 2}})
    assert make_config({"problem": "x.py"}).train.schedule == said.train.schedule == ()
    assert said.train.seed == 2
    assert make_config(said.model_dump()) == said


def test_a_boundary_with_more_sides_has_more_points(monkeypatch):
    cube = Box(**dict.fromkeys("abcfg", (0, 1)))
    terms = {"sum": Term(cube.interior, lambda u: u.aa + u.bb + u.cc + u.ff + u.gg), "sides": Term(cube.boundary, lambda u: u)}
    found, _, _ = chosen(Problem(cube, "u", terms), monkeypatch)
    assert (found.points.interior, found.points.boundary) == (400, 250)
    assert chosen(shipped("poisson_l_shape"), monkeypatch)[0].points.boundary == 100
