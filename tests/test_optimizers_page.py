"""The tables of docs/optimizers.md are the committed results, and are made as they say."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
optimizers = pytest.importorskip("optimizers")
PAGE = (ROOT / "docs" / "optimizers.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


def run(case, way, lr, seed, end, budget="seconds"):
    given = {"case": case, "way": way, "lr": lr, "seed": seed, "budget": budget, "amount": 6, "device": "cpu"}
    return {**given, "curve": [[1, 0.5, 1.0, 2.0], [9, 6.0, end, 10 * end]], "state": {}, "weights": 3}


def test_the_step_size_is_what_ends_best_on_seed_0_and_the_table_has_its_median():
    ends = {(1e-3, 0): 0.5, (3e-3, 0): 0.2, (1e-2, 0): 0.4, (3e-3, 1): 0.1, (3e-3, 2): 0.9, (1e-2, 1): 0.01}
    runs = {str(key): run("Poisson 4x50", "Adam", *key, end) for key, end in ends.items()}
    runs["steps"] = run("Poisson 4x50", "Adam", 3e-3, 0, 0.7, "steps")
    found = optimizers.gathered(runs)
    assert sorted(each["seed"] for each in found["Poisson 4x50", "seconds"]["Adam"]) == [0, 1, 2]
    assert [each["lr"] for each in found["Poisson 4x50", "steps"]["Adam"]] == [3e-3]
    made = optimizers.tables({"curves": runs, "rows": []})
    assert made["seconds"].splitlines()[-1] == "| Poisson 4x50, 6 s | 2.0e-01 (1e-01 to 9e-01) |"
    assert made["steps"].splitlines()[-1] == "| Poisson 4x50, 6 steps | 7.0e-01 (7e-01 to 7e-01) |"
    assert made["others"] == made["goals"] == ""


def test_the_tables_of_the_page_are_the_committed_result():
    file = RESULTS / "optimizers.json"
    made = optimizers.tables(json.loads(file.read_text())) if file.exists() else dict.fromkeys(optimizers.SECTIONS, "")
    assert set(made) == set(optimizers.SECTIONS)
    assert all(f"<!-- {name} -->" in PAGE for name in made)
    assert optimizers.fill(PAGE, made) == PAGE


def test_the_regret_table_of_the_page_is_the_committed_result():
    results = json.loads((RESULTS / "regret.json").read_text())["results"]
    table = re.findall(r"^\| (\w+) \| (.+) \|$", PAGE[PAGE.index("| regret |") :], flags=re.MULTILINE)
    heads = [cell.strip() for cell in re.search(r"^\| regret \| (.+) \|$", PAGE, flags=re.MULTILINE)[1].split("|")]
    shown = {name: [cell.strip() for cell in cells.split("|")] for name, cells in table}
    shown.pop("regret")
    assert list(shown) == list(results)
    for name, cells in shown.items():
        assert cells == [f"{results[name][head]['regret']:.1f}" for head in heads]


def test_numbers_kept_are_counted_by_name_without_single_ones():
    import torch

    state = {"a": {"b": torch.zeros(2, 3), "step": torch.zeros(())}, "c": [{"b": torch.zeros(4)}, torch.zeros(5)]}
    assert optimizers.counted(state) == {"b": 10, "step": 0, "c": 5}
