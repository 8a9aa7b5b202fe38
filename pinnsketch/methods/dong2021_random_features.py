"""Random features by least squares (Dong & Li 2021, local extreme learning machines; Chen, Chi, E & Yang 2022).

With the hidden layer fixed, the residuals at N points are a function of the output weights w alone: `r(w) = r(0) + A w` where
the problem is linear, which is tested and not asked. Then one least-squares solve by QR ends it; otherwise each step is one
of Gauss and Newton, `A = dr/dw` at the present w, as far as the residuals fall along it.

What is left to choose is chosen by the residual at *fresh* points, the only thing at hand that overfitting does not lower:
the range R of the hidden weights, first of few features at few points, by factors of two and then along each coordinate; and
the number of features, which doubles until that no longer helps, R in proportion to their number along a coordinate and then
finer by sqrt 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
EXPLAINED = 0.05
"""Of the residual at first: with so few features that no R leaves less, the choice of R says nothing."""
ILL = 4.0
"""How many times what rounding leaves counts beside the residual: a smaller R may lower that by a worse condition."""
FINE = 1000.0
"""R is not sought finer for a residual below so many tolerances."""
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
        rounding: norm that rounding leaves at least.
    """

    size: int
    radius: list[float]
    weights: list[Tensor] | None
    residual: float = inf
    rounding: float = 0.0

    @property
    def cost(self) -> float:
        """What a choice is to make small."""
        return self.residual + ILL * self.rounding


