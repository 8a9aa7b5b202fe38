"""What `method: auto` chooses, and that it says why."""

from itertools import islice
from math import inf, log
from pathlib import Path

import pytest
import torch
from command import pinnsketch

from pinnsketch import Box, Problem, Term, solve
from pinnsketch.automatic import MORE, PRODUCTS, Tried, choose
from pinnsketch.config import make_config, read_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.patches import Patches
from pinnsketch.run import Run
from pinnsketch.solve import Comparison


def shipped(name):
    return load_problem(find_problem(name, Path.cwd()))


def chosen(problem, monkeypatch, limits=(), own=None, sure=(), errors=(), device="cpu", **given):
    """The choice where candidates have these limits of their error by kind, `slabs` among them, others 1; what was tried.

    `sure`: kinds that need no rival; `errors`: as estimated, by kind, in place of the limits.
    """
    tried = []

    def attempt(config, candidate, make):
        network = config.network
        tried.append((network.kind, network.width) + ((network.slabs,) if network.slabs != 1 else ()))
        limit = dict(limits).get("slabs" if network.slabs != 1 else network.kind, 1.0)
        error = dict(errors).get(network.kind, limit)
        return Tried(limit, error, {"of": network.kind}, network.kind in sure, f"at most {limit:g}")

    monkeypatch.setattr("pinnsketch.automatic._try", attempt)
    config = make_config({"problem": "x.py", "monitor": False, "device": "cpu", **given})
    found, why, state = choose(config, problem, lambda config: Run(problem, config, network=own), own is not None, device)
    return found, why, tried, state


def methods(config):
    return [stage.method for stage in config.train.schedule]


def test_a_smooth_problem_is_solved_to_nine_digits_with_nothing_said(tmp_path):
    solution = solve("poisson", monitor=False, out=tmp_path / "run")
    assert solution.error["overall"] < 1e-9
    assert solution.error["overall"] < solution.estimate["limit"]
    assert "random features by least squares" in solution.metrics["chosen"]
    assert methods(read_config(tmp_path / "run" / "config.yaml")) == ["features"]


