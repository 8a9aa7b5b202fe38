"""The command line: what it writes, what it prints, and how it ends."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from command import pinnsketch
from matplotlib.image import imread

from pinnsketch import Solution, __version__, checkpoint
from pinnsketch.cli import main
from pinnsketch.config import read_config
from pinnsketch.report.tables import comparison_table, metrics_table, number
from pinnsketch.solve import median_interval

ROOT = Path(__file__).parents[1]
OURS_FIRST = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
CONFIG = """problem: {problem}
network: {{width: 8, depth: 2}}
points: {{interior: 50, boundary: 20, test: 200}}
train: {{schedule: [{{method: adam, steps: 6}}, {{method: lbfgs, steps: 6}}], log: 4, checkpoint: 5}}
monitor: {{every: 2}}
"""
PROBLEM = """import os, time
from pinnsketch import Box, Problem, Term, Unknown
from torch import exp

def decay(u, rate):
    time.sleep(float(os.environ.get("PINNSKETCH_TEST_NAP", 0)))
    return u.t {sign} rate * u

def problem(rate: float = 2.0):
    domain = Box(t=(0, 1))
    return Problem(
        domain, "u", {{"decay": Term(domain.interior, decay), "start": Term(domain.start("t"), lambda u: u - 1)}},
        parameters={{"rate": Unknown(1.0, positive=True, exact=rate)}}, {exact}
    )
