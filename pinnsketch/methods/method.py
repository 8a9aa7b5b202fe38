"""What a training method is, and the objective it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Evaluation:
    """The objective at one set of parameters.

    Args:
        loss: the weighted sum of the losses.
        losses: each term's, before weighting.
        finite: whether loss and gradient are finite.
    """

    loss: float
    losses: dict[str, float]
    finite: bool


class Objective:
    """The loss of a model on a batch, as a function of the parameters as they are; evaluating it sets `p.grad`.

    Args:
        parameters: what trains.
        losses: evaluates each term's loss, scalars with a graph to the parameters.
        weights: the factor of each term.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], losses: Callable[[], Mapping[str, Tensor]], weights: Mapping[str, float]
    ) -> None:
        self._parameters, self._losses, self._weights = parameters, losses, weights
        self.fresh = True
        """Whether the points have changed since a method last cleared this: values kept from before are out of date."""

    def __call__(self) -> Evaluation:
        losses = self._losses()
        loss = sum((self._weights[name] * value for name, value in losses.items()), torch.zeros(()))
        # Differentiating with respect to the parameters alone spares the gradient of the collocation points.
        gradient = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for p, g in zip(self._parameters, gradient, strict=True):
            p.grad = g
        values = torch.stack([loss.detach(), *(g.sum() for g in gradient if g is not None), *losses.values()]).tolist()
        finite = all(map(isfinite, values))
        return Evaluation(values[0], dict(zip(losses, values[-len(losses) :], strict=True)), finite)


class Method(Protocol):
    """Moves parameters towards a smaller loss.

    The constructor takes the parameters, then options as keywords with defaults; these are the options in a config.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None: ...

    def step(self, objective: Objective) -> Evaluation:
        """One step. Leaves in `p.grad` the gradient that belongs to the evaluation returned.

        An evaluation that is not finite leaves the parameters as they were.
        """
        ...

    @property
    def stalled(self) -> str | None:
        """Why no further step can help, or None."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a later step depends on besides the parameters."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
