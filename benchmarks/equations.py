"""The problems of accuracy.py once more, in a form that any package can be given: what peer_accuracy.py hands to each.

An equation is a function of a point: its coordinates `p.x`, the unknowns `p["u"]`, their derivatives `p["u", "x", "x"]`, and
`p.m`, whose `sin`, `cos` and `exp` are those of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import pi, sqrt
from typing import Any

Function = Callable[[Any], Any]
Face = Mapping[str, Any]
"""Coordinates that are one number, and those that have a range of their own; the others have that of the domain."""


@dataclass(frozen=True)
class Condition:
    """An unknown, or its derivative `along` a coordinate, is `value` (0 where there is none) on faces."""

    faces: Sequence[Face]
    value: Function | None = None
    weight: float = 1.0
    unknown: str = "u"
    along: str = ""


@dataclass(frozen=True)
class Equations:
    """A problem.

    Args:
        bounds: lower and upper end of each coordinate.
        equations: residuals at a point.
        conditions: at the boundary, the initial ones among them.
        size: width and depth of the network, points inside, points on each condition.
        missing: the part of the box that the domain lacks.
        periodic: the coordinate whose ends are one place.
    """

    bounds: Mapping[str, tuple[float, float]]
    equations: Callable[[Any], list[Any]]
    conditions: Sequence[Condition]
    size: tuple[int, int, int, int]
    unknowns: str = "u"
    missing: Face | None = None
    periodic: str = ""

    def inputs(self, p: Any) -> list[Any]:
        """What a network is given for a point, as ours are: coordinates from -1 to 1, and cosine and sine of a periodic one."""
        scaled = {axis: (2 * getattr(p, axis) - low - high) / (high - low) for axis, (low, high) in self.bounds.items()}
        turned = [scaled.pop(self.periodic)] if self.periodic else []
        return [*scaled.values(), *(f(pi * y) for y in turned for f in (p.m.cos, p.m.sin))]


def ends(**sides: tuple[float, float]) -> list[Face]:
    return [{axis: end} for axis, pair in sides.items() for end in pair]


def poisson(p: Any) -> list[Any]:
    return [p["u", "x", "x"] + p["u", "y", "y"] + 2 * pi**2 * p.m.sin(pi * p.x) * p.m.sin(pi * p.y)]


def cosines(d: int, p: Any) -> Any:
    return sum(p.m.cos(pi * getattr(p, f"x{i}")) for i in range(1, d + 1))


def poisson_many(d: int, p: Any) -> list[Any]:
    return [sum(p["u", f"x{i}", f"x{i}"] for i in range(1, d + 1)) + pi**2 * cosines(d, p)]


def helmholtz(p: Any) -> list[Any]:
    source = (1 - 17 * pi**2) * p.m.sin(pi * p.x) * p.m.sin(4 * pi * p.y)
    return [p["u", "x", "x"] + p["u", "y", "y"] + p["u"] - source]


def burgers(p: Any) -> list[Any]:
    return [p["u", "t"] + p["u"] * p["u", "x"] - 0.01 / pi * p["u", "x", "x"]]


def allen_cahn(p: Any) -> list[Any]:
    return [p["u", "t"] - 1e-4 * p["u", "x", "x"] - 5 * (p["u"] - p["u"] ** 3)]


def kdv(p: Any) -> list[Any]:
    return [p["u", "t"] + 6 * p["u"] * p["u", "x"] + p["u", "x", "x", "x"]]


def solitons(p: Any) -> Any:
    e, x, t = p.m.exp, p.x, p.t

    def cosh(z: Any) -> Any:
        return (e(z) + e(-z)) / 2

    top = 12 * (3 + 4 * cosh(2 * x - 8 * t) + cosh(4 * x - 64 * t))
    return top / (3 * cosh(x - 28 * t) + cosh(3 * x - 36 * t)) ** 2


def slope(p: Any) -> Any:
    e, x, t = p.m.exp, p.x, p.t

    def both(z: Any) -> tuple[Any, Any]:
        return (e(z) + e(-z)) / 2, (e(z) - e(-z)) / 2

    (c1, s1), (c3, s3), (_, s2), (_, s4) = both(x - 28 * t), both(3 * x - 36 * t), both(2 * x - 8 * t), both(4 * x - 64 * t)
    return 48 * (2 * s2 + s4) / (3 * c1 + c3) ** 2 - 6 * solitons(p) * (s1 + s3) / (3 * c1 + c3)


def modes(p: Any) -> Any:
    return p.m.sin(pi * p.x) + 0.5 * p.m.sin(4 * pi * p.x)


def gauss(p: Any) -> Any:
    return p.m.exp(-8 * ((p.x - pi) / pi) ** 2)


def reaction(p: Any) -> list[Any]:
    return [p["u", "t"] - 5 * p["u"] * (1 - p["u"])]


RATE = 20 - sqrt(400 + 4 * pi**2)


def flow(re: float, p: Any) -> list[Any]:
    u, v = p["u"], p["v"]
    return [
        u * p["u", "x"] + v * p["u", "y"] + p["p", "x"] - (p["u", "x", "x"] + p["u", "y", "y"]) / re,
        u * p["v", "x"] + v * p["v", "y"] + p["p", "y"] - (p["v", "x", "x"] + p["v", "y", "y"]) / re,
        p["u", "x"] + p["v", "y"],
    ]


def flow_u(p: Any) -> Any:
    return 1 - p.m.exp(RATE * p.x) * p.m.cos(2 * pi * p.y)


def flow_v(p: Any) -> Any:
    return RATE / (2 * pi) * p.m.exp(RATE * p.x) * p.m.sin(2 * pi * p.y)


def corner(p: Any) -> Any:
    angle = (p.m.arctan2(p.y, p.x) + pi / 4) % (2 * pi) - pi / 4
    return (p.x**2 + p.y**2) ** (1 / 3) * p.m.sin(2 * angle / 3)


def convection(beta: float) -> Equations:
    return Equations(
        {"x": (0, 2 * pi), "t": (0, 1)},
        lambda p: [p["u", "t"] / beta + p["u", "x"]],
        [Condition([{"t": 0.0}], lambda p: p.m.sin(p.x), 10.0)],
        (30, 4, 2000, 200),
        periodic="x",
    )


SQUARE = ends(x=(0.0, 1.0), y=(0.0, 1.0))
FLOW = ends(x=(-0.5, 1.0), y=(-0.5, 1.5))
L_SHAPE: list[Face] = [
    {"x": -1.0}, {"y": 1.0}, {"x": 1.0, "y": (0.0, 1.0)}, {"y": -1.0, "x": (-1.0, 0.0)},
    {"x": 0.0, "y": (-1.0, 0.0)}, {"y": 0.0, "x": (0.0, 1.0)},
]  # fmt: skip

PROBLEMS: dict[str, Equations] = {
    "Poisson 2D": Equations({"x": (0, 1), "y": (0, 1)}, poisson, [Condition(SQUARE, weight=100.0)], (50, 4, 1000, 200)),
    "Poisson 5D": Equations(
        {f"x{i}": (0, 1) for i in range(1, 6)},
        partial(poisson_many, 5),
        [Condition(ends(**{f"x{i}": (0.0, 1.0) for i in range(1, 6)}), partial(cosines, 5), 10.0)],
        (32, 2, 2000, 400),
    ),
    "heat": Equations(
        {"x": (0, 1), "t": (0, 1)},
        lambda p: [p["u", "t"] - 0.25 * p["u", "x", "x"]],
        [Condition(ends(x=(0.0, 1.0)), weight=10.0), Condition([{"t": 0.0}], lambda p: p.m.sin(pi * p.x), 10.0)],
        (20, 4, 2000, 200),
    ),
    "Burgers": Equations(
        {"x": (-1, 1), "t": (0, 1)},
        burgers,
        [Condition(ends(x=(-1.0, 1.0)), weight=10.0), Condition([{"t": 0.0}], lambda p: -p.m.sin(pi * p.x), 10.0)],
        (20, 4, 4000, 200),
    ),
    "Allen-Cahn": Equations(
        {"x": (-1, 1), "t": (0, 1)},
        allen_cahn,
        [Condition([{"t": 0.0}], lambda p: p.x**2 * p.m.cos(pi * p.x), 100.0)],
        (30, 4, 4000, 400),
        periodic="x",
    ),
    "KdV, cos": Equations(
        {"x": (-1, 1), "t": (0, 1)},
        lambda p: [p["u", "t"] + p["u"] * p["u", "x"] + 0.0025 * p["u", "x", "x", "x"]],
        [Condition([{"t": 0.0}], lambda p: p.m.cos(pi * p.x), 100.0)],
        (30, 4, 4000, 400),
        periodic="x",
    ),
    "KdV, two solitons": Equations(
        {"x": (-4, 8), "t": (0, 0.25)},
        kdv,
        [
            Condition([{"t": 0.0}], solitons, 100.0),
            Condition(ends(x=(-4.0, 8.0)), solitons, 100.0),
            Condition([{"x": 8.0}], slope, 100.0, along="x"),
        ],
        (30, 4, 4000, 200),
    ),
    "wave, c = 2": Equations(
        {"x": (0, 1), "t": (0, 1)},
        lambda p: [p["u", "t", "t"] - 4 * p["u", "x", "x"]],
        [
            Condition(ends(x=(0.0, 1.0))),
            Condition([{"t": 0.0}], modes),
            Condition([{"t": 0.0}], along="t"),
        ],
        (30, 4, 2000, 200),
    ),
    "convection, beta = 30": convection(30.0),
    "convection, beta = 50": convection(50.0),
    "Helmholtz (1, 4)": Equations(
        {"x": (-1, 1), "y": (-1, 1)},
        helmholtz,
        [Condition(ends(x=(-1.0, 1.0), y=(-1.0, 1.0)), weight=100.0)],
        (30, 4, 2000, 200),
    ),
    "reaction, rho = 5": Equations(
        {"x": (0, 2 * pi), "t": (0, 1)}, reaction, [Condition([{"t": 0.0}], gauss, 10.0)], (20, 4, 2000, 200)
    ),
    "Kovasznay, Re 40": Equations(
        {"x": (-0.5, 1), "y": (-0.5, 1.5)},
        partial(flow, 40),
        [
            Condition(FLOW, flow_u, 10.0, "u"),
            Condition(FLOW, flow_v, 10.0, "v"),
            Condition([{"x": 1.0}], lambda p: (1 - p.m.exp(2 * RATE * p.x)) / 2, 10.0, "p"),
        ],
        (30, 3, 2000, 200),
        "u v p",
    ),
    "cavity, Re 100": Equations(
        {"x": (0, 1), "y": (0, 1)},
        partial(flow, 100),
        [
            Condition(SQUARE, lambda p: 1.0 * (p.y > 1 - 1e-9), 10.0, "u"),
            Condition(SQUARE, None, 10.0, "v"),
            Condition([{"x": 0.0, "y": 0.0}], None, 1.0, "p"),
        ],
        (40, 4, 4000, 800),
        "u v p",
    ),
    "L-shape": Equations(
        {"x": (-1, 1), "y": (-1, 1)},
        lambda p: [p["u", "x", "x"] + p["u", "y", "y"]],
        [Condition(L_SHAPE, corner, 100.0)],
        (30, 4, 2000, 400),
        missing={"x": (0.0, 1.0), "y": (-1.0, 0.0)},
    ),
}
