"""Adam (Kingma & Ba 2015, algorithm 1), as torch has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pinnsketch.methods.first_order import FirstOrder, uncompiled
from pinnsketch.methods.method import Evaluation, Objective


class Adam:
    """Adam with step size `lr` and decay rates `betas` of the first and second moment."""

    stalled = None

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        on_gpu = parameters[0].device.type == "cuda"
        adam = partial(uncompiled(torch.optim.Adam), parameters, betas=betas, fused=True, capturable=on_gpu)
        self._inside = FirstOrder(adam, parameters, lr)

    def step(self, objective: Objective) -> Evaluation:
        return self._inside.step(objective)

    def scale(self, factor: float) -> None:
        """Let the step size be `factor` times `lr`."""
        self._inside.scale(factor)

    def state_dict(self) -> dict[str, Any]:
        return self._inside.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inside.load_state_dict(state)
