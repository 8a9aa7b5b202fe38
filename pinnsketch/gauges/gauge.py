"""What a gauge is, and what it is shown at a look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

ITSELF = "network"
"""The name of the layer that the network itself is, when parameters are its own."""
WHOLE = ""
"""Stands for all layers together where a gauge reads something by layer."""


class Interval(NamedTuple):
    """A reading with what it can be: a 95 % interval, or a certified one."""

    value: float
    low: float
    high: float


class Activation(NamedTuple):
    """What a linear layer is given and gives at the probe points: input, output, and the input of the next `(n, ...)`."""

    before: Tensor
    linear: Tensor
    after: Tensor


@dataclass(frozen=True)
class Setup:
    """What a gauge is made from.

    Args:
        layers: by name, the parameters that train and belong to that layer.
        size: numbers in a gradient sketch.
        exact: which layers' sketches make no error.
        every: updates from one look to the next.
        rank, decay, seed: of sketches and averages.
        lags: distances in updates at which gradients are compared.
        entries: what the long memory holds.
        activations: gives those at the probe points, inside `quiet`; None without probe points.
        quiet: the network in evaluation mode, and random numbers as they were afterwards.
        words: of each layer, the names of its parameters.
        sketches: gives what the training method keeps of a parameter's gradient, or None (`pinnsketch.gauges.covariance`).
    """

    layers: Mapping[str, Sequence[nn.Parameter]]
    size: int
    exact: tuple[bool, ...]
    every: int
    rank: int
    decay: float
    seed: int
    lags: tuple[int, ...]
    entries: int
    activations: Callable[[], dict[str, Activation]] | None
    quiet: Callable[[], AbstractContextManager[None]]
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sketches: Callable[[], Any] = lambda: None

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the network."""
        return next(iter(self.layers.values()))[0]

    def seen(self) -> dict[str, Activation]:
        """Activations at the probe points, by layer; none without probe points."""
        if self.activations is None:
            return {}
        with self.quiet():
            return self.activations()

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.like.device)


@dataclass(frozen=True)
class Look:
    """The gradient after an update, with what all gauges need of it; the network is in evaluation mode.

    Args:
        now: the number of updates so far, a scalar on the device.
        gradients: of each layer, one for each parameter.
        norms: of each layer's gradient, exact, `(L,)` float64.
        sketch: of each layer's gradient divided by its norm, `(L, p)` float32; zero where the gradient is not finite.
        collisions: in the sketch of each layer, which its errors go by, and of all, `(L + 1, 2)`.
        before: norms, sketch and collisions at an earlier update; None if no gauge asks for them.
        follows: whether that was the update just before, a scalar on the device.
    """

    now: Tensor
    gradients: Sequence[Sequence[Tensor]]
    norms: Tensor
    sketch: Tensor
    collisions: Tensor
    before: Sequence[Tensor] | None
    follows: Tensor
    setup: Setup = field(repr=False)

    @cached_property
    def finite(self) -> Tensor:
        return self.norms.isfinite()

    @cached_property
    def scaled(self) -> Tensor:
        """The sketch of each layer's gradient itself, `(L, p)` float64."""
        return scaled(self.norms, self.sketch)

    @cached_property
    def activations(self) -> dict[str, Activation]:
        return {} if self.setup.activations is None else self.setup.activations()


def scaled(norms: Tensor, sketch: Tensor) -> Tensor:
    """Unit sketches `(..., L, p)` times their norms, zero where those are not finite; float64."""
    return sketch.double() * torch.where(norms.isfinite(), norms, 0.0)[..., None]


class Gauge(Protocol):
    """Looks at gradients as they come, keeps a fixed number of bytes, and never waits for a GPU until it is read.

    Attributes:
        static: whether `look` decides nothing in Python and changes what it keeps in place, so that a replay of it is a look.
    """

    static: bool

    def look(self, look: Look) -> None: ...

    @property
    def numbers(self) -> Tensor:
        """What `read` needs, where it was computed."""
        ...

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        """Readings by layer and name, from `numbers` flattened and brought to the host."""
        ...

    @property
    def bytes(self) -> int:
        """Kept between looks."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
