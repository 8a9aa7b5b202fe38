"""Whatever is wrong, the command ends with one clear message and the right code, and nothing that was reached is lost."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from command import pinnsketch

from pinnsketch import Solution, checkpoint
from pinnsketch.checkpoint import CheckpointError
from pinnsketch.config import read_config
from pinnsketch.library import load_problem
from pinnsketch.run import Run

ROOT = Path(__file__).parents[1]
OURS_FIRST = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
SMALL = "network: {width: 8, depth: 2}\npoints: {interior: 50, boundary: 20, test: 100}\n"
CONFIG = "problem: p.py\n" + SMALL + "train: {method: adam, steps: 10, checkpoint: 5}\n"
PROBLEM = """from torch import exp, log
from pinnsketch import Box, Data, Disk, Polygon, Problem, Term, Unknown
D = Box(x=(0, 1), y=(0, 1))
def residual(u, x):
    v = u.xx + 1
    return @
def problem(k: float = 1.0):
    return Problem(D, "u", {"a": Term(D.interior, residual), %}, parameters={"k": k}, &)
"""
GOOD = "u.yy + v"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("c.yaml").write_text(CONFIG)
    write()
    return tmp_path


def problem_text(residual=GOOD, terms="", more=""):
    """A problem file with this residual, these further terms, and these further arguments of Problem."""
    return PROBLEM.replace("@", residual).replace("%", terms).replace("&", more)


def write(*given, **more):
    Path("p.py").write_text(problem_text(*given, **more))


def refused(*words):
    """The message of a command that ends with 2 before anything is written or printed."""
    ended = pinnsketch(*words)
    assert ended.code == 2
    assert ended.out == ""
    assert not Path("runs").exists()
    assert "This is unexpected" not in ended.err
    return ended.err


RESIDUALS = {
    "one number a point": ("u.value[:, 0]", "must be a tensor of shape (50, 1), one row a point; got shape (50,)."),
    "broadcast by accident": ("u - u.value[:, 0]", "must be a tensor of shape (50, 1), one row a point; got shape (50, 50)."),
    "one number": ("u.x.sum()", "got shape (). Unknowns and coordinates come as (n, 1): keep that shape."),
    "no tensor": ("3.0", "must be a tensor of shape (50, 1), one row a point; got float."),
    "nothing": ("None", "must be a tensor of shape (50, 1), one row a point; got NoneType."),
    "NaN": ("log(x - 2)", "is not finite at 50 of 50 points before training, first at x="),
    "infinite": ("v / (x - x)", "Look for a division by zero, a logarithm or a root outside its range."),
    "TypeError": ("v + 'a'", "failed (p.py, line 6): TypeError: "),
    "NameError": ("nope", "name 'nope' is not defined. If 'nope' belongs to the problem, add it to the parameters of residual"),
    "underscore": ("u_xx", "name 'u_xx' is not defined. A derivative is written u.xx"),
    "numpy": (
        "__import__('numpy').sin(x)",
        "In a problem use functions of torch, as torch.sin: those of numpy and math have no",
    ),
    "numpy of an unknown": ("__import__('numpy').sin(u)", "In a problem use functions of torch, as torch.sin"),
    "math": ("__import__('math').sin(x)", "In a problem use functions of torch, as torch.sin"),
}


@pytest.mark.parametrize("command", ["solve", "check", "compare"])
@pytest.mark.parametrize(("residual", "text"), RESIDUALS.values(), ids=RESIDUALS)
def test_a_residual_that_cannot_be_used_is_refused_before_training(command, residual, text):
    write(residual)
    message = refused(command, "c.yaml")
    assert "Error: Term 'a': its residual" in message  # torch itself warns of a float of a tensor before
    assert text in message


def test_a_residual_that_fails_inside_a_field_is_blamed_on_its_own_line():
    write("u + 'a'")
    assert "Term 'a': its residual failed (p.py, line 6): TypeError" in refused("solve", "c.yaml")


def test_a_residual_that_asks_for_an_unknown_derivative_is_refused():
    write("u.xz")
    assert refused("solve", "c.yaml").startswith("Error: Term 'a': u.xz: 'z' is no coordinate here; the coordinates are x, y.")


def test_an_unknown_that_is_called_is_refused():
    write("u(x)")
    message = "Error: Term 'a': u is no function but its values at the points of the term: write u alone."
    assert refused("solve", "c.yaml") == message


def test_terms_without_names_and_parameters_that_are_text_are_refused():
    text = problem_text()
    Path("p.py").write_text(text.replace('{"a": Term(D.interior, residual), }', "[Term(D.interior, residual)]"))
    assert "terms: expected a dict by name" in refused("solve", "c.yaml")
    Path("p.py").write_text(text)
    Path("c.yaml").write_text(CONFIG + 'parameters: {k: "1,5"}\n')
    assert "Parameter 'k': expected a number, or Unknown(...); got the text '1,5'." in refused("solve", "c.yaml")


TERMS = {
    "unknown name": (
        '"b": Term(D.interior, lambda w: w)',
        "Term 'b': its residual asks for 'w', which is not known here. It may ask for u, x, y, k.",
    ),
    "close name": ('"b": Term(D.interior, lambda u, kk: u)', "asks for 'kk', which is not known here. Did you mean 'k'?"),
    "normal inside": ('"b": Term(D.interior, lambda u, n: u)', "The normal n exists on boundaries only."),
    "no unknown": ('"b": Term(D.interior, lambda x: x)', "Term 'b': its residual reads no unknown"),
    "starred": ('"b": Term(D.interior, lambda *u: u[0])', "*u cannot be matched by name; list what it needs."),
    "no term": ('"b": 3', "Term 'b': expected Term(region, residual); got int."),
    "no region": ('"b": Term(3, lambda u: u)', "Term 'b': expected a region, as in domain.interior, or Data; got int."),
    "weight": ('"b": Term(D.interior, lambda u: u, weight=-1)', "Term 'b': its weight must be positive and finite; got -1."),
    "points": ('"b": Term(D.interior, lambda u: u, points=0)', "Term 'b': at least one point is needed; got 0."),
    "empty interior": (
        '"b": Term(D.interior.where(lambda x: x > 2, name="beyond"), lambda u: u)',
        "beyond of Box(x=(0, 1), y=(0, 1)) is empty: none of 1,048,576 proposed points lies in it.",
    ),
    "empty boundary": ('"b": Term(D.boundary.where(lambda x: x > 2), lambda u: u)', "is empty: none of 1,048,576 proposed"),
    "no side": ('"b": Term(D.side(x=0.5), lambda u: u)', "p.py, line 8: side(x=0.5): no face of Box(x=(0, 1), y=(0, 1)) lies"),
    "inside out": (
        '"b": Term(Box(x=(1, 0), y=(0, 1)).interior, lambda u: u)',
        "p.py, line 8: Box: x runs from 1 to 0; the first end must be the smaller one: x=(0, 1).",
    ),
    "flat": ('"b": Term(Box(x=(1, 1), y=(0, 1)).interior, lambda u: u)', "Box: x runs from 1 to 1"),
    "negative disk": (
        '"b": Term(Disk(radius=-1).interior, lambda u: u)',
        "Disk: the radius must be positive and finite; got -1.",
    ),
    "knot": ('"b": Term(Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]).interior, lambda u: u)', "Polygon: Self-intersection"),
    "no data": ('"b": Term(Data("probe.csv"), lambda u, s: u - s)', "probe.csv: No such file or directory."),
}


@pytest.mark.parametrize(("terms", "text"), TERMS.values(), ids=TERMS)
def test_a_term_that_cannot_hold_is_refused(terms, text):
    write(terms=terms)
    assert text in refused("solve", "c.yaml")


def test_a_domain_without_points_is_refused():
    Path("p.py").write_text(problem_text().replace("D = Box(x=(0, 1), y=(0, 1))", "D = Disk() - Disk(radius=2)"))
    assert re.search(r"interior of .*Disk.* is empty: none of 1,048,576 proposed points lies in it", refused("solve", "c.yaml"))


CSV = {
    "empty": ("", "needs a header line and at least one row of numbers."),
    "header only": ("x,y,s\n", "needs a header line and at least one row of numbers."),
    "column": ("x,s\n1,2\n", "has no column 'y'; its columns are x, s."),
    "words": ("x,y,s\n1,2,a\n", "probe.csv, line 2: expected 3 numbers; got '1,2,a'."),
    "short row": ("x,y,s\n1,2,3\n1,2\n", "probe.csv, line 3: expected 3 numbers; got '1,2'."),
    "nan": ("x,y,s\n1,2,nan\n", "column 's' is not finite in row 1 (nan)."),
    "twice": ("x,y,y\n1,2,3\n", "two columns are called 'y'."),
    "taken": ("x,y,u\n1,2,3\n", "has a column 'u', which is taken: rename it, as in u_seen."),
}


@pytest.mark.parametrize(("text", "words"), CSV.values(), ids=CSV)
def test_data_that_cannot_be_used_are_refused_with_their_place(text, words):
    Path("probe.csv").write_text(text)
    write(terms='"b": Term(Data("probe.csv"), lambda u, s: u - s)')
    message = refused("solve", "c.yaml")
    assert words in message
    assert "probe.csv" in message


def test_a_problem_without_terms_is_refused():
    Path("p.py").write_text('from pinnsketch import *\ndef problem():\n    return Problem(Box(x=(0, 1)), "u", {})\n')
    assert refused("solve", "c.yaml").startswith("Error: A problem needs at least one term, as in terms=")


FILES = {
    "syntax": ("x = 1\ny = (\n", "p.py, line 2: '(' was never closed."),
    "indent": ("x = 1\n  y = 2\n", "p.py, line 2: unexpected indent."),
    "no text": ("x = '\0'", "p.py"),
    "import": ("\nimport nope_nothing\n", "p.py, line 2: ModuleNotFoundError: No module named 'nope_nothing'"),
    "public name": ("from pinnsketch import Boxx", "p.py, line 1: ImportError: cannot import name 'Boxx' from 'pinnsketch'"),
    "fails": ("\n\n1 / 0\n", "p.py, line 3: ZeroDivisionError: division by zero"),
    "wordless": ("raise ValueError", "p.py, line 1: ValueError"),
    "leaves": ("import sys\nsys.exit(0)", "p.py, line 2: SystemExit: 0"),
    "missing": ("x = 1", "p.py: it must define a function problem() that returns a Problem."),
    "no function": ("problem = 3", "p.py: it must define a function problem() that returns a Problem."),
    "nothing": ("def problem(): pass", "p.py: problem() must return a Problem; it returned NoneType."),
    "a number": ("def problem(): return 3", "p.py: problem() must return a Problem; it returned int."),
    "needs": ("def problem(k): pass", "p.py: TypeError: problem() missing 1 required positional argument: 'k'"),
    "raises": ("def problem():\n    x = 1\n    return x + 'a'", "p.py, line 3: TypeError: unsupported operand"),
    "recursion": ("def problem():\n    return problem()", "p.py, line 2: RecursionError: maximum recursion depth"),
    "markup": ("def problem():\n    raise RuntimeError('a [bold]b[/] [red]')", "RuntimeError: a [bold]b[/] [red]"),
}


@pytest.mark.parametrize("word", ["c.yaml", "p.py"])
@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES)
def test_a_problem_file_that_fails_is_refused_with_its_line(word, text, words):
    Path("p.py").write_text(text)
    assert words in refused("solve", word)


def test_a_problem_file_that_is_no_text_is_refused():
    Path("p.py").write_bytes(b'x = "\xff\xfe"\n')
    assert "p.py, line 1: (unicode error)" in refused("check", "p.py")


CONFIGS = {
    "key": ("netwrok: {}", "c.yaml: there is no key 'netwrok' here; did you mean 'network'?"),
    "nested": ("monitor: {rnak: 3}", "c.yaml: monitor: there is no key 'rnak' here; did you mean 'rank'?"),
    "value": ("threads: many", "c.yaml: threads: expected a whole number; got 'many'"),
    "twice": ("problem: p.py", "c.yaml is not valid YAML: the key 'problem' stands twice"),
    "tab": ("\tthreads: 1", r"c.yaml is not valid YAML: found character '\t' that cannot start any token in line 5"),
    "weights": ("weights: {b: 3}", "weights: there is no term 'b'; the terms are a."),
    "parameter": ("parameters: {kk: 3}", "parameters: p.py has no parameter 'kk'; did you mean 'k'? (known: k)."),
    "method alone": ("train: adam", "c.yaml: train: expected keys and values, as in {method: adam}"),
    "auto": ("train: {method: auto, steps: 9}", "c.yaml: train: method auto takes no 'steps': it chooses methods"),
    "device": ("device: toaster", "device: 'toaster' cannot be used here"),
    "tag": ("parameters: !!python/object/apply:os.system ['touch hacked']", "could not determine a constructor for the tag"),
}


@pytest.mark.parametrize(("line", "words"), CONFIGS.values(), ids=CONFIGS)
def test_a_wrong_config_is_refused(line, words):
    given = CONFIG.replace("train:", "#") if line.startswith("train:") else CONFIG
    Path("c.yaml").write_text(given + line + "\n")
    assert words in refused("solve", "c.yaml")
    assert not Path("hacked").exists()


WORDS = {
    "missing": ("nix.yaml", "There is no file nix.yaml, nor a shipped config of that name. Shipped: allen_cahn, burgers,"),
    "name": ("poissn", "There is no file poissn, nor a shipped config of that name. Shipped: allen_cahn, burgers,"),
    "shipped": ("poisson.yaml", "There is no file poisson.yaml. A shipped config is called by its name alone: poisson"),
    "folder": (".", ". is a folder; give a YAML file. To go on with a run folder use: pinnsketch resume ."),
    "binary": ("x.bin", "x.bin is not text in UTF-8; is it a YAML file?"),
    "empty": ("empty.yaml", "empty.yaml: expected keys and values, at least 'problem: NAME'; got an empty file."),
    "table": ("x.csv", "x.csv: expected keys and values, at least 'problem: NAME'; got str."),
}


@pytest.mark.parametrize("command", ["solve", "check", "compare"])
@pytest.mark.parametrize(("word", "text"), WORDS.values(), ids=WORDS)
def test_what_is_no_config_is_refused(command, word, text):
    Path("empty.yaml").touch()
    Path("x.bin").write_bytes(b"\x80\x81\xff")
    Path("x.csv").write_text("x,y\n1,2\n")
    assert text in refused(command, word)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ("nix.py", "problem: there is no file {here}/nix.py."),
        ("poissn", "problem: there is no problem 'poissn'; did you mean 'poisson'? (known: allen_cahn, burgers,"),
        ("c.yaml", "c.yaml is not a Python file."),
        (".", "problem: there is no problem '.'"),
    ],
)
def test_a_problem_that_is_not_there_is_refused(here, problem, text):
    Path("c.yaml").write_text(CONFIG.replace("p.py", problem))
    assert text.format(here=here) in refused("solve", "c.yaml")


EXACT = {
    "shape": "exact=lambda x: x[:, 0]",
    "text": "exact=lambda x: 'a'",
    "name": "exact=lambda x: nope",
}


@pytest.mark.parametrize("more", EXACT.values(), ids=EXACT)
def test_an_exact_solution_that_fails_is_refused_by_name(more):
    write(more=more)
    assert "exact 'u'" in refused("solve", "c.yaml")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("exact={'u': 3}", "exact 'u': expected a function of coordinates; got 3."),
        ("exact=lambda x: x.detach().nope", "Error: exact 'u' failed (p.py, line 8): AttributeError"),
        ("reference=lambda: 1 / 0", "Error: reference: it failed (p.py, line 8): ZeroDivisionError: division by zero"),
    ],
)
def test_what_solutions_are_measured_against_is_named_where_it_fails(more, text):
    write(more=more)
    ended = pinnsketch("check" if more.startswith("exact") else "solve", "c.yaml")
    assert ended.code == 2
    assert text in ended.err


@pytest.mark.usefixtures("numbers_only")
def test_the_config_in_a_run_folder_is_solved_again_in_that_folder_with_its_data():
    Path("data").mkdir()
    Path("data/probe.csv").write_text("x,y,s\n0.2,0.1,1\n")
    write(terms='"b": Term(Data("data/probe.csv"), lambda u, s: u - s)')
    assert pinnsketch("solve", "c.yaml", "--out", "r").code == 0
    first = Path("r/metrics.json").read_bytes()
    assert pinnsketch("solve", "r/config.yaml", "--out", "r", "--overwrite").code == 0
    assert Path("r/metrics.json").read_bytes() != first
    assert Path("r/data/probe.csv").read_text() == Path("data/probe.csv").read_text()


@pytest.mark.parametrize("command", ["solve", "compare"])
@pytest.mark.parametrize(
    ("out", "reason"),
    [("c.yaml", "File exists"), ("c.yaml/x", "Not a directory"), ("/proc/x", "No such file or directory")],
)
def test_a_folder_that_cannot_be_written_is_refused_before_training(command, out, reason):
    assert f"Cannot write to {out}: {reason}. Choose another folder with --out." in refused(command, "c.yaml", "--out", out)
    assert Path("c.yaml").read_text() == CONFIG


def test_a_read_only_place_is_refused_when_a_problem_is_begun(monkeypatch):
    monkeypatch.chdir("/proc")
    ended = pinnsketch("new", "problem", "mine")
    assert ended.code == 2
    assert "mine.py" in ended.err


def finite(folder):
    state = checkpoint.load(Path(folder) / "model.pt")["state"]
    return all(bool(value.isfinite().all()) for value in state.values())


BLOW_UPS = {
    "learning rate": ("u + v", 1e200, 2),
    "overflow": ("u - 100 + 0 * exp(20 * u)", 1.0, None),
    "gradient alone": ("(u - u.value.detach()).sqrt()", 0.1, 1),
}


@pytest.mark.usefixtures("numbers_only")
@pytest.mark.parametrize(("residual", "lr", "step"), BLOW_UPS.values(), ids=BLOW_UPS)
def test_training_that_goes_non_finite_ends_with_3_names_the_step_and_keeps_the_parameters_before(residual, lr, step):
    write(residual)
    Path("c.yaml").write_text(CONFIG.replace("steps: 10", f"steps: 10, lr: {lr}"))
    ended = pinnsketch("solve", "c.yaml", "--out", "r")
    found = re.search(r"Training went non-finite at step (\d+); the parameters before it are kept in r/model.pt", ended.err)
    assert ended.code == 3
    assert found
    assert step in (None, int(found[1]))
    assert re.search("lower train.lr|add a small number under the root", ended.err)
    assert ended.err.rstrip().endswith("Look closer with: pinnsketch replay r")
    assert finite("r")
    assert Solution.load("r/model.pt").outcome == "non-finite"
    assert '"outcome": "non-finite"' in Path("r/metrics.json").read_text()


@pytest.mark.usefixtures("numbers_only")
def test_what_the_monitor_found_is_written_to_health_json():
    write(BLOW_UPS["gradient alone"][0])
    pinnsketch("solve", "c.yaml", "--out", "r")
    assert [finding["kind"] for finding in json.loads(Path("r/health.json").read_text())] == ["non-finite gradient"]


def test_a_comparison_that_goes_non_finite_ends_with_3():
    write("u + v")
    Path("c.yaml").write_text(CONFIG.replace("steps: 10", "steps: 10, lr: 1e200"))
    ended = pinnsketch("compare", "c.yaml", "--out", "r", "--json")
    assert ended.code == 3
    assert "Training went non-finite in both runs." in ended.err
    assert '"identical": true' in ended.out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run folder stopped after 7 of 10 steps, with its last checkpoint there."""
    folder = tmp_path_factory.mktemp("stopped")
    problem, config = folder / "p.py", folder / "c.yaml"
    problem.write_text(problem_text())
    config.write_text(CONFIG)
    run = Run(load_problem(problem), read_config(config), folder / "r", source=problem)
    for step in run:
        if step.index == 7:
            break
    run.finish(interrupted=True)
    return folder / "r"


