"""Laws of the whole: problems and their solutions, configs and their runs, and who may import whom."""

import ast
import os
import subprocess
import sys
from functools import cache
from inspect import isfunction
from pathlib import Path

import pytest
import torch

import pinnsketch
from pinnsketch.check import check
from pinnsketch.config import make_config, read_config, read_yaml
from pinnsketch.library import find_problem, load_problem, names, shipped
from pinnsketch.run import Run

# torch says this once in a process: see test_cli.py, test_a_run_with_an_unknown_coefficient_warns_of_nothing
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pinnsketch"
PROBLEMS = sorted((ROOT / "problems").glob("*.py"))
CONFIGS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if "problem" in read_yaml(path, "problem: NAME")]
TIERS = [
    {"sketch", "derivatives", "jets", "geometry", "graphed", "blank", "ansatz"},
    {"periodic", "enrichment", "features", "multistage", "patches", "slabs"},
    {"field", "points", "network", "gauges", "layers"},
    {"problem"},
    {"reference", "blocks", "monitor", "methods", "compiled"},
    {"trial", "gradient", "marching"},
    {"collocation", "health", "train", "checkpoint"},
    {"estimate"},
    {"downloads"},
    {"datasets", "images"},
    {"backward"},
    {"config", "image_config"},
    {"automatic"},
    {"library", "solution", "watch", "blackbox"},
    {"origin"},
    {"report", "check", "record", "display"},
    {"workplace"},
    {"course"},
    {"run", "solve", "image_run", "image_compare", "replay"},
    {"cli"},
    {"__main__", "__init__", "templates"},
]
RANK = {name: rank for rank, tier in enumerate(TIERS) for name in tier}
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = {str(path.relative_to(PACKAGE)): path for path in MODULES}

REFERRED = ["allen_cahn", "cavity", "kdv"]
"""Problems without a closed form."""

problems = pytest.mark.parametrize("path", PROBLEMS, ids=lambda path: path.stem)
solved = pytest.mark.parametrize("path", [p for p in PROBLEMS if p.stem not in REFERRED], ids=lambda path: path.stem)
configs = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
sources = pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES)


@cache
def tree(path):
    return ast.parse(path.read_text(), str(path))


