"""Error against seconds: every method on the problems that papers measure themselves by, on this machine, in one run.

A row is the median over seeds of the relative L2 error that a method has reached after so many seconds of training, against a
closed form, or a reference whose own error is given. Set-up is part of the time; imports, the start of a GPU and
measurements of the error are not. Each training has two threads on a CPU; on a GPU the natural gradient has four times the
points. Features that hold the solution are marked `sin` (sines for a sine solution) and `enriched`; `held ends` are those of an
ansatz; `slabs` are of time, one network for each, trained one after another (their error is of all times, and large until the
last slab).

    python benchmarks/accuracy.py [--quick] [--device cuda] [--jobs N] [--only PATTERN] [--seeds N] [--out FILE]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import Campaign, Row, parser, wanted, write
from torch import Tensor

from pinnsketch import Box, Problem, Term
from pinnsketch.config import make_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.run import Run
from pinnsketch.workplace import device_of

Options = Mapping[str, Any]
Curve = list[tuple[float, float]]
MARKS = (1, 2, 4, 5, 10, 20, 30, 60, 120, 300)
"""Seconds at which errors are measured."""
LONG = 1.0
"""Seconds of a step after which they are measured too: the next may end long after a mark."""


@dataclass(frozen=True)
class Case:
    """A problem with its goals.

    Args:
        make: gives the problem.
        ways: configurations by name of the method.
        seconds: that each training has.
        goals: error to be reached within so many seconds, by device.
        best: what is published, with its source.
    """

    make: Callable[[], Problem]
    ways: Mapping[str, Options]
    seconds: float = 30
    goals: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    best: str = ""


def shipped(name: str, **parameters: Any) -> Callable[[], Problem]:
    return lambda: load_problem(find_problem(name, Path(__file__).parents[1]), parameters)


def two_solitons() -> Problem:
    """KdV, u_t + 6 u u_x + u_xxx = 0: the two solitons that come of 6 sech(x)^2, on [-4, 8] until t = 0.25, ends given."""
    domain = Box(x=(-4, 8), t=(0, 0.25))

    def exact(x: Tensor, t: Tensor) -> Tensor:
        top = 12 * (3 + 4 * torch.cosh(2 * x - 8 * t) + torch.cosh(4 * x - 64 * t))
        return top / (3 * torch.cosh(x - 28 * t) + torch.cosh(3 * x - 36 * t)) ** 2

    def slope(x: Tensor, t: Tensor) -> Tensor:
        top = 96 * (torch.sinh(2 * x - 8 * t) + torch.sinh(4 * x - 64 * t) / 2)
        low = 3 * torch.cosh(x - 28 * t) + torch.cosh(3 * x - 36 * t)
        return top / low**2 - 6 * exact(x, t) * (torch.sinh(x - 28 * t) + torch.sinh(3 * x - 36 * t)) / low

    return Problem(
        domain,
        "u",
        {
            "kdv": Term(domain.interior, lambda u: u.t + 6 * u * u.x + u.xxx),
            "start": Term(domain.start("t"), lambda u, x, t: u - exact(x, t), weight=100.0),
            "ends": Term(domain.sides("x"), lambda u, x, t: u - exact(x, t), weight=100.0),
            "slope": Term(domain.side(x=8), lambda u, x, t: u.x - slope(x, t), weight=100.0),
        },
        exact=exact,
    )


def points(interior: int, boundary: int, resample: int = 1, draw: str = "even") -> Options:
    return {"interior": interior, "boundary": boundary, "resample": resample, "draw": draw}


def natural(
    width: int, depth: int, interior: int, boundary: int, activation: str = "tanh", draw: str = "even", **options: Any
) -> Options:
    return {
        "network": {"width": width, "depth": depth, "activation": activation},
        "points": points(interior, boundary, draw=draw),
        "train": {"method": "natural_gradient", "steps": 10**6, **options},
    }


def staged(way: Options, *steps: int) -> Options:
    """The same, with another network that begins after so many steps, and after so many more the next."""
    last = way["train"]
    brief = [stage for count in steps for stage in ({**last, "steps": count}, {"method": "next_stage"})]
    return {**way, "network": {**way["network"], "stages": len(steps) + 1}, "train": {"schedule": [*brief, last]}}


def weighted(ways: Mapping[str, Options], **weights: float) -> dict[str, Options]:
    """The same with these weights of terms."""
    return {name: {**way, "weights": weights} for name, way in ways.items()}


def sketched(width: int, depth: int, interior: int, boundary: int, activation: str = "tanh", **options: Any) -> Options:
    return {
        "network": {"width": width, "depth": depth, "activation": activation},
        "points": points(interior, boundary),
        "train": {"method": "dsgnar", "steps": 10**6, **options},
    }


def momentum(width: int, depth: int, interior: int, boundary: int, **options: Any) -> Options:
    """As in the paper, where weights are one."""
    return {
        "network": {"width": width, "depth": depth},
        "points": points(interior, boundary),
        "weights": {"sides": 1},
        "train": {"method": "spring", "steps": 10**6, **options},
    }


def falling(way: Options, steps: int, rates: Sequence[float]) -> Options:
    """By spring, so many steps with each step size."""
    stages = [{"method": "spring", "steps": steps, "lr": lr, "damping": 0.03, "momentum": 0.98} for lr in rates]
    return {**way, "train": {"schedule": stages}}


def marching(way: Options, slabs: int | Sequence[float], **train: Any) -> Options:
    """A way in slabs of time; `train`: steps and options for each of them."""
    return {**way, "network": {**way["network"], "slabs": slabs}, "train": {**way["train"], **train}}


def broyden(width: int, depth: int, interior: int, boundary: int) -> Options:
    return {
        "network": {"width": width, "depth": depth},
        "points": points(interior, boundary, resample=500),
        "train": {"compile": False, "schedule": [{"method": "adam", "steps": 500}, {"method": "ssbroyden", "steps": 10**6}]},
    }


def features(width: int, interior: int, boundary: int, activation: str = "tanh", **network: Any) -> Options:
    return {
        "network": {"kind": "features", "width": width, "activation": activation, **network},
        "points": points(interior, boundary, resample=0),
        "train": {"method": "features", "steps": 10**4},
    }


def patched(width: int, each: int = 80) -> Options:
    """Patches that refine themselves have points of their own; the task's are those at which a step is reported."""
    return {
        "network": {"kind": "patches", "width": width, "each": each},
        "points": points(400, 100, resample=0),
        "train": {"method": "patches", "steps": 10**4},
    }


