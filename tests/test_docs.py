"""The README and docs say what is so: their snippets run, their numbers are in the committed results."""

import importlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from pinnsketch.library import names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results" / "first_run.json"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_snippet_runs_in_its_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert snippets
    names = {"__name__": "__main__"}
    for snippet in snippets:
        exec(compile(snippet, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_is_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_yaml_examples_are_valid_configurations(tmp_path):
    from pinnsketch.config import read_config

    whole, *parts = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "problems.md").read_text(), flags=re.DOTALL)
    (tmp_path / "example.yaml").write_text(whole)
    assert read_config(tmp_path / "example.yaml").points.terms == {"sides": 200}
    assert parts
    for part in parts:
        (tmp_path / "example.yaml").write_text(f"problem: poisson\n{part}")
        assert read_config(tmp_path / "example.yaml").train.schedule


def test_every_option_of_a_configuration_is_somewhere_in_the_docs():
    from pinnsketch.config.options import options_of
    from pinnsketch.config.run import RunConfig
    from pinnsketch.image_config import ImageConfig
    from pinnsketch.methods import METHODS

    def options(kind):
        for name, field in kind.model_fields.items():
            yield name
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                yield from options(inner) if hasattr(inner, "model_fields") else ()

    code = set()
    for page in PAGES:
        for words in re.findall(r"```.*?```|`[^`]+`", page.read_text(), flags=re.DOTALL):
            code.update(re.findall(r"\w+", words))
    known = {*options(RunConfig), *options(ImageConfig), *METHODS, *(o for m in METHODS for o in options_of(m))}
    assert {"slabs", "adaptive", "gain", "turns"} <= known
    assert known <= code, known - code


def test_the_commands_that_ci_runs_are_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for marker, words in (("main", "pinnsketch solve configs/poisson.yaml"), ("tests", "python3 -m pytest")):
        (command,) = re.findall(rf"<!-- {marker} -->\n```sh\n(.*)\n```", readme)
        assert words in command


@pytest.mark.parametrize("failing", ["none", "tests/test_automatic.py", "tests/test_docs.py", "tests/test_train.py"])
def test_the_command_of_the_tests_runs_every_file_and_fails_where_one_fails(failing):
    (command,) = re.findall(r"<!-- tests -->\n```sh\n.* && (.*)\n```", (ROOT / "README.md").read_text())
    pytest_like = f"""sh -c 'for f; do echo "$f"; test "$f" != {failing} || failed=1; done; exit $failed' sh"""
    words = ["bash", "-euo", "pipefail", "-c", command.replace("python3 -m pytest", pytest_like)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(done.stdout.split()) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_*.py"))
    assert (done.returncode == 0) == (failing == "none")


def rows():
    return {row["name"]: row["value"] for row in json.loads(RESULTS.read_text())["rows"]}


def test_the_table_of_the_readme_is_the_committed_result():
    found, readme = rows(), (ROOT / "README.md").read_text()
    table = re.findall(r"^\| `(\w+)` \|.*\| ([\d.e-]+) \| (\d+) s \|$", readme, flags=re.MULTILINE)
    assert {name for name, _, _ in table} == set(names("configs"))
    for name, error, seconds in table:
        assert error == f"{found[f'{name}: relative L2 error']:.1e}"
        assert int(seconds) == round(found[f"{name}: training"])


def test_the_tables_of_the_derivatives_page_are_the_committed_results():
    def committed(name):
        path = RESULTS.with_name(f"{name}.json")
        return {row["name"]: row["value"] for row in json.loads(path.read_text())["rows"]}

    def cells(header):
        page = (ROOT / "docs" / "derivatives.md").read_text()
        lines = page[page.index(header) :].split("\n\n")[0].splitlines()[2:]
        return {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines)}

    cpu, gpu = committed("derivatives"), committed("derivatives_h100_float64")
    compiled, eager = "nested / compiled", "nested / eager"
    speed = [(cpu, 1000, compiled), (cpu, 10_000, compiled), (cpu, 1000, eager), (cpu, 10_000, eager)]
    speed += [(gpu, n, compiled) for n in (1000, 10_000, 100_000)]
    peers = [(cpu, 1000, f"{peer} / compiled") for peer in ("DeepXDE", "PINA", "JAX")] + [(gpu, 1000, "JAX / compiled")]
    for header, columns in (("| problem | compiled, 1,000", speed), ("| problem | DeepXDE", peers)):
        table = cells(header)
        assert len(table) == 6
        for problem, shown in table.items():
            for cell, (found, n, what) in zip(shown, columns, strict=True):
                value = found.get(f"{problem}, {n:,} points, float64: {what}")
                assert cell == ("-" if value is None else f"{value:.2g}" if value < 100 else f"{value:.0f}")


