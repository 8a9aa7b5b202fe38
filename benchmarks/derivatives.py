"""One Adam step in one forward pass, eager and compiled, beside nested differentiation, DeepXDE, PINA and JAX, in turns.

The network is 4 x 50 tanh, the loss the mean square of the PDE's residual at n interior points, nothing else; all evaluate
the same PDE at as many points. Ratios come from turns taken in alternation, each the last of three steps, with a
distribution-free 95 % interval for the median. CPU: all cores; cuda: compiled steps are captured in CUDA graphs, and "eager" is
captured too where it says so. Seed 0. The time to the first step, with compilation, is listed beside; it is shorter where
torch's compile cache holds the function from an earlier run.

    python benchmarks/derivatives.py [--quick] [--device cuda] [--precision float64] [--out FILE]
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import peers
import torch
from figures import bars
from harness import Row, parser, turns, write
from peers import Step

from pinnsketch import Box, Problem, Term, bilaplacian, laplacian
from pinnsketch.collocation import Collocation, Plan
from pinnsketch.gradient import Gradient
from pinnsketch.methods import Adam, Objective
from pinnsketch.network import MLP
from pinnsketch.solve import median_interval
from pinnsketch.trial import Trial

SQUARE, SPACE_TIME = Box(x=(0, 1), y=(0, 1)), Box(x=(-1, 1), t=(0, 1))
FIVE = Box(a=(0, 1), b=(0, 1), c=(0, 1), e=(0, 1), f=(0, 1))


def navier_stokes(u: Any, v: Any, p: Any) -> Any:
    momentum_x = u * u.x + v * u.y + p.x - laplacian(u) / 40
    momentum_y = u * v.x + v * v.y + p.y - laplacian(v) / 40
    return torch.cat([momentum_x, momentum_y, u.x + v.y], dim=1)


PROBLEMS: dict[str, tuple[Box, str, Any, int]] = {
    "Poisson 2D": (SQUARE, "u", lambda u: laplacian(u) - 1, 2),
    "Poisson 5D": (FIVE, "u", lambda u: laplacian(u) - 1, 2),
    "Burgers": (SPACE_TIME, "u", lambda u: u.t + u * u.x - 0.01 * u.xx, 2),
    "Navier-Stokes 2D": (SQUARE, "u v p", navier_stokes, 2),
    "KdV": (SPACE_TIME, "u", lambda u: u.t + 6 * u * u.x + u.xxx, 3),
    "biharmonic": (SQUARE, "u", lambda u: bilaplacian(u) - 1, 4),
}
"""Domain, unknowns, residual, and order of the PDE."""
WAYS = {"nested": False, "eager": False, "captured": "auto", "compiled": True}


def goal(order: int, n: int, gpu: bool) -> float:
    """The speed-up over nested differentiation that is asked for."""
    if gpu:
        return 12.0 if n <= 10_000 else 2.0
    return 5.0 if order > 2 else 2.5 if n <= 1000 else 3.0


def our_step(name: str, n: int, dtype: torch.dtype, device: str, way: str) -> tuple[Step, float]:
    """A step, and the seconds that the first one took."""
    domain, unknowns, residual, _ = PROBLEMS[name]
    problem = Problem(domain, unknowns, {"law": Term(domain.interior, residual)})
    task = Collocation(problem, interior=n, dtype=dtype, device=device)
    network = MLP(torch.tensor(domain.bounds), len(problem.unknowns), dtype=dtype, generator=torch.Generator().manual_seed(0))
    trial, batch = Trial(network.to(device)), task.batch()
    task.plan(trial, batch[0])
    if way == "nested":
        task.plans.put(trial, batch[0], Plan())
    gradient = Gradient(trial, task, WAYS[way])
    objective, adam = Objective(list(trial.parameters()), partial(gradient, batch), ["law"]), Adam(list(trial.parameters()))
    began = time.perf_counter()
    adam.step(objective)
    first = time.perf_counter() - began
    if gradient.notes or task.notes:
        raise SystemExit([*gradient.notes, *task.notes][0])
    return lambda: adam.step(objective), first


def measure(name: str, n: int, dtype: torch.dtype, device: str, rounds: int) -> list[Row]:
    gpu, order = device == "cuda", PROBLEMS[name][3]
    ways = [way for way in WAYS if way != "captured" or gpu]
    steps, first = zip(*(our_step(name, n, dtype, device, way) for way in ways), strict=True)
    domain, unknowns, *_ = PROBLEMS[name]
    of = (name, domain, n, dtype, len(unknowns.split()))
    others = {"JAX": peers.jax(*of, gpu=gpu)}
    if not gpu:
        others |= {"DeepXDE": peers.deepxde(*of), "PINA": peers.pina(*of)}
    others = {peer: step for peer, step in others.items() if step}
    times = dict(zip([*ways, *others], turns([*steps, *others.values()], rounds), strict=True))
    label, rows = f"{name}, {n:,} points, {str(dtype).removeprefix('torch.')}", []
    for slow, fast, least in (
        ("nested", "compiled", goal(order, n, gpu)), ("nested", "eager", 1.0),
        *([("nested", "captured", goal(order, n, gpu))] if gpu else []),
        *((peer, "compiled", 1.0 if peer == "JAX" else None) for peer in others),
    ):  # fmt: skip
        found = median_interval([b / a for a, b in zip(times[fast], times[slow], strict=True)])
        a, b = (1e3 * statistics.median(times[way]) for way in (fast, slow))
        beside = f"{a:.3g} ms beside {b:.3g} ms, 95 % {found['low']:.2f} to {found['high']:.2f}"
        asked = None if least is None else f">= {least:g}"
        rows.append(Row(f"{label}: {slow} / {fast}", found["median"], "x", asked, asked and found["median"] >= least, beside))
        print(rows[-1].name, f"{found['median']:.2f}", beside, flush=True)
    warm_up, without = first[ways.index("compiled")], "captured" if gpu else "eager"
    saved = statistics.median(times[without]) - statistics.median(times["compiled"])
    rows.append(Row(f"{label}: first step, compilation included", warm_up, "s"))
    if saved > 0:
        rows.append(Row(f"{label}: steps that repay it, {without}", warm_up / saved, "steps"))
    return rows


def main() -> None:
    options = parser("derivatives", __doc__ or "")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--precision", default="both", choices=("both", "float64", "float32"))
    given = options.parse_args()
    sizes = ((1000, 20), (10_000, 4), *(((100_000, 6),) if given.device == "cuda" else ()))
    names = list(PROBLEMS)
    dtypes = [torch.float64, torch.float32] if given.precision == "both" else [getattr(torch, given.precision)]
    if given.quick:
        sizes, names, dtypes = ((1000, 12),), ["Poisson 2D", "Burgers", "KdV"], [torch.float64]
        print("Left out: 10,000 points, float32, Poisson 5D, Navier-Stokes, biharmonic.")
    rows = [
        row
        for dtype in dtypes
        for n, rounds in sizes
        for name in names
        for row in measure(name, n, dtype, given.device, rounds)
    ]
    write(given.out, rows, ("pinnsketch", "torch", "deepxde", "pina-mathlab", "jax"), device=given.device)
    bars(rows, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
