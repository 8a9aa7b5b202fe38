"""Adam (Kingma & Ba 2015, algorithm 1), as torch has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pinnsketch.graphed import Graphed
from pinnsketch.methods.method import Evaluation, Objective


class Adam:
    """Adam with step size `lr` and decay rates `betas` of the first and second moment."""

    stalled = None

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        device = parameters[0].device
        on_gpu = device.type == "cuda"
        # A tensor may change after a capture, as the step number does; the fused kernel takes it in single precision.
        size = torch.tensor(lr, dtype=torch.float32, device=device) if on_gpu else lr
        self._adam = torch.optim.Adam(parameters, lr=size, betas=betas, fused=True, capturable=on_gpu)
        self._graphed = Graphed(self._adam.step)

    def step(self, objective: Objective) -> Evaluation:
        evaluation = objective()
        if evaluation.finite:
            self._graphed() if objective.static else self._adam.step()
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state)
