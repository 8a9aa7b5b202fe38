"""Least squares in the last layer of a trained network (Cyr, Gulian, Patel, Perego & Trask 2020, section 2).

The hidden layers of a trained network are features that suit the problem; what the optimizer left in the output weights, one
least-squares solve by QR removes, or a few steps of Gauss and Newton where the residuals are not affine in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from torch import nn

from pinnsketch.methods.least_squares import Weights, evaluate, fresh, gauss_newton, size_of
from pinnsketch.methods.method import Evaluation, Objective


class Polish:
    """Solves for the last linear layer and unknown coefficients; a step is kept if residuals at fresh points fall."""

    needs_residuals = True
    solves = True
    """A step is a solve: that the next one changes nothing is no trouble."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._affine: bool | None = None
        self._stalled: str | None = None

    def scale(self, factor: float) -> None:
        raise ValueError("polish solves for its weights: there is no lr that could decay.")

    @property
    def stalled(self) -> str | None:
        return self._stalled

    def step(self, objective: Objective) -> Evaluation:
        task, model, batch = objective.task, objective.model, objective.batch
        weights = Weights(task, model, [*last(model.network).parameters(), *model.raw.parameters()])
        if self._affine is None:
            weights.trace(batch)
            self._affine = weights.affine(batch)
        start, other = weights.now, fresh(task)
        before = size_of(weights, other)
        solved = gauss_newton(weights, batch, self._affine)
        if not isfinite(solved.before):
            return evaluate(Weights(task, model), batch)
        if not size_of(weights, other) < before:
            weights.place(start)
            self._stalled = "the residual at fresh points would not fall"
        elif self._affine:
            self._stalled = "the last layer is where the loss is least"
        elif solved.settled:
            self._stalled = "another step of Gauss and Newton would hardly lower the loss"
        return evaluate(Weights(task, model), batch)

    def state_dict(self) -> dict[str, Any]:
        return {"affine": self._affine, "stalled": self._stalled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._affine, self._stalled = state["affine"], state["stalled"]


def last(network: nn.Module) -> nn.Linear:
    """The last linear layer of a network.

    Raises:
        ValueError: if there is none that trains.
    """
    found = [m for m in network.modules() if isinstance(m, nn.Linear) and all(p.requires_grad for p in m.parameters())]
    if not found:
        raise ValueError(f"method polish: expected a network that ends in a linear layer; {type(network).__name__} has none.")
    return found[-1]
