"""Finite elements and spectral methods on the problems of accuracy.py: error against seconds, at several sizes.

A row is one solve: its relative L2 error against the same exact solution, at the same points of the domain, as in accuracy.py
(multiples of 1/40 in time where a Fourier method steps), and its CPU seconds on one thread, everything included but imports and
the measuring. Finite elements are scikit-fem's: triangles of degree 2 and 4, graded at the corner of the L-shape; Taylor-Hood
with Newton for the Navier-Stokes equations, graded at the walls of the cavity; degree 4 on a line, Hermite cubics for KdV,
graded at the shock of Burgers, with Radau IIA of order 5 in time. Spectral: Chebyshev collocation, solved by fast
diagonalisation (Poisson, Helmholtz) or by Newton, with Radau IIA of 7 stages in time; Fourier with ETDRK4 where the sides are
periodic, and for Burgers; rational functions with poles at the corner (Gopal & Trefethen 2019) for the L-shape; spectral
elements for the cavity. Its references are made of more of them, of degree 7, and of 8 under the smooth lid: of 8 there is none
here, as two flows on the same elements in the middle of the cavity have the same error there. Neither kind goes to high
dimensions: scikit-fem ends at three, and a tensor grid has n^d values, which in 100 dimensions no computer holds.

    python benchmarks/classical.py [--quick] [--jobs N] [--only PATTERN] [--out FILE]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import accuracy
import numpy as np
import torch
from beside import figure
from cavity import LIDS, Cavity
from evolution import Evolution, Solution, fourier
from harness import Campaign, Row, parser, wanted, write
from steady import (
    LOWER,
    chebyshev_flow,
    chebyshev_poisson,
    elements_flow,
    elements_poisson,
    l_shaped,
    rational_l_shape,
    triangles,
)

from pinnsketch.collocation import Collocation


@dataclass(frozen=True)
class Solver:
    """A kind of solver, and the sizes at which it is run."""

    solve: Callable[..., Solution]
    sizes: Sequence[tuple[int, ...]]


def exact(name: str) -> Solution:
    """The exact solution of a problem of accuracy.py, all its unknowns."""
    task = Collocation(accuracy.CASES[name].make())
    return lambda x: np.concatenate([task.exact(u, torch.as_tensor(x)).numpy() for u in task.problem.unknowns], 1)


def measured(name: str, kind: str) -> tuple[Any, Any]:
    """Points and values against which a solver is measured."""
    case = accuracy.CASES[name]
    problem = case.make()
    table = getattr(problem, "tabulated", None)
    if table is not None:
        return table.points, np.stack([table.values[u] for u in problem.unknowns if u in table.values], 1)
    if getattr(case, "reference", None):
        points, values, _ = case.reference()
        return points.numpy(), values.numpy()
    points = Collocation(problem).test_points.numpy()
    if "Fourier" in kind:
        points[:, 1] = np.ceil(40 * points[:, 1]) / 40
    return points, exact(name)(points)


def square(cells: int, low: float = 0, high: float = 1) -> list[Any]:
    return [np.linspace(low, high, cells + 1)] * 2


def poisson(name: str, factor: float, shift: float, low: float, high: float) -> dict[str, Solver]:
    """Solvers of laplacian(u) + shift u = factor u_exact on a square."""
    u = exact(name)

    def source(x: Any) -> Any:
        return factor * u(x)[:, 0]

    return {
        **{
            f"elements, P{p}": Solver(
                lambda n, p=p: elements_poisson(triangles(square(n, low, high), p), source, u, shift), [(n,) for n in sizes]
            )
            for p, sizes in ((2, (8, 16, 32, 64, 128)), (4, (4, 8, 16, 32, 64)))
        },
        "Chebyshev": Solver(
            lambda n: chebyshev_poisson(n, 2, low, high, source, u, shift), [(n,) for n in (6, 8, 12, 16, 20, 24, 32, 40)]
        ),
    }


def evolving(
    evolution: Evolution, elements: Sequence[tuple[int, ...]], spectral: Sequence[tuple[int, ...]], **more: Any
) -> Any:
    found = {"elements, Radau": Solver(lambda *size: evolution.elements(*size, **more), elements)}
    return found | ({"Chebyshev, Radau": Solver(evolution.spectral, spectral)} if spectral else {})


def convection(beta: int) -> dict[str, Solver]:
    name = f"convection, beta = {beta}"
    ends = ((0.0, 0, lambda t: -np.sin(beta * t)),)
    zero = np.zeros_like
    equation = Evolution((0, 2 * np.pi, 1), np.sin, g=lambda u, s: (beta * s, zero(u), beta + zero(u)), ends=ends)
    assert name in accuracy.CASES
    return evolving(
        equation,
        [(8, 60), (16, 120), (32, 240), (64, 480)],
        [(12, 10), (16, 15), (20, 20), (24, 30), (28, 40), (28, 80), (28, 160)],
    )


def wall(*places: float) -> Any:
    return tuple((x, 0, lambda t: 0.0) for x in places)


def burgers(u: Any, s: Any) -> tuple[Any, Any, Any]:
    return u * s, s, u


def allen_cahn(u: Any, s: Any) -> tuple[Any, Any, Any]:
    return -5 * (u - u**3), -5 + 15 * u**2, 0 * u


def reaction(u: Any, s: Any) -> tuple[Any, Any, Any]:
    return -5 * u * (1 - u), -5 + 10 * u, 0 * u


def kdv(u: Any, s: Any) -> tuple[Any, Any, Any]:
    return 6 * u * s, 6 * s, 6 * u


def cavity_elements(degree: int, cells: int, re: float, speed: Callable[[Any], Any]) -> Solution:
    """The flow in the cavity on triangles graded towards its walls, from the one on half as many to a side."""

    def walls(x: Any) -> Any:
        moved = (x[:, 1] == 1) & (x[:, 0] > 0) & (x[:, 0] < 1)
        return np.stack([speed(x[:, 0]) * moved, 0 * x[:, 0], 0 * x[:, 0]], 1)

    start = cavity_elements(degree, cells // 2, re, speed) if cells * degree > 32 else None
    sides = [(1 - np.cos(np.linspace(0, np.pi, cells + 1))) / 2] * 2
    return elements_flow(triangles(sides, degree), degree, re, walls, (0, 0), start)


def spectral_elements(degree: int, layers: int, re: float, speed: Callable[[Any], Any] = np.ones_like) -> Solution:
    """The flow in the cavity by elements as its reference is made of, from the flow of about half their degree."""
    coarse, flow = (Cavity(k, layers, speed) for k in ((degree + 3) // 2, degree))
    with redirect_stdout(None):
        s = None
        for rate in (*(lower for lower in LOWER if lower < re), re):
            s = coarse.solve(rate, s)
        s = flow.solve(re, flow.like(coarse, s))
    x, y = flow.lines
    grids = [part.reshape(x.size, y.size) for part in np.split(s[: 2 * x.size * y.size], 2)]
    return lambda points: np.stack([y.at(points[:, 1]).multiply(x.at(points[:, 0]) @ grid).sum(1).A1 for grid in grids], 1)


def solvers(name: str) -> dict[str, Solver]:
    """By problem of accuracy.py, its solvers."""
    nu = 0.01 / np.pi
    if name == "Poisson 2D":
        return poisson(name, -2 * np.pi**2, 0.0, 0, 1)
    if name == "Helmholtz (1, 4)":
        return poisson(name, 1 - 17 * np.pi**2, 1.0, -1, 1)
    if name == "Poisson 5D":
        u = exact(name)
        sizes = [(n,) for n in (5, 7, 9, 11, 13, 15)]
        return {"Chebyshev": Solver(lambda n: chebyshev_poisson(n, 5, 0, 1, lambda x: -(np.pi**2) * u(x)[:, 0], u), sizes)}
    if name == "heat":
        equation = Evolution((0, 1, 1), lambda x: np.sin(np.pi * x), k=0.25, ends=wall(0, 1))
        return evolving(equation, [(4, 8), (8, 16), (16, 32), (32, 64)], [(8, 1), (12, 2), (16, 3), (20, 8), (20, 16)])
    if name == "wave, c = 2":
        equation = Evolution(
            (0, 1, 1), lambda x: np.sin(np.pi * x) + 0.5 * np.sin(4 * np.pi * x), k=4.0, ends=wall(0, 1), second=True
        )
        return evolving(
            equation, [(8, 40), (16, 80), (32, 160), (64, 320)], [(16, 5), (20, 8), (24, 12), (32, 20), (32, 40), (32, 80)]
        )
    if name.startswith("convection"):
        return convection(int(name.split(" = ")[1]))
    if name == "reaction, rho = 5":
        equation = Evolution((0, 2 * np.pi, 1), lambda x: np.exp(-8 * ((x - np.pi) / np.pi) ** 2), g=reaction, linear=False)
        return evolving(equation, [(8, 8), (16, 16), (32, 32), (64, 64)], [(24, 2), (40, 4), (56, 8), (72, 16), (72, 32)])
    if name == "Burgers":
        equation = Evolution((-1, 1, 1), lambda x: -np.sin(np.pi * x), nu, g=burgers, ends=wall(-1, 1), linear=False)
        return evolving(equation, [(32, 50), (64, 100), (128, 200), (256, 400)], [], graded=6.0) | {
            "Fourier, ETDRK4": Solver(
                lambda modes, steps: fourier(
                    modes, steps, lambda x: -np.sin(np.pi * x), lambda k: -nu * k**2,
                    lambda v, ik: -ik / 2 * np.fft.rfft(np.fft.irfft(v) ** 2),
                ),
                [(512, 400), (1024, 800), (1536, 1600), (2048, 3200), (3072, 6400)],
            )
        }  # fmt: skip
    if name == "Allen-Cahn":
        equation = Evolution((-1, 1, 1), lambda x: x**2 * np.cos(np.pi * x), 1e-4, g=allen_cahn, linear=False)
        return evolving(equation, [(64, 20), (128, 40), (256, 80), (512, 160)], []) | {
            "Fourier, ETDRK4": Solver(
                lambda modes, steps: fourier(
                    modes, steps, lambda x: x**2 * np.cos(np.pi * x), lambda k: 5 - 1e-4 * k**2,
                    lambda v, ik: np.fft.rfft(-5 * np.fft.irfft(v) ** 3),
                ),
                [(512, 80), (1024, 160), (2048, 320), (4096, 640)],
            )
        }  # fmt: skip
    if name == "KdV, two solitons":
        u = exact(name)

        def at(x: float) -> Callable[[float], float]:
            return lambda t: float(u(np.array([[x, t]]))[0, 0])

        def slope(t: float) -> float:
            a, b, low = 8 - 28 * t, 24 - 36 * t, 3 * np.cosh(8 - 28 * t) + np.cosh(24 - 36 * t)
            top = 96 * (np.sinh(16 - 8 * t) + np.sinh(32 - 64 * t) / 2)
            return float(top / low**2 - 6 * at(8)(t) * (np.sinh(a) + np.sinh(b)) / low)

        ends = ((-4.0, 0, at(-4)), (8.0, 0, at(8)), (8.0, 1, slope))
        equation = Evolution((-4, 8, 0.25), lambda x: 6 / np.cosh(x) ** 2, -1.0, 3, kdv, ends, linear=False)
        return evolving(equation, [(100, 25), (200, 50), (400, 100), (800, 200)], [(96, 15), (128, 20), (160, 30), (192, 40)])
    if name.startswith("Kovasznay"):
        box, pin = ((-0.5, 1.0), (-0.5, 1.5)), np.array([1.0, 0.5])
        return {
            **{
                f"elements, P{p}-P{p - 1}": Solver(
                    lambda n, p=p: elements_flow(
                        triangles([np.linspace(*ends, k + 1) for ends, k in zip(box, (3 * n, 4 * n), strict=True)], p),
                        p, 40.0, exact(name), pin,
                    ),
                    [(n,) for n in sizes],
                )
                for p, sizes in ((2, (2, 4, 8, 16)), (4, (1, 2, 4, 8)))
            },
            "Chebyshev": Solver(
                lambda *n: chebyshev_flow(n, box, 40.0, exact(name)), [(8, 12), (10, 16), (12, 20), (16, 26), (20, 32)]
            ),
        }  # fmt: skip
    if name == "KdV, cos":
        equation = Evolution((-1, 1, 1), lambda x: np.cos(np.pi * x), -0.0025, 3, burgers, linear=False, periodic=True)
        return evolving(equation, [(32, 50), (64, 100), (128, 200), (256, 400)], []) | {
            "Fourier, ETDRK4": Solver(
                lambda modes, steps: fourier(
                    modes, steps, lambda x: np.cos(np.pi * x), lambda k: 0.0025j * k**3,
                    lambda v, ik: -ik / 2 * np.fft.rfft(np.fft.irfft(v) ** 2),
                ),
                [(128, 400), (256, 800), (512, 1600), (1024, 3200)],
            )
        }  # fmt: skip
    if name.startswith("cavity") and not name.endswith("enriched"):
        smooth, re = name.endswith("smooth lid"), float(name.split(", ")[1].split()[-1])
        cells = {2: (16, 24, 32, 48, 64, 96)} | ({4: (8, 12, 16, 24, 32)} if smooth else {})
        spectral = [(4, 2), (5, 2), (6, 3), (7, 4), (9, 4)] if smooth else [(3, 2), (4, 2), (4, 3), (5, 3), (6, 4)]
        given = {"re": re, "speed": LIDS["parabola" if smooth else "full"]}
        return {
            **{
                f"elements, P{p}-P{p - 1}, graded": Solver(partial(cavity_elements, p, **given), [(n,) for n in sizes])
                for p, sizes in cells.items()
            },
            "spectral elements": Solver(partial(spectral_elements, **given), spectral),
        }
    if name == "L-shape":
        u = exact(name)
        return {
            **{
                f"elements, P{p}, graded": Solver(
                    lambda n, p=p: elements_poisson(l_shaped(n, p), None, u), [(n,) for n in sizes]
                )
                for p, sizes in ((2, (2, 3, 4, 5, 6)), (4, (1, 2, 3, 4, 5)))
            },
            "rational functions": Solver(
                lambda n: rational_l_shape(n, lambda x: u(x)[:, 0]), [(n,) for n in (5, 10, 20, 40, 60)]
            ),
        }
    return {}


def one(name: str, kind: str, most: int) -> list[tuple[float, float, str]]:
    """CPU seconds, error and size of each solve; the fastest of three where it is short."""
    torch.set_num_threads(1)
    solver, (points, values), found = solvers(name)[kind], measured(name, kind), []
    sizes = list(solver.sizes)[:most]
    solver.solve(*sizes[0])(points[:10])
    for size in sizes:
        times = []
        while len(times) < 3 and sum(times) < 1:
            began = time.process_time()
            solution = solver.solve(*size)
            times.append(time.process_time() - began)
        off = solution(points)[:, : values.shape[1]] - values
        found.append((min(times), float(np.linalg.norm(off) / np.linalg.norm(values)), "x".join(map(str, size))))
    return found


def rows(curves: dict[str, Any]) -> Iterator[Row]:
    for key, curve in curves.items():
        for seconds, error, size in curve:
            yield Row(f"{key}, {size}", error, "relative L2", peer=f"{seconds:.3g} s")


def main() -> None:
    words = parser("classical", __doc__.splitlines()[0])
    words.add_argument("--jobs", type=int, default=1, help="solvers at a time, of one thread each")
    words.add_argument("--only", default="*", help="'problem: solver' by name, with * and ?, separated by semicolons")
    given: Any = words.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    campaign = Campaign(given.out, one, given.jobs, cores=1)
    jobs = {
        f"{name}: {kind}": (name, kind, 2 if given.quick else 99)
        for name in accuracy.CASES
        for kind in solvers(name)
        if wanted(f"{name}: {kind}", given.only)
    }
    campaign.run(jobs, lambda curve: " ".join(f"{t:.3g} s {e:.1e}" for t, e, _ in curve))
    curves = {key: curve for name in accuracy.CASES for key, curve in campaign.runs.items() if key.startswith(f"{name}: ")}
    left_out = (["all but two sizes"] if given.quick else []) + campaign.failed
    tables = {name: accuracy.CASES[name].make().tabulated for name in {key.partition(": ")[0] for key in curves}}
    references = {name: found.error for name, found in sorted(tables.items()) if found}
    more: Any = {"commands": campaign.commands, "left_out": left_out, "references": references, "curves": curves}
    write(given.out, list(rows(curves)), ("scikit-fem", "scipy", "numpy", "torch"), **more)
    figure(given.out)


if __name__ == "__main__":
    main()
