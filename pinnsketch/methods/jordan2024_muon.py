"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), with the size of Liu et al. (2025, arXiv 2502.16982)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinnsketch.methods.kronecker import averaged, checked, second, stepped

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The coefficients of the odd polynomial that sends singular values in (0, 1] close to 1."""


class Muon(Optimizer):
    """A matrix moves along its momentum with all singular values made nearly 1, by `0.2 sqrt(max(m, n))` of that, so that
    entries move by about as much as Adam's. Axes after the first count as one; a single row or column and vectors have Adam.

    Args:
        params: parameters, or groups of them.
        lr: the step size.
        momentum: decay of the mean of gradients, with Nesterov's look ahead.
        betas: Adam's.
        turns: of the Newton-Schulz iteration.
        weight_decay: apart from the gradient.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        turns: int = 5,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            checked(1.0, lr=lr, momentum=momentum, betas=betas, turns=turns, weight_decay=weight_decay),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. `closure` evaluates the loss and its gradient anew; its value is returned."""
        return stepped(self, closure, change)


def change(g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The change of one parameter."""
    if g.ndim < 2 or min(g.shape[0], g[0].numel()) == 1:
        mean, decay = averaged(g, state, group), group["betas"][1]
        return mean / ((second(state, "square", g, decay) / (1 - decay ** state["step"])).sqrt() + 1e-8)
    decay = group["momentum"]
    momentum = state.setdefault("momentum", torch.zeros_like(g)).lerp_(g, 1 - decay)
    ahead = g.lerp(momentum, decay).flatten(1)
    return (0.2 * max(ahead.shape) ** 0.5 * orthogonal(ahead, group["turns"])).view_as(g)


def orthogonal(x: Tensor, turns: int) -> Tensor:
    """Near U V^T of `x = U S V^T`: `x <- a x + (b A + c A^2) x`, `A = x x^T`, from x of norm 1."""
    a, b, c = NEWTON_SCHULZ
    wide = len(x) <= x.shape[1]
    x = (x if wide else x.T) / x.norm().clamp(min=1e-7 if x.dtype == torch.float32 else 1e-30)
    for _ in range(turns):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T
