"""Wave equation, u_tt = c^2 u_xx, on a string with fixed ends, plucked in two of its modes and released at rest.

u = sin(pi x) cos(c pi t) + a sin(4 pi x) cos(4 c pi t) (Wang, Yu & Perdikaris 2022, arXiv 2007.14527, section 7.2, with
c = 2, a = 1/2).

With `hard` the ends are held by an ansatz, u = 4 x (1 - x) N, whatever the weights of the network N.
"""

from math import pi

from torch import cos, sin

from pinnsketch import Box, Problem, Term


def exact(x, t, c, a):
    return sin(pi * x) * cos(c * pi * t) + a * sin(4 * pi * x) * cos(4 * c * pi * t)


def wave(u, c):
    return u.tt - c**2 * u.xx


def problem(c: float = 2.0, a: float = 0.5, hard: bool = False) -> Problem:
    domain = Box(x=(0, 1), t=(0, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"c": c, "a": a},
        terms={
            "wave": Term(domain.interior, wave),
            "ends": Term(domain.sides("x"), lambda u: u),
            "shape": Term(domain.start("t"), lambda u, x, t, c, a: u - exact(x, t, c, a)),
            "rest": Term(domain.start("t"), lambda u: u.t),
        },
        exact=exact,
        ansatz={"u": lambda u, x: 4 * x * (1 - x) * u} if hard else {},
    )
