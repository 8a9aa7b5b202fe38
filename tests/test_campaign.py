"""Trainings of a benchmark: what hangs, dies or fails holds up nothing else, and is said."""

import ctypes
import json
import os
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def one(kind):
    """Makes a result, or hangs in a call that no signal and no other thread interrupts, dies, or fails."""
    if kind == "hangs":
        ctypes.PyDLL(None).sleep(1000)
    if kind == "dies":
        os._exit(3)
    if kind == "fails":
        raise ValueError("no")
    return [os.getpid(), sorted(os.sched_getaffinity(0))]


@pytest.mark.parametrize("fresh", [True, False])
def test_what_hangs_dies_or_fails_holds_up_nothing_else(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from harness import Campaign

    campaign, began = Campaign(tmp_path / "out.json", one, 1, fresh=fresh, cores=1, limit=3), time.monotonic()
    campaign.run({kind: (kind.strip("12"),) for kind in ("hangs", "dies", "fails", "works1", "works2")}, str)
    assert time.monotonic() - began < 60
    assert campaign.failed == [
        "hangs: ended, as it went on for more than 3 s",
        "dies: its process ended, with 3",
        "fails: ValueError: no",
    ]
    (first, cores), (second, _) = campaign.runs["works1"], campaign.runs["works2"]
    assert (first != second) == fresh
    assert len(cores) == 1
    assert json.loads((tmp_path / "out.json").read_text())["curves"] == campaign.runs
    again = Campaign(tmp_path / "out.json", one, 1)
    again.run({"works1": ("fails",)}, str)
    assert (again.runs, again.failures) == (campaign.runs, campaign.failures)
