"""Flow in a square cavity whose lid moves (Ghia, Ghia & Shin 1982): steady incompressible Navier-Stokes equations.

u u_x + v u_y + p_x = (u_xx + u_yy) / Re, the same for v, and u_x + v_y = 0; u = v = 0 on the other walls, and p = 0 in a corner
at the bottom, where its constant is fixed. How fast the lid moves is `lid`:

- full: u = 1. The velocity jumps in the corners at the lid, and the pressure is infinite there.
- steep: u = 1 - cosh(50 (x - 1/2)) / cosh(25), which falls to zero within some hundredths of the corners.
- parabola: u = 4 x (1 - x).

At Re 100 and 1000 the velocity has a reference: spectral elements, graded towards the corners (`benchmarks/cavity.py`).
"""

import math

from torch import cosh

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


def problem(re: float = 100.0, lid: str = "full") -> Problem:
    lids = {"full": lambda x: 1.0, "steep": steep, "parabola": parabola}
    if lid not in lids:
        raise ValueError(f"lid: expected one of {', '.join(lids)}; got {lid}")
    domain = Box(x=(0, 1), y=(0, 1))
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
        reference=(lambda: Reference.load(name)) if re in (100, 1000) else None,
    )