@pytest.fixture
def interrupted(stopped, here):
    """A copy of it, to damage."""
    return Path(shutil.copytree(stopped, "r"))


@pytest.mark.parametrize(("minute", "kept"), [(0.0, 7), (3600.0, 5)])
def test_a_run_of_few_long_steps_that_is_killed_has_a_checkpoint_of_the_last_minute(here, minute, kept, monkeypatch):
    monkeypatch.setattr("pinnsketch.course.MINUTE", minute)
    problem = Path("p.py")
    problem.write_text(problem_text())
    Path("c.yaml").write_text(CONFIG)
    for step in Run(load_problem(problem), read_config(Path("c.yaml")), Path("r"), source=problem):
        if step.index == 7:
            break
    assert checkpoint.load(Path("r/checkpoint.pt"))["reached"]["steps"] == kept


def test_a_run_that_ended_before_its_first_checkpoint_says_how_to_begin_again(here):
    Path("r").mkdir()
    Path("r/config.yaml").write_text(CONFIG)
    assert refused("resume", "r").endswith("It ended before the first one: begin again with pinnsketch solve r/config.yaml")


@pytest.mark.usefixtures("numbers_only")
def test_resume_goes_on_to_the_end(interrupted):
    assert pinnsketch("resume", "r").out.rstrip().endswith("Written to r")
    assert Solution.load("r/model.pt").metrics["steps"] == 10


