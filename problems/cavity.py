"""Flow in a square cavity whose lid moves (Ghia, Ghia & Shin 1982): steady incompressible Navier-Stokes equations.

u u_x + v u_y + p_x = (u_xx + u_yy) / Re, the same for v, and u_x + v_y = 0; u = v = 0 on the other walls, and p = 0 in a corner
at the bottom, where its constant is fixed. How fast the lid moves is `lid`:

- full: u = 1. The velocity jumps in the corners at the lid, and the pressure is infinite there.
- steep: u = 1 - cosh(50 (x - 1/2)) / cosh(25), which falls to zero within some hundredths of the corners.
- parabola: u = 4 x (1 - x).

`enriched` lifts out what the flow is near the corners at the full lid, for networks of kind features or patches: a Stokes flow
whose velocity depends on the angle alone (Batchelor 1967, section 4.8), and what its inertia adds (Botella & Peyret 1998).

At Re 100 and 1000 the velocity has a reference: spectral elements, graded towards the corners (`benchmarks/cavity.py`).
"""

import math
from math import pi

from torch import Tensor, atan2, cos, cosh, exp, log, sin

from pinnsketch import Box, Data, Problem, Reference, Term, laplacian


def momentum_x(u, v, p, re):
    return u * u.x + v * u.y + p.x - laplacian(u) / re


def momentum_y(u, v, p, re):
    return u * v.x + v * v.y + p.y - laplacian(v) / re


def continuity(u, v):
    return u.x + v.y


def steep(x):
    return 1 - cosh(50 * x - 25) / math.cosh(25)


def parabola(x):
    return 4 * x * (1 - x)


WIDE = 30.0
"""Times 1 / Re: how far from a corner inertia is taken into account, which far from it is no small part of the flow."""
BEYOND = 1e-14
"""How far outside of the domain the corners of these functions lie, so that they are finite in it."""


def corner(x: Tensor, y: Tensor, re: float, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, v and p in the corner at the lid, at x = side: those of r f(t) + re r^2 g(t), t the angle from the lid.

    r f is the stream function of a Stokes flow; g adds its inertia: (u . grad) w = laplacian(w) / re for the vorticity w.
    f = A sin t + C t sin t + D t cos t has f = 0 and f' = 1 on the lid, and g = G0 (1 - cos 2t) + (G2 + G4 t + G6 t^2) sin 2t
    + G3 t + (G5 t + G7 t^2) cos 2t has g = g' = 0; on the wall all are 0.
    """
    A, C, D = (k / (pi**2 - 4) for k in (pi**2, -2 * pi, -4.0))
    P, Q = C**2 - D**2, C * D
    G4, G5, G6, G7 = A * C / 8 - 3 * Q / 16, A * D / 8 + 3 * P / 32, P / 16, Q / 8
    G3 = pi / 2 * (G4 + G7) + pi**2 / 4 * G6
    G0, G2 = pi / 4 * (G5 - G3) + pi**2 / 8 * G7, -(G3 + G5) / 2
    a, b, sign = abs(x - side) + BEYOND, 1 - y + BEYOND, 1 - 2 * side
    square, t = a**2 + b**2, atan2(b, a)
    s, c = sin(2 * t), cos(2 * t)
    u, v = A + C * (t + s / 2) + D * (1 + c) / 2, C * (1 - c) / 2 + D * (s / 2 - t)
    p = 2 * (D * a + C * b) / square / re
    g = G0 * (1 - c) + (G2 + G4 * t + G6 * t**2) * s + G3 * t + (G5 * t + G7 * t**2) * c
    slope = (2 * G0 + G4 + 2 * (G6 - G5) * t - 2 * G7 * t**2) * s + G3 + (2 * G2 + G5 + 2 * (G4 + G7) * t + 2 * G6 * t**2) * c
    near, bent = exp(-square * (re / WIDE) ** 2), 2 - 2 * square * (re / WIDE) ** 2
    h = C * (1 - D) * t + C / 2 * s + (2 * D - C**2 - D**2) / 4 * c + Q * t * c + P / 2 * t * s + (C**2 + D**2) / 2 * t**2
    head = (4 * G3 - A * D) / 2 * log(square) + h
    return (
        u + sign * re * near * (a * slope + bent * b * g),
        -sign * v - re * near * (b * slope - bent * a * g),
        sign * p + near * (head - (u**2 + v**2) / 2),
    )


def problem(re: float = 100.0, lid: str = "full", enriched: bool = False) -> Problem:
    lids = {"full": lambda x: 1.0, "steep": steep, "parabola": parabola}
    if lid not in lids:
        raise ValueError(f"lid: expected one of {', '.join(lids)}; got {lid}")
    if enriched and lid != "full":
        raise ValueError(f"enriched: expected the lid full, whose corners are singular; got {lid}")
    domain = Box(x=(0, 1), y=(0, 1))

    def both(k: int, x: Tensor, y: Tensor, re: float) -> Tensor:
        return corner(x, y, re, 0)[k] + corner(x, y, re, 1)[k]

    lift = {
        "u": lambda x, y, re: both(0, x, y, re),
        "v": lambda x, y, re: both(1, x, y, re),
        "p": lambda x, y, re: both(2, x, y, re),
    }
    name = f"cavity_{re:.0f}" + (f"_{lid}" if lid != "full" else "")
    return Problem(
        domain,
        unknowns="u v p",
        parameters={"re": re},
        terms={
            "momentum_x": Term(domain.interior, momentum_x),
            "momentum_y": Term(domain.interior, momentum_y),
            "continuity": Term(domain.interior, continuity),
            "walls_u": Term(domain.boundary, lambda u, x, y: u - lids[lid](x) * (y == 1), weight=10),
            "walls_v": Term(domain.boundary, lambda v: v, weight=10),
            "corner": Term(Data({"x": [0.0], "y": [0.0]}), lambda p: p),
        },
        lift=lift if enriched else {},
        reference=(lambda: Reference.load(name)) if re in (100, 1000) else None,
    )
