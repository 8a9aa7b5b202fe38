"""Self-scaled quasi-Newton updates of a dense inverse Hessian (Urbán, Stefanou & Pons 2025, J. Comput. Phys. 523).

With s the step, y the change of the gradient, rho = 1 / y^T s, q = H y and m = y^T q, the updates are

    H+ = (H - q q^T / m + phi m v v^T) / tau + rho s s^T,    v = rho s - q / m

(Al-Baali 1998, Comput. Optim. Appl. 9, and 2014): BFGS has phi = tau = 1, self-scaled BFGS phi = 1 and tau = min(1, 1 / b), and
self-scaled Broyden both from b = s^T B s / s^T y and h = m / s^T y, where B = H^-1: `factors` has the formulas.

A step reads H once: H g+ gives q = H g+ - H g, and after the update H+ g+ by two inner products more. Updates wait as factors
`H = scale H_0 + W^T D W`, and are added to H_0 together, `LAG` at a time, in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pinnsketch.methods.line_search import Trial
from pinnsketch.methods.method import Evaluation, Objective
from pinnsketch.methods.quasi_newton import QuasiNewton

LAG = 8
"""Updates that wait for one pass over the matrix."""
Update = Literal["ssbroyden", "ssbfgs", "bfgs"]


class SSBroyden:
    """A dense quasi-Newton method, `update` ssbroyden, ssbfgs or bfgs, for up to some ten thousand parameters P: it keeps P^2
    numbers. A line search evaluates the objective at most `evaluations` times. On fresh points the matrix stays, as long as it
    has a Cholesky factor; that costs P^3 / 3, so let `resample` be hundreds of steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], update: Update = "ssbroyden", evaluations: int = 25) -> None:
        self._matrix = InverseHessian(update)
        self._inside = QuasiNewton(parameters, self._matrix, evaluations)

    def scale(self, factor: float) -> None:
        raise ValueError("ssbroyden finds the length of each step by a line search: there is no step size that could decay.")

    @property
    def stalled(self) -> str | None:
        return self._inside.stalled

    def step(self, objective: Objective) -> Evaluation:
        return self._inside.step(objective)

    def state_dict(self) -> dict[str, Any]:
        return {"matrix": self._matrix.state_dict(), **self._inside.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._matrix.load_state_dict(state["matrix"])
        self._inside.load_state_dict(state)


def factors(update: Update, b: float, h: float, n: int) -> tuple[float, float]:
    """`(phi, tau)` of an update of an `(n, n)` matrix (Urbán et al. 2025, section 2.3, equations of Al-Baali).

    Of self-scaled Broyden, with a = b h - 1 >= 0 and c = sqrt(a / (1 + a)):

        rho- = min(1, h (1 - c)),    theta = max((rho- - 1) / a, min(1 / rho-, (1 - b) / b)),    sigma = 1 + theta a,
        phi = (1 - theta) / sigma,   tau = min(1, 1 / b) min(sigma^(1 / (1 - n)), 1 / theta)     if theta > 0,
                                     tau = min(min(1, 1 / b) sigma^(1 / (1 - n)), sigma)         otherwise.
    """
    shrink = min(1.0, 1 / b)
    if update != "ssbroyden":
        return 1.0, shrink if update == "ssbfgs" else 1.0
    a = max(b * h - 1, torch.finfo(torch.float64).eps)
    low = min(1.0, h * (1 - sqrt(a / (1 + a))))
    theta = max((low - 1) / a, min(1 / low, (1 - b) / b))
    sigma = 1 + theta * a
    spread = sigma ** (1 / (1 - max(n, 2)))
    tau = shrink * min(spread, 1 / theta) if theta > 0 else min(shrink * spread, sigma)
    return (1 - theta) / sigma, tau


class InverseHessian:
    """H `(P, P)` as `scale H_0 + W^T D W`, and H g at the point where the method stands."""

    def __init__(self, update: Update) -> None:
        self._update: Update = update
        self._h: Tensor | None = None
        self._hg: Tensor | None = None

    @property
    def empty(self) -> bool:
        return self._h is None

    def direction(self, gradient: Tensor) -> Tensor:
        if self._hg is None:
            self._hg = self.times(gradient)
        return -self._hg

    def times(self, x: Tensor) -> Tensor:
        """H x, in one pass over H_0."""
        if self._h is None:
            return x
        return torch.addmv(self._w.T @ (self._d @ (self._w @ x)), self._h, x, alpha=self._scale)

    def learn(self, step: Tensor, before: Tensor, after: Trial) -> None:
        """One update; it is left out where rounding hides the curvature, and H begins anew where it is not positive."""
        y = after.gradient - before
        sy, yy, ss = torch.stack([step.dot(y), y.dot(y), step.dot(step)]).tolist()
        if not sy > torch.finfo(y.dtype).eps * sqrt(yy * ss):
            self._hg = None
            return
        assert self._hg is not None
        hg, b = self._hg, -after.length * float(step.dot(before)) / sy
        if self._h is None:  # H_0 = y^T s / y^T y I (Nocedal & Wright 2006, equation 6.20)
            self._begin(y, sy / yy)
            hg, b = hg * self._scale, b / self._scale
        ahead = self.times(after.gradient)
        q = ahead - hg
        m = float(y.dot(q))
        if not m > 0:
            return self.forget()
        phi, tau = factors(self._update, b, m / sy, len(y))
        mixed = -phi / (sy * tau)
        inner = y.new_tensor([[(phi - 1) / (m * tau), mixed], [mixed, (phi * m / (sy * tau) + 1) / sy]])
        pair = torch.stack([q, step])
        self._hg = torch.addmv(ahead, pair.T, inner @ (pair @ after.gradient), beta=1 / tau)
        self._wait(pair, inner, tau)

    def _begin(self, like: Tensor, scale: float) -> None:
        self._h, self._scale = torch.eye(len(like), dtype=like.dtype, device=like.device), scale
        self._w, self._d, self._count = like.new_zeros(2 * LAG, len(like)), like.new_zeros(2 * LAG, 2 * LAG), 0

    def _wait(self, pair: Tensor, inner: Tensor, tau: float) -> None:
        """`H / tau + pair^T inner pair`."""
        self._scale /= tau
        self._d /= tau
        rows = slice(2 * self._count, 2 * self._count + 2)
        self._w[rows], self._d[rows, rows] = pair, inner
        self._count += 1
        if self._count == LAG:
            self._settle()

    def _settle(self) -> None:
        """Add the waiting updates to H_0."""
        assert self._h is not None
        self._h.addmm_(self._w.T, self._d @ self._w, beta=self._scale)
        self._scale, self._count = 1.0, 0
        self._w.zero_()
        self._d.zero_()

    def renew(self) -> None:
        """Keep H, made symmetric, if it has a Cholesky factor."""
        self._hg = None
        if self._h is not None:
            self._settle()
            self._h = torch.add(self._h, self._h.T).div_(2)
            if int(torch.linalg.cholesky_ex(self._h)[1]):
                self.forget()

    def forget(self) -> None:
        self._h = self._hg = None

    def state_dict(self) -> dict[str, Any]:
        if self._h is None:
            return {"h": None, "hg": self._hg}
        return {"h": self._h, "hg": self._hg, "scale": self._scale, "w": self._w, "d": self._d, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, f"_{name}", value.clone() if isinstance(value, Tensor) else value)
