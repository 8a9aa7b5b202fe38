"""solve() from Python, and what its Solution can do."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from pinnsketch import Box, Data, Problem, Solution, Term, Unknown, checkpoint, diff, solve
from pinnsketch.checkpoint import CheckpointError
from pinnsketch.config import ConfigError
from pinnsketch.problem import ProblemError
from pinnsketch.report.figures import _colors, gradients_figure, losses_figure

# torch says this once in a process: see test_cli.py, test_a_run_with_an_unknown_coefficient_warns_of_nothing
FAST = {
    "network": {"width": 8, "depth": 2},
    "points": {"interior": 50, "boundary": 20, "test": 200},
    "train": {"method": "adam", "steps": 5},
}


def fast(problem, **changes):
    return solve(problem, **FAST | changes)


def box(d, exact=True, unknowns="u"):
    """Laplace's equation for each unknown in d dimensions, solved by the sum of the coordinates."""
    domain = Box(**dict.fromkeys("xyz"[:d], (0, 1)))
    names = unknowns.split()
    sums = {1: lambda x: x, 2: lambda x, y: x + y, 3: lambda x, y, z: x + y + z}
    terms = {}
    for name in names:
        terms[f"inside_{name}"] = Term(domain.interior, eval(f"lambda {name}: {name}.xx"))
        terms[f"edge_{name}"] = Term(domain.boundary, eval(f"lambda {name}, x: {name} - x"))
    return Problem(domain, unknowns, terms, exact=dict.fromkeys(names, sums[d]) if exact else None)


def growth():
    domain = Box(t=(0, 1))
    data = Data({"t": np.linspace(0, 1, 9), "seen": np.exp(0.5 * np.linspace(0, 1, 9))})
    return Problem(
        domain,
        "u",
        {
            "growth": Term(domain.interior, lambda u, rate, shift: u.t - rate * u + shift),
            "seen": Term(data, lambda u, seen: u - seen),
        },
        parameters={"rate": Unknown(1.0, positive=True, exact=0.5), "shift": Unknown(-0.25)},
    )


@pytest.fixture(scope="module")
def plane():
    return fast(box(2))


@pytest.fixture(scope="module")
def flow():
    return fast("kovasznay")


def test_an_expression_of_derivatives_is_evaluated_as_a_residual_is(plane, flow, tmp_path):
    x, y, step = np.linspace(0.1, 0.9, 7)[:, None], np.array([0.2, 0.7]), 1e-4
    slope = (plane(x=x + step, y=y) - plane(x=x - step, y=y)) / (2 * step)
    np.testing.assert_allclose(plane.evaluate(lambda u: u.x, x=x, y=y), slope, atol=1e-7)
    np.testing.assert_array_equal(plane.evaluate(lambda u: u, x=x, y=y), plane(x=x, y=y))
    product = plane.evaluate(lambda u, x, y: diff(x * u * u.y, y), x=x, y=y)
    np.testing.assert_allclose(product, plane.evaluate(lambda u, x: x * (u.y**2 + u * u.yy), x=x, y=y), atol=1e-12)
    plane.save(tmp_path / "plane.pt")
    again = Solution.load(tmp_path / "plane.pt")
    np.testing.assert_allclose(again.evaluate(lambda u: u.x, x=0.5, y=0.5), plane.evaluate(lambda u: u.x, x=0.5, y=0.5))
    vorticity, re = flow.evaluate(lambda u, v: v.x - u.y, x=x, y=y), flow.evaluate(lambda u, re: u * 0 + re, x=0, y=0)
    assert (vorticity.shape, float(re)) == ((7, 2), 40)


def test_an_expression_that_asks_for_what_is_not_there_is_refused(plane):
    with pytest.raises(ValueError, match="the expression asks for 'w'; it may ask for x, y, u"):
        plane.evaluate(lambda w: w, x=0, y=0)
    with pytest.raises(ValueError, match=r"expected one number a point, \(3, 1\); got shape \(\)"):
        plane.evaluate(lambda u: u.x.sum(), x=[0, 0.5, 1], y=0)
    with pytest.raises(ValueError, match="Expected the coordinates x, y; got x"):
        plane.evaluate(lambda u: u.x, x=0)