@pytest.mark.usefixtures("numbers_only")
def test_a_finished_run_is_not_resumed(interrupted):
    pinnsketch("resume", "r")
    before = {path.name: path.read_bytes() for path in Path("r").glob("*.pt")}
    assert refused("resume", "r") == "Error: r holds a finished run (10 steps): there is nothing left to do."
    assert before == {path.name: path.read_bytes() for path in Path("r").glob("*.pt")}


@pytest.mark.parametrize("folder", ["empty", "nix", "c.yaml"])
def test_a_folder_without_a_run_is_not_resumed(folder):
    Path("empty").mkdir()
    assert refused("resume", folder) == (
        f"Error: {folder} holds no checkpoint.pt: there is nothing to go on with. Is it a run folder?"
    )


@pytest.mark.parametrize("keep", [0, 3, 1000, -1], ids=["empty", "short", "cut", "last byte"])
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(interrupted, keep):
    path = interrupted / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    before = path.read_bytes()
    message = refused("resume", "r")
    assert re.search(r"r/checkpoint\.pt cannot be read \(\w+\): it is damaged, or not from pinnsketch", message)
    assert path.read_bytes() == before


def test_a_checkpoint_with_one_flipped_byte_is_refused_or_read_as_it_was(interrupted):
    path = interrupted / "checkpoint.pt"
    good, content = checkpoint.load(path), bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    path.write_bytes(content)
    try:
        read = checkpoint.load(path)
    except CheckpointError:
        return
    assert all(torch.equal(read["trial"][name], good["trial"][name]) for name in good["trial"])