def imports(node):
    """(module, name) of every import below a node; name is None for `import module`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from ((alias.name, None) for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            assert inner.level == 0, "relative imports are not used"
            yield from ((inner.module, alias.name) for alias in inner.names)


def test_there_are_fifteen_problems_and_each_has_a_config():
    expected = ["allen_cahn", "burgers", "cavity", "convection", "heat", "helmholtz", "inverse_diffusivity", "kdv", "kovasznay"]
    expected += ["poisson", "poisson_disk", "poisson_l_shape", "poisson_nd", "reaction", "wave"]
    assert names("problems") == [path.stem for path in PROBLEMS] == expected
    assert names("configs") == [path.stem for path in CONFIGS] == expected
    assert shipped("problems").samefile(ROOT / "problems")


@problems
def test_every_problem_has_an_exact_solution_or_a_reference(path):
    problem = load_problem(path)
    assert (problem.reference is not None) == (path.stem in REFERRED)
    assert path.stem in REFERRED or set(problem.exact) == set(problem.unknowns)


@pytest.mark.parametrize("name", REFERRED)
def test_the_terms_of_problems_with_a_reference_are_evaluated_in_one_pass(name):
    checks, warnings = check(load_problem(find_problem(name, ROOT)), interior=50, boundary=20)
    assert warnings == []
    assert all(c.reads and c.streams for c in checks)


@solved
def test_the_exact_solution_of_every_problem_makes_every_term_vanish(path):
    problem = load_problem(path)
    checks, warnings = check(problem, interior=200, boundary=50)
    assert warnings == []
    assert [c.name for c in checks] == list(problem.terms)
    for c in checks:
        assert c.verdict in ("vanishes", "measured"), c
        assert c.points > 0
        assert c.reads


OTHERS = {
    "poisson": {"frequency": 3.0}, "helmholtz": {"a1": 2.0, "a2": 3.0, "k": 5.0}, "heat": {"a": 1.5}, "burgers": {"nu": 0.1},
    "convection": {"beta": 50.0}, "reaction": {"rho": 2.0}, "poisson_nd": {"d": 3, "quadratic": True},
    "wave": {"c": 1.0, "a": 0.3}, "kovasznay": {"re": 20.0}, "inverse_diffusivity": {"a": 0.7, "probes": 30},
}  # fmt: skip


@pytest.mark.parametrize(("name", "parameters"), OTHERS.items(), ids=OTHERS)
def test_the_exact_solution_makes_every_term_vanish_for_other_parameters_too(name, parameters):
    checks, _ = check(load_problem(find_problem(name, ROOT), parameters), interior=100, boundary=30)
    assert {c.verdict for c in checks} <= {"vanishes", "measured"}


@solved
def test_a_wrong_solution_does_not_make_every_term_of_a_problem_vanish(path):
    problem = load_problem(path)
    wrong = {name: _shifted(function) for name, function in problem.exact.items()}
    checks, _ = check(
        pinnsketch.Problem(problem.domain, problem.unknowns, problem.terms, problem.parameters, wrong), interior=50
    )
    assert "does not vanish" in {c.verdict for c in checks}


def _shifted(function):
    from functools import wraps

    @wraps(function)
    def shifted(*args, **kwargs):
        return function(*args, **kwargs) + 1e-3

    return shifted


@problems
def test_every_problem_is_written_with_public_names_only(path):
    for module, name in imports(tree(path)):
        top = module.split(".")[0]
        assert top in ("pinnsketch", "math", "numpy", "torch"), module
        if top == "pinnsketch":
            assert module == "pinnsketch"
            assert name in pinnsketch.__all__


@problems
def test_every_problem_says_its_equation_in_a_docstring_and_does_no_work_when_imported(path):
    body = tree(path).body
    doc = ast.get_docstring(tree(path))
    assert len(doc) > 60
    assert "=" in doc
    for node in body[1:]:
        assert isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.Assign, ast.Expr)), ast.dump(node)[:80]
        if isinstance(node, (ast.Assign, ast.Expr)):
            assert isinstance(node.value, ast.Constant)


@configs
def test_every_config_loads_and_so_does_its_problem(path):
    config = read_config(path)
    source = find_problem(config.problem, path.parent)
    assert source.samefile(ROOT / "problems" / f"{path.stem}.py")
    problem = load_problem(source, config.parameters)
    assert set(config.weights) <= set(problem.terms)


STEPS = 15


def cut(config):
    """The same config with few steps a stage, few points, and few patches."""
    values = config.model_dump()
    for stage in values["train"]["schedule"]:
        stage["steps"] = STEPS
    values["points"] |= {"interior": 60, "boundary": 20, "test": 100, "terms": {}}
    if config.network.kind == "patches":  # which have points of their own
        values["network"]["width"] = 8 * config.network.each
    return make_config(values)


@configs
def test_every_config_shortened_runs_to_its_end_and_lowers_the_loss(path):
    config = cut(read_config(path))
    run = Run(load_problem(find_problem(config.problem, path.parent), config.parameters), config)
    steps = [(step.loss, step.note) for step in run]
    (first, _), (last, note) = steps[0], steps[-1]
    solution = run.finish()
    slabs = config.network.slabs
    assert run.total == slabs * STEPS * len(config.train.schedule) + slabs - 1
    assert len(steps) == run.total or note
    assert last < 0.9 * first or last < 1e-20  # least squares may leave rounding at once
    assert solution.outcome == "solved"
    assert solution.health
    assert all(bool(p.isfinite().all()) for p in solution.trial.parameters())
    assert 0 < solution.error["overall"] < 10


def room(path):
    """The room of a file: its module, or its folder."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def top_level(path):
    """The module's own code, without the bodies of functions."""
    outside = [node for node in tree(path).body if not isinstance(node, (ast.FunctionDef, ast.If))]
    return ast.Module([n for n in outside if not isinstance(n, ast.ClassDef)], [])


@sources
def test_imports_point_one_way(path):
    assert room(path) in RANK, f"{room(path)} has no rank: give it one in TIERS"
    for module, name in imports(top_level(path)):
        if module.split(".")[0] != "pinnsketch" or room(path) in TIERS[-1]:
            continue
        parts = module.split(".")[1:] or [name]
        assert parts[0] in RANK, f"{path.name} imports {module} {name}: rooms import rooms, not the public face"
        assert RANK[parts[0]] <= RANK[room(path)], f"{path.name} imports {parts[0]}"


@sources
def test_no_room_imports_a_private_name_of_another(path):
    for module, name in imports(tree(path)):
        if not module.startswith("pinnsketch") or room(path) in TIERS[-1]:
            continue
        other = module.split(".")[1] if "." in module else name
        private = (name or "").startswith("_") and not name.endswith("__")
        assert other == room(path) or not private or (path.name, name) == ("library.py", "_close"), f"{path.name}: {name}"


def test_modules_do_not_import_each_other_in_a_circle():
    edges = {}
    for path in MODULES:
        parts = [module.split(".")[1] if "." in module else name for module, name in imports(top_level(path))
                 if module.split(".")[0] == "pinnsketch" and room(path) not in TIERS[-1]]  # fmt: skip
        edges.setdefault(room(path), set()).update(set(parts) - {room(path)})
    assert circles(edges) == []


def test_files_do_not_import_each_other_in_a_circle():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    edges = {}
    for file, path in files.items():
        found = {f"{module}.{name}" if f"{module}.{name}" in files else module for module, name in imports(top_level(path))}
        edges[file] = found if room(path) not in TIERS[-1] else set()
    assert circles(edges) == []


def circles(edges):
    """What can be reached from itself."""

    def reached(name, seen):
        for other in edges.get(name, ()):
            if other not in seen:
                seen.add(other)
                reached(other, seen)
        return seen

    return [name for name in edges if name in reached(name, set())]


