"""One Adam step with derivatives in one forward pass, by nested differentiation, and in DeepXDE, in turns.

The network is 4 x 50 tanh, the loss the mean square of the PDE's residual at n interior points, nothing else; all evaluate
the same PDE at as many points. Ratios come from turns taken in alternation, with a distribution-free 95 % interval for the
median. CPU, all cores, seed 0. Not here yet: compiled and captured steps, PINA, JAX, the GPU, growth with width and dimension.

    python benchmarks/derivatives.py [--quick] [--out FILE]
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import Row, arguments, write

from pinnsketch import Box, Problem, Term, laplacian
from pinnsketch.collocation import Collocation
from pinnsketch.network import MLP
from pinnsketch.solve import median_interval
from pinnsketch.trial import Trial

Step = Callable[[], Any]
SQUARE, SPACE_TIME = Box(x=(0, 1), y=(0, 1)), Box(x=(-1, 1), t=(0, 1))
FIVE = Box(a=(0, 1), b=(0, 1), c=(0, 1), e=(0, 1), f=(0, 1))


def navier_stokes(u: Any, v: Any, p: Any) -> Any:
    momentum_x = u * u.x + v * u.y + p.x - laplacian(u) / 40
    momentum_y = u * v.x + v * v.y + p.y - laplacian(v) / 40
    return torch.cat([momentum_x, momentum_y, u.x + v.y], dim=1)


PROBLEMS: dict[str, tuple[Box, str, Callable[..., Any], float]] = {
    "Poisson 2D": (SQUARE, "u", lambda u: laplacian(u) - 1, 2.5),
    "Poisson 2D, u.xx + u.yy": (SQUARE, "u", lambda u: u.xx + u.yy - 1, 2.5),
    "Poisson 5D": (FIVE, "u", lambda u: laplacian(u) - 1, 2.5),
    "Burgers": (SPACE_TIME, "u", lambda u: u.t + u * u.x - 0.01 * u.xx, 2.5),
    "Navier-Stokes 2D": (SQUARE, "u v p", navier_stokes, 2.5),
    "KdV (u.xxx)": (SPACE_TIME, "u", lambda u: u.t + 6 * u * u.x + u.xxx, 5.0),
    "biharmonic (u.xxxx)": (SQUARE, "u", lambda u: u.xxxx + 2 * u.xxyy + u.yyyy - 1, 5.0),
}
"""Each with the goal of its speed-up at 1,000 points; at 10,000 it is 3 for second order."""


def our_steps(name: str, n: int, dtype: torch.dtype) -> tuple[Step, Step]:
    """A step with one forward pass, and the same with nested differentiation."""
    domain, unknowns, residual, _ = PROBLEMS[name]
    problem = Problem(domain, unknowns, {"law": Term(domain.interior, residual)})
    task = Collocation(problem, interior=n, dtype=dtype)
    batch = task.batch()

    def make(evaluate: Callable[[Trial], torch.Tensor]) -> Step:
        network = MLP(
            torch.tensor(domain.bounds), len(problem.unknowns), dtype=dtype, generator=torch.Generator().manual_seed(0)
        )
        trial = Trial(network)
        parameters = list(trial.parameters())
        adam = torch.optim.Adam(parameters)

        def step() -> None:
            for p, g in zip(
                parameters, torch.autograd.grad(evaluate(trial).square().mean(), parameters, allow_unused=True), strict=True
            ):
                p.grad = g
            adam.step()

        return step

    def nested(trial: Trial) -> torch.Tensor:
        return task.evaluate("law", task.namespace(trial.network, {}, batch[0]), n)

    fast = make(lambda trial: task.residuals(trial, batch)["law"])
    fast()
    if task.notes:
        raise SystemExit(task.notes[0])
    return fast, make(nested)


def deepxde_step(name: str, n: int, dtype: torch.dtype) -> Step | None:
    """A step of DeepXDE's own training function on the same PDE and number of points; None where it is not installed."""
    try:
        os.environ["DDE_BACKEND"] = "pytorch"
        import deepxde as dde
    except ImportError:
        return None
    jacobian, hessian = dde.grad.jacobian, dde.grad.hessian

    def kdv(x: Any, u: Any) -> Any:
        u_x = jacobian(u, x, j=0)
        return jacobian(u, x, j=1) + 6 * u * u_x + jacobian(hessian(u, x, i=0, j=0), x, j=0)

    pdes = {
        "Poisson 2D": lambda x, u: hessian(u, x, i=0, j=0) + hessian(u, x, i=1, j=1) - 1,
        "Burgers": lambda x, u: jacobian(u, x, j=1) + u * jacobian(u, x, j=0) - 0.01 * hessian(u, x, i=0, j=0),
        "KdV (u.xxx)": kdv,
    }
    if name not in pdes:
        return None
    dde.config.set_default_float(str(dtype).removeprefix("torch."))
    low, high = PROBLEMS[name][0].bounds.T.tolist()
    data = dde.data.PDE(dde.geometry.Rectangle(low, high), pdes[name], [], num_domain=n)
    model = dde.Model(data, dde.nn.FNN([2, *[50] * 4, 1], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-3, verbose=0)
    model.train(iterations=1, verbose=0)
    state = model.train_state
    return lambda: model._train_step(state.X_train, state.y_train, state.train_aux_vars)


def turns(steps: list[Step], rounds: int) -> list[list[float]]:
    """Seconds of each step in each round, the order reversed from round to round; two rounds of warm-up are left out."""
    took: list[list[float]] = [[] for _ in steps]
    for turn in range(rounds + 2):
        order = range(len(steps)) if turn % 2 else reversed(range(len(steps)))
        for i in order:
            began = time.perf_counter()
            steps[i]()
            took[i].append(time.perf_counter() - began)
    return [times[2:] for times in took]


def measure(name: str, n: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    fast, nested = our_steps(name, n, dtype)
    peer = deepxde_step(name, n, dtype)
    times = turns([fast, nested, *([peer] if peer else [])], rounds)
    goal = PROBLEMS[name][3] if n <= 1000 else max(3.0, PROBLEMS[name][3])
    label = f"{name}, {n:,} points, {str(dtype).removeprefix('torch.')}"
    rows = []
    for word, other in zip(("nested", "DeepXDE"), times[1:], strict=False):
        found = median_interval([b / a for a, b in zip(times[0], other, strict=True)])
        beside = f"{1e3 * statistics.median(times[0]):.1f} ms beside {1e3 * statistics.median(other):.1f} ms"
        rows.append(
            Row(f"{label}: {word} / one pass", found["median"], "x", f">= {goal:g}", found["median"] >= goal,
                f"{beside}, 95 % {found['low']:.2f} to {found['high']:.2f}")
        )  # fmt: skip
        print(rows[-1].name, f"{found['median']:.2f}", rows[-1].peer, flush=True)
    return rows


def main() -> None:
    given = arguments("derivatives", __doc__ or "")
    rows = []
    for dtype in (torch.float64,) if given.quick else (torch.float64, torch.float32):
        for n, rounds in ((1000, 16 if given.quick else 40),) if given.quick else ((1000, 40), (10_000, 10)):
            for name in PROBLEMS:
                rows += measure(name, n, dtype, rounds)
    if given.quick:
        print("Left out: 10,000 points and float32.")
    write(given.out, rows, ("pinnsketch", "torch", "deepxde"))


if __name__ == "__main__":
    main()