def test_a_checkpoint_that_would_run_code_is_refused(interrupted):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("hacked",)

    torch.save({"format": 1, "trial": Evil()}, interrupted / "checkpoint.pt")
    assert "it is damaged, or not from pinnsketch" in refused("resume", "r")
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    ("state", "text"), [({"format": 99}, "has format 99; this version reads 1"), ([1, 2], "holds a list, not a checkpoint")]
)
def test_a_checkpoint_of_another_kind_is_refused(interrupted, state, text):
    torch.save(state, interrupted / "checkpoint.pt")
    assert text in refused("resume", "r")


def test_a_run_whose_network_was_changed_by_hand_is_not_resumed(interrupted):
    path = interrupted / "config.yaml"
    path.write_text(path.read_text().replace("width: 8", "width: 9"))
    assert "checkpoint.pt" in refused("resume", "r")


def test_a_run_without_its_problem_file_is_not_resumed(interrupted):
    (interrupted / "problem.py").unlink()
    assert "r holds no problem.py" in refused("resume", "r")


@pytest.mark.usefixtures("numbers_only")
def test_overwriting_a_run_leaves_nothing_of_it_to_resume(interrupted):
    write("(u - u.value.detach()).sqrt()")
    Path("c.yaml").write_text(CONFIG.replace("width: 8", "width: 9"))
    assert pinnsketch("solve", "c.yaml", "--out", "r", "--overwrite").code == 3
    assert "holds no checkpoint.pt" in refused("resume", "r")


