"""Equation of Korteweg & de Vries, u_t + u u_x + b u_xxx = 0, periodic, from u = cos(pi x) (Zabusky & Kruskal 1965).

With b = 0.0025 the wave steepens and breaks up into solitons; this is the case of Raissi, Perdikaris & Karniadakis (2019, 4.2).
The reference is by Fourier modes.
"""

from math import pi

import numpy as np
from torch import cos

from pinnsketch import Box, Problem, Term, etdrk4


def kdv(u, b):
    return u.t + u * u.x + b * u.xxx


def problem(b: float = 0.0025) -> Problem:
    domain = Box(x=(-1, 1), t=(0, 1), periodic="x")

    def reference():
        return etdrk4(
            start=lambda x: np.cos(pi * x),
            linear=lambda k: 1j * b * k**3,
            nonlinear=lambda u: u**2 / 2,
            outer=lambda k: -1j * k,
            modes=1024,
            steps=4000,
        )

    return Problem(
        domain,
        unknowns="u",
        parameters={"b": b},
        terms={
            "kdv": Term(domain.interior, kdv),
            "start": Term(domain.start("t"), lambda u, x: u - cos(pi * x), weight=100),
        },
        reference=reference,
    )