def test_a_problem_a_shipped_name_and_a_file_are_solved_alike(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "problems" / "poisson.py").read_text()
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    named, filed = fast("poisson"), fast("mine.py")
    assert named.metrics["relative_l2"] == filed.metrics["relative_l2"] == fast(named.problem).metrics["relative_l2"]
    assert not list(tmp_path.glob("runs"))


def test_solve_writes_the_run_where_it_is_told(tmp_path):
    solution = fast(box(1), out=tmp_path / "run")
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics.json", "history.json", "health.json", "model.pt", "solution.png", "config.yaml"} <= written
    x = np.linspace(0, 1, 5)
    np.testing.assert_array_equal(Solution.load(tmp_path / "run" / "model.pt")(x=x), solution(x=x))


def test_solve_leaves_the_problem_and_the_options_as_they_were():
    problem, options = growth(), {"method": "adam", "steps": 2, "lr": 0.01}
    before = dict(problem.parameters)
    fast(problem, train=options)
    assert options == {"method": "adam", "steps": 2, "lr": 0.01}
    assert problem.parameters == before


def test_the_same_call_gives_the_same_solution_and_leaves_global_random_numbers_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again = fast(box(2)), fast(box(2))
    np.testing.assert_array_equal(first(x=[0.1, 0.7], y=0.3), again(x=[0.1, 0.7], y=0.3))
    assert torch.equal(state, torch.get_rng_state())


def test_another_seed_gives_another_solution(plane):
    other = fast(box(2), train={"method": "adam", "steps": 5, "seed": 1})
    assert other(x=0.3, y=0.3) != plane(x=0.3, y=0.3)


def test_training_lowers_the_loss():
    solution = fast(box(1), train=[{"method": "adam", "steps": 20, "lr": 0.02}, {"method": "lbfgs", "steps": 20}])
    assert solution.metrics["loss"] < solution.history[0]["loss"] / 10
    assert solution.error["overall"] < 0.05
    np.testing.assert_allclose(solution(x=np.linspace(0, 1, 5)), np.linspace(0, 1, 5), atol=0.05)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"network": {"widht": 3}}, r"solve\(\): network: there is no key 'widht' here; did you mean 'width'"),
        ({"train": {"method": "adma"}}, r"solve\(\): train.schedule.0.method: there is no method 'adma'"),
        ({"weights": {"nix": 1.0}}, "weights: there is no term 'nix'; the terms are inside_u, edge_u"),
        ({"precision": "float16"}, "precision: expected 'float64', 'float32' or 'mixed'"),
        ({"points": {"terms": {"nix": 3}}}, "points.*there is no term 'nix'; the terms are inside_u, edge_u"),
    ],
    ids=["network", "train", "weights", "precision", "points"],
)
def test_wrong_options_are_refused_by_path(wrong, text):
    with pytest.raises(ValueError, match=text):
        fast(box(1), **wrong)


def test_a_problem_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="there is no problem 'poissn'; did you mean 'poisson'"):
        solve("poissn")


def test_weights_multiply_the_terms_of_the_loss():
    metrics = fast(box(1), weights={"edge_u": 7.0}).metrics
    assert metrics["loss"] == pytest.approx(metrics["losses"]["inside_u"] + 7 * metrics["losses"]["edge_u"])


def test_arrays_of_coordinates_broadcast(plane):
    x, y = np.linspace(0, 1, 3)[:, None], np.linspace(0, 1, 4)
    values = plane(x=x, y=y)
    assert values.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            assert values[i, j] == pytest.approx(float(plane(x=x[i, 0], y=y[j])), rel=1e-13)
    np.testing.assert_array_equal(values, plane.at(np.stack([a.ravel() for a in np.broadcast_arrays(x, y)], 1)).reshape(3, 4))


def test_scalars_give_a_scalar_and_lists_an_array(plane):
    assert plane(x=0.5, y=0.5).shape == ()
    assert math.isfinite(float(plane(x=0.5, y=1)))
    assert plane(x=[0.5], y=[0.1]).shape == (1,)
    assert plane(x=[], y=[]).shape == (0,)


def test_a_system_gives_each_unknown_by_name(flow):
    values = flow(x=np.zeros(3), y=0.5)
    assert list(values) == ["u", "v", "p"]
    assert {array.shape for array in values.values()} == {(3,)}
    assert set(flow.error) == {"overall", "u", "v", "p"}