@pytest.fixture
def full(monkeypatch, here):
    """A disk that fills up: a file for which the predicate holds cannot be written. Rescued results go to `temporary`."""
    (here / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "temporary"))
    write_really = checkpoint.write

    def fill(predicate):
        def write(path, content):
            if predicate(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            write_really(path, content)

        monkeypatch.setattr(checkpoint, "write", write)

    return fill


def rescued(here):
    (folder,) = (here / "temporary").iterdir()
    return folder


@pytest.mark.usefixtures("numbers_only")
@pytest.mark.parametrize("name", ["metrics.json", "history.json", "model.pt", "solution.png"])
def test_a_result_that_does_not_fit_is_named_and_all_are_rescued_to_a_folder_that_is_named(here, full, name, monkeypatch):
    def drawn(_, folder):
        checkpoint.write(folder / "solution.png", lambda file: file.write(b"a picture"))

    monkeypatch.setattr("pinnsketch.report.figures.write_figures", drawn)
    full(lambda path: path == here / "r" / name)
    ended = pinnsketch("solve", "c.yaml", "--out", here / "r")
    folder = rescued(here)
    text = f"Could not write everything to {here}/r: {name}: No space left on device; the results are in {folder} instead."
    assert (ended.code, text in ended.err) == (4, True)
    assert "Written to" not in ended.out
    assert {"metrics.json", "history.json", "health.json", "model.pt", "solution.png"} <= {p.name for p in folder.iterdir()}
    assert Solution.load(folder / "model.pt").metrics["steps"] == 10


@pytest.mark.usefixtures("numbers_only")
def test_an_older_checkpoint_survives_a_disk_that_fills_up_and_can_be_resumed(here, full):
    saved = []

    def later(path):
        if path.name == "checkpoint.pt":
            saved.append(path)
        return path.name == "checkpoint.pt" and len(saved) > 1

    full(later)
    ended = pinnsketch("solve", "c.yaml", "--out", "r")
    assert ended.code == 4
    assert "Could not write everything to r: checkpoint.pt: No space left on device." in ended.err
    assert checkpoint.load(Path("r/checkpoint.pt"))["train"]["index"] == 5
    finished = checkpoint.load(Path("r/model.pt"))["state"]
    full(lambda path: False)
    assert pinnsketch("resume", "r").code == 0
    resumed = checkpoint.load(Path("r/model.pt"))["state"]
    assert all(torch.equal(finished[name], resumed[name]) for name in finished)


@pytest.mark.usefixtures("numbers_only")
def test_where_nothing_can_be_written_the_numbers_are_still_printed(here, full):
    full(lambda path: path.suffix in (".json", ".pt", ".png") and path.name != "environment.json")
    ended = pinnsketch("solve", "c.yaml", "--out", "r")
    assert (
        f"Could not write everything to r: metrics.json: No space left on device; nor could {rescued(here)} be written"
        in ended.err
    )
    assert "mean square residual of a" in ended.out


def test_a_disk_that_is_full_at_the_start_is_refused_before_training(full):
    full(lambda path: True)
    assert refused("solve", "c.yaml", "--out", "r") == (
        "Error: Cannot write to r: No space left on device. Choose another folder with --out."
    )


def test_compare_on_a_full_disk_prints_its_result_and_says_what_is_missing(full):
    full(lambda path: path.name == "compare.json")
    ended = pinnsketch("compare", "c.yaml", "--out", "r", "--json")
    assert "Could not write r/compare.json: No space left on device." in ended.err
    assert '"identical": true' in ended.out


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("PytorchStreamWriter failed"), KeyboardInterrupt()]
)
def test_a_file_whose_writing_fails_midway_leaves_the_older_one_and_no_rest(here, error):
    def content(file):
        file.write(b"half")
        raise error

    Path("old").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError):
        checkpoint.write(here / "old", content)
    assert Path("old").read_bytes() == b"old"
    assert not list(here.glob(".*"))


