"""Shampoo (Gupta, Koren & Singer 2018, algorithm 2), with a relative eps and steps of grafted size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinnsketch.methods.kronecker import Graft, checked, preconditioned, stepped
from pinnsketch.sketch.symmetric import eigh


class Shampoo(Optimizer):
    """Shampoo: each axis of a gradient is multiplied by the inverse root of its own covariance, kept whole.

    Args:
        params: parameters, or groups of them.
        lr: the step size.
        betas: decay of the mean of gradients, and of covariances and squares; 1 for these sums them, as AdaGrad does.
        eps: what is added to a covariance, over its largest eigenvalue.
        every: steps from one update of the roots to the next.
        graft: whose step a step is as long as.
        block: an axis longer than that is cut.
        weight_decay: apart from the gradient.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        every: int = 1,
        graft: Graft = "adam",
        block: int = 1024,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            checked(lr=lr, betas=betas, eps=eps, every=every, graft=graft, block=block, weight_decay=weight_decay),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. `closure` evaluates the loss and its gradient anew; its value is returned."""
        return stepped(self, closure, partial(preconditioned, Whole()))


class Whole:
    """A covariance as it is, and its power."""

    def begin(self, like: Tensor, length: int, group: dict[str, Any]) -> dict[str, Any]:
        return {"covariance": like.new_zeros(length, length), "root": like.new_zeros(length, length), "weight": 0.0}

    def update(self, state: dict[str, Any], g: Tensor, power: float, group: dict[str, Any]) -> None:
        decay = group["betas"][1]
        state["covariance"].mul_(decay).addmm_(g, g.T)
        state["weight"] = decay * state["weight"] + 1 if decay < 1 else 1.0
        values, vectors = eigh(state["covariance"].double() / state["weight"])
        values = values.clamp(min=0) + (group["eps"] * values[-1]).clamp(min=torch.finfo(values.dtype).tiny)
        state["root"] = (vectors * values**power @ vectors.T).to(g.dtype)

    def apply(self, state: dict[str, Any], x: Tensor, power: float, group: dict[str, Any]) -> Tensor:
        return state["root"] @ x