def test_the_order_of_coordinates_does_not_matter(plane):
    assert plane(y=0.2, x=0.9) == plane(x=0.9, y=0.2)


@pytest.mark.parametrize("given", [{"x": 1.0}, {"x": 1.0, "y": 1.0, "t": 0.0}, {"x": 1.0, "t": 1.0}, {}])
def test_coordinates_that_are_missing_or_unknown_are_refused(plane, given):
    with pytest.raises(ValueError, match=f"Expected the coordinates x, y; got {', '.join(given) or 'none'}."):
        plane(**given)


def test_coordinates_that_do_not_broadcast_are_refused(plane):
    with pytest.raises(ValueError, match="broadcast"):
        plane(x=[1, 2, 3], y=[1, 2])


def test_the_error_is_the_relative_l2_distance_to_the_exact_solution(plane):
    x, y = np.random.default_rng(0).random((2, 20_000))
    error = np.linalg.norm(plane(x=x, y=y) - (x + y)) / np.linalg.norm(x + y)
    assert plane.error["overall"] == plane.error["u"] == pytest.approx(error, rel=0.1)


def test_without_an_exact_solution_there_is_no_error():
    solution = fast(box(1, exact=False))
    assert solution.error is None
    assert repr(solution) == "<Solution of u on x: solved>"


def test_a_solution_says_what_it_is(plane):
    assert repr(plane) == f"<Solution of u on x, y: solved, relative L2 error {plane.error['overall']:.2e}>"
    assert (plane.coordinates, plane.unknowns, plane.outcome) == (("x", "y"), ("u",), "solved")


def test_a_healthy_run_is_healthy(plane):
    assert plane.health
    assert plane.health.findings == []
    assert plane.metrics["monitor"]["findings"] == []


def test_a_sick_run_is_not_healthy_and_says_why():
    domain = Box(x=(0, 1))
    root = Term(domain.interior, lambda u: (u - u.value.detach()).sqrt())  # zero, with an infinite derivative
    solution = fast(Problem(domain, "u", {"root": root}))
    assert solution.outcome == "non-finite"
    assert not solution.health
    (finding,) = solution.health.findings
    assert str(finding).startswith(f"non-finite gradient in {finding.layer}, term root at step {finding.step}: ")
    assert all(p.isfinite().all() for p in solution.trial.parameters())


def test_a_loss_that_overflows_while_its_gradient_may_not_is_found():
    solution = fast(box(1), train={"method": "adam", "steps": 5, "lr": 1e200})
    assert solution.outcome == "non-finite"
    assert solution.metrics["monitor"]["findings"]


@pytest.mark.parametrize(("d", "panels", "maps"), [(1, 4, 0), (2, 4, 4), (3, 4, 4)])
def test_a_plot_shows_found_exact_error_and_residual(d, panels, maps):
    figure = fast(box(d)).plot()
    assert isinstance(figure, Figure)
    drawn = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in drawn] == [
        "u, found", "u, exact", "u, |found - exact|", "|residual| of the interior terms",
    ]  # fmt: skip
    assert (len(drawn), len(figure.axes) - len(drawn)) == (panels, maps)
    assert drawn[0].get_xlabel() == "x (dimensionless)"
    assert (figure.get_suptitle() == "at z = 0.5") == (d == 3)


def test_few_steps_are_drawn_as_points_and_many_as_a_line():
    for steps, marker in ((3, "."), (30, "None")):
        solution = fast(box(1), train={"method": "adam", "steps": steps, "log": 1})
        lines = [line for make in (losses_figure, gradients_figure) for axes in make(solution).axes for line in axes.lines]
        assert {line.get_marker() for line in lines} <= {marker, ""}
        assert len(lines) > 5


def test_a_plot_without_exact_solution_shows_found_and_residual():
    titles = [axes.get_title() for axes in fast(box(1, exact=False)).plot().axes]
    assert titles == ["u, found", "|residual| of the interior terms"]


def test_a_plot_of_a_system_has_a_row_for_each_unknown(flow):
    titles = [axes.get_title() for axes in flow.plot().axes]
    assert [title for title in titles if title.endswith("found")] == ["u, found", "v, found", "p, found"]
    assert [title for title in titles if title.endswith("exact|")] == [f"{u}, |found - exact|" for u in "uvp"]


