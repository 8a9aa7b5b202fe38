"""How the time and memory of an evaluation grow with points, width, depth and dimension.

An evaluation is the mean square of laplacian(u) - 1 at random points of a unit cube and its gradient by all weights of a tanh
network in float64.
Around 2 dimensions, 1,000 points and 4 x 50, one of the four varies. The floor is the multiplications and additions of the
matrix products alone, 6 n (1 + d + 1) sum(w_in w_out) for forward and reverse pass, over the best rate of a large matrix
product measured here. Slopes are fitted on logarithms over the upper half of each range. Memory is the peak resident size of a
fresh process less its size before the evaluation (Linux). CPU, all cores, seed 0; times are medians.

    python benchmarks/growth.py [--quick] [--out FILE]
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, parser, turns, write
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pinnsketch import Box, Problem, Term, laplacian
from pinnsketch.collocation import Collocation, Plan
from pinnsketch.gradient import Gradient
from pinnsketch.network import MLP
from pinnsketch.trial import Trial

AXES: dict[str, list[int]] = {
    "points": [100, 1000, 10_000, 100_000, 1_000_000],
    "width": [16, 32, 64, 128, 256, 512, 1024],
    "depth": [2, 4, 8, 16],
    "dimension": [1, 2, 5, 10, 20, 50, 100],
}
MIDDLE = {"points": 1000, "width": 50, "depth": 4, "dimension": 2}
UP_TO = {"nested": {"points": 100_000}, "compiled": {"dimension": 20}, "one pass": {}}
"""Beyond, a way is left out: nested for its memory, compiled for the minutes that a hundred streams take to compile."""


def evaluation(way: str, points: int, width: int, depth: int, dimension: int, chunk: int | str = "auto") -> Any:
    """A function that evaluates loss and gradient; `way`: nested, one pass, or compiled."""
    domain = Box(**{f"x{i}": (0, 1) for i in range(dimension)})
    problem = Problem(domain, "u", {"law": Term(domain.interior, lambda u: laplacian(u) - 1)})
    task = Collocation(problem, interior=points, sampler="random", chunk=chunk)
    network = MLP(torch.tensor(domain.bounds), 1, width=width, depth=depth, generator=torch.Generator().manual_seed(0))
    trial, batch = Trial(network), task.batch()
    task.plan(trial, batch[0])
    if way == "nested":
        task.plans.put(trial, batch[0], Plan())
    gradient = Gradient(trial, task, way == "compiled")
    return lambda: gradient(batch)


def peak_rate() -> float:
    """Multiplications and additions a second of a large matrix product in float64."""
    a, best = torch.randn(3000, 3000, dtype=torch.float64), math.inf
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * 3000**3 / best


def floor(points: int, width: int, depth: int, dimension: int) -> float:
    """Multiplications and additions of the matrix products of an evaluation."""
    return 6 * points * (2 + dimension) * (dimension * width + (depth - 1) * width**2 + width)


def sweep(axis: str, values: list[int], rate: float) -> tuple[list[Row], dict[str, list[float]]]:
    times: dict[str, list[float]] = {"nested": [], "one pass": [], "compiled": [], "floor": []}
    for value in values:
        at = {**MIDDLE, axis: value}
        ways = [way for way, bounds in UP_TO.items() if value <= bounds.get(axis, value)]
        steps = [evaluation(way, **at) for way in ways]
        for step in steps:
            step()
        found = turns(steps, 1 if floor(**at) > 1e10 else 7)
        for way, seconds in zip(ways, found, strict=True):
            times[way].append(float(np.median(seconds)))
        times["floor"].append(floor(**at) / rate)
        print(axis, value, {way: f"{times[way][-1]:.3g}" for way in (*ways, "floor")}, flush=True)
    return slopes(axis, values, times), times


def slopes(axis: str, values: list[int], times: dict[str, list[float]]) -> list[Row]:
    rows = []
    for way, seconds in times.items():
        half = len(values) // 2 if len(seconds) == len(values) else len(seconds) // 2
        slope = np.polyfit(np.log(values[half : len(seconds)]), np.log(seconds[half:]), 1)[0]
        asked = "<= 1.2" if axis == "dimension" and way in ("one pass", "compiled") else None
        rows.append(Row(f"{axis}: slope, {way}", float(slope), "", asked, asked and bool(slope <= 1.2)))
        if way in ("one pass", "compiled"):
            last = len(seconds) - 1
            rows.append(Row(f"{axis} = {values[last]:,}: {way} / floor", seconds[last] / times["floor"][last], "x"))
    return rows


PROBE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from growth import MIDDLE, evaluation
way, points, chunk = sys.argv[2], int(sys.argv[3]), sys.argv[4]
step = evaluation(way, **{**MIDDLE, "points": points}, chunk=chunk if chunk == "auto" else int(chunk))
small = evaluation(way, **{**MIDDLE, "points": 20})
small()
def size(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
before = size("VmRSS")
step()
after = size("VmHWM")
print(json.dumps({"more": 1024 * (after - before), "whole": 1024 * after}))
"""


