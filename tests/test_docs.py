"""The README and docs say what is so: their snippets run, their numbers are in the committed results."""

import json
import re
from pathlib import Path

import pytest

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


def test_the_yaml_example_is_a_valid_configuration(tmp_path):
    from pinnsketch.config import read_config

    (yaml,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "problems.md").read_text(), flags=re.DOTALL)
    (tmp_path / "example.yaml").write_text(yaml)
    assert read_config(tmp_path / "example.yaml").points.terms == {"sides": 200}


def test_the_commands_that_ci_runs_are_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for marker, words in (("main", "pinnsketch solve configs/poisson.yaml"), ("tests", "python3 -m pytest")):
        (command,) = re.findall(rf"<!-- {marker} -->\n```sh\n(.*)\n```", readme)
        assert words in command


def rows():
    return {row["name"]: row["value"] for row in json.loads(RESULTS.read_text())["rows"]}


def test_the_table_of_the_readme_is_the_committed_result():
    found, readme = rows(), (ROOT / "README.md").read_text()
    table = re.findall(r"^\| `(\w+)` \|.*\| ([\d.e-]+) \| (\d+) s \|$", readme, flags=re.MULTILINE)
    assert {name for name, _, _ in table} == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for name, error, seconds in table:
        assert error == f"{found[f'{name}: relative L2 error']:.1e}"
        assert int(seconds) == round(found[f"{name}: training"])