def led(way: Options, name: str, *stages: tuple[float, int]) -> Options:
    """From easier problems: values of a parameter, and steps with each."""
    first = [{**way["train"], "steps": steps, "parameters": {name: value}} for value, steps in stages]
    return {**way, "train": {"schedule": [*first, way["train"]]}}


def quasi(width: int, depth: int, interior: int, boundary: int) -> Options:
    """What most papers use."""
    return {
        "network": {"width": width, "depth": depth},
        "points": points(interior, boundary, resample=0),
        "train": {"compile": False, "schedule": [{"method": "adam", "steps": 1000}, {"method": "lbfgs", "steps": 10**6}]},
    }


def both(width: int, depth: int, interior: int = 400, boundary: int = 100, **options: Any) -> dict[str, Options]:
    """The trained ways of a smooth problem."""
    size = f"{depth}x{width}"
    return {
        f"natural_gradient {size}": natural(width, depth, interior, boundary, **options),
        f"dsgnar {size}": sketched(width, depth, 2000, 200),
        f"ssbroyden {size}": broyden(width, depth, 2000, 200),
    }


def slabwise(width: int, slabs: int, steps: int) -> dict[str, Options]:
    """Networks for each slab of time; in each there is a second one for as many steps again."""
    way = natural(width, 4, 400, 100, steps=steps)
    return {
        f"natural_gradient 4x{width}, slabs": marching(way, slabs),
        f"natural_gradient 4x{width}, slabs, two stages": marching(staged(way, steps // 2), slabs),
    }


def lasting(width: int, slabs: int, interior: int, boundary: int, steps: int) -> Options:
    """Two networks in each slab of time, both with so many steps."""
    return marching(staged(natural(width, 4, interior, boundary, steps=steps), steps), slabs)


def short(
    width: int, slabs: int, patience: int, depth: int = 4, interior: int = 400, boundary: int = 100, **options: Any
) -> Options:
    """Many slabs of time, each of which ends when its loss falls slowly."""
    return marching(natural(width, depth, interior, boundary, steps=300, patience=patience, **options), slabs)


def held(way: Options) -> Options:
    """The same, with few points where the ansatz leaves nothing to be learnt."""
    return {**way, "points": {**way["points"], "terms": {"ends": 8}}}


AUTO: dict[str, Options] = {"auto": {"train": {"method": "auto"}}}
MINUTE = {"cpu": ((1e-6, 60),), "cuda": ((1e-9, 60),)}
LINEAR = {"features, tanh": features(2000, 6000, 800), "features, sin": features(1000, 4000, 600, "sin")}
LID: dict[str, Options] = {
    "natural_gradient 4x40": natural(40, 4, 1000, 200),
    "dsgnar 4x40": sketched(40, 4, 4000, 800),
    "ssbroyden 4x40": broyden(40, 4, 4000, 800),
}
MARCHED = {
    "features, tanh, slabs": marching(features(1000, 3000, 400), 8),
    "features, tanh, slabs, tolerance 1e-14": marching(features(1000, 3000, 400), 8, tolerance=1e-14),
}
WAVES = (0, 0.25, 0.4, 0.6, 0.8, 1)
FRONTS = (0, 0.02, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
CASES: dict[str, Case] = {
    "Poisson 2D": Case(
        shipped("poisson"),
        {
            **AUTO,
            **both(50, 4),
            "natural_gradient 4x50, two stages": staged(natural(50, 4, 400, 100), 60),
            "adam, lbfgs 4x50": quasi(50, 4, 1000, 200),
            "features, tanh": features(500, 2000, 400),
        },
        30, {"cpu": ((1e-6, 4), (3e-8, 20)), "cuda": ((3e-8, 1), (1e-10, 30))},
        "1.2e-7 in 468 s (ENGD, Dangel et al. 2024)",
    ),
    "Poisson 5D": Case(
        shipped("poisson_nd"),
        {
            **AUTO,
            "natural_gradient 2x32": natural(32, 2, 500, 300),
            "natural_gradient 2x64": natural(64, 2, 500, 300),
            "natural_gradient 2x128, two stages": staged(natural(128, 2, 1000, 500), 150),
            "natural_gradient 2x96, two stages": staged(natural(96, 2, 2000, 1000), 150),
            "natural_gradient 2x256, two stages": staged(natural(256, 2, 2000, 1000), 150),
        },
        120, {"cpu": ((1e-5, 60),), "cuda": ((1e-9, 120),)}, "3.5e-8 in 3,000 s (ENGD)",
    ),
    "Poisson 100D": Case(
        shipped("poisson_nd", d=100, quadratic=True),
        {
            "spring 4x512": momentum(512, 4, 100, 50, lr=0.09, damping=0.03, momentum=0.98),
            "spring 4x512, falling steps": falling(momentum(512, 4, 100, 50), 1500, (0.09, 0.03, 0.01, 0.003)),
            "natural_gradient 1x128": natural(128, 1, 5000, 2500),
            "natural_gradient 1x128, silu": natural(128, 1, 5000, 2500, "silu"),
            "natural_gradient 1x256, silu": natural(256, 1, 4000, 2000, "silu"),
        },
        600, {"cuda": ((1e-3, 600),)}, "3.6e-3 in 7,000 s (SPRING, Guzmán-Cordero et al. 2025)",
    ),
    "heat": Case(
        shipped("heat"),
        {
            **AUTO,
            **both(20, 4),
            "natural_gradient 4x20, two stages": staged(natural(20, 4, 400, 100), 100),
            "features, tanh": features(1000, 4000, 600),
        },
        30, {"cpu": ((1e-7, 30),), "cuda": ((1e-9, 30),)}, "6.3e-8 in 1,000 s (KFAC)",
    ),
    "Burgers": Case(
        shipped("burgers"),
        {
            **AUTO,
            "natural_gradient 4x20": natural(20, 4, 1000, 100, draw="residual"),
            "natural_gradient 4x40": natural(40, 4, 1500, 150, draw="residual"),
            "natural_gradient 4x40, two stages": staged(natural(40, 4, 1500, 150, draw="residual"), 600),
            "dsgnar 4x20": sketched(20, 4, 4000, 200),
            "dsgnar 4x20, damping 1e-3": sketched(20, 4, 4000, 200, damping=1e-3),
            "dsgnar 4x20, slabs": marching(sketched(20, 4, 4000, 200), (0, 0.3, 0.45, 0.7, 1), steps=150),
            "ssbroyden 3x20": broyden(20, 3, 4000, 200),
            "patches": patched(16000),
            "patches, 60000": patched(60000, 150),
        },
        300, {"cpu": ((1e-4, 60),), "cuda": ((1e-9, 300),)}, "8e-9 (vRBA with SSBroyden)",
    ),
    "Allen-Cahn": Case(
        shipped("allen_cahn"),
        {
            **AUTO,
            "natural_gradient 4x30": natural(30, 4, 1000, 200, draw="residual"),
            "dsgnar 4x30": sketched(30, 4, 4000, 400),
            "dsgnar 4x30, slabs": marching(sketched(30, 4, 4000, 400), (0, 0.1, 0.25, 0.45, 0.7, 1), steps=200),
            "patches": patched(8000),
            "patches, 40000": patched(40000, 100),
            "patches, slabs": marching(patched(12000, 100), 4),
            "ssbroyden 3x30": broyden(30, 3, 4000, 400),
            "features, tanh, slabs": marching(features(3000, 9000, 200, harmonics=2), FRONTS, start=1000),
        },
        300, {"cpu": ((1e-3, 300),), "cuda": ((1e-7, 300),)}, "1.9e-6 (vRBA with SSBroyden)",
    ),
    "KdV, cos": Case(
        shipped("kdv"),
        {
            **AUTO,
            "natural_gradient 4x30": natural(30, 4, 1000, 200),
            "natural_gradient 4x50, two stages": staged(natural(50, 4, 1000, 200), 300),
            "dsgnar 4x30": sketched(30, 4, 4000, 400),
            "ssbroyden 3x30": broyden(30, 3, 4000, 400),
            "patches, slabs": marching(patched(4000, 100), WAVES),
            "patches, slabs, 12000": marching(patched(12000, 100), WAVES),
            "features, tanh, slabs": marching(features(2000, 6000, 200, harmonics=2), 10, start=500),
        },
        300, {"cpu": ((1e-4, 300),), "cuda": ((1e-8, 300),)}, "2.2e-6 (vRBA with SSBroyden)",
    ),
    "KdV, two solitons": Case(
        two_solitons,
        {
            **AUTO,
            "natural_gradient 4x30": natural(30, 4, 800, 100),
            "natural_gradient 4x30, two stages": staged(natural(30, 4, 800, 100), 200),
            "dsgnar 4x30": sketched(30, 4, 4000, 200),
            "dsgnar 4x30, slabs": marching(sketched(30, 4, 4000, 200), 5, steps=150),
            "features, tanh, slabs": marching(features(3000, 9000, 400, patches={"x": 4}), 12, start=1000),
            "patches, slabs": marching(patched(2500), 12),
            "patches, slabs, 10000": marching(patched(10000, 100), 12),
            "ssbroyden 3x30": broyden(30, 3, 4000, 200),
        },
        300, {"cpu": ((1e-4, 300),), "cuda": ((1e-8, 300),)}, "2.2e-6 (vRBA with SSBroyden, from a cosine)",
    ),
    "wave, c = 2": Case(
        shipped("wave"),
        {
            **AUTO,
            **weighted(
                {
                    **both(30, 4, 500, 100),
                    **slabwise(30, 4, 120),
                    "natural_gradient 4x50, two stages": staged(natural(50, 4, 1500, 300), 200),
                    "natural_gradient 4x30, slabs, two long stages": lasting(30, 4, 750, 150, 200),
                },
                ends=1e4, shape=1e4, rest=1e2,
            ),
            **weighted(
                {
                    "natural_gradient 4x20, 16 slabs": short(20, 16, 6),
                    "natural_gradient 4x20, 10 slabs": short(20, 10, 8),
                    "natural_gradient 4x30, 8 slabs, two long stages": lasting(30, 8, 750, 150, 120),
                },
                ends=1e5, shape=1e5, rest=1e3,
            ),
            **LINEAR,
            **MARCHED,
        },
        60, MINUTE, "8e-6 trained (SOAP)",
    ),
    "wave, c = 2, held ends": Case(
        shipped("wave", hard=True),
        weighted(
            {
                "natural_gradient 3x20, 16 slabs": held(short(20, 16, 6, 3, 800, 200)),
                "natural_gradient 3x20, 12 slabs": held(short(20, 12, 8, 3, 1000, 200)),
                "natural_gradient 4x50, two stages": staged(natural(50, 4, 1500, 300), 200),
            },
            shape=1e5, rest=1e3,
        ),
        60, MINUTE, "8e-6 trained (SOAP)",
    ),
    "convection, beta = 30": Case(
        shipped("convection"),
        {
            **AUTO,
            **both(30, 4, 500, 100),
            **slabwise(20, 8, 120),
            "natural_gradient 4x20, 32 slabs": short(20, 32, 6),
            "natural_gradient 4x30, slabs, two long stages": lasting(30, 8, 750, 150, 150),
            **LINEAR,
            **MARCHED,
        },
        60, MINUTE, "7.5e-3 trained (R3)",
    ),
    "convection, beta = 50": Case(
        shipped("convection", beta=50.0),
        {
            **AUTO,
            **both(30, 4, 500, 100),
            **slabwise(20, 8, 120),
            "natural_gradient 4x20, 32 slabs": short(20, 32, 6),
            "natural_gradient 4x20, 12 slabs": marching(natural(20, 4, 400, 100, steps=80), 12),
            "natural_gradient 4x24, 12 slabs, two long stages": lasting(24, 12, 600, 125, 140),
            **LINEAR,
            **MARCHED,
        },
        60, MINUTE, "7.6e-3 trained",
    ),
    "Helmholtz (1, 4)": Case(
        shipped("helmholtz"),
        {
            **AUTO,
            **both(40, 3, 800, 200),
            "natural_gradient 4x20": natural(20, 4, 1500, 400),
            "natural_gradient 3x30, two stages": staged(natural(30, 3, 1000, 300), 150),
            "natural_gradient 4x50, two stages": staged(natural(50, 4, 750, 225), 150),
            **LINEAR,
        },
        60, MINUTE,
    ),
    "reaction, rho = 5": Case(
        shipped("reaction"),
        {
            **AUTO,
            **both(20, 4),
            **slabwise(20, 4, 100),
            **weighted({"natural_gradient 4x20, 8 slabs": short(20, 8, 8)}, start=1e3),
            "natural_gradient 4x30, two stages": staged(natural(30, 4, 1000, 200), 150),
            "features, tanh": features(1000, 4000, 600),
            "features, tanh, slabs": marching(features(800, 2600, 400), 8),
            "patches": patched(8000),
        },
        60, MINUTE, "9.9e-3 trained (NNCG)",
    ),
    "Kovasznay, Re 40": Case(
        shipped("kovasznay"),
        {
            **AUTO,
            **both(30, 3, 300, 75),
            "natural_gradient 3x30, two stages": staged(natural(30, 3, 300, 75), 200),
            "features, tanh": features(800, 2000, 400),
        },
        120, {"cpu": ((1e-7, 120),), "cuda": ((1e-9, 120),)},
    ),
    "cavity, Re 100": Case(
        shipped("cavity"),
        {**AUTO, **LID, "patches": patched(4000, 50), "patches, 16000": patched(16000)},
        300, {"cpu": ((1e-2, 300),), "cuda": ((1e-4, 200),)},
    ),
    "cavity, Re 100, smooth lid": Case(
        shipped("cavity", lid="parabola"),
        {**AUTO, **LID, "patches": patched(4000, 50), "patches, 16000": patched(16000)},
        300, {"cpu": ((1e-2, 300),), "cuda": ((1e-4, 200),)}, "1.1e-4 in 403 s (DSGNAR)",
    ),
    "cavity, Re 100, enriched": Case(
        shipped("cavity", enriched=True),
        {**AUTO, "patches": patched(4000, 50), "patches, 16000": patched(16000)},
        300, {"cpu": ((1e-2, 300),), "cuda": ((1e-4, 200),)},
    ),
    "cavity, Re 1000, enriched": Case(
        shipped("cavity", re=1000.0, enriched=True),
        {"patches": led(patched(12000, 50), "re", (100, 8), (250, 3), (500, 3))},
        600, {"cuda": ((1e-2, 600),)},
    ),
    "cavity, Re 1000": Case(
        shipped("cavity", re=1000.0),
        {"patches": led(patched(12000, 50), "re", (100, 22), (250, 4), (500, 4))},
        600, {"cuda": ((1e-2, 600),)}, "1.3e-1 in 59 min (jaxpi)",
    ),
    "cavity, Re 1000, smooth lid": Case(
        shipped("cavity", re=1000.0, lid="parabola"),
        {"patches": led(patched(8000, 50), "re", (100, 8), (250, 3), (500, 3))},
        600, {"cuda": ((1e-2, 600),)},
    ),
    "L-shape": Case(
        shipped("poisson_l_shape"),
        {
            **AUTO,
            "natural_gradient 4x30": natural(30, 4, 400, 100),
            "dsgnar 4x30": sketched(30, 4, 2000, 400),
            "patches": patched(4000, 50),
        },
        60, {"cpu": ((1e-3, 60),)},
    ),
    "L-shape, enriched": Case(
        shipped("poisson_l_shape", enriched=True), {**AUTO, "features, tanh": features(500, 2000, 600)},
        60, {"cpu": ((1e-6, 60),)},
    ),
}  # fmt: skip


def one(name: str, way: str, seed: int, device: str, seconds: float) -> Curve:
    """Seconds and errors of a training, at the marks and at its end."""
    if device == "cpu":
        torch.set_num_threads(2)
    case = CASES[name]
    options = {key: dict(value) for key, value in case.ways[way].items()}
    if device == "cuda" and way.startswith("natural_gradient"):
        options["points"] |= {word: 4 * options["points"][word] for word in ("interior", "boundary")}
    train = {"log": 10**9, "checkpoint": 10**9, "seed": seed, **options.pop("train")}
    problem = case.make()
    _ = problem.tabulated  # computed here, once
    import_module("torch.fx.experimental.symbolic_shapes")  # by the first gradient; like all imports not part of the time

    if device == "cuda":
        device_of(device)
        torch.linalg.cholesky(
            torch.eye(8, device=device, dtype=torch.float64) @ torch.eye(8, device=device, dtype=torch.float64)
        )
    config = {"problem": "case.py", "monitor": False, "device": device, "threads": 2, "train": train, **options}
    began = time.perf_counter()
    run = Run(problem, make_config(config))
    found, spent, last, due = Curve(), 0.0, 0.0, list(MARKS)
    for _ in run:
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter() - began - spent
        long, last = now - last > LONG, now
        if now < due[0] and now < seconds and not long:
            continue
        stopped = time.perf_counter()
        found.append((now, _error(run)))
        spent += time.perf_counter() - stopped
        due = [mark for mark in due if mark > now] or [int(1e9)]
        if now >= seconds:
            break
    else:
        found.append((time.perf_counter() - began - spent, _error(run)))
    return found


def _error(run: Run) -> float:
    found = run.task.error(run.trial)
    return inf if found is None else found["overall"]


def reached(curve: Curve, seconds: float) -> float:
    """The last error measured by then: infinite if there is none."""
    return next((error for t, error in reversed(curve) if t <= 1.02 * seconds + 0.2), inf)


def rows(name: str, way: str, curves: list[Curve], device: str) -> Iterator[Row]:
    case = CASES[name]
    goals = {seconds: error for error, seconds in case.goals.get(device, ())}
    for seconds in sorted({*goals, *(mark for mark in MARKS if mark <= case.seconds), case.seconds}):
        errors = [reached(curve, seconds) for curve in curves]
        goal, middle = goals.get(seconds), median(errors)
        if not isfinite(middle):
            continue
        spread = f"{min(errors):.1e} to {max(errors):.1e}, {len(errors)} seeds" + (
            f"; best known {case.best}" if case.best else ""
        )
        met = None if goal is None else middle <= goal
        yield Row(f"{name}: {way}, {seconds:g} s", middle, "relative L2", goal and f"<= {goal:g}", met, spread)


def figure(curves: Mapping[str, list[Curve]], out: Path) -> None:
    from figures import plain_ticks
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(key.partition(": ")[0] for key in curves))
    drawn = Figure(figsize=(13, 3.1 * -(-len(names) // 4)), layout="constrained")
    places = drawn.subplots(-(-len(names) // 4), 4, squeeze=False).flat
    for axes in places[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(places, names, strict=False):
        ways = [key for key in curves if key.startswith(f"{name}: ")]
        for i, key in enumerate(ways):
            for k, curve in enumerate(curves[key]):
                axes.loglog(
                    *zip(*curve, strict=True), ".-", lw=0.8, ms=3, color=f"C{i}", label=None if k else key.partition(": ")[2]
                )
        axes.set_title(name, fontsize=10)
        axes.legend(fontsize=6)
        axes.grid(alpha=0.3)
        axes.set(xlabel="seconds", ylabel="relative L2 error")
        plain_ticks(axes)
    drawn.savefig(out.with_suffix(".png"), dpi=120)
    print(f"Drawn in {out.with_suffix('.png')}")


def main() -> None:
    words = parser("accuracy", __doc__.splitlines()[0])
    words.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    words.add_argument("--jobs", type=int, default=1, help="trainings at a time, of two threads each on a CPU")
    words.add_argument("--only", default="*", help="'problem: method' by name, with * and ?, separated by semicolons")
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--most", type=float, default=inf, help="seconds of a training, at most")
    given: Any = words.parse_args()
    if given.quick:
        given.seeds, given.most, given.only = 1, 5.0, "Poisson 2D: *;heat: *"
    os.environ["OMP_NUM_THREADS"] = "2"
    campaign = Campaign(given.out, one, given.jobs)
    runs: dict[str, Curve] = campaign.runs
    jobs = {
        f"{name}: {way}, seed {seed}": (name, way, seed, given.device, min(case.seconds, given.most))
        for name, case in CASES.items()
        for way in case.ways
        if wanted(f"{name}: {way}", given.only)
        for seed in range(given.seeds)
    }
    campaign.run(jobs, lambda curve: " ".join(f"{t:.3g} s {e:.1e}" for t, e in curve))
    curves: dict[str, list[Curve]] = {}
    for case, held in CASES.items():
        for way in held.ways:
            found = [curve for key, curve in runs.items() if key.startswith(f"{case}: {way}, seed ")]
            if found:
                curves[f"{case}: {way}"] = found
    table = [row for key, found in curves.items() for row in rows(*key.split(": ", 1), found, given.device)]
    left_out = ["all but two problems, two seeds of three, and what follows the first 5 s"] if given.quick else campaign.failed
    shown = {key.partition(": ")[0] for key in curves}
    tables = {name: case.make().tabulated for name, case in CASES.items() if name in shown}
    references = {name: found.error for name, found in tables.items() if found}
    more: Any = {"left_out": left_out, "commands": campaign.commands, "references": references, "curves": runs}
    write(given.out, table, ("torch", "numpy", "pinnsketch"), **more)
    figure(curves, given.out)


if __name__ == "__main__":
    main()
