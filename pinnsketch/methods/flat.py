"""The parameters of a model as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Flat:
    """Parameters as one vector `(P,)`, in the order of the columns of a Jacobian."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._sizes = [p.numel() for p in self._parameters]

    def get(self) -> Tensor:
        """A copy of their values."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters])

    def set(self, x: Tensor) -> None:
        with torch.no_grad():
            for p, part in zip(self._parameters, x.split(self._sizes), strict=True):
                p.copy_(part.view_as(p))

    def set_gradient(self, gradient: Tensor) -> None:
        for p, part in zip(self._parameters, gradient.split(self._sizes), strict=True):
            p.grad = part.view_as(p)
