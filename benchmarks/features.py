"""Random features and least squares, whole and in adaptive patches: relative L2 error, CPU seconds, residual at fresh points.

Nothing is tuned to a problem but the activation, the number of patches and of points; the method finds the range of the hidden
weights itself. A problem is marked `exact` where the features, or the enrichment, contain the solution exactly or nearly so, as
sines contain sines: it then says little about other solutions.

    python benchmarks/features.py [--quick] [--only WORD] [--seeds N] [--jobs N] [--out FILE]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import pi
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from harness import Row, parser, write
from matplotlib.figure import Figure
from torch import atan2, cos, exp, remainder, sin

from pinnsketch import Box, Problem, Term, laplacian
from pinnsketch.config import make_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.methods.least_squares import Weights, fresh, size_of
from pinnsketch.patches import Patches
from pinnsketch.run import Run

SEEDS = (0, 1, 2)
"""Of the command; those of the cases are 0, 1, ..., three by default."""


def convection(beta: float) -> Problem:
    """u_t + beta u_x = 0 from sin x (Krishnapriyan et al. 2021, section 3.1), with the inflow given in place of periodicity."""
    domain = Box(x=(0, 2 * pi), t=(0, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"beta": beta},
        terms={
            "convection": Term(domain.interior, lambda u, beta: u.t + beta * u.x),
            "start": Term(domain.start("t"), lambda u, x: u - sin(x), weight=100),
            "inflow": Term(domain.side(x=0), lambda u, t, beta: u + sin(beta * t), weight=100),
        },
        exact=lambda x, t, beta: sin(x - beta * t),
    )


def reaction(rho: float) -> Problem:
    """u_t = rho u (1 - u) from a Gaussian (Krishnapriyan et al. 2021, section 3.2)."""
    domain = Box(x=(0, 2 * pi), t=(0, 1))

    def initial(x: Any) -> Any:
        return exp(-((x - pi) ** 2) / (2 * (pi / 4) ** 2))

    return Problem(
        domain,
        unknowns="u",
        parameters={"rho": rho},
        terms={
            "reaction": Term(domain.interior, lambda u, rho: u.t - rho * u * (1 - u)),
            "start": Term(domain.start("t"), lambda u, x: u - initial(x), weight=100),
        },
        exact=lambda x, t, rho: initial(x) * exp(rho * t) / (initial(x) * exp(rho * t) + 1 - initial(x)),
    )


def corner(count: int) -> Problem:
    """Laplace's equation on the L-shaped domain with u = Im(w e^w), w = z^(2/3), in which r^(2k/3) has a part for each k.

    The first `count` singular functions are given; smooth features are left with r^(2k/3) of the others.
    """
    domain = Box(x=(-1, 1), y=(-1, 1)) - Box(x=(0, 2), y=(-2, 0))

    def power(x: Any, y: Any, k: float) -> Any:
        """z^(2k/3), real and imaginary part."""
        theta = remainder(atan2(y, x) + pi / 4, 2 * pi) - pi / 4
        size = (x**2 + y**2) ** (k / 3)
        return size * cos(2 * k * theta / 3), size * sin(2 * k * theta / 3)

    def exact(x: Any, y: Any) -> Any:
        a, b = power(x, y, 1)
        return exp(a) * (a * sin(b) + b * cos(b))

    def singular(k: int) -> Callable[..., Any]:
        return lambda x, y: power(x, y, k)[1]

    return Problem(
        domain,
        unknowns="u",
        terms={
            "laplace": Term(domain.interior, lambda u: laplacian(u)),
            "sides": Term(domain.boundary, lambda u, x, y: u - exact(x, y), weight=100),
        },
        exact=exact,
        enrichment=[singular(k) for k in (1, 2, 4, 5, 7, 8, 10, 11)[:count]],
    )


@dataclass(frozen=True)
class Case:
    """A problem, how it is solved, and what is asked of the median error and of the median of seconds."""

    name: str
    problem: str | Problem
    network: dict[str, Any]
    points: dict[str, Any]
    goal: float
    seconds: float
    parameters: dict[str, Any] = field(default_factory=dict)
    exact: bool = False


def case(name: str, problem: str | Problem, width: int, interior: int, goal: float, seconds: float, **more: Any) -> Case:
    network = {"kind": "features", "width": width, **{k: more.pop(k) for k in ("activation", "patches") if k in more}}
    return Case(name, problem, network, {"interior": interior, "boundary": interior // 5}, goal, seconds, **more)


def patched(name: str, problem: str | Problem, width: int, goal: float, seconds: float, each: int = 80, **more: Any) -> Case:
    """Features in adaptive patches; the points of the task are those at which a step is reported, patches have their own."""
    network = {"kind": "patches", "width": width, "each": each}
    return Case(f"{name}, patches", problem, network, {"interior": 400, "boundary": 100}, goal, seconds, **more)


CASES = [
    case("Poisson, tanh", "poisson", 500, 2000, 1e-12, 1),
    case("Poisson, tanh, 1,000", "poisson", 1000, 2000, 1e-12, 1),
    case("Poisson, sin", "poisson", 500, 2000, 1e-12, 1, activation="sin", exact=True),
    case("Poisson on the disk, tanh", "poisson_disk", 500, 2000, 1e-11, 5),
    case("heat, tanh", "heat", 500, 2000, 1e-10, 60),
    case("Helmholtz (1, 4), sin", "helmholtz", 1000, 3000, 1e-10, 60, activation="sin", exact=True),
    case("Helmholtz (1, 4), tanh", "helmholtz", 1000, 3000, 1e-10, 60),
    case("wave c=2, sin", "wave", 1000, 3000, 1e-10, 60, activation="sin", exact=True),
    case("wave c=2, tanh", "wave", 1000, 3000, 1e-10, 60),
    case("convection 30, sin", convection(30), 1000, 3000, 1e-10, 60, activation="sin", exact=True),
    case("convection 30, tanh", convection(30), 1000, 3000, 1e-10, 60),
    case("convection 50, sin", convection(50), 1000, 3000, 1e-10, 60, activation="sin", exact=True),
    case("convection 50, tanh", convection(50), 1000, 3000, 1e-10, 60),
    case("L-shape, r^(2/3), plain", "poisson_l_shape", 500, 2000, 1e-3, 60),
    case("L-shape, r^(2/3), enriched", "poisson_l_shape", 250, 1000, 1e-6, 60, parameters={"enriched": True}, exact=True),
    case("L-shape, all r^(2k/3), plain", corner(0), 500, 2000, 1e-3, 60),
    case("L-shape, all r^(2k/3), enriched by 4", corner(4), 500, 2000, 1e-6, 60),
    case("Kovasznay, tanh", "kovasznay", 250, 1000, 1e-8, 60),
    case("reaction 5, tanh", reaction(5), 500, 2000, 1e-8, 60),
    case("Burgers 0.1/pi, tanh", "burgers", 500, 2000, 1e-6, 60, parameters={"nu": 0.1 / pi}),
    patched("L-shape, r^(2/3)", "poisson_l_shape", 2000, 1e-3, 60, each=50),
    patched("L-shape, all r^(2k/3)", corner(0), 2000, 1e-3, 60, each=50),
    patched("reaction 5", reaction(5), 3200, 1e-8, 60),
    patched("Burgers 0.1/pi", "burgers", 3200, 1e-6, 60, parameters={"nu": 0.1 / pi}),
    patched("convection 50", convection(50), 4000, 1e-10, 60, each=200),
    patched("Helmholtz (1, 4)", "helmholtz", 4000, 1e-10, 60, each=200),
    patched("wave c=2", "wave", 4000, 1e-10, 60, each=200),
    patched("Burgers 0.01/pi", "burgers", 12000, 1e-6, 60),
]


def solved(case: Case, seed: int) -> dict[str, Any]:
    """Error, CPU seconds of the run on one thread, residual at fresh points, steps, and what the method came to."""
    source = find_problem(case.problem, Path.cwd()) if isinstance(case.problem, str) else None
    problem = load_problem(source, case.parameters) if source else case.problem
    config = {
        "problem": str(source or "problem.py"),
        "network": case.network,
        "points": case.points,
        "train": {"method": case.network["kind"], "seed": seed, "steps": 100},
        "monitor": False,
    }
    began = time.process_time()
    run = Run(problem, make_config(config))  # type: ignore[arg-type]
    curve, note = [], None
    for step in run:
        note = step.note
        curve.append((time.process_time() - began, run.task.error(run.trial)["overall"]))  # type: ignore[index]
    seconds, weights = time.process_time() - began, Weights(run.task, run.trial)
    return {
        "seconds": seconds,
        "error": curve[-1][1],
        "residual": size_of(weights, fresh(run.task)),
        "steps": len(curve),
        **_sizes(run.trial.network),
        "note": note,
        "curve": curve,
    }


def _sizes(network: Any) -> dict[str, Any]:
    """What the method chose: the range of the weights, or the patches and how often they were halved along each coordinate."""
    if isinstance(network, Patches):
        return {"patches": len(network.leaves), "halvings": network.level[network.used].amax(0).tolist()}
    return {"radius": network.radius.tolist()}


def by_name(job: tuple[str, int]) -> dict[str, Any]:
    """`solved` in a process of its own."""
    torch.set_num_threads(1)
    return solved(next(case for case in CASES if case.name == job[0]), job[1])


def command() -> float:
    """Seconds of `pinnsketch solve` on Poisson's equation with features, as a process of its own."""
    text = (
        "problem: poisson\nnetwork: {kind: features, width: 500}\npoints: {interior: 2000, boundary: 400}\n"
        "train: {method: features}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "features.yaml")
        file.write_text(text)
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pinnsketch", "solve", str(file), "--out", str(Path(folder, "run"))],
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - began


def figure(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Error over time of the middle seed of each case."""
    page = Figure(figsize=(9, 6), layout="constrained")
    axes = page.subplots()
    for (name, runs), line in zip(found.items(), ["-", "--", ":"] * 10, strict=False):
        middle = sorted(runs, key=lambda run: run["error"])[len(runs) // 2]
        axes.loglog(*zip(*middle["curve"], strict=True), line, marker=".", label=name)
    axes.set(
        xlabel="CPU seconds, one thread",
        ylabel="relative L2 error",
        title="Random features, least squares: middle of the seeds",
    )
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    page.savefig(path, dpi=120)


def rows_of(case: Case, runs: list[dict[str, Any]]) -> list[Row]:
    """Medians over the seeds, the errors with their spread."""
    errors = sorted(run["error"] for run in runs)
    error, seconds, residual, steps = (statistics.median(r[k] for r in runs) for k in ("error", "seconds", "residual", "steps"))
    mark = "; the solution is in the span" if case.exact else ""
    peer = f"{errors[0]:.1e} to {errors[-1]:.1e}; {steps:g} solves; residual {residual:.1e}{mark}"
    return [
        Row(f"{case.name}: relative L2 error", error, "", f"<= {case.goal:g}", error <= case.goal, peer),
        Row(f"{case.name}: CPU seconds", seconds, "s", f"<= {case.seconds:g}", seconds <= case.seconds),
    ]


def main() -> None:
    options = parser("features", __doc__ or "")
    options.add_argument("--only", default="", help="cases whose name holds this")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--jobs", type=int, default=1, help="solutions at a time, of one thread each")
    given = options.parse_args()
    cases = [case for case in CASES if given.only in case.name]
    if given.quick:
        cases, given.seeds = [case for case in cases if case.network["width"] <= 500], 1
        print("Left out: cases of more than 500 features, all seeds but one, the command.")
    rows, found = [], dict[str, list[dict[str, Any]]]()
    with get_context("spawn").Pool(given.jobs, maxtasksperchild=1) as pool:
        waiting = [(case, [pool.apply_async(by_name, ((case.name, seed),)) for seed in range(given.seeds)]) for case in cases]
        try:
            for case, results in waiting:
                found[case.name] = [result.get() for result in results]
                rows += rows_of(case, found[case.name])
                print(rows[-2], rows[-1], flush=True)
        except KeyboardInterrupt:
            print("Left out: the cases after", rows[-1].name if rows else "none")
    if not given.quick and "Poisson, tanh".startswith(given.only):
        seconds = statistics.median(command() for _ in SEEDS)
        rows.append(Row("Poisson, tanh: pinnsketch solve, as a command", seconds, "s", "<= 5", seconds <= 5))
    figure(found, given.out.with_suffix(".png"))
    write(given.out, rows, ("pinnsketch", "torch", "scipy"), runs=found)


if __name__ == "__main__":
    main()