"""
EXACT = "exact=lambda t, rate: exp(-rate * t)"
RUN_FILES = {
    "config.yaml", "environment.json", "problem.py", "history.json", "health.json", "metrics.json", "model.pt",
    "checkpoint.pt", "solution.png", "losses.png", "gradients.png", "terms.png", "similarity.png",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("c.yaml").write_text(CONFIG.format(problem="poisson"))
    Path("decay.py").write_text(PROBLEM.format(sign="+", exact=EXACT))
    Path("decay.yaml").write_text(CONFIG.format(problem="decay.py"))
    return tmp_path


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A finished run in a folder, with what was printed."""
    folder = tmp_path_factory.mktemp("solved")
    (folder / "c.yaml").write_text(CONFIG.format(problem="poisson"))
    return folder / "run", pinnsketch("solve", folder / "c.yaml", "--out", folder / "run")


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The same run with --json, on an unknown coefficient."""
    folder = tmp_path_factory.mktemp("printed")
    (folder / "decay.py").write_text(PROBLEM.format(sign="+", exact=EXACT))
    (folder / "decay.yaml").write_text(CONFIG.format(problem="decay.py"))
    return folder / "run", pinnsketch("solve", folder / "decay.yaml", "--out", folder / "run", "--json")


def read_json(path):
    return json.loads(path.read_text())


def test_solve_ends_with_0_says_where_it_wrote_and_leaves_nothing_else(solved):
    folder, ended = solved
    assert ended.code == 0
    assert ended.out.rstrip().endswith(f"Written to {folder}")
    assert "relative L2 error" in ended.out
    assert ended.err == ""
    assert {path.name for path in folder.iterdir()} == RUN_FILES


def test_metrics_hold_what_the_run_came_to(solved):
    metrics = read_json(solved[0] / "metrics.json")
    assert metrics["outcome"] == "solved"
    assert set(metrics["relative_l2"]) == {"overall", "u"}
    assert metrics["steps"] == 12
    assert metrics["steps_per_second"] == pytest.approx(12 / metrics["seconds"])
    assert set(metrics["losses"]) == {"poisson", "sides"}
    assert metrics["loss"] == pytest.approx(metrics["losses"]["poisson"] + 100 * metrics["losses"]["sides"])
    assert metrics["unknowns"] == {}
    assert metrics["monitor"]["bytes"] > 0
    assert metrics["monitor"]["findings"] == []
    assert (metrics["warnings"], metrics["note"]) == ([], None)


def test_an_unknown_coefficient_is_reported_with_its_error(printed):
    rate = json.loads(printed[1].out)["unknowns"]["rate"]
    assert rate["exact"] == 2
    assert rate["relative_error"] == pytest.approx(abs(rate["estimate"] - 2) / 2)


@pytest.mark.usefixtures("numbers_only")
def test_a_run_with_an_unknown_coefficient_warns_of_nothing():
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert pinnsketch("solve", "decay.yaml", "--json").code == 0
    finally:
        torch.set_warn_always(False)
    assert [str(warning.message) for warning in caught] == []


def test_json_prints_exactly_metrics_json_and_nothing_else(printed):
    folder, ended = printed
    assert ended.code == 0
    assert ended.out.strip() == (folder / "metrics.json").read_text().strip()
    assert ended.err == ""


def test_the_history_has_the_first_step_every_so_many_and_the_last(solved):
    history = read_json(solved[0] / "history.json")
    assert [row["step"] for row in history] == [1, 4, 8, 12]
    assert [row["method"] for row in history] == ["adam", "adam", "lbfgs", "lbfgs"]
    for row in history:
        assert set(row["losses"]) == {"poisson", "sides"}
        assert row["error"]["overall"] > 0
        assert len(row["layers"]) == 3
    assert history[-1]["loss"] == read_json(solved[0] / "metrics.json")["loss"]


def test_the_folder_says_with_what_the_run_was_made(solved):
    environment = read_json(solved[0] / "environment.json")
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"numpy", "scipy", "pinnsketch"} <= set(environment["versions"])
    assert {"machine", "device", "seed", "git", "threads"} <= set(environment)
    given = read_config(solved[0].parent / "c.yaml")
    assert read_config(solved[0] / "config.yaml") == given.model_copy(update={"problem": "problem.py"})
    assert (solved[0] / "problem.py").read_bytes() == (ROOT / "problems" / "poisson.py").read_bytes()


@pytest.mark.parametrize("name", ["solution", "losses", "gradients"])
def test_figures_are_pictures_that_show_something(solved, name):
    path = solved[0] / f"{name}.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.05


def test_the_model_and_the_checkpoint_hold_the_same_parameters(solved):
    model, last = (checkpoint.load(solved[0] / name) for name in ("model.pt", "checkpoint.pt"))
    assert model["state"].keys() == last["trial"].keys()
    assert all(torch.equal(model["state"][name], last["trial"][name]) for name in model["state"])
    assert Solution.load(solved[0] / "model.pt").outcome == "solved"


@pytest.mark.usefixtures("numbers_only")
def test_default_folders_count_up_and_never_overwrite():
    Path("c.yaml").write_text(CONFIG.format(problem="poisson").replace("steps: 6", "steps: 1"))
    Path("runs", "c-2").mkdir(parents=True)
    for folder in ("c", "c-3"):
        assert pinnsketch("solve", "c.yaml").out.rstrip().endswith(f"Written to runs/{folder}")
        assert Path("runs", folder, "metrics.json").is_file()


@pytest.mark.usefixtures("numbers_only")
def test_a_folder_with_a_run_is_refused_unless_told_to_overwrite(solved):
    shutil.copytree(solved[0], "r")
    before = Path("r/metrics.json").read_bytes()
    refused = pinnsketch("solve", "c.yaml", "--out", "r")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "Error: r holds a run already (metrics.json). Choose another folder, or add --overwrite."
    assert Path("r/metrics.json").read_bytes() == before
    Path("c.yaml").write_text(CONFIG.format(problem="poisson").replace("steps: 6", "steps: 2"))
    assert pinnsketch("solve", "c.yaml", "--out", "r", "--overwrite").code == 0
    assert read_json(Path("r/metrics.json"))["steps"] == 4


def test_a_run_of_one_step_has_its_figures_too():
    Path("one.yaml").write_text("problem: decay.py\npoints: {interior: 50, test: 100}\ntrain: {method: adam, steps: 1}\n")
    assert pinnsketch("solve", "one.yaml", "--out", "r").code == 0
    assert {path.name for path in Path("r").iterdir()} == RUN_FILES - {"similarity.png"}


def test_a_run_without_monitor_has_no_gradient_figure_and_no_monitor_bytes():
    Path("off.yaml").write_text(CONFIG.format(problem="decay.py").replace("{every: 2}", "off"))
    metrics = json.loads(pinnsketch("solve", "off.yaml", "--out", "r", "--json").out)
    assert metrics["monitor"] == {"bytes": 0, "findings": []}
    assert {path.name for path in Path("r").iterdir()} == RUN_FILES - {"gradients.png", "terms.png", "similarity.png"}


@pytest.mark.usefixtures("numbers_only")
def test_a_problem_file_is_solved_with_defaults():
    ended = pinnsketch("solve", "decay.py", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["outcome"] == "solved"
    assert read_config(Path("runs/decay/config.yaml")).train.schedule


def test_compare_finds_the_parameters_and_errors_identical():
    ended = pinnsketch("compare", "c.yaml")
    assert ended.code == 0
    assert ended.out.rstrip().endswith("Written to runs/compare-c/compare.json")
    assert "identical bit for bit" in ended.out
    result = read_json(Path("runs/compare-c/compare.json"))
    assert result["identical"] is True
    assert result["relative_l2"]["with"] == result["relative_l2"]["without"] > 0
    assert 0 < result["overhead"]["low"] <= result["overhead"]["median"] <= result["overhead"]["high"]
    assert result["monitor"]["bytes"] > 0
    assert (result["steps"], result["outcome"]) == (12, "solved")


def test_compare_with_json_prints_exactly_compare_json():
    ended = pinnsketch("compare", "decay.yaml", "--json", "--out", "r")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.strip() == Path("r/compare.json").read_text().strip()


def test_compare_refuses_a_config_without_monitor():
    Path("off.yaml").write_text("problem: poisson\nmonitor: off\n")
    ended = pinnsketch("compare", "off.yaml")
    assert ended.code == 2
    assert "compare: this config has the monitor off; give it one, as in 'monitor: {every: 10}'." in ended.err


def test_compare_sets_two_run_folders_side_by_side(solved, printed):
    same, other = pinnsketch("compare", solved[0], solved[0], "--json"), pinnsketch("compare", solved[0], printed[0])
    result = json.loads(same.out)
    assert (same.code, other.code) == (0, 0)
    assert result["identical"] is True
    assert result["first"] == result["second"] == {"folder": str(solved[0]), **read_json(solved[0] / "metrics.json")}
    assert "different" in other.out
    limits = [read_json(run[0] / "metrics.json")["estimate"]["limit"] for run in (solved, printed)]
    (line,) = [line for line in other.out.splitlines() if "at most" in line]
    assert [cell.strip() for cell in line.split("│")[2:4]] == [number(limit) for limit in limits]


def test_the_limit_of_a_solution_from_data_is_said_to_take_them_for_exact():
    limit = {"correction": 0.01, "limit": 0.05, "coefficients": {}}
    for measured in ([], ["probes"]):
        metrics = {"relative_l2": None, "unknowns": {}, "losses": {}, "steps": 1, "seconds": 1.0, "monitor": {"bytes": 0}}
        table = metrics_table(metrics | {"estimate": limit, "measured": measured})
        assert ("0.01, at most 0.05, were the data exact" in [*table.columns[1].cells]) == bool(measured)


@pytest.mark.parametrize(("rounds", "words"), [(5, "least to greatest"), (6, "95 % interval")])
def test_a_comparison_of_few_rounds_has_no_interval(rounds, words):
    result = {
        "relative_l2": {"with": 0.1, "without": 0.1},
        "overhead": median_interval([1.0 + k / 10 for k in range(rounds)]),
        "seconds": {"with": 1.0, "without": 1.0},
        "identical": True,
        "monitor": {"bytes": 1},
        "chosen": "",
    }
    assert f"  {words}" in [*comparison_table(result).columns[0].cells]


def test_compare_writes_two_folders_where_it_is_told(solved):
    assert pinnsketch("compare", solved[0], solved[0], "--out", "r").code == 0
    assert read_json(Path("r/compare.json"))["identical"] is True


def test_compare_refuses_a_folder_without_a_finished_run(solved):
    ended = pinnsketch("compare", solved[0], "nix")
    assert ended.code == 2
    assert "nix holds no finished run: metrics.json cannot be read" in ended.err


def test_check_passes_what_the_exact_solution_satisfies():
    ended = pinnsketch("check", "decay.py", "--json")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert [(term["name"], term["verdict"]) for term in report["terms"]] == [("decay", "vanishes"), ("start", "vanishes")]
    assert report["terms"][0]["reads"] == ["u", "u.t"]
    assert report["warnings"] == []


def test_check_finds_a_wrong_sign_and_names_the_term():
    Path("wrong.py").write_text(PROBLEM.format(sign="-", exact=EXACT))
    ended = pinnsketch("check", "wrong.py")
    assert ended.code == 2
    assert ended.err == "The exact solution does not satisfy decay: correct the residual or the solution."
    assert "does not vanish" in ended.out


def test_check_of_a_problem_without_exact_solution_says_so_and_passes():
    Path("open.py").write_text(PROBLEM.format(sign="+", exact=""))
    ended = pinnsketch("check", "open.py", "--json")
    assert ended.code == 0
    assert {(term["verdict"], term["residual"]) for term in json.loads(ended.out)["terms"]} == {("no exact solution", None)}


def test_check_shows_every_name_whole_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    Path("open.py").write_text(PROBLEM.format(sign="+", exact="").replace('"decay":', '"imaginary_part_of_the_law":'))
    ended = pinnsketch("check", "open.py")
    assert "imaginary_part_of_the_law" in ended.out
    assert "there is no exact solution to test against" in " ".join(ended.out.split())


def test_check_tells_of_weights_of_terms_that_are_not_there():
    Path("w.yaml").write_text(Path("c.yaml").read_text() + "weights: {nix: 3}\n")
    ended = pinnsketch("check", "w.yaml")
    assert (ended.code, ended.err) == (2, "Error: weights: there is no term 'nix'; the terms are poisson, sides.")


@pytest.mark.parametrize("word", ["poisson", "c.yaml"])
def test_check_takes_a_shipped_name_and_a_config(word):
    ended = pinnsketch("check", word)
    assert ended.code == 0
    assert ended.out.count("vanishes") == 2


def test_check_warns_of_what_no_residual_reads():
    Path("spare.py").write_text(PROBLEM.format(sign="+", exact=EXACT).replace('{"rate":', '{"spare": 1.0, "rate":'))
    ended = pinnsketch("check", "spare.py")
    assert (ended.code, ended.err) == (0, "Warning: 'spare' is read by no residual: is it needed?")


def test_a_new_problem_is_checked_and_solved_as_it_is_written():
    ended = pinnsketch("new", "problem", "mine")
    assert ended.code == 0
    assert ended.out.startswith("Wrote mine.py and mine.yaml.")
    assert pinnsketch("check", "mine.py").code == 0
    text = Path("mine.yaml").read_text()
    first, _, other = text.partition("# Or ")
    assert read_config(Path("mine.yaml")).train.schedule == ()  # auto
    chosen = first.replace("train:", "# train:") + "# " + other.replace("\n# ", "\n")
    Path("mine.yaml").write_text(chosen.replace("steps: 300", "steps: 3").replace("steps: 1000", "steps: 3"))
    assert "steps: 3," in Path("mine.yaml").read_text()
    assert pinnsketch("solve", "mine.yaml").out.rstrip().endswith("Written to runs/mine")


@pytest.mark.usefixtures("numbers_only")
def test_a_new_problem_is_solved_to_ten_digits_by_default():
    pinnsketch("new", "problem", "mine")
    ended = pinnsketch("solve", "mine.yaml", "--json")
    assert json.loads(ended.out)["relative_l2"]["overall"] < 1e-10


def test_a_new_problem_overwrites_nothing():
    Path("mine.yaml").write_text("precious")
    ended = pinnsketch("new", "problem", "mine")
    assert (ended.code, ended.err) == (2, "mine.yaml exists already; choose another name.")
    assert Path("mine.yaml").read_text() == "precious"
    assert not Path("mine.py").exists()


@pytest.mark.parametrize("name", ["a-b", "../x", "1st", "a b", "a.py", ""])
def test_a_new_problem_with_a_name_that_is_none_is_refused(name, here):
    before = set(here.iterdir())
    ended = pinnsketch("new", "problem", name)
    assert ended.code == 2
    assert ended.err == f"{name!r} is no name that Python allows; use letters, digits and _, as in my_problem."
    assert set(here.iterdir()) == before


def test_a_new_problem_cannot_be_named_like_a_keyword():
    assert pinnsketch("new", "problem", "class").code == 2


def test_a_new_problem_cannot_be_named_like_a_module_it_imports():
    assert pinnsketch("new", "problem", "torch").code == 2


def test_version_is_printed_alone():
    ended = pinnsketch("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["solve"], "Missing argument 'CONFIG'"),
        (["slove", "c.yaml"], "No such command 'slove'"),
        (["solve", "c.yaml", "--otu", "x"], "No such option: --otu"),
        (["new", "porblem", "x"], "No such command 'porblem'"),
    ],
    ids=str,
)
def test_a_wrong_word_ends_with_2_and_says_what_was_expected(words, text):
    ended = pinnsketch(*words)
    assert ended.code == 2
    assert text in ended.err


@pytest.mark.parametrize("words", [["--help"], ["solve", "--help"], ["compare", "--help"], ["new", "--help"]], ids=str)
def test_help_ends_with_0(words):
    ended = pinnsketch(*words)
    assert ended.code == 0
    assert "Usage: pinnsketch" in ended.out


def test_an_unexpected_error_is_one_message_that_says_how_to_see_more(monkeypatch, capsys):
    def fail(self):
        raise RuntimeError("out of [luck]")

    monkeypatch.setattr("pinnsketch.run.Run.metrics", fail)
    ended = pinnsketch("solve", "decay.yaml")
    assert ended.code == 2
    assert ended.err.startswith(
        "Error: RuntimeError: out of [luck]. This is unexpected: pinnsketch --traceback ... shows where"
    )
    with pytest.raises(SystemExit, match="2"):
        main(["--traceback", "solve", "decay.yaml"])
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def same_state(first, second):
    a, b = (checkpoint.load(Path(folder) / "model.pt")["state"] for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures("numbers_only")
def test_a_run_stopped_by_ctrl_c_says_how_to_go_on_and_ends_bit_for_bit_where_the_unstopped_one_ends():
    text = "problem: decay.py\nnetwork: {width: 8, depth: 2}\npoints: {interior: 50, boundary: 20, test: 200, resample: 7}\n"
    stages = "[{method: adam, steps: 40}, {method: lbfgs, steps: 10}]"
    Path("long.yaml").write_text(f"{text}train: {{schedule: {stages}, checkpoint: 5, log: 3}}\n")
    environment = {
        **os.environ,
        "PYTHONPATH": OURS_FIRST,
        "PINNSKETCH_TEST_NAP": "0.05",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "pinnsketch", "solve", "long.yaml", "--out", "stopped"]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not Path("stopped/checkpoint.pt").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    metrics = read_json(Path("stopped/metrics.json"))
    assert process.returncode == 130
    assert metrics["outcome"] == "interrupted"
    assert 5 <= metrics["steps"] < 50
    assert f"Interrupted at step {metrics['steps']}. Go on with: pinnsketch resume stopped" in err
    assert "Traceback" not in out + err

    assert pinnsketch("resume", "stopped").code == 0
    assert pinnsketch("solve", "long.yaml", "--out", "whole").code == 0
    assert same_state("stopped", "whole")
    timeless = {"seconds", "steps_per_second"}
    resumed, whole = (
        {key: value for key, value in read_json(Path(folder, "metrics.json")).items() if key not in timeless}
        for folder in ("stopped", "whole")
    )
    assert resumed == whole
    histories = [read_json(Path(folder, "history.json")) for folder in ("stopped", "whole")]
    assert [row | {"seconds": 0} for row in histories[0]] == [row | {"seconds": 0} for row in histories[1]]


def test_ctrl_c_before_the_run_begins_ends_with_130(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pinnsketch.library.load_problem", stop)
    ended = pinnsketch("solve", "decay.yaml")
    assert (ended.code, ended.err) == (130, "Interrupted.")


def test_ctrl_c_while_a_method_is_chosen_says_that_there_is_nothing_to_go_on_with(monkeypatch):
    monkeypatch.setattr("pinnsketch.run.choose", lambda *_: signal.raise_signal(signal.SIGINT))
    Path("auto.yaml").write_text("problem: decay.py\n")
    ended = pinnsketch("solve", "auto.yaml")
    assert (ended.code, ended.err) == (130, "Interrupted before training began: there is nothing to go on with.")
    assert not Path("runs/auto").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_lets_the_step_end_and_a_second_ends_at_once(number):
    from pinnsketch.run import interruptible

    before = signal.getsignal(number)
    with interruptible() as asked:
        signal.raise_signal(number)
        assert asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_comparison_stopped_by_ctrl_c_compares_the_steps_until_then(monkeypatch):
    from pinnsketch.solve import Comparison

    whole = Comparison.__iter__

    def stopped(self):
        for steps in whole(self):
            signal.raise_signal(signal.SIGINT)
            yield steps

    monkeypatch.setattr(Comparison, "__iter__", stopped)
    Path("long.yaml").write_text(CONFIG.format(problem="poisson").replace("steps: 6", "steps: 50"))
    ended = pinnsketch("compare", "long.yaml", "--out", "r")
    assert ended.code == 130
    assert "Interrupted: this compares the steps until then." in ended.err
    result = read_json(Path("r/compare.json"))
    assert result["identical"] is True
    assert result["steps"] == 10


def test_a_comparison_stopped_by_ctrl_c_is_not_called_solved(monkeypatch):
    test_a_comparison_stopped_by_ctrl_c_compares_the_steps_until_then(monkeypatch)
    assert read_json(Path("r/compare.json"))["outcome"] == "interrupted"


def test_a_run_resumed_on_a_terminal_or_not_measures_time_from_where_it_was(solved):
    seconds = checkpoint.load(solved[0] / "checkpoint.pt")["seconds"]
    assert math.isfinite(seconds)
    assert seconds == pytest.approx(read_json(solved[0] / "metrics.json")["seconds"])


@pytest.mark.usefixtures("numbers_only")
def test_the_values_of_the_trained_model_do_not_depend_on_the_folder(solved):
    Path("again.yaml").write_text(CONFIG.format(problem="poisson"))
    pinnsketch("solve", "again.yaml", "--out", "elsewhere")
    assert same_state(solved[0], "elsewhere")
    x = np.linspace(0, 1, 5)
    first, second = (Solution.load(Path(folder, "model.pt"))(x=x, y=0.3) for folder in (solved[0], "elsewhere"))
    np.testing.assert_array_equal(first, second)
