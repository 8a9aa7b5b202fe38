"""The parameters of a model as one vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Flat:
    """Parameters, and their gradients, as one vector `(P,)`, in the order of the columns of a Jacobian."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters: list[Tensor] = [*parameters]

    @property
    def x(self) -> Tensor:
        return self._joined(p.detach() for p in self._parameters)

    @property
    def gradient(self) -> Tensor:
        return self._joined(torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters)

    def place(self, x: Tensor) -> None:
        """Let the parameters be x."""
        with torch.no_grad():
            torch._foreach_copy_(
                self._parameters, [part.view_as(p) for p, part in zip(self._parameters, self._split(x), strict=True)]
            )

    def scatter(self, gradient: Tensor) -> None:
        """Let `p.grad` be parts of a gradient."""
        for p, part in zip(self._parameters, self._split(gradient), strict=True):
            p.grad = part.view_as(p).to(p.dtype)

    @staticmethod
    def _joined(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([t.reshape(-1) for t in tensors])

    def _split(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split([p.numel() for p in self._parameters])