def ends_as_its_config_does(run, most=10**6):
    """The steps of a run, of which a run of its config alone has the last, and is then the same bit for bit."""
    steps = [step.index for step in islice(run, most)]
    plain = Run(run.problem, run.config)
    assert [step.index for step in islice(plain, steps[-1])][-len(steps) :] == steps
    assert [row["step"] for row in run.history] == [row["step"] for row in plain.history]
    assert run.metrics()["note"] == plain.metrics()["note"]
    for a, b in zip(run.trial.state_dict().values(), plain.trial.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    return steps


def test_features_that_were_tried_are_not_solved_for_again_and_end_where_a_run_of_them_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("pinnsketch.automatic.FEW", 100)
    monkeypatch.setattr("pinnsketch.automatic.CLOSE", 1.0)
    monkeypatch.setattr("pinnsketch.automatic.GOOD", 1.0)
    run = Run(shipped("heat"), make_config({"problem": "x.py", "train": {"log": 1}, "points": {"test": 200}}), tmp_path / "run")
    assert len(ends_as_its_config_does(run)) == 1
    assert run.finish().outcome == "solved"
    assert read_config(tmp_path / "run" / "config.yaml") == run.config.model_copy(update={"problem": "problem.py"})
    assert (tmp_path / "run" / "metrics.json").is_file()


def brief(monkeypatch, correction, limits, begin=Run, monitor=False):
    """A run of Burgers whose trials are short, and judged to have these limits by kind; or what else begins with a choice."""
    for name, value in {"FEW": 1, "PATCHES": 640, "PAUSE": 320, "STEPS": 2}.items():
        monkeypatch.setattr(f"pinnsketch.automatic.{name}", value)

    def estimated(trial, task):
        return {"limit": limits[isinstance(trial.network, Patches)], "correction": correction}

    monkeypatch.setattr("pinnsketch.automatic.estimated", estimated)
    problem = load_problem(find_problem("burgers", Path.cwd()), {"nu": 0.1})
    points = {"interior": 40, "boundary": 10, "test": 200, "resample": 1, "draw": "residual"}
    return begin(problem, make_config({"problem": "x.py", "points": points, "monitor": monitor}))


def test_features_that_are_all_used_and_leave_much_have_failed_where_equations_are_not_linear(monkeypatch):
    for name, value in {"FEW": 100, "PATCHES": 160, "PAUSE": 160}.items():
        monkeypatch.setattr(f"pinnsketch.automatic.{name}", value)
    asked = []
    monkeypatch.setattr(
        "pinnsketch.automatic.estimated", lambda trial, task: asked.append(trial) or {"limit": 0.0, "correction": 0.0}
    )
    run = Run(shipped("burgers"), make_config({"problem": "x.py", "points": {"test": 200}, "monitor": False}))
    assert "random features by least squares, 50: it leaves 0." in run.chosen
    assert [type(trial.network) for trial in asked] == [Patches]


@pytest.mark.parametrize("best", ["patches", "mlp"])
def test_what_goes_on_does_so_where_its_trial_was_paused(best, monkeypatch):
    run = brief(monkeypatch, 0.05, (0.2, 0.1) if best == "patches" else (0.1, 0.2))
    assert run.config.network.kind == best
    assert run.chosen.count("0.05 as estimated, 0.") == 2
    steps = ends_as_its_config_does(run, 2)
    assert steps[0] >= 3


def test_patches_that_are_expected_to_end_with_a_small_error_have_no_rival(monkeypatch):
    run = brief(monkeypatch, 5e-4, (0.1, 0.2))
    assert run.config.network.kind == "patches"
    assert run.chosen.count("as estimated") == 1
    history = run.course.state_dict()["train"]["method"]["history"]
    count, size = history[-1]
    few, left = next(earlier for earlier in reversed(history[:-1]) if 4 * earlier[0] <= count)
    order = log(left / size) / log(count / few)
    assert 80 * count >= 320
    assert order > 0
    expected = 5e-4 * (640 / (80 * count)) ** -order
    assert f"{expected:.1g} expected at its end" in run.chosen
    monkeypatch.setattr("pinnsketch.automatic.ENOUGH", 0.99 * expected)
    assert brief(monkeypatch, 5e-4, (0.1, 0.2)).chosen.count("as estimated") == 2


@pytest.mark.parametrize("best", ["patches", "mlp"])
def test_a_comparison_with_and_without_the_monitor_chooses_once_and_both_go_on_from_there(best, monkeypatch):
    asked = []
    monkeypatch.setattr("pinnsketch.run.choose", lambda *given: asked.append(given) or choose(*given))
    compared = brief(monkeypatch, 0.05, (0.2, 0.1) if best == "patches" else (0.1, 0.2), Comparison, {"every": 1})
    watched, bare = compared.watched, compared.bare
    first = watched.course.reached["steps"]
    assert len(asked) == 1
    assert bare.config == watched.config.model_copy(update={"monitor": None})
    assert watched.config.network.kind == best
    assert bare.course.reached["steps"] == first >= 2
    last = next(iter(compared))
    result = compared.result(interrupted=True)
    assert first < last <= first + 10
    assert (result["identical"], result["chosen"], result["steps"]) == (True, watched.chosen, last)
    assert (result["monitor"]["bytes"] > 0, bare.monitor) == (True, None)


def test_compare_says_what_was_chosen_for_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, value in {"FEW": 100, "GOOD": 1.0, "CLOSE": 1.0}.items():
        monkeypatch.setattr(f"pinnsketch.automatic.{name}", value)
    Path("auto.yaml").write_text("problem: heat\npoints: {test: 200}\n")
    ended = pinnsketch("compare", "auto.yaml")
    assert ended.code == 0
    assert "chosen once, for both: random features by least squares, 100" in " ".join(ended.out.split())
    assert "identical bit for bit" in ended.out


@pytest.mark.parametrize(
    ("name", "draw", "tries"),
    [
        ("poisson_nd", "even", [("features", 500)]),
        ("inverse_diffusivity", "residual", [("features", 250)]),
    ],
)
def test_where_nothing_that_was_solved_for_does_a_network_is_trained(name, draw, tries, monkeypatch):
    found, why, tried, state = chosen(shipped(name), monkeypatch)
    assert methods(found) == ["natural_gradient", "polish"]
    assert (found.points.resample, found.points.draw, found.network.width) == (1, draw, 30)
    assert tried == tries
    assert state is None
    assert "linear" in why
    assert why.count("at most 1") == len(tries)


FIRST = {
    "features": ("features", 500),
    "half": ("features", 250),
    "more": ("features", 2000),
    "slabs": ("features", 1000, 8),
    "patches": ("patches", 16000),
    "mlp": ("mlp", 30),
}


@pytest.mark.parametrize(
    ("name", "limits", "tries", "best", "given"),
    [
        ("heat", {"features": 1e-9}, ["features"], "features", {}),
        ("poisson", {"features": 1e-3}, ["features", "more", "patches", "mlp"], "mlp", {}),
        ("poisson", {"features": 0.1, "patches": 0.01}, ["features", "patches"], "patches", {}),
        ("heat", {"features": 1e-7, "slabs": 1e-10}, ["features", "slabs"], "slabs", {}),
        ("heat", {"features": 1e-7, "slabs": 1e-4}, ["features", "slabs", "more"], "more", {}),
        ("heat", {"features": 1e-3, "patches": 1e-4}, ["features", "slabs", "more", "patches"], "patches", {}),
        ("burgers", {"features": 1e-3, "patches": 0.2, "mlp": 0.4}, ["half", "patches", "mlp"], "patches", {}),
        ("burgers", {"features": 1e-3, "patches": 0.2, "mlp": 0.1}, ["half", "patches", "mlp"], "mlp", {}),
        ("allen_cahn", {"features": 1e-3, "patches": 0.2}, ["half", "patches", "mlp"], "patches", {}),
        ("allen_cahn", {"features": 1e-3, "patches": 1e-3}, ["half", "patches"], "patches", {}),
        ("allen_cahn", {"features": 1e-3, "patches": 0.2}, ["half", "patches"], "patches", {"sure": ["patches"]}),
        ("burgers", {"patches": 3.0, "mlp": 2.0}, ["half", "patches", "mlp"], "patches", {"errors": {"patches": 0.1}}),
        ("burgers", {"patches": inf, "mlp": inf}, ["half", "patches", "mlp"], "mlp", {}),
        ("heat", {"features": 1e-3}, ["features"], "features", {"train": {"until": 1e-2}}),
        ("heat", {"features": 1e-9, "slabs": 1e-13}, ["features", "slabs"], "slabs", {"train": {"until": 1e-12}}),
    ],
)
def test_the_first_that_is_good_enough_is_taken_else_the_best_of_those_that_go_on(
    name, limits, tries, best, given, monkeypatch
):
    found, why, tried, state = chosen(shipped(name), monkeypatch, limits, **given)
    assert tried == [FIRST[word] for word in tries]
    assert (found.network.kind, found.network.width) == FIRST[best][:2]
    assert found.network.slabs == (8 if best == "slabs" else 1)
    assert state == {"of": found.network.kind}
    assert len(why.splitlines()) == 1 + len(tries)


def test_several_unknowns_have_as_many_weights_and_residuals_as_one(monkeypatch):
    _, _, tried, _ = chosen(shipped("kovasznay"), monkeypatch)
    assert tried == [("features", 166), ("patches", 5333), ("mlp", 30)]
    assert chosen(shipped("kovasznay"), monkeypatch, {"features": 1e-3})[2][:2] == [("features", 166), ("features", 666)]
    assert chosen(shipped("kovasznay"), monkeypatch, {"patches": 1e-3})[0].network.each == 46
    found, *_ = chosen(shipped("kovasznay"), monkeypatch, {"mlp": 0.1})
    assert found.points.interior == 800 // 3


def test_slabs_of_features_are_tried_of_what_is_not_linear_where_there_are_no_patches(monkeypatch):
    box = Box(x=(0, 1), y=(0, 1), t=(0, 1))
    terms = {"flow": Term(box.interior, lambda u: u.t + u * u.x + u.y), "start": Term(box.start("t"), lambda u, x: u - x)}
    _, _, tried, _ = chosen(Problem(box, "u", terms), monkeypatch)
    assert tried == [("features", 250), ("features", 500, 8)]


def test_how_errors_are_measured_says_nothing_of_the_points_that_are_trained_on(monkeypatch):
    found, *_ = chosen(shipped("heat"), monkeypatch, points={"test": 300, "chunk": 500})
    assert (found.points.test, found.points.chunk) == (300, 500)
    assert found.points.interior == chosen(shipped("heat"), monkeypatch)[0].points.interior != 1000


def test_what_the_user_has_set_is_left_as_it_is(monkeypatch):
    points = {"interior": 123, "boundary": 45}
    given = {"network": {"width": 9}, "points": points, "train": {"seed": 3, "log": 7}}
    found, _, tried, _ = chosen(shipped("heat"), monkeypatch, **given)
    assert (found.network.width, found.points.interior, found.points.boundary) == (9, 123, 45)
    assert (found.train.seed, found.train.log) == (3, 7)
    assert tried == []


def test_large_networks_and_residuals_without_rows_are_trained_by_first_order_methods(monkeypatch):
    found, why, *_ = chosen(shipped("heat"), monkeypatch, network={"width": 200})
    assert methods(found) == ["adam", "lbfgs"]
    assert "121,401 parameters" in why
    with monkeypatch.context() as faster:
        faster.setattr("pinnsketch.automatic.PRODUCTS", {"cpu": PRODUCTS["cuda"]})
        assert methods(chosen(shipped("heat"), faster, network={"width": 200})[0]) == ["natural_gradient", "polish"]
    found, why, *_ = chosen(shipped("heat"), monkeypatch, precision="mixed")
    assert methods(found) == ["adam", "lbfgs"]
    assert "one precision" in why
    line = Box(x=(0, 1))
    terms = {"mean": Term(line.interior, lambda u: u - u.value.mean() + u.xx), "ends": Term(line.boundary, lambda u: u - 1)}
    found, why, *_ = chosen(Problem(line, "u", terms), monkeypatch)
    assert methods(found) == ["adam", "lbfgs"]
    assert "no Jacobian row" in why


def test_a_network_of_ones_own_is_trained(monkeypatch):
    own = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    found, _, tried, _ = chosen(shipped("heat"), monkeypatch, {"features": 0.0}, own=own)
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
    found, *_ = chosen(Problem(cube, "u", terms), monkeypatch)
    assert (found.points.interior, found.points.boundary) == (400, 250)
    assert chosen(shipped("inverse_diffusivity"), monkeypatch)[0].points.boundary == 100


def rows(run):
    return sum(len(block.x) * len(block.terms) for block in run.task.batch())


@pytest.mark.parametrize("name", ["poisson_nd", "burgers", "kovasznay"])
def test_on_a_gpu_there_are_more_residuals_than_parameters(name, monkeypatch):
    problem = shipped(name)
    found, *_ = chosen(problem, monkeypatch, {"mlp": 1e-3}, device="cuda")
    run, few = Run(problem, found), Run(problem, chosen(problem, monkeypatch, {"mlp": 1e-3})[0])
    size = sum(p.numel() for p in run.trial.parameters())
    assert methods(found) == ["natural_gradient", "polish"]
    assert found.network.width == 50
    assert MORE * size <= rows(run) <= MORE * size + rows(few)
    assert rows(few) < size


def test_a_gpu_has_no_more_points_than_a_cpu_where_the_user_says_how_many_or_a_step_would_be_too_long(monkeypatch):
    def points(**given):
        found = chosen(shipped("heat"), monkeypatch, device="cuda", **given)[0].points
        return found.interior, found.boundary

    assert points(network={"width": 20}, points={"interior": 123, "boundary": 45}) == (123, 45)
    assert points(network={"width": 100}) == (400, 100)
    monkeypatch.setitem(PRODUCTS, "cuda", 1e18)
    assert points(network={"width": 100}) == (400 * 77, 100 * 77)


def test_a_problem_with_an_enrichment_is_solved_by_what_takes_it():
    problem = load_problem(find_problem("poisson_l_shape", None), {"enriched": True})
    run = Run(problem, make_config({"problem": "poisson_l_shape", "train": {"method": "auto"}, "monitor": False}))
    assert run.config.network.kind == "features"
    for _ in run:
        pass
    assert run.task.error(run.trial)["overall"] < 1e-6
