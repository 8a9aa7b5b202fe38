"""What quasi-Newton methods share: steps along the direction of a model of the curvature, their length by a line search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from pinnsketch.methods.flat import Flat
from pinnsketch.methods.line_search import Trial, strong_wolfe
from pinnsketch.methods.method import Evaluation, Objective


class Curvature(Protocol):
    """A positive definite model H of the inverse Hessian; it is the identity as long as nothing was learnt."""

    @property
    def empty(self) -> bool:
        """Whether nothing was learnt yet."""
        ...

    def direction(self, gradient: Tensor) -> Tensor:
        """-H g."""
        ...

    def learn(self, step: Tensor, before: Tensor, after: Trial) -> None:
        """Take note of a step s `(P,)`, the gradient it started from, and where it ended."""
        ...

    def forget(self) -> None: ...

    def renew(self) -> None:
        """The loss is another one from here on, though akin."""
        ...


class QuasiNewton:
    """The inside of a method: it keeps value and gradient of the point it stands on, so that a step whose first trial length is
    accepted costs one evaluation. A direction along which no trial lowers the loss makes it forget what it learnt and go down
    the gradient; it has stalled where that fails too.

    Args:
        parameters: what trains.
        curvature: the model.
        evaluations: a line search takes at most so many.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], curvature: Curvature, evaluations: int) -> None:
        self._flat, self._curvature, self._evaluations = Flat(parameters), curvature, evaluations
        self._here: Trial | None = None
        self._stalled = False

    @property
    def stalled(self) -> str | None:
        return "no step along the gradient lowers the loss: it is as small as the precision allows" if self._stalled else None

    def step(self, objective: Objective) -> Evaluation:
        if self._here is None or objective.fresh:
            if self._here is not None:
                self._curvature.renew()
            self._here, objective.fresh = self._evaluate(objective, 0.0, None), False
        start = self._here
        if not start.at.finite:
            return start.at
        x = self._flat.x
        accepted, direction = self._search_from(start, x, objective)
        if accepted is None and not self._curvature.empty:
            self._curvature.forget()
            accepted, direction = self._search_from(start, x, objective)
        if accepted is None:
            self._stalled, accepted = True, start
            self._flat.place(x)
        else:
            self._flat.place(x.add(direction, alpha=accepted.length))
            self._curvature.learn(direction * accepted.length, start.gradient, accepted)
        self._here = accepted
        self._flat.scatter(accepted.gradient)
        return accepted.at

    def _search_from(self, start: Trial, x: Tensor, objective: Objective) -> tuple[Trial | None, Tensor]:
        direction = self._curvature.direction(start.gradient)
        slope = float(start.gradient.dot(direction))
        if not slope < 0:
            return None, direction
        first = min(1.0, 1.0 / float(start.gradient.abs().sum())) if self._curvature.empty else 1.0

        def trial(length: float) -> Trial:
            self._flat.place(x.add(direction, alpha=length))
            return self._evaluate(objective, length, direction)

        return strong_wolfe(trial, Trial(0.0, slope, start.at, start.gradient), first, self._evaluations), direction

    def _evaluate(self, objective: Objective, length: float, direction: Tensor | None) -> Trial:
        at = objective()
        gradient = self._flat.gradient
        slope = float(gradient.dot(direction)) if direction is not None and at.finite else 0.0
        return Trial(length, slope, at, gradient)

    def state_dict(self) -> dict[str, Any]:
        here = None
        if self._here is not None:
            at = self._here.at
            here = {"loss": at.loss, "losses": at.losses, "finite": at.finite, "gradient": self._here.gradient}
        return {"here": here, "stalled": self._stalled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stalled, here = state["stalled"], state["here"]
        if here is not None:
            self._here = Trial(0.0, 0.0, Evaluation(here["loss"], here["losses"], here["finite"]), here["gradient"])
