"""What Shampoo and Sketchy share: an inverse root on each axis of the gradient, blocks, momentum, and a step of grafted size.

For a parameter of order d, its axes of length 1 left out, the covariance of the gradient along axis a is

    C_a = sum_j beta^(t-j) G_(a) G_(a)^T / sum_j beta^(t-j),

with G_(a) the gradient unfolded along a, and a step goes along the momentum multiplied on each axis by
`(C_a + eps lambda_1(C_a) I)^(-1/(2 d))` (Gupta, Koren & Singer 2018, algorithm 2; the relative eps is Feinberg et al.'s, 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import inf
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

Graft = Literal["none", "sgd", "adam", "rmsprop"]
"""Whose step a step is as long as: its own, the momentum's, Adam's, or Adam's without the correction of the second moment."""


class Axis(Protocol):
    """The covariance along one axis, held in a dict of tensors and numbers: all of these are functions of that."""

    def begin(self, like: Tensor, length: int, group: dict[str, Any]) -> dict[str, Any]:
        """The covariance of nothing."""
        ...

    def update(self, state: dict[str, Any], g: Tensor, power: float, group: dict[str, Any]) -> None:
        """Take in an unfolded gradient `(length, n)`; get ready for the power."""
        ...

    def apply(self, state: dict[str, Any], x: Tensor, power: float, group: dict[str, Any]) -> Tensor:
        """`(C + eps lambda_1 I)^power x`, for x `(length, n)`."""
        ...


def checked(limit: float = inf, **options: Any) -> dict[str, Any]:
    """Options of an optimizer, each in its range; `limit`: what the second decay must be below, if 1 is no sum there.

    Raises:
        ValueError: saying what was expected and what came.
    """
    lr, betas = options["lr"], options["betas"]
    if not (lr >= 0 and 0 <= betas[0] < 1 and 0 < betas[1] <= 1 and betas[1] < limit):
        last = "(0, 1]" if limit > 1 else "(0, 1)"
        raise ValueError(f"Expected lr >= 0 and betas in [0, 1) and {last}; got lr={lr}, betas={betas}.")
    if not 0 <= options.get("momentum", 0.0) < 1:
        raise ValueError(f"Expected momentum in [0, 1); got {options['momentum']}.")
    if options["weight_decay"] < 0:
        raise ValueError(f"Expected weight_decay >= 0; got {options['weight_decay']}.")
    if options.get("graft", "none") not in get_args(Graft):
        raise ValueError(f"Expected graft none, sgd, adam or rmsprop; got {options['graft']!r}.")
    for name in ("rank", "eps", "every", "block", "turns"):
        value = options.get(name, 1)
        if value != "auto" and not value > 0:
            raise ValueError(f"Expected {name} above 0; got {value}.")
    return options


def stepped(
    optimizer: Optimizer,
    closure: Callable[[], Any] | None,
    update: Callable[[Tensor, dict[str, Any], dict[str, Any]], Tensor],
) -> Any:
    """A step of an optimizer: `p <- p - lr (u + weight_decay p)` for u = update(gradient, state, group). Returns the loss."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in optimizer.param_groups:
        trained = [p for p in group["params"] if p.grad is not None]
        for p in trained:
            if p.grad.is_sparse or p.is_complex():
                raise ValueError(f"{type(optimizer).__name__} takes dense real gradients; got {p.grad.layout}, {p.dtype}.")
        size = float(group["lr"])
        changes = [update(p.grad, optimizer.state[p], group) for p in trained]
        if trained:
            torch._foreach_mul_(trained, 1 - size * group["weight_decay"])
            torch._foreach_add_(trained, changes, alpha=-size)
    return loss


def averaged(g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Count the step, and give the mean of the gradients so far, decayed by `betas[0]`."""
    state["step"] = state.get("step", 0) + 1
    decay = group["betas"][0]
    if not decay:
        return g
    mean = state.setdefault("mean", torch.zeros_like(g)).lerp_(g, 1 - decay)
    return mean / (1 - decay ** state["step"])


def second(state: dict[str, Any], name: str, g: Tensor, decay: float) -> Tensor:
    """The mean of squares so far, decayed, not corrected for its start."""
    return state.setdefault(name, torch.zeros_like(g)).mul_(decay).addcmul_(g, g, value=1 - decay)


def preconditioned(axis: Axis, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The change of one parameter, of its shape."""
    mean, whole = averaged(g, state, group), g.shape
    shape = proper(whole)
    g, mean = g.reshape(shape), mean.reshape(shape)
    parts, power = blocks(shape, group["block"]), -1 / (2 * len(shape))
    if "axes" not in state:
        state["axes"] = [[axis.begin(g, length, group) for length in g[part].shape] for part in parts]
    due = (state["step"] - 1) % group["every"] == 0
    change = torch.empty_like(mean)
    for part, axes in zip(parts, state["axes"], strict=True):
        x = mean[part]
        for a, kept in enumerate(axes):
            if due:
                axis.update(kept, unfold(g[part], a), power, group)
            x = fold(axis.apply(kept, unfold(x, a), power, group), a, x.shape)
        change[part] = x
    return grafted(change, mean, g, state, group).view(whole)


def grafted(change: Tensor, mean: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """A change as long as another optimizer's step (Agarwal, Anil, Hazan, Koren & Zhang 2020)."""
    graft, decay = group["graft"], group["betas"][1]
    if graft == "none":
        return change
    if graft != "sgd":
        square = second(state, "square", g, decay)
        corrected = square / (1 - decay ** state["step"]) if graft == "adam" and decay < 1 else square
        mean = mean / (corrected.sqrt() + 1e-8)
    return change * (mean.norm() / change.norm().clamp(min=torch.finfo(change.dtype).tiny))


def proper(shape: Sequence[int]) -> list[int]:
    """A shape without axes of length 1, but with one axis at least."""
    return [length for length in shape if length > 1] or [1]


def blocks(shape: Sequence[int], size: int) -> list[tuple[slice, ...]]:
    """A tensor in parts of at most `size` along each axis."""
    return list(product(*([slice(i, min(i + size, n)) for i in range(0, n, size)] for n in shape)))


def unfold(x: Tensor, axis: int) -> Tensor:
    """`(shape[axis], the rest)`."""
    return x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x[:, None]


def fold(x: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """What `unfold` made x of, of that shape but for the axis itself, which is as long as x has rows."""
    rest = [n for a, n in enumerate(shape) if a != axis]
    return x.view(len(x), *rest).movedim(0, axis)
