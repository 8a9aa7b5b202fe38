"""Sketchy (Feinberg, Chen, Sun, Anil & Hazan 2023, arXiv 2302.03764): Shampoo and SOAP from Frequent-Directions sketches.

Of the covariance C of the gradient along an axis of length n, k directions B `(n, k)` and the escaped mass R are kept, so that
`B B^T <= C <= B B^T + R I` (`pinnsketch.sketch.FrequentDirections`): k (m + n) numbers for a matrix in place of m^2 + n^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinnsketch.methods.kronecker import Graft, checked, preconditioned, stepped
from pinnsketch.methods.vyas2024_soap import rotated
from pinnsketch.sketch import FrequentDirections

Rank = int | Literal["auto"]
LEAST, GROW, SHRINK = 4, 0.1, 0.01
"""Of a rank that is auto: the least, the share of a gradient that may be lost, and the share that half of it must have."""


class Sketchy(Optimizer):
    """S-Shampoo (algorithm 3), and S-AdaGrad for vectors (algorithm 2): each axis of a gradient is multiplied by

        (B B^T + (R + eps lambda_1) I)^(-1/(2 d)),    d the order of the parameter,

    the directions outside the sketch by that of R + eps lambda_1. R is a covariance, so it decays as one, by `betas[1]`.

    Args:
        params: parameters, or groups of them.
        lr: the step size.
        rank: k, the directions kept along each axis; with the whole length it is Shampoo. auto: as many along each axis as
            it takes to lose little of each gradient.
        betas: decay of the mean of gradients, and of covariances and squares; 1 for these sums them, as AdaGrad does.
        eps: what is added to a covariance, over its largest eigenvalue lambda_1.
        every: steps from one update of the sketches to the next.
        graft: whose step a step is as long as; adam and rmsprop keep squares of the size of the parameter.
        block: an axis longer than that is cut.
        weight_decay: apart from the gradient.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        rank: Rank = 32,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        every: int = 1,
        graft: Graft = "adam",
        block: int = 1024,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            checked(lr=lr, rank=rank, betas=betas, eps=eps, every=every, graft=graft, block=block, weight_decay=weight_decay),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. `closure` evaluates the loss and its gradient anew; its value is returned."""
        return stepped(self, closure, partial(preconditioned, Sketched()))

    def sketches(self, parameter: Tensor) -> list[list[FrequentDirections]]:
        """Of each block of a parameter, the sketch of each axis: its readings have bounds (`eigenvalues`, `stable_rank`)."""
        decay, parts = decay_of(self, parameter), self.state.get(parameter, {}).get("axes", [])
        return [[read(axis, decay) for axis in axes] for axes in parts]


class Sketched:
    """A covariance as its sketch."""

    def begin(self, like: Tensor, length: int, group: dict[str, Any]) -> dict[str, Any]:
        return begin(like, length, group["rank"])

    def update(self, state: dict[str, Any], g: Tensor, power: float, group: dict[str, Any]) -> None:
        take(state, g, group)

    def apply(self, state: dict[str, Any], x: Tensor, power: float, group: dict[str, Any]) -> Tensor:
        """`t^p x + B diag(((e^2 + t)^p - t^p) / e^2) B^T x`, for e the norms of the columns of B and t the tail."""
        b, weight = state["b"], state["weight"] if group["betas"][1] < 1 else 1.0
        square = b.double().square().sum(0) / weight
        escaped = state["escaped"] / weight
        tail = escaped + (group["eps"] * (square.max() + escaped)).clamp(min=torch.finfo(square.dtype).tiny)
        more = torch.where(square > 0, ((square + tail) ** power - tail**power) / (weight * square), 0.0)
        return x * (tail**power).to(x.dtype) + b @ (more.to(x.dtype)[:, None] * (b.T @ x))


class SketchySOAP(Optimizer):
    """SOAP in the sketched eigenbasis: Adam in the tight frame `[U, I - U U^T]` of each axis, U `(n, k)` the directions kept.

    What lies outside of U has a second moment for each entry, as in Adam, without what rounding leaves there. With the whole
    length for a rank it is SOAP. Vectors have Adam. A matrix takes (m + k) (n + k) numbers for the second moment.

    Args:
        params: parameters, or groups of them.
        lr: the step size.
        rank: k, the directions kept along each axis, or auto.
        betas: decay of the mean of gradients, and of covariances and squares.
        eps: what is added to the root of a second moment.
        every: steps from one update of the sketches to the next.
        block: an axis longer than that is cut.
        weight_decay: apart from the gradient.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        rank: Rank = 32,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        every: int = 2,
        block: int = 1024,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            checked(1.0, lr=lr, rank=rank, betas=betas, eps=eps, every=every, block=block, weight_decay=weight_decay),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. `closure` evaluates the loss and its gradient anew; its value is returned."""
        return stepped(self, closure, partial(rotated, TightFrame()))

    def sketches(self, parameter: Tensor) -> list[list[FrequentDirections]]:
        """Of each block of a parameter, the sketch of each axis; none of a vector, which has Adam."""
        decay, parts = decay_of(self, parameter), self.state.get(parameter, {}).get("parts", [])
        return [[read(whole(axis), decay) for axis in part["axes"]] for part in parts]


class TightFrame:
    """`[U, I - U U^T]`, without the second part where U is square; the sketch is `B = U diag(e)`."""

    def begin(self, like: Tensor, length: int, group: dict[str, Any]) -> dict[str, Any]:
        return split(begin(like, length, group["rank"]))

    def update(self, state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """What crosses the border of U takes its second moment along.

        Without that, a direction that leaves U meets second moments that never saw it, and moves by up to
        (1 - betas[1])^(-1/2) times as much as by Adam.
        """
        old, sketch = state["u"], whole(state)
        take(sketch, g, group)
        state.update(split(sketch))
        new = state["u"]
        if len(new) == new.shape[1] == old.shape[1]:
            return None
        leaves, enters = (old - new @ (new.T @ old)).square(), (new - old @ (old.T @ new)).square().T

        def carry(square: Tensor) -> Tensor:
            kept, rest = square[: old.shape[1]], square[old.shape[1] :]
            rest = rest if len(rest) else square.new_zeros(len(new), square.shape[1])
            stayed = square.new_zeros(len(enters), square.shape[1])
            stayed[: len(kept)] = kept[: len(enters)]
            inside, outside = torch.maximum(stayed, enters @ rest), torch.maximum(rest, leaves @ kept)
            return inside if len(new) == len(inside) else torch.cat([inside, outside])

        return carry

    def analyse(self, state: dict[str, Any], x: Tensor) -> Tensor:
        kept = state["u"].T @ x
        return kept if kept.shape == x.shape else torch.cat([kept, x - state["u"] @ kept])

    def synthesise(self, state: dict[str, Any], z: Tensor) -> Tensor:
        u = state["u"]
        kept, rest = z[: u.shape[1]], z[u.shape[1] :]
        return u @ kept if not len(rest) else u @ (kept - u.T @ rest) + rest


def begin(like: Tensor, length: int, rank: Rank) -> dict[str, Any]:
    """A sketch of nothing, as a state. Numbers are plain there: tensors would be cast to the parameter's dtype on loading."""
    return written(FrequentDirections(length, 2 * LEAST if rank == "auto" else rank, dtype=like.dtype, device=like.device))