FORBIDDEN = {
    "sketch": {"field", "problem", "collocation", "network", "monitor"},
    "derivatives": {"sketch", "problem"},
    "train": {"sketch", "monitor", "problem", "field", "collocation"},
    "methods": {"monitor", "problem", "field", "collocation"},
    "cli": {"torch", "numpy"},
}


@pytest.mark.parametrize(("name", "others"), FORBIDDEN.items(), ids=FORBIDDEN)
def test_rooms_never_hear_of_what_is_not_theirs(name, others):
    paths = [path for path in MODULES if room(path) == name]
    assert paths
    for path in paths:
        for module, imported in imports(tree(path)):
            parts = module.split(".")
            heard = {*parts, imported} if parts[0] == "pinnsketch" else {parts[0]}
            assert not heard & others, f"{path.name} imports {module} {imported}"


def calls(path):
    """The dotted name of every function that is called, with the call."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@sources
def test_only_the_command_line_prints(path):
    if path.name != "cli.py":
        assert "print" not in {name for name, _ in calls(path)}


GLOBAL = ("manual_seed", "seed", "set_rng_state", "get_rng_state", "rand_like", "randn_like", "dropout")
DRAWS = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")


@sources
def test_nothing_touches_global_random_numbers(path):
    assert "random" not in {module for module, _ in imports(tree(path))}
    for name, call in calls(path):
        words = name.split(".")
        if words[0] == "torch" and words[-1] in DRAWS:
            assert "generator" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)
        if words[0] == "torch" and len(words) == 2:
            assert words[-1] not in GLOBAL, ast.unparse(call)
        if words[:2] == ["np", "random"]:
            assert words[2] in ("default_rng", "Generator", "SeedSequence", "PCG64"), ast.unparse(call)
            assert call.args, f"{ast.unparse(call)} has no seed"
        if words[:2] == ["nn", "init"] and words[2] not in ("zeros_", "ones_", "constant_"):
            assert "generator" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


def test_a_run_leaves_global_random_numbers_and_threads_alone():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    points = {"interior": 60, "boundary": 20}
    config = make_config({"problem": "heat", "points": points, "train": {"method": "adam", "steps": 10}})
    run = Run(load_problem(ROOT / "problems" / "heat.py"), config.model_copy(update={"threads": 2}))
    seen, losses = [], run.task.losses
    run.task.losses = lambda *given: seen.append(torch.get_num_threads()) or losses(*given)
    for _ in zip(range(2), run, strict=False):
        assert torch.get_num_threads() == threads
    assert seen == [2, 2]
    assert torch.equal(state, torch.get_rng_state())
    del run
    assert torch.get_num_threads() == threads


@sources
def test_no_module_works_or_keeps_mutable_state_when_imported(path):
    """Module level holds imports, definitions and constants; a registry is a dict or list that is never changed."""
    for node in tree(path).body:
        loop = isinstance(node, (ast.For, ast.While, ast.With))
        assert not loop or "setattr(Field" in ast.unparse(node), f"{path.name}: {ast.unparse(node)[:80]}"
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Global), f"{path.name} has a global statement"


def test_every_public_name_is_loaded_from_where_type_checkers_are_told():
    (told,) = (node for node in tree(PACKAGE / "__init__.py").body if ast.unparse(node).startswith("if TYPE_CHECKING"))
    assert {name: f"pinnsketch.{room}" for name, room in pinnsketch._HOMES.items()} == {name: m for m, name in imports(told)}
    assert sorted(pinnsketch._HOMES) == sorted(pinnsketch.__all__)
    assert set(pinnsketch.__all__) <= set(dir(pinnsketch))


def test_a_public_function_is_not_hidden_by_the_module_it_is_called_like():
    import pinnsketch.replay
    import pinnsketch.solve
    import pinnsketch.train

    assert all(isfunction(function) for function in (pinnsketch.replay, pinnsketch.solve, pinnsketch.train))


LOADS = """import sys
from pinnsketch.cli import main
try:
    main(sys.argv[2:])
except SystemExit:
    print(*(name for name in sys.argv[1].split() if name in sys.modules))
"""
SMALL = """problem: poisson
network: {{width: 8, depth: 1}}
points: {{interior: 20, boundary: 20}}
train: {{method: {method}, steps: 2}}
"""


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (["--version"], "torch numpy scipy matplotlib"),
        (["check", "poisson"], "sympy torch._dynamo matplotlib scipy shapely"),
        (["solve", "natural_gradient.yaml"], "sympy torch._dynamo scipy.stats scipy.optimize shapely"),
        (["solve", "adam.yaml"], "sympy torch._dynamo scipy.stats scipy.optimize shapely"),
    ],
    ids=str,
)
def test_a_command_loads_nothing_slow_that_it_does_not_need(words, slow, tmp_path):
    for method in ("natural_gradient", "adam"):
        (tmp_path / f"{method}.yaml").write_text(SMALL.format(method=method))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", LOADS, slow, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout


def test_every_public_name_is_there_and_documented():
    for name in pinnsketch.__all__:
        assert (getattr(pinnsketch, name).__doc__ or "").strip(), name
