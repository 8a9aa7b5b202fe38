"""SOAP (Vyas, Morwani, Zhao, Shapira, Brandfonbrener, Janson & Kakade 2024, arXiv 2409.11321): Adam in Shampoo's eigenbasis."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinnsketch.methods.kronecker import averaged, blocks, checked, fold, proper, second, stepped, unfold
from pinnsketch.sketch.symmetric import eigh


class SOAP(Optimizer):
    """Adam in the eigenbasis of each axis' covariance (algorithm 3, the basis by eigh); vectors have Adam.

    The mean of the gradients is kept as it is and rotated at each step, so a new basis does not make it stale.

    Args:
        params: parameters, or groups of them.
        lr: the step size.
        betas: decay of the mean of gradients, and of covariances and squares.
        eps: what is added to the root of a second moment.
        every: steps from one basis to the next.
        block: an axis longer than that is cut.
        weight_decay: apart from the gradient.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        every: int = 2,
        block: int = 1024,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            checked(1.0, lr=lr, betas=betas, eps=eps, every=every, block=block, weight_decay=weight_decay),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. `closure` evaluates the loss and its gradient anew; its value is returned."""
        return stepped(self, closure, partial(rotated, Basis()))


class Frame(Protocol):
    """Coordinates along one axis, held in a dict: F with `F^T F = I`, as many rows as the axis is long or more."""

    def begin(self, like: Tensor, length: int, group: dict[str, Any]) -> dict[str, Any]: ...

    def update(self, state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """Take in an unfolded gradient `(length, n)`. Returns what that does to second moments `(rows, n)`, or None."""
        ...

    def analyse(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """F x, for x `(length, n)`."""
        ...

    def synthesise(self, state: dict[str, Any], z: Tensor) -> Tensor:
        """F^T z."""
        ...


class Basis:
    """The eigenvectors of a covariance, of falling eigenvalues."""

    def begin(self, like: Tensor, length: int, group: dict[str, Any]) -> dict[str, Any]:
        return {"covariance": like.new_zeros(length, length), "vectors": like.new_zeros(length, length)}

    def update(self, state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> None:
        state["covariance"].mul_(group["betas"][1]).addmm_(g, g.T)
        state["vectors"] = eigh(state["covariance"].double())[1].flip(1).to(g.dtype)

    def analyse(self, state: dict[str, Any], x: Tensor) -> Tensor:
        return state["vectors"].T @ x

    def synthesise(self, state: dict[str, Any], z: Tensor) -> Tensor:
        return state["vectors"] @ z


def rotated(frame: Frame, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The change of one parameter: of a matrix and more, Adam's in the frame of each axis."""
    mean, whole = averaged(g, state, group), g.shape
    shape = proper(whole)
    if len(shape) == 1:
        return adam(mean, g, state, state["step"], group)
    g, mean = g.reshape(shape), mean.reshape(shape)
    parts = blocks(shape, group["block"])
    if "parts" not in state:
        axes = ([frame.begin(g, length, group) for length in g[part].shape] for part in parts)
        state["parts"] = [{"axes": each} for each in axes]
    due, change = (state["step"] - 1) % group["every"] == 0, torch.empty_like(mean)
    for part, kept in zip(parts, state["parts"], strict=True):
        if due:
            for a, axis in enumerate(kept["axes"]):
                carry, square = frame.update(axis, unfold(g[part], a), group), kept.get("square")
                if carry is not None and square is not None:
                    kept["square"] = fold(carry(unfold(square, a)), a, square.shape)
        z, x = (each(frame.analyse, y, kept["axes"]) for y in (mean[part], g[part]))
        change[part] = each(frame.synthesise, adam(z, x, kept, state["step"], group, g[part].numel()), kept["axes"])
    return change.view(whole)


def each(function: Callable[[dict[str, Any], Tensor], Tensor], x: Tensor, axes: list[dict[str, Any]]) -> Tensor:
    """A function of matrices along each axis in turn."""
    for a, axis in enumerate(axes):
        x = fold(function(axis, unfold(x, a)), a, x.shape)
    return x


def adam(mean: Tensor, g: Tensor, state: dict[str, Any], step: int, group: dict[str, Any], entries: int = 0) -> Tensor:
    """Adam's change, for a mean that is corrected for its start.

    A frame is known to sqrt(epsilon), epsilon that of the dtype: entries smaller than that beside the root mean square may be
    nothing but rounding. So that is added to the root too, for the `entries` of a matrix, which fewer than x has may be.
    """
    decay = group["betas"][1]
    square = second(state, "square", g, decay)
    root = (square / (1 - decay**step)).sqrt()
    floor = group["eps"]
    if entries:
        floor = floor + torch.finfo(g.dtype).eps ** 0.5 * (root.square().sum() / entries).sqrt()
    return mean / (root + floor)
