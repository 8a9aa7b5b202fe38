"""Random features by least squares (Dong & Li 2021, local extreme learning machines; Chen, Chi, E & Yang 2022).

With the hidden layer fixed, the residuals at N points are a function of the output weights w alone: `r(w) = r(0) + A w` where
the problem is linear, which is tested and not asked. Then one least-squares solve by QR ends it; otherwise each step is one
of Gauss and Newton, `A = dr/dw` at the present w, as far as the residuals fall along it.

What is left to choose is chosen by the residual at *fresh* points, the only thing at hand that overfitting does not lower:
the range R of the hidden weights, first on few features, by factors of two and then along each coordinate, and the number of
features, which doubles until that no longer helps, with R in proportion to their number along a coordinate; then R, finer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.features import Features
from pinnsketch.methods.least_squares import Weights, evaluate, few, fresh, gauss_newton, least_squares, size_of
from pinnsketch.methods.method import Evaluation, Objective

RANGES = tuple(2.0**k for k in range(-1, 7))
"""Factors of `frequency` that R is sought among first."""
ROWS = 3
"""Residuals for each weight, while R is sought."""
NEWTON = 15
"""Steps of Gauss and Newton at most for each R that is tried."""
ALIKE = 4.0
"""Residuals within this factor differ by chance: of such the largest R is taken, whose features depend on each other least."""
PAYS, BETTER = 0.5, 0.5
"""What the fresh residual must fall by for twice the features, and for another R."""


@dataclass(frozen=True)
class Fit:
    """Features as they were fitted, or where a fit begins.

    Args:
        size: how many of them.
        radius: R along each coordinate.
        weights: all that is solved for, by parameter; of fewer features: the others are zero. None: as fits the best so far.
        residual: norm of the scaled residuals at fresh points; infinite where it was not asked yet.
    """

    size: int
    radius: list[float]
    weights: list[Tensor] | None
    residual: float = inf


class RandomFeatures:
    """Least squares in the output weights of `network: {kind: features}`, from `start` features on; a step is one solve.

    It ends where the residual at fresh points is `tolerance` times what it was at first, or can be made no smaller.
    """

    needs_residuals = True

    def __init__(self, parameters: Sequence[nn.Parameter], start: int = 125, tolerance: float = 1e-12) -> None:
        self._start, self._tolerance = start, tolerance
        self._first = inf
        """The residual at fresh points before any solve."""
        self._affine = False
        self._best: Fit | None = None
        self._now: Fit | None = None
        """What is being fitted, or is to be fitted next."""
        self._change, self._changed = -1, False
        """Which change of R comes next, -1: the number of features grows; whether one of this round has helped."""
        self._stalled: str | None = None

    def scale(self, factor: float) -> None:
        raise ValueError("features solves for its weights: there is no lr that could decay.")

    @property
    def stalled(self) -> str | None:
        return self._stalled

    def step(self, objective: Objective) -> Evaluation:
        task, model, batch = objective.task, objective.model, objective.batch
        if not isinstance(model.network, Features):
            raise ValueError(
                f"method features: expected a network of kind features; got {type(model.network).__name__}. Set network: "
                "{kind: features}, or use method polish, which solves for the last layer of any network."
            )
        if self._now is None:
            weights = Weights(task, model)
            self._affine, self._first = weights.affine(batch), size_of(weights, fresh(task))
            self._now = self._search(objective)
        probe = self._placed(self._now, objective)
        solved = gauss_newton(probe, batch, self._affine)
        if not isfinite(solved.before):
            return evaluate(Weights(task, model), batch)
        settled = self._affine or solved.settled
        now = self._now = replace(self._now, weights=probe.parts)
        if settled:
            now = replace(now, residual=size_of(probe, fresh(task)))
        kept = self._best is None or (settled and now.residual < self._best.residual)
        if kept:
            model.take(probe.model)
        if settled:
            self._choose(now, model.network.width, now.residual <= solved.rounding)
        return evaluate(Weights(task, model), batch, solved.at if kept and now.size == model.network.width else None)

    def _placed(self, fit: Fit, objective: Objective) -> Weights:
        """The weights of a network of the features of a fit."""
        found = Weights(objective.task, objective.model.on(objective.model.network.first(fit.size)))
        network = found.model.network
        network.radius.copy_(torch.tensor(fit.radius))
        if fit.weights is not None:
            found.fill(fit.weights)
        elif not self._affine:
            _fit(network, objective.model.network, torch.cat([block.x for block in objective.batch]).to(network.radius.dtype))
        return found

    def _search(self, objective: Objective) -> Fit:
        """The R of the least residual at fresh points, of few features fitted at few points."""
        start = Weights(objective.task, objective.model.on(objective.model.network.first(self._start)))
        network: Any = start.model.network
        begin, radius, count = start.parts, network.radius.tolist(), ROWS * len(start.now)
        some, other = (
            few(batch, count / sum(start.rows(batch).values())) for batch in (objective.batch, fresh(objective.task))
        )

        def tried(at: list[float]) -> Fit:
            network.radius.copy_(torch.tensor(at))
            start.fill(begin)
            for _ in range(1 if self._affine else NEWTON):
                solved = gauss_newton(start, some, self._affine)
                if solved.settled:
                    break
            return Fit(network.width, at, start.parts, size_of(start, other))

        fits = [tried([r * factor for r in radius]) for factor in RANGES]
        best = [fit for fit in fits if fit.residual <= ALIKE * min(fit.residual for fit in fits)][-1]
        for change in _changes(len(best.radius), 2.0)[2:]:
            while (found := tried(_times(best.radius, change))).residual < BETTER * best.residual:
                best = found
        return replace(best, residual=inf)

    def _choose(self, now: Fit, width: int, rounding: bool) -> None:
        """Judge a fit, and choose what is fitted next."""
        before, changing = self._best.residual if self._best else inf, self._change >= 0
        helped = now.residual < (BETTER if changing else PAYS) * before
        self._best = best = now if self._best is None or now.residual < before else self._best
        changes = _changes(len(best.radius), 2**0.5)
        self._changed |= changing and helped
        self._change += 0 if helped else 1
        if self._change == len(changes) and self._changed and best.size < width:
            self._change, self._changed, helped = -1, False, True
        if self._change < 0 and best.size == width:
            self._change = 0
        if best.residual <= self._tolerance * self._first:
            self._stalled = "the residual at fresh points has fallen to the tolerance"
        elif rounding and self._change >= 0:
            self._stalled = "the residual at fresh points is as small as rounding leaves it"
        elif self._change == len(changes):
            self._stalled = "neither more features nor another range of their weights lowers the residual at fresh points"
        elif self._change < 0:
            size, d = min(2 * best.size, width), len(best.radius)
            wider = (size / best.size) ** (1 / d)
            self._now = Fit(size, [wider * r for r in best.radius], None)
        else:
            self._now = Fit(best.size, _times(best.radius, changes[self._change]), None)

    def state_dict(self) -> dict[str, Any]:
        fits = {name: None if fit is None else vars(fit) for name, fit in (("best", self._best), ("now", self._now))}
        mine = {
            "affine": self._affine,
            "first": self._first,
            "change": self._change,
            "changed": self._changed,
            "stalled": self._stalled,
        }
        return {**mine, **fits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._affine, self._first, self._stalled = state["affine"], state["first"], state["stalled"]
        self._change, self._changed = state["change"], state["changed"]
        self._best, self._now = (None if state[name] is None else Fit(**state[name]) for name in ("best", "now"))


def _fit(network: Features, other: Features, x: Tensor) -> None:
    """Let a network be near another at points `(n, d)`."""
    with torch.no_grad():
        values = other(x)
        features = torch.cat([network.hidden(x), torch.ones_like(values[:, :1])], dim=1)
        for k, column in enumerate(values.unbind(1)):
            found = least_squares(features, column)
            network.output.weight[k], network.output.bias[k] = found[:-1], found[-1]


def _changes(d: int, factor: float) -> list[list[float]]:
    """Factors of R: along all coordinates, then along each, by a number and its reciprocal."""
    which = [range(d), *([k] for k in range(d) if d > 1)]
    return [[f if k in axes else 1.0 for k in range(d)] for axes in which for f in (factor, 1 / factor)]


def _times(radius: list[float], factors: list[float]) -> list[float]:
    return [r * f for r, f in zip(radius, factors, strict=True)]
