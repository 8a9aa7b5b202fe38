"""Backward: how the reverse pass of an image network gets by with less memory, a row each in `BACKWARDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, sqrt
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pinnsketch.images import ImageNetwork

FIRST = 0.125
"""The share that is kept at first where it is chosen as training goes on: in the end, and at most, it is twice that."""


@dataclass(frozen=True)
class Backward:
    """A way of going backward.

    Args:
        method: a name in `BACKWARDS`.
        estimator: of weight gradients, a name in `pinnsketch.layers.ESTIMATORS`; read by sketched.
        keep: share of the bytes of a layer's input that sketched keeps, or auto.
        convolutions: the same for convolutions, where it is another; 1: they are exact.
        where: pattern of names of the hidden layers that are sketched, or frozen.
        activations: how sketched keeps the derivatives of activations: packed, or exact.
        seed: of the sketches.
    """

    method: str = "exact"
    estimator: str = "mean+rademacher"
    keep: float | str = 0.25
    convolutions: float | None = None
    where: str = "*"
    activations: str = "packed"
    seed: int = 0

    def apply(self, network: ImageNetwork) -> nn.Module:
        """The module whose gradients train the network: the network itself, or another on the same parameters."""
        return BACKWARDS[self.method](network, self)

    def share(self, layer: nn.Module) -> float:
        """The share that a layer keeps, at first."""
        if isinstance(layer, nn.Conv2d) and self.convolutions is not None:
            return self.convolutions
        return FIRST if self.keep == "auto" else float(self.keep)


def hidden(network: ImageNetwork, where: str = "*") -> list[str]:
    """Names of the hidden layers that match a pattern: of all layers but the last, which is the output.

    Raises:
        ValueError: if none does.
    """
    names = [f"layers.{i}" for i in range(len(network.activations))]
    found = [name for name in names if fnmatchcase(name, where)]
    if not found:
        raise ValueError(f"backward.where: no hidden layer is called {where!r}; the hidden layers are {', '.join(names)}")
    return found


def sketched(network: ImageNetwork, given: Backward) -> nn.Module:
    """Hidden layers that match keep a sketch of their input, and the activations before them few bits; all else is exact."""
    from pinnsketch.layers import sketch_layers

    found: nn.Module = network
    for name in hidden(network, given.where):
        keep = given.share(network.get_submodule(name))
        if keep < 1:
            options: dict[str, Any] = {"estimator": given.estimator, "keep": keep, "seed": given.seed}
            found = sketch_layers(found, name, activations=given.activations, **options)
    if found is not network:
        converted = cast(ImageNetwork, found)
        for i in range(len(network.activations)):
            if network.shares_output(i) and type(converted.layers[i + 1]) is type(network.layers[i + 1]):
                converted.activations[i] = network.activations[i]  # its output is kept by the next layer in any case
    return found


def frozen(network: ImageNetwork, given: Backward) -> nn.Module:
    """The control: the hidden layers that would be sketched do not train at all."""
    for name in hidden(network, given.where):
        network.get_submodule(name).requires_grad_(False)
    return network


class Recomputed(nn.Module):
    """A network that keeps only the inputs of sqrt(n) segments of its n hidden layers, and computes the rest again.

    Chen, Xu, Zhang & Guestrin (2016), "Training deep nets with sublinear memory cost", section 4.1.
    """

    def __init__(self, network: ImageNetwork) -> None:
        super().__init__()
        self.network = network
        count = len(network.activations)
        size = ceil(count / ceil(sqrt(count)))
        self._segments = [range(i, min(i + size, count)) for i in range(0, count, size)]

    def forward(self, x: Tensor) -> Tensor:
        for segment in self._segments:
            x = checkpoint(self.network.hidden, x, segment, use_reentrant=False, preserve_rng_state=False)
        return self.network.layers[-1](x.flatten(1))


BACKWARDS: dict[str, Callable[[ImageNetwork, Backward], nn.Module]] = {
    "exact": lambda network, given: network,
    "sketched": sketched,
    "checkpoint": lambda network, given: Recomputed(network),
    "frozen": frozen,
}
