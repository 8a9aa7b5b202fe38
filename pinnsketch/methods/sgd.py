"""Stochastic gradient descent (Robbins & Monro 1951) with momentum (Polyak 1964), as torch has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pinnsketch.methods.first_order import FirstOrder, uncompiled
from pinnsketch.methods.method import Evaluation, Objective


class SGD:
    """v <- `momentum` v + g, p <- p - `lr` v."""

    stalled = None

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float = 1e-2, momentum: float = 0.0) -> None:
        sgd = partial(uncompiled(torch.optim.SGD), parameters, momentum=momentum, fused=True)
        self._inside = FirstOrder(sgd, parameters, lr)

    def step(self, objective: Objective) -> Evaluation:
        return self._inside.step(objective)

    def scale(self, factor: float) -> None:
        """Let the step size be `factor` times `lr`."""
        self._inside.scale(factor)

    def state_dict(self) -> dict[str, Any]:
        return self._inside.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inside.load_state_dict(state)
