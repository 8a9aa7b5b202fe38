"""Allen-Cahn equation, u_t = a u_xx + r (u - u^3), periodic, from u = x^2 cos(pi x) (Raissi et al. 2019, section 3.2).

With a = 1e-4 and r = 5 two fronts of width about 0.01 form. No closed form is known: the reference is by Fourier modes.
"""

from math import pi

import numpy as np
from torch import cos

from pinnsketch import Box, Problem, Term, etdrk4


def allen_cahn(u, a, r):
    return u.t - a * u.xx - r * (u - u**3)


def problem(a: float = 1e-4, r: float = 5.0) -> Problem:
    domain = Box(x=(-1, 1), t=(0, 1), periodic="x")

    def reference():
        return etdrk4(
            start=lambda x: x**2 * np.cos(pi * x),
            linear=lambda k: r - a * k**2,
            nonlinear=lambda u: -r * u**3,
            steps=1000,
        )

    return Problem(
        domain,
        unknowns="u",
        parameters={"a": a, "r": r},
        terms={
            "allen_cahn": Term(domain.interior, allen_cahn),
            "start": Term(domain.start("t"), lambda u, x: u - x**2 * cos(pi * x), weight=100),
        },
        reference=reference,
    )