class RandomFeatures:
    """Least squares in the output weights of `network: {kind: features}`, from `start` features on; a step is one solve.

    It ends where the residual at fresh points is `tolerance` times what it was at first, or can be made no smaller.
    """

    needs_residuals = True
    solves = True
    """A step is a solve: that the next one changes nothing is no trouble."""

    def __init__(self, parameters: Sequence[nn.Parameter], start: int = 125, tolerance: float = 1e-12) -> None:
        self._start, self._tolerance = start, tolerance
        self._first = inf
        """The residual at fresh points before any solve."""
        self._affine = False
        self._begun = False
        """Whether the network was fitted before, as in a later slab of time: then its R and number of features are a start."""
        self._best: Fit | None = None
        self._now: Fit | None = None
        """What is being fitted, or is to be fitted next."""
        self._change: int | None = None
        """Which change of R is tried, None: more features."""
        self._grows = True
        """Whether anything has helped since the number of features was last found to be enough."""
        self._at: Evaluation | None = None
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
        weights = Weights(task, model)
        if self._at is None:
            weights.trace(batch)
        if self._now is None:
            self._affine, self._begun = weights.affine(batch), model.network.used > 0
            self._first = self._blank(weights, task) if self._begun else size_of(weights, fresh(task))
            self._now = self._present(model) if self._begun else self._search(objective)
        probe = self._placed(self._now, objective)
        solved = gauss_newton(probe, batch, self._affine)
        if not isfinite(solved.before):
            return evaluate(Weights(task, model), batch)
        settled = self._affine or solved.settled
        now = self._now = replace(self._now, weights=probe.parts)
        if settled:
            now = replace(now, residual=size_of(probe, fresh(task)), rounding=solved.rounding)
        kept = self._best is None or (settled and now.cost < self._best.cost)
        if kept:
            model.take(probe.model)
        if settled:
            self._choose(now, model.network.width)
        if self._at is None or kept or objective.fresh:
            known = solved.at if kept and now.size == model.network.width else None
            self._at, objective.fresh = evaluate(Weights(task, model), batch, known), False
        return self._at

    def _placed(self, fit: Fit, objective: Objective) -> Weights:
        """The weights of a network of the features of a fit."""
        found = Weights(objective.task, objective.model.on(objective.model.network.first(fit.size)))
        network: Any = found.model.network
        found.trace(objective.batch)
        network.radius.copy_(torch.tensor(fit.radius))
        if fit.weights is not None:
            found.fill(fit.weights)
        elif not self._affine:
            fit_to(network, objective.model.network, torch.cat([block.x for block in objective.batch]).to(network.radius.dtype))
        return found

    def _present(self, model: Any) -> Fit:
        """The fit that a network is."""
        size = model.network.used
        some = model.on(model.network.first(size))
        return Fit(size, some.network.radius.tolist(), Weights(None, some).parts)

    def _blank(self, weights: Weights, task: Any) -> float:
        """The residual at fresh points without any features."""
        start = weights.now
        weights.place(torch.zeros_like(start))
        found = size_of(weights, fresh(task))
        weights.place(start)
        return found

    def _search(self, objective: Objective) -> Fit:
        """The R of the least residual at fresh points, of the fewest features that explain anything of the problem."""
        size, width = self._start, objective.model.network.width
        while (found := self._searched(objective, size)).residual > EXPLAINED * self._first and size < width:
            size = min(2 * size, width)
        return replace(found, residual=inf, rounding=0.0)

    def _searched(self, objective: Objective, size: int) -> Fit:
        """The R of the least residual at fresh points, of so many features fitted at few points."""
        start = Weights(objective.task, objective.model.on(objective.model.network.first(size)))
        network: Any = start.model.network
        start.trace(objective.batch)
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
            return Fit(network.width, at, start.parts, size_of(start, other), solved.rounding)

        fits = [tried([r * factor for r in radius]) for factor in RANGES]
        best = min(fits, key=lambda fit: fit.cost)
        if best.residual > EXPLAINED * self._first and size < objective.model.network.width:
            return best
        for change in _changes(len(best.radius), 2.0)[2:]:
            while (found := tried(_times(best.radius, change))).cost < BETTER * best.cost:
                best = found
        return best

    def _choose(self, now: Fit, width: int) -> None:
        """Judge a fit, and choose what is fitted next."""
        before, change, new = self._best.cost if self._best else inf, self._change, self._best is None
        helped = now.cost < (PAYS if change is None else BETTER) * before
        self._best = best = now if self._best is None or now.cost < before else self._best
        changes = _changes(len(best.radius), 2**0.5)
        self._grows = helped or (self._grows and change is not None)
        self._change = 0 if change is None else change if helped else change + 1
        fine = best.residual <= max(best.rounding, FINE * self._tolerance * self._first)
        if fine or self._change == len(changes):
            self._change = None
        if new and self._begun:
            self._grows = not fine
        if best.residual <= self._tolerance * self._first:
            self._stalled = "the residual at fresh points has fallen to the tolerance"
        elif self._change is not None:
            self._now = Fit(best.size, _times(best.radius, changes[self._change]), None)
        elif self._grows and best.size < width:
            size, d = min(2 * best.size, width), len(best.radius)
            wider = (size / best.size) ** (1 / d)
            self._now = Fit(size, [wider * r for r in best.radius], None)
        elif fine:
            self._stalled = "the residual at fresh points is about as small as rounding leaves it"
        else:
            self._stalled = "neither more features nor another range of their weights lowers the residual at fresh points"

    def state_dict(self) -> dict[str, Any]:
        fits = {name: None if fit is None else vars(fit) for name, fit in (("best", self._best), ("now", self._now))}
        mine = {
            "affine": self._affine,
            "begun": self._begun,
            "first": self._first,
            "change": self._change,
            "grows": self._grows,
            "stalled": self._stalled,
        }
        return {**mine, **fits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._affine, self._first, self._stalled = state["affine"], state["first"], state["stalled"]
        self._begun = state["begun"]
        self._change, self._grows = state["change"], state["grows"]
        self._best, self._now = (None if state[name] is None else Fit(**state[name]) for name in ("best", "now"))


def fit_to(network: Features, other: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Let a network be near a function of points `(n, d)` at these."""
    with torch.no_grad():
        values = other(x) if network.singular is None else other(x) - network.singular(x)
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
