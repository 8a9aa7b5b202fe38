"""Stochastic gradient descent (Robbins & Monro 1951) with momentum (Polyak 1964), as torch has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pinnsketch.graphed import Graphed
from pinnsketch.methods.method import Evaluation, Objective


class SGD:
    """v <- `momentum` v + g, p <- p - `lr` v."""

    stalled = None

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float = 1e-2, momentum: float = 0.0) -> None:
        self._sgd = torch.optim.SGD(parameters, lr=lr, momentum=momentum, fused=True)
        self._graphed = Graphed(self._sgd.step)

    def step(self, objective: Objective) -> Evaluation:
        evaluation = objective()
        if evaluation.finite:
            self._graphed() if objective.static else self._sgd.step()
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        return self._sgd.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sgd.load_state_dict(state)