def test_a_plot_of_a_solution_that_was_loaded_shows_what_it_can(plane, tmp_path):
    plane.save(tmp_path / "model.pt")
    figure = Solution.load(tmp_path).plot()  # as the folder of a run has it
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["u, found"]


def test_a_plot_of_unknown_coefficients_draws(tmp_path):
    fast(growth()).plot().savefig(tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["plane", "flow"])
def test_a_saved_solution_is_loaded_equal(name, request, tmp_path):
    solution = request.getfixturevalue(name)
    solution.save(str(tmp_path / "model.pt"))
    loaded = Solution.load(str(tmp_path / "model.pt"))
    at = {c: np.random.default_rng(0).random(30) for c in solution.coordinates}
    np.testing.assert_equal(loaded(**at), solution(**at))
    assert loaded.metrics == solution.metrics
    assert loaded.history == solution.history
    assert loaded.health.state_dict() == solution.health.state_dict()
    assert (loaded.coordinates, loaded.unknowns, repr(loaded)) == (solution.coordinates, solution.unknowns, repr(solution))


def test_a_loaded_solution_can_be_saved_again(plane, tmp_path):
    plane.save(tmp_path / "a.pt")
    Solution.load(tmp_path / "a.pt").save(tmp_path / "b.pt")
    assert Solution.load(tmp_path / "b.pt")(x=0.3, y=0.4) == plane(x=0.3, y=0.4)


def test_unknown_coefficients_are_saved_and_loaded(tmp_path):
    solution = fast(growth(), train={"method": "adam", "steps": 20, "lr": 0.05})
    solution.save(tmp_path / "model.pt")
    loaded = Solution.load(tmp_path / "model.pt")
    assert set(solution.coefficients) == {"rate", "shift"}
    assert solution.coefficients["rate"] != 1
    assert loaded.coefficients == pytest.approx(solution.coefficients, rel=1e-14)
    assert solution.metrics["unknowns"]["rate"]["exact"] == 0.5
    np.testing.assert_array_equal(loaded(t=[0, 0.5]), solution(t=[0, 0.5]))


def test_coefficients_survive_a_second_saving(tmp_path):
    solution = fast(growth())
    solution.save(tmp_path / "a.pt")
    Solution.load(tmp_path / "a.pt").save(tmp_path / "b.pt")
    again = Solution.load(tmp_path / "b.pt")
    assert again.coefficients == pytest.approx(solution.coefficients, rel=1e-14)
    states = [checkpoint.load(tmp_path / name)["state"].keys() for name in ("a.pt", "b.pt")]
    assert states[0] == states[1]


class Ritz(nn.Module):
    """A network of one's own: u = x (a + b x)."""

    def __init__(self, outputs=1):
        super().__init__()
        self.a = nn.Parameter(torch.full((outputs,), 0.1, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(outputs, dtype=torch.float64))

    def forward(self, x):
        return x[:, :1] * (self.a + self.b * x[:, :1])


def test_a_network_of_ones_own_is_trained_saved_and_loaded(tmp_path):
    solution = fast(box(1), network=Ritz(), train={"method": "lbfgs", "steps": 10})
    np.testing.assert_allclose(solution(x=[0.25, 1]), [0.25, 1], atol=1e-5)
    solution.save(tmp_path / "model.pt")
    loaded = Solution.load(tmp_path / "model.pt", Ritz())
    np.testing.assert_array_equal(loaded(x=[0.25, 1]), solution(x=[0.25, 1]))
    with pytest.raises(CheckpointError, match=r"was trained with your own network: give it, as in load\(path, network\)"):
        Solution.load(tmp_path / "model.pt")


def test_a_lambda_is_no_obstacle_to_a_network_of_torch_modules():
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    assert fast(box(2), network=network).metrics["steps"] == 5


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_network_with_the_wrong_number_of_outputs_is_refused(outputs):
    with pytest.raises(ProblemError, match=rf"The network has {outputs} outputs; the problem has 1 unknowns \(u\)"):
        fast(box(1), network=Ritz(outputs))


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ProblemError, match="The network has no parameters: there is nothing to train"):
        fast(box(1), network=nn.Identity())


