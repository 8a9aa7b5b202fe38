"""The first whole run: accuracy and time of every shipped config, the price of the monitor, one step beside DeepXDE.

Seeds: each config's own (0), and 0, 1, 2 for Poisson. Times are of this machine, in one run; ratios come from turns taken
in alternation, with a distribution-free 95 % interval for the median. DeepXDE takes part where it is installed.

    python benchmarks/first_run.py [--quick] [--out FILE]
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import RESULTS, Row, parser, write

from pinnsketch.config import make_config
from pinnsketch.library import find_config, find_problem, load_problem, names
from pinnsketch.run import Run
from pinnsketch.solve import median_interval

GOALS = {"poisson": 1e-6, "poisson_l_shape": 2e-2, "cavity": 2e-2}
ELSEWHERE = 1e-2
"""Goal of the relative L2 error of the other shipped configs."""
COEFFICIENT = 0.02
START_UP = """
import time
from pathlib import Path
from pinnsketch.config import make_config
from pinnsketch.library import find_config, find_problem, load_problem
from pinnsketch.run import Run
config, folder = find_config("poisson")
next(iter(Run(load_problem(find_problem(config.problem, folder)), config)))
print(time.time())
"""


def command(*words: str) -> dict[str, Any]:
    """Run a `pinnsketch` command and return the JSON it prints."""
    done = subprocess.run([sys.executable, "-m", "pinnsketch", *words, "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def start_up(times: int) -> list[float]:
    """Seconds from starting Python to the end of the first step of the Poisson config."""
    found = []
    for _ in range(times):
        began = time.time()
        done = subprocess.run([sys.executable, "-c", START_UP], capture_output=True, text=True, check=True)
        found.append(float(done.stdout) - began)
    return found


def solve_all(which: list[str], folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Every shipped config through the command line; also its error against seconds."""
    rows, curves = [], {}
    for name in which:
        began = time.perf_counter()
        metrics = command("solve", name, "--out", str(folder / name))
        wall = time.perf_counter() - began
        goal = GOALS.get(name, ELSEWHERE)
        error = metrics["relative_l2"]["overall"]
        rows.append(Row(f"{name}: relative L2 error", error, "1", f"<= {goal:g}", error <= goal))
        rows.append(Row(f"{name}: training", metrics["seconds"], "s"))
        limit = ("<= 60", wall <= 60) if name == "poisson" else (None, None)
        rows.append(Row(f"{name}: whole command", wall, "s", *limit))
        for coefficient, found in metrics["unknowns"].items():
            off = found["relative_error"]
            rows.append(Row(f"{name}: error of {coefficient}", off, "1", f"<= {COEFFICIENT:g}", off <= COEFFICIENT))
        history = json.loads((folder / name / "history.json").read_text())
        curves[name] = [[row["seconds"], row["error"]["overall"]] for row in history]
        print(f"{name}: {error:.2e} in {wall:.0f} s", flush=True)
    return rows, curves


def poisson_seeds(seeds: tuple[int, ...]) -> list[Row]:
    """The Poisson config from other seeds: spread of the error."""
    config, folder = find_config("poisson")
    problem = load_problem(find_problem(config.problem, folder), config.parameters)
    errors = []
    for seed in seeds:
        run = Run(problem, config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})}))
        for _ in run:
            pass
        errors.append(run.finish().error["overall"])  # type: ignore[index]
    spread = f"{min(errors):.2e} to {max(errors):.2e}"
    return [
        Row(f"poisson: median error, seeds {seeds}", statistics.median(errors), "1", "<= 1e-06", max(errors) <= 1e-6),
        Row("poisson: spread over these seeds", spread, "1"),
    ]


def compare(folder: Path) -> list[Row]:
    """`pinnsketch compare poisson`."""
    result = command("compare", "poisson", "--out", str(folder / "compare"))
    overhead, size = result["overhead"], result["monitor"]["bytes"]
    return [
        Row("compare: parameters identical bit for bit", result["identical"], "", "true", result["identical"]),
        Row("compare: errors equal", result["relative_l2"]["with"] == result["relative_l2"]["without"], "", "true",
            result["relative_l2"]["with"] == result["relative_l2"]["without"]),
        Row("compare: time with monitor / without, median", overhead["median"], "1", "<= 1.05", overhead["median"] <= 1.05),
        Row("compare: its 95 % interval", f"{overhead['low']:.3f} to {overhead['high']:.3f}", "1"),
        Row("compare: monitor memory", size, "bytes", "<= 100000", size <= 100_000),
    ]  # fmt: skip


