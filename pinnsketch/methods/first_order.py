"""What methods with a step size share: an optimizer of torch, whose step is replayed on a GPU and whose size may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature, unwrap
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pinnsketch.graphed import Graphed
from pinnsketch.methods.method import Evaluation, Method, Objective


class FirstOrder:
    """An optimizer of torch as the inside of a method.

    Args:
        make: makes the optimizer of its step size: on a GPU a tensor there, which may change after a capture.
        parameters: what trains.
        lr: the step size at first.
        same: whether each step does the same, so that it can be replayed.
    """

    def __init__(
        self, make: Callable[[Any], Optimizer], parameters: Sequence[nn.Parameter], lr: float, same: bool = True
    ) -> None:
        device = parameters[0].device
        # The fused kernels take the size in single precision.
        self._size = torch.tensor(lr, dtype=torch.float32, device=device) if same and device.type == "cuda" else lr
        self._same = same
        self._parameters = list(parameters)
        self._lr, self._optimizer = lr, make(self._size)
        self._graphed = Graphed(self._optimizer.step)

    def step(self, objective: Objective) -> Evaluation:
        evaluation = objective()
        if evaluation.finite:
            if objective.static and self._same:
                self._graphed([p.grad for p in self._parameters if p.grad is not None])
            else:
                self._optimizer.step()
        return evaluation

    def scale(self, factor: float) -> None:
        """Let the step size be `factor` times what it was at first."""
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self._lr * factor)
            else:
                group["lr"] = self._lr * factor

    @property
    def sketches(self) -> Callable[[nn.Parameter], Any] | None:
        """What the optimizer keeps of a parameter's gradient, where it keeps sketches."""
        return getattr(self._optimizer, "sketches", None)

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)
        for group in self._optimizer.param_groups:  # the state may come from another device, where the size is kept otherwise
            size = float(group["lr"])
            group["lr"] = self._size.fill_(size) if isinstance(self._size, torch.Tensor) else size


def uncompiled(optimizer: type[Optimizer]) -> Callable[..., Optimizer]:
    """The same optimizer without what torch wraps around its methods for torch.compile, which meets none of them here.

    Any of these wrappers loads all of torch.compile, and sympy, which takes two seconds.
    """
    plain = {name: unwrap(getattr(optimizer, name)) for name in ("add_param_group", "state_dict", "load_state_dict")}
    return type(optimizer.__name__, (optimizer,), {**plain, "step": torch.no_grad()(unwrap(optimizer.step))})


def method_of(optimizer: type[Optimizer]) -> type[Method]:
    """A class of torch optimizers, whose steps may differ in what they do, as a method with the same options."""

    class Row:
        stalled = None

        def __init__(self, parameters: Sequence[nn.Parameter], **options: Any) -> None:
            lr = options.pop("lr", signature(optimizer).parameters["lr"].default)
            make = partial(uncompiled(optimizer), parameters, **options)
            self._inside = FirstOrder(lambda size: make(lr=size), parameters, lr, same=False)
            self.sketches = self._inside.sketches

        def step(self, objective: Objective) -> Evaluation:
            return self._inside.step(objective)

        def scale(self, factor: float) -> None:
            self._inside.scale(factor)

        def state_dict(self) -> dict[str, Any]:
            return self._inside.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self._inside.load_state_dict(state)

    Row.__init__.__signature__ = signature(optimizer.__init__, eval_str=True)  # type: ignore[attr-defined]
    Row.__name__, Row.__doc__ = getattr(optimizer, "__name__", ""), optimizer.__doc__
    return Row
