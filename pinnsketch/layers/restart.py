"""Restart: parameters that are exchanged in the middle of a run, whose training then begins anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def state_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """What an optimizer keeps of a parameter: moments, and the number of steps."""
    return [value for value in optimizer.state.get(parameter, {}).values() if isinstance(value, Tensor)]


class Restart:
    """Parameters that start anew now and then: optimizer state from zero, and steps that lengthen again.

    Zero includes the number of steps, so that Adam's correction of the bias of young moments starts with them.

    Args:
        parameters: that start anew together.
        optimizer: trains them.
        warm_up: of the first so many steps after a start, the i-th is i / (warm_up + 1) as long as the optimizer makes it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, warm_up: int) -> None:
        self._parameters, self._optimizer, self._warm_up = list(parameters), optimizer, warm_up
        self._before: list[Tensor] = []

    def shorten(self, age: int) -> None:
        """Shorten the step just taken, the `age`-th since the start, from 1."""
        if age <= self._warm_up:
            for p, before in zip(self._parameters, self._before, strict=True):
                p.copy_(torch.lerp(before, p, age / (self._warm_up + 1)))

    def ready(self, age: int) -> None:
        """Keep what the next step, the `age`-th since the start, begins from."""
        if age <= self._warm_up:
            self._before = [p.detach().clone() for p in self._parameters]

    def reset(self) -> None:
        """Forget what the optimizer knows of the parameters."""
        for p in self._parameters:
            for value in state_of(self._optimizer, p):
                value.zero_()