def test_loading_into_another_network_is_refused(tmp_path):
    fast(box(1), network=Ritz()).save(tmp_path / "model.pt")
    with pytest.raises((CheckpointError, RuntimeError), match=r"Missing key|does not fit|model\.pt"):
        Solution.load(tmp_path / "model.pt", nn.Linear(1, 1))


def test_loading_into_another_network_names_the_file(tmp_path):
    fast(box(1), network=Ritz()).save(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        Solution.load(tmp_path / "model.pt", nn.Linear(1, 1))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"names": {}, "state": Evil()}, "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt cannot be read \(UnpicklingError\): it is damaged, or not from"):
        Solution.load("evil.pt")
    assert not Path("hacked").exists()


FOREIGN = {
    "text": (b"hello", r"cannot be read \(\w+\): it is damaged, or not from pinnsketch"),
    "empty": (b"", "it is damaged, or not from pinnsketch"),
    "list": ([1, 2], "holds a list, not a checkpoint of pinnsketch"),
    "tensor": (torch.ones(3), "holds a Tensor, not a checkpoint of pinnsketch"),
    "state": ({"weight": torch.ones(3)}, "holds no solution; a run folder has it in model.pt"),
}


@pytest.mark.parametrize(("content", "text"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused(content, text, tmp_path):
    path = tmp_path / "foreign.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"foreign\.pt .*" + text):
        Solution.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no file .*nix\.pt"):
        Solution.load(tmp_path / "nix.pt")


def test_a_cut_file_is_refused(plane, tmp_path):
    path = tmp_path / "model.pt"
    plane.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="it is damaged, or not from pinnsketch"):
        Solution.load(path)


def test_saving_where_nothing_can_be_written_is_an_os_error(plane, tmp_path):
    with pytest.raises(OSError, match="No such file or directory"):
        plane.save(tmp_path / "nix" / "model.pt")


def test_single_precision_trains_in_it_and_returns_double(tmp_path):
    solution = fast(box(2), precision="float32")
    assert {p.dtype for p in solution.trial.parameters()} == {torch.float32}
    assert solution(x=0.1, y=0.2).dtype == np.float64
    assert solution.error["overall"] == pytest.approx(fast(box(2)).error["overall"], rel=0.5)
    solution.save(tmp_path / "model.pt")
    loaded = Solution.load(tmp_path / "model.pt")
    assert loaded(x=0.1, y=0.2) == solution(x=0.1, y=0.2)
    assert {p.dtype for p in loaded.trial.parameters()} == {torch.float32}


def test_the_monitor_changes_nothing_but_can_be_left_out(plane):
    bare = fast(box(2), monitor=False)
    assert bare(x=0.3, y=0.3) == plane(x=0.3, y=0.3)
    assert bare.metrics["monitor"]["bytes"] == 0 < plane.metrics["monitor"]["bytes"]


@pytest.mark.usefixtures("numbers_only")
def test_a_finished_run_is_never_written_over_unasked(tmp_path):
    fast(box(1), out=tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match=r"run holds a run already \(metrics\.json\)\. Choose another folder"):
        fast(box(1), out=tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert fast(box(1), out=tmp_path / "run", overwrite=True).outcome == "solved"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_config_of_ones_own_in_the_folder_is_not_written_over(tmp_path, overwrite):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(ValueError, match=r"holds config\.yaml, but no run: a run would write over it\. Choose another folder"):
        fast(box(1), out=tmp_path, overwrite=overwrite)
    assert (tmp_path / "config.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("far", "ends"),
    [((), "neither"), ((1e12,), "max"), ((-1e12,), "min"), ((1e12, -1e12, np.nan, np.inf), "both"), ((3.0,), "neither")],
)
def test_colours_of_a_map_leave_out_what_lies_far_beyond_all_else(far, ends):
    norm, beyond = _colors(np.array([*np.linspace(0, 1, 1000), *far]))
    assert beyond == ends
    assert -1.1 < norm.vmin <= 0
    assert norm.vmax == (3 if 3.0 in far else pytest.approx(1 if ends in ("neither", "min") else 2, abs=0.05))


def test_colours_of_a_map_of_one_value_are_there():
    for values in (np.zeros(9), np.full(9, np.nan), np.array([0.0] * 999 + [1.0])):
        _, beyond = _colors(values)
        assert beyond == "neither"