def memory(way: str, points: int, chunk: int | str) -> dict[str, int]:
    """Bytes of the resident peak that an evaluation adds, and of the whole process."""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, here, way, str(points), str(chunk)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def memory_rows(quick: bool) -> list[Row]:
    nested = memory("nested", 10_000, 10**9)["more"]
    whole, cut = (memory("one pass", 10_000, chunk)["more"] for chunk in (10**9, "auto"))
    rows = [
        Row("memory of an evaluation at 10,000 points, nested", nested / 1e6, "MB"),
        Row(
            "memory, one pass, one piece / nested",
            whole / nested,
            "x",
            "<= 0.5",
            whole <= 0.5 * nested,
            f"{whole / 1e6:.0f} MB",
        ),
        Row("memory, one pass, chunk: auto / nested", cut / nested, "x", "<= 0.5", cut <= 0.5 * nested, f"{cut / 1e6:.0f} MB"),
    ]
    if not quick:
        most = memory("one pass", 1_000_000, "auto")["whole"]
        rows.append(Row("whole process at 1,000,000 points", most / 2**30, "GiB", "<= 4", most <= 4 * 2**30))
    return rows


def figure(found: dict[str, dict[str, list[float]]], axes: dict[str, list[int]], out: Path) -> None:
    page = Figure(figsize=(4 * len(found), 3.6), layout="constrained")
    for ax, (axis, times) in zip(page.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for k, (way, seconds) in enumerate(times.items()):
            line = {"color": "black", "ls": "--"} if way == "floor" else {"color": f"C{k}", "marker": "o"}
            ax.loglog(axes[axis][: len(seconds)], [1e3 * s for s in seconds], label=way, **line)
        ax.set(xlabel=axis, ylabel="ms" if ax.get_subplotspec().is_first_col() else "")
        if axis == "depth":
            ax.set_xticks(axes[axis], axes[axis])
            ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    page.savefig(out, dpi=110)


def main() -> None:
    given, rate = parser("growth", __doc__ or "").parse_args(), peak_rate()
    axes = {axis: values[:4:2] if given.quick else values for axis, values in AXES.items()}
    rows, found = [Row("rate of a large matrix product", rate / 1e9, "GFLOP/s")], {}
    for axis, values in axes.items():
        if given.quick and axis in ("depth", "dimension"):
            continue
        more, found[axis] = sweep(axis, values, rate)
        rows += more
    rows += memory_rows(given.quick)
    if given.quick:
        print("Left out: depth, dimension, most values, 1,000,000 points.")
    write(given.out, rows, ("pinnsketch", "torch"), times={axis: {"at": axes[axis], **times} for axis, times in found.items()})
    figure(found, axes, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