def test_the_tables_of_the_monitor_page_are_the_committed_results():
    def committed(name):
        return {row["name"]: row for row in json.loads(RESULTS.with_name(f"{name}.json").read_text())["rows"]}

    page, found = (ROOT / "docs" / "monitor.md").read_text(), committed("pathologies")
    table = re.findall(r"^\| ([a-z -]+) \| (\d+) \| (\d+) % \| (\d+) % \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert [kind for kind, *_ in table] == [name.removesuffix(": recall") for name in found if name.endswith(": recall")]
    for kind, runs, recall, place, latency in table:
        assert found[f"{kind}: recall"]["peer"] == f"{runs} runs"
        assert (recall, place) == tuple(
            f"{100 * found[f'{kind}: {what}']['value']:.0f}" for what in ("recall", "found in the right place")
        )
        assert latency == f"{found[f'{kind}: median latency']['value']:g}"
    assert f"{found['false alarms']['peer']}, {found['false alarms']['value']:.2g} in 10,000" in page

    costs = committed("monitor") | committed("monitor_h100")
    shown = re.findall(r"^\| `(.+)` \| ([\d.,e-]+) \|", page, flags=re.MULTILINE)
    assert len(shown) >= 14
    for name, value in shown:
        assert value == (f"{costs[name]['value']:,}" if costs[name]["unit"] == "B" else f"{costs[name]['value']:.3g}"), name


def test_the_tables_of_the_backprop_page_are_the_committed_results():
    page = (ROOT / "docs" / "backprop.md").read_text()
    found = {row["name"]: row for name in ("memory", "memory_h200") for row in _rows(name)}
    for device, columns in (("cpu", ("kept", "peak", "step")), ("cuda", ("kept", "peak", "step", "eager step"))):
        cells = r" \| ([\d.]+)" * len(columns)
        table = re.findall(rf"^\| ([^|]+) \| ([^|]+){cells} \|$", page, flags=re.MULTILINE)
        steps = [name for name in found if ": step, " in name and f"({device})" in name and "step, exact (" not in name]
        assert len(table) == sum(not name.startswith("PINN") for name in steps)
        for network, kind, *shown in table:
            for what, cell in zip(columns, shown, strict=True):
                assert cell == f"{found[f'{network}: {what}, {kind} ({device})']['value']:.3g}", (network, kind, what)
    pinns = re.findall(
        r"^\| PINN, (.+) \| ([\d.e-]+) \(.*\) \| ([\d,]+) B \| (.*) \| ([\d.]+) ms \|$", page, flags=re.MULTILINE
    )
    assert len(pinns) == 6
    for kind, error, kept, ratios, step in pinns:
        values = [found[f"PINN: {what}, {kind} (cuda)"]["value"] for what in ("error", "kept", "step")]
        assert (error, kept, step) == (f"{values[0]:.3g}", f"{values[1]:,}", f"{values[2]:.3g}")
        if kind != "exact":
            names = (f"PINN: error, {kind}, of exact (cuda)", f"PINN: fewer bytes, {kind} (cuda)")
            assert ratios == ", ".join(f"{found[name]['value']:.3g}" for name in names)


def test_the_table_of_the_accuracy_page_is_the_committed_result():
    page = (ROOT / "docs" / "accuracy.md").read_text()
    found = {row["name"]: row["value"] for row in _rows("estimate")}
    table = re.findall(r"^\| `(\w+)` \| (.+) \| (.+), (.+) \| (.+) % \| (.+) \| (.+) \|$", page, flags=re.MULTILINE)
    names = ("true errors", "estimated over true, or under, median", "the same, worst", "true errors within the limit")
    names += ("limit over true, median", "seconds of an estimate")
    assert len(table) * len(names) == len(found)
    for problem, *shown in table:
        errors, typical, worst, within, limit, seconds = (found[f"{problem}: {name}"] for name in names)
        assert shown == [
            errors,
            *(f"{x:.2f}" for x in (typical, worst)),
            f"{100 * within:.0f}",
            f"{limit:.2f}",
            f"{seconds:.2f}",
        ]


def test_the_readme_says_of_methods_what_the_page_does():
    page = (ROOT / "docs" / "accuracy.md").read_text()
    first = page[: page.index("## Beside")]
    auto = {name: row for name, *row in re.findall(r"^\| ([^|]+) \| ([\d.e-]+) in ([\d.]+) s \|", first, flags=re.MULTILINE)}
    readme = (ROOT / "README.md").read_text()
    for name, digits in (("Poisson 2D", 1), ("wave, c = 2", 0), ("Kovasznay, Re 40", 0)):
        error, seconds = (float(x) for x in auto[name])
        assert f"{error:.1e}".replace("e-0", "e-") + f" in {seconds:.{digits}f} s" in readme.replace("\n", " "), name


def test_the_tables_of_methods_and_of_classical_solvers_are_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    beside = importlib.import_module("beside")
    page = (ROOT / "docs" / "accuracy.md").read_text()
    assert page == beside.updated(page)
    ours, classical = beside.read("accuracy"), beside.read("classical")
    sooner = []
    for problem, methods in classical.items():
        if "auto" in ours.get(problem, {}):
            error, seconds = beside.ended(ours[problem]["auto"])
            times = [t for kind in beside.KINDS for e, t in beside.solves(methods, kind) if e <= error and t < seconds]
            sooner.append(bool(times))
    said = re.search(r"A classical solver wins on (?:every problem|(\d+) of the (\d+) problems) of this table", page)
    assert [int(n or len(sooner)) for n in said.groups()] == [sum(sooner), len(sooner)]


def test_where_auto_was_not_run_the_most_exact_way_on_an_h100_stands_beside_classical_solvers(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    beside = importlib.import_module("beside")
    found = {
        "accuracy": {"heat": {"auto": [[[3.0, 1e-9]]]}, "flow": {"patches": [[[90.0, 0.1]]]}},
        "accuracy_h100": {
            "heat": {"patches": [[[1.0, 1e-12]]]},
            "flow": {"sketched": [[[9.0, 1e-2]]], "patches": [[[8.0, 1e-4]]]},
        },
        "classical": {
            "heat": {"elements": [[[0.1, 1e-6, "8"], [0.5, 1e-9, "16"]]], "Chebyshev": [[[0.25, 1e-12, "8"]]]},
            "flow": {"elements": [[[2.0, 1e-3, "8"], [20.0, 1e-5, "16"]]], "spectral elements": [[[4.0, 1e-3, "8"]]]},
        },
    }
    (tmp_path / "classical.json").write_text(json.dumps({"references": {"flow": 3e-5}}))
    monkeypatch.setattr(beside, "read", lambda name: found[name])
    monkeypatch.setattr(beside, "RESULTS", tmp_path)
    table, text = beside.classical_table(), beside.wins().replace("\n ", "")
    assert "| heat | 1.0e-09 in 0.5 s | 1.0e-12 in 0.25 s | 1.0e-09 in 3 s | 0.5 s | 0.25 s |" in table
    assert "| flow | 1.0e-05 in 20 s | 1.0e-03 in 4 s | 1.0e-04 in 8 s by `patches` on an H100 | 20 s | - |" in table
    assert "wins on every problem of this table that `auto` was run on" in text
    assert "by a factor from 12 to 12, and on 1 of 1" in text
    assert "flow (1.0e-04 in 8 s on the card): finite elements in 20 s, spectral never" in text
    assert "whose own is estimated as 3.0e-05 (flow)" in text


def test_cells_of_packages_have_medians_and_spreads_or_say_why_there_is_none(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    beside = importlib.import_module("beside")
    curves = {"pinnsketch": [[[60.0, 0.5]], [[60.0, 0.1]], [[60.0, 0.2]]], "PINA": [[[60.0, 0.3]]]}
    found = {"peers": {"heat": curves, "wave": {"jinns": [[[60.0, 1.0]]] * 3}}, "accuracy": {"heat": {"auto": [[[3.0, 1e-9]]]}}}
    said = {"left_out": ["wave: PINA: it cannot", "jax is old"], "failures": {"heat: jinns, seed 0": "it died"}}
    (tmp_path / "peers.json").write_text(json.dumps(said))
    monkeypatch.setattr(beside, "read", lambda name: found[name])
    monkeypatch.setattr(beside, "RESULTS", tmp_path)
    text = beside.peers_section()
    assert "| heat | 2.0e-01 (1.0e-01 to 5.0e-01) | 3.0e-01 (3.0e-01 to 3.0e-01, 1 seed) | - (1) | 1.0e-09 |" in text
    assert "| wave | - (2) | - (3) | 1.0e+00 (1.0e+00 to 1.0e+00) | - |" in text
    assert "(1) it died; (2) not run; (3) it cannot; DeepXDE: not run;" in text.replace("\n", " ")


def test_the_table_of_adaptive_patches_is_the_committed_result():
    found = json.loads(RESULTS.with_name("patches.json").read_text())
    values = {row["name"]: row["value"] for row in found["rows"]}
    page = (ROOT / "docs" / "features.md").read_text()
    table = re.findall(r"^\| (\w[^|]+) \| (\d+) of (\d+) \| ([\d.e-]+) \| ([\d.e-]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert [f"{name}, patches" for name, *_ in table] == list(found["runs"])
    for name, patches, _, error, goal, seconds in table:
        name = f"{name}, patches"
        assert int(patches) == found["runs"][name][0]["patches"]
        row = next(row for row in found["rows"] if row["name"] == f"{name}: relative L2 error")
        assert (error, f"<= {goal}") == (f"{row['value']:.1e}", row["goal"])
        assert seconds == f"{values[f'{name}: CPU seconds']:.1f}"


def _rows(name):
    return json.loads(RESULTS.with_name(f"{name}.json").read_text())["rows"]


def test_the_table_of_the_features_page_is_the_committed_result():
    found = {row["name"]: row for row in json.loads(RESULTS.with_name("features.json").read_text())["rows"]}
    page = (ROOT / "docs" / "features.md").read_text()
    table = re.findall(r"^\| ([^|]+?)( \*)? \| ([\d.e-]+) \| ([\d.e-]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    rows = [name.split(": rel")[0] for name in found if name.endswith("relative L2 error")]
    assert [name for name, *_ in table] == [name for name in rows if not name.endswith(", patches")]
    for name, star, error, goal, seconds in table:
        row = found[f"{name}: relative L2 error"]
        assert (error, f"<= {goal}") == (f"{row['value']:.1e}", row["goal"])
        assert bool(star) == ("in the span" in row["peer"])
        assert seconds == f"{found[f'{name}: CPU seconds']['value']:.1f}"
