"""The autograd function of a sketched layer, and what its modules have in common: a counter, a stream, a share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from pinnsketch.layers.estimator import Estimator
from pinnsketch.layers.fused import fused
from pinnsketch.layers.steele2014_split_mix import key, seed_of

TWICE = (
    "The weight gradient of a sketched layer was differentiated again. A sketch of the input gives the weight gradient, not "
    'its derivative: use weight_gradient="exact" where gradients of gradients are needed.'
)


class Product(Protocol):
    """What a layer computes: linear in its input and in its weight, and the same for each row but for that row's input."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def rows(self, x: Tensor) -> Tensor:
        """Of an input or a change of the output: what is mixed by a sketch, one row for each, `(N, d)`."""
        ...

    def input_gradient(self, delta: Tensor, weight: Tensor, shape: torch.Size) -> Tensor: ...

    def weight_gradient(self, left: Tensor, right: Tensor, delta: torch.Size, x: torch.Size, weight: Tensor) -> Tensor:
        """The sum over rows of left `(m, o)` and right `(m, d)` of the weight gradient of each pair."""
        ...

    def bias_gradient(self, delta: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Call:
    """How one call of a layer is differentiated.

    Args:
        product: what the layer computes.
        estimator: of the weight gradient.
        keep: its share.
        note: is told each estimate, and the same with its rows mispaired, for `AutomaticRank`; None: nobody.
        memory: what the estimator keeps of this batch and earlier ones, read when backward runs, in place of what it saves.
    """

    product: Product
    estimator: Estimator
    keep: float
    note: Callable[[Tensor, Tensor], None] | None = None
    memory: tuple[Tensor, ...] = ()


class Sketched(torch.autograd.Function):
    """`product(x, weight) + bias`, with x forgotten but for a sketch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, call: Call) -> Tensor:
        saved = () if call.memory else call.estimator.save(call.product.rows(x), seed, call.keep)
        ctx.save_for_backward(weight, seed, *(tensor.detach() for tensor in saved))
        ctx.call, ctx.shape = call, x.shape
        return call.product.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        weight, seed, *saved = ctx.saved_tensors
        call, (to_x, to_weight, to_bias, *_) = ctx.call, ctx.needs_input_grad
        return (
            call.product.input_gradient(delta, weight, ctx.shape) if to_x else None,
            _weight_gradient(call, delta, weight, seed, call.memory or tuple(saved), ctx.shape) if to_weight else None,
            call.product.bias_gradient(delta) if to_bias else None,
            None,
            None,
        )


def _weight_gradient(call: Call, delta: Tensor, weight: Tensor, seed: Tensor, saved: tuple[Tensor, ...], shape: Any) -> Tensor:
    with torch.no_grad():
        rows = call.product.rows(delta)
        left, right = call.estimator.factors(rows, saved, seed, call.keep)
        found = call.product.weight_gradient(left, right, delta.shape, shape, weight)
        if call.note is not None:
            other = call.estimator.mispaired(left, len(rows), call.keep, right.shape[1])  # type: ignore[attr-defined]
            call.note(found, call.product.weight_gradient(other, right, delta.shape, shape, weight))
    return only_once(found, TWICE)


def only_once(gradient: Tensor, why: str) -> Tensor:
    """A gradient that has no derivative: where that is asked for, an error that says why, in place of a silent zero."""
    if not torch.is_grad_enabled():
        return gradient
    return OnlyOnce.apply(gradient, torch.ones((), device=gradient.device, requires_grad=True), why)


class OnlyOnce(torch.autograd.Function):
    """The gradient itself; the one is there so that its derivative counts as known."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, one: Tensor, why: str) -> Tensor:
        ctx.why = why
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise RuntimeError(ctx.why)


class Stream(nn.Module):
    """Random numbers of one layer: a fresh seed for each call in training, none stored but the counter.

    The counter is a buffer, so that training resumes bit for bit. State dicts without it load, and leave it as it is. Processes
    of a distributed group draw different numbers.

    Args:
        seed: equal seeds give equal numbers in layers of the same `stream`.

    Attributes:
        stream: number of the layer, which `sketch_layers` derives from its name.
        frozen: whether the counter stands still.
        exact: whether the layer is to be as the plain one.
    """

    counter: Tensor

    def __init__(self, seed: int, device: Any = None) -> None:
        super().__init__()
        self.seed, self.stream, self.frozen, self.exact = seed, 0, False, False
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64, device=device))

    def next(self, like: Tensor) -> Tensor:
        """The seed of this call, `()` of int64, on the device of a tensor."""
        if self.counter.device != like.device:
            self.counter = self.counter.to(like.device)
        word, kernels = key(self.seed, self.stream, _process()), fused(like)
        if kernels:
            return kernels.next_seed(self.counter, word, int(not self.frozen))
        if not self.frozen:
            self.counter.add_(1)
        return seed_of(self.counter, word)

    def extra_repr(self) -> str:
        return f"seed={self.seed}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}counter", self.counter)  # of a plain layer
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _process() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within, each call of a layer draws the random numbers of its next training step, and none counts as a call.

    For methods that evaluate one objective several times, and tests.
    """
    streams = [module for module in model.modules() if isinstance(module, Stream) and not module.frozen]
    before = [stream.counter.clone() for stream in streams]
    for stream in streams:
        stream.frozen = True
        stream.counter.add_(1)
    try:
        yield
    finally:
        for stream, counter in zip(streams, before, strict=True):
            stream.frozen = False
            stream.counter.copy_(counter)


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Within, each layer is as the plain one, and draws nothing: for evaluations beside training."""
    streams = [module for module in model.modules() if isinstance(module, Stream) and not module.exact]
    for stream in streams:
        stream.exact = True
    try:
        yield
    finally:
        for stream in streams:
            stream.exact = False


def cast(x: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """Tensors in the precision that autocast gives a matrix product."""
    dtype, kind = torch.get_autocast_dtype(x.device.type), (torch.float32, torch.float16, torch.bfloat16)
    return [t.to(dtype) if t is not None and t.dtype in kind else t for t in (x, *others)]


def without_autocast(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The function of what autocast would have made of its arguments: so it sees, and keeps, tensors of that precision."""
    if not torch.is_autocast_enabled(x.device.type):
        return function(x, weight, bias)
    lower = cast(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return function(*lower)
