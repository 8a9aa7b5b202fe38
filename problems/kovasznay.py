"""Steady incompressible Navier-Stokes equations in the plane, with the flow of Kovasznay (1948) behind a grid.

u = 1 - e^(l x) cos(2 pi y), v = l / (2 pi) e^(l x) sin(2 pi y), p = (1 - e^(2 l x)) / 2, l = Re/2 - sqrt(Re^2/4 + 4 pi^2).
The velocity is given on the whole boundary, the pressure on the outlet alone, which fixes its constant.
"""

from math import pi, sqrt

from torch import cos, exp, sin

from pinnsketch import Box, Problem, Term, laplacian


def decay(re):
    return re / 2 - sqrt(re**2 / 4 + 4 * pi**2)


def exact_u(x, y, re):
    return 1 - exp(decay(re) * x) * cos(2 * pi * y)


def exact_v(x, y, re):
    return decay(re) / (2 * pi) * exp(decay(re) * x) * sin(2 * pi * y)


def exact_p(x, re):
    return (1 - exp(2 * decay(re) * x)) / 2


def momentum_x(u, v, p, re):
    return u * u.x + v * u.y + p.x - laplacian(u) / re


def momentum_y(u, v, p, re):
    return u * v.x + v * v.y + p.y - laplacian(v) / re


def continuity(u, v):
    return u.x + v.y


def problem(re: float = 40.0) -> Problem:
    domain = Box(x=(-0.5, 1), y=(-0.5, 1.5))
    return Problem(
        domain,
        unknowns="u v p",
        parameters={"re": re},
        terms={
            "momentum_x": Term(domain.interior, momentum_x),
            "momentum_y": Term(domain.interior, momentum_y),
            "continuity": Term(domain.interior, continuity),
            "sides_u": Term(domain.boundary, lambda u, x, y, re: u - exact_u(x, y, re), weight=10),
            "sides_v": Term(domain.boundary, lambda v, x, y, re: v - exact_v(x, y, re), weight=10),
            "outlet_p": Term(domain.side(x=1), lambda p, x, re: p - exact_p(x, re), weight=10),
        },
        exact={"u": exact_u, "v": exact_v, "p": exact_p},
    )