def beside_deepxde(rounds: int) -> list[Row]:
    """One Adam step for Poisson, 4 x 50 tanh, float64: ours and DeepXDE's in turns, on one thread and on all."""
    try:
        os.environ["DDE_BACKEND"] = "pytorch"
        import deepxde as dde
        import torch
    except ImportError:
        return [Row("one step: DeepXDE is not installed, left out", None, "")]
    rows = []
    theirs = deepxde_step(dde)
    # With 1,000 + 200 points DeepXDE evaluates the PDE at 1,400, boundary points among them: the second row does so too.
    for label, interior in (("same settings, 1,000 + 200 points", 1000), ("ours at 1,400 + 200 points", 1400)):
        for threads in sorted({1, torch.get_num_threads()}):
            ours, ratios, times = our_step(interior), [], []
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            for turn in range(rounds):
                took = {}
                for step in (ours, theirs) if turn % 2 else (theirs, ours):
                    began = time.perf_counter()
                    for _ in range(5):
                        step()
                    took[step] = (time.perf_counter() - began) / 5
                ratios.append(took[ours] / took[theirs])
                times.append((took[ours], took[theirs]))
            torch.set_num_threads(before)
            found = median_interval(ratios[2:])
            words = f"one step, {label}, {threads} threads"
            a, b = (1e3 * statistics.median(t[i] for t in times) for i in (0, 1))
            goal = ("<= 1", found["median"] <= 1) if interior == 1000 else (None, None)
            rows.append(Row(f"{words}: ours / DeepXDE", found["median"], "1", *goal,
                            f"{a:.1f} ms beside {b:.1f} ms, 95 % {found['low']:.2f} to {found['high']:.2f}"))  # fmt: skip
    return rows


def our_step(interior: int) -> Any:
    config, folder = find_config("poisson")
    train = {"method": "adam", "lr": 2e-3, "steps": 10**9, "log": 10**9, "checkpoint": 10**9}
    config = make_config(
        {
            "problem": "poisson",
            "network": config.network.model_dump(),
            "points": {"interior": interior, "boundary": 200},
            "monitor": False,
            "threads": 2,
            "train": train,
        }
    )
    problem = load_problem(find_problem(config.problem, folder), config.parameters)
    run = Run(problem, config)
    steps = run._train()
    return lambda: next(steps)


def deepxde_step(dde: Any) -> Any:
    """One step of DeepXDE's own training function, as its Poisson examples set it up."""
    import torch

    dde.config.set_default_float("float64")
    square = dde.geometry.Rectangle([0, 0], [1, 1])

    def poisson(x: Any, u: Any) -> Any:
        f = 2 * math.pi**2 * torch.sin(math.pi * x[:, 0:1]) * torch.sin(math.pi * x[:, 1:2])
        return dde.grad.hessian(u, x, i=0, j=0) + dde.grad.hessian(u, x, i=1, j=1) + f

    sides = dde.icbc.DirichletBC(square, lambda x: 0, lambda x, on: on)
    data = dde.data.PDE(square, poisson, sides, num_domain=1000, num_boundary=200)
    model = dde.Model(data, dde.nn.FNN([2, *[50] * 4, 1], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-3, loss_weights=[1, 100], verbose=0)
    model.train(iterations=1, verbose=0)
    state = model.train_state
    return lambda: model._train_step(state.X_train, state.y_train, state.train_aux_vars)


def figure(curves: dict[str, Any], out: Path) -> None:
    """Error against seconds of every shipped config."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = canvas.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        axes.loglog(*zip(*((max(s, 0.05), e) for s, e in curve), strict=True), color=colormaps["tab20"](i), lw=1.4, label=name)
    axes.axhline(0.31, color="0.5", ls="--", lw=1)
    axes.annotate("Antil & Verma 2025, Poisson: 0.31 ", (1, 0.31), xycoords=("axes fraction", "data"), va="bottom", ha="right",
                  fontsize=8, color="0.4")  # fmt: skip
    axes.set(xlabel="seconds of training", ylabel="relative L2 error (dimensionless)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    canvas.savefig(out, dpi=130)


def main() -> None:
    given = parser("first_run", __doc__ or "").parse_args()
    rows: list[Row] = []
    times = start_up(2 if given.quick else 5)
    median = statistics.median(times)
    rows.append(Row("poisson: start of Python to first step", median, "s", "<= 4", median <= 4))
    rows += beside_deepxde(8 if given.quick else 60)
    with tempfile.TemporaryDirectory() as folder:
        which = ["poisson_disk", "inverse_diffusivity"] if given.quick else names("configs")
        found, curves = solve_all(which, Path(folder))
        rows += found
        if given.quick:
            print("Left out: the other configs, other seeds, and compare.")
        else:
            rows += compare(Path(folder))
            rows += poisson_seeds((0, 1, 2))
    write(given.out, rows, ("pinnsketch", "torch", "numpy", "scipy", "deepxde"), curves=curves)
    if not given.quick or given.out.parent != RESULTS:
        figure(curves, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