def take(state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> None:
    """Let a sketch take in an unfolded gradient, and have the directions it needs if the rank is auto."""
    decay, before, outside = group["betas"][1], state["trace"], _outside(state)
    sketch = read(state, decay)
    sketch.update(g)
    state.update(written(sketch))
    gained = state["trace"] - decay * before
    if group["rank"] == "auto" and gained > 0:
        _fit(state, (_outside(state) - decay * outside) / gained)


def _outside(state: dict[str, Any]) -> float:
    """What of the trace the directions do not hold."""
    return state["trace"] - float(state["b"].double().square().sum())


def _fit(state: dict[str, Any], lost: float) -> None:
    """Twice the directions, where a gradient lost a large share of its energy; half, where these hold all but little.

    The bounds stay: `R + e^2` for what is dropped, e the norm of its first column.
    """
    b, square = state["b"], state["b"].double().square().sum(0)
    n, k = b.shape
    half = k // 2
    if lost > GROW and k < n:
        state["b"] = torch.cat([b, b.new_zeros(n, min(k, n - k))], dim=1)
    elif half >= LEAST and lost < SHRINK and float(square[half:].sum()) < SHRINK * state["trace"]:
        state["b"], state["escaped"] = b[:, :half].clone(), state["escaped"] + float(square[half])


def split(sketch: dict[str, Any]) -> dict[str, Any]:
    """A state with B as U diag(e): U orthonormal, even where columns of B vanish."""
    u, r = torch.linalg.qr(sketch["b"])
    return {"u": u, "e": r.diagonal().clone(), **{name: value for name, value in sketch.items() if name != "b"}}


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """A state with B in place of U and e."""
    return {"b": state["u"] * state["e"], **{name: value for name, value in state.items() if name not in ("u", "e")}}


def decay_of(optimizer: Optimizer, parameter: Tensor) -> float:
    """Of the covariance of a parameter's gradient."""
    return next(g["betas"][1] for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def read(state: dict[str, Any], decay: float) -> FrequentDirections:
    """The sketch in a state."""
    b = state["b"]
    sketch = FrequentDirections(*b.shape, decay=decay, dtype=b.dtype, device=b.device)
    numbers = {name: torch.tensor(value, dtype=torch.float64, device=b.device) for name, value in state.items() if name != "b"}
    sketch.load_state_dict({"b": b, **numbers})
    return sketch


def written(sketch: FrequentDirections) -> dict[str, Any]:
    names, numbers = zip(*((name, value) for name, value in sketch.state_dict().items() if name != "b"), strict=True)
    return {"b": sketch.b, **dict(zip(names, torch.stack(numbers).tolist(), strict=True))}