LIMITED = """import os, resource, signal, sys
from pinnsketch.cli import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        main(["solve", "c.yaml", "--out", limit])
    except SystemExit as leaving:
        print("ended with", leaving.code)
"""


def with_file_limits(*limits):
    """Solve into a folder for each limit, where no file can grow beyond so many bytes: the system refuses to write on."""
    Path("temporary").mkdir()
    settings = {
        "PYTHONPATH": OURS_FIRST,
        "TMPDIR": str(Path("temporary").absolute()),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, limits)],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_a_run_on_a_disk_that_is_really_full_ends_keeps_the_numbers_and_says_so():
    ended = with_file_limits(4000, 9000)
    assert ended.returncode == 0
    assert ended.stdout.count("ended with 4") == ended.stdout.count("mean square residual of a") == 2
    assert "Traceback" not in ended.stderr
    for limit, model in ((4000, False), (9000, True)):
        assert re.search(rf"Could not write everything to {limit}: \S+: File too large", " ".join(ended.stderr.split()))
        names = {path.name for path in Path(str(limit)).iterdir()}
        assert {"config.yaml", "problem.py", "metrics.json", "history.json"} <= names
        assert not [name for name in names if name.endswith(".part")]
        assert ("model.pt" in names) == model
    assert finite("9000")
