"""Networks: the only place that chooses layers. A kind is one row in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.ansatz import Ansatz
from pinnsketch.blank import blank
from pinnsketch.features import Features
from pinnsketch.multistage import Multistage
from pinnsketch.patches import Patches
from pinnsketch.periodic import Periodic
from pinnsketch.slabs import Slabs, edges_of

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sin": torch.sin,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
}


class MLP(nn.Module):
    """A fully connected network, `depth` hidden layers of `width`; inputs are scaled from `bounds` to [-1, 1].

    Weights are drawn by Glorot & Bengio (2010), normal; biases start at zero.

    Args:
        bounds: lower and upper end of each input, `(d, 2)`.
        outputs: number of outputs m.
        periodic: which inputs are, by number: the network sees them through cosines and sines of `harmonics`.
        width: units of a hidden layer.
        depth: number of hidden layers.
        activation: a name in ACTIVATIONS.
        frequency: factor of the first layer's initial weights; above 1 the network starts with faster oscillations, as
            Sitzmann et al. (2020) start theirs.
        ansatz: what outputs are made into, or None.
        generator: draws the weights; equal generators give equal networks.
        dtype: of all parameters.

    Maps points `(n, d)` to values `(n, m)`.
    """

    def __init__(
        self,
        bounds: Tensor,
        outputs: int = 1,
        *,
        width: int = 50,
        depth: int = 4,
        activation: str = "tanh",
        frequency: float = 1.0,
        periodic: Sequence[int] = (),
        harmonics: int = 1,
        ansatz: Ansatz | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"There is no activation {activation!r}; the activations are {', '.join(ACTIVATIONS)}.")
        self.inputs = Periodic(bounds, periodic, harmonics, dtype)
        self._activation, self.ansatz = ACTIVATIONS[activation], ansatz
        sizes = [self.inputs.inputs, *[width] * depth, outputs]
        self.layers = nn.ModuleList(blank(nn.Linear, a, b, dtype=dtype) for a, b in pairwise(sizes))
        for p in self.layers.parameters():
            nn.init.xavier_normal_(p, generator=generator) if p.ndim == 2 else nn.init.zeros_(p)
        with torch.no_grad():
            next(self.layers.parameters()).mul_(frequency)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inputs(x)
        for layer in self.layers[:-1]:
            y = self._activation(layer(y))
        y = self.layers[-1](y)
        return y if self.ansatz is None else self.ansatz(y, x)


KINDS: dict[str, type[nn.Module]] = {"mlp": MLP, "features": Features, "patches": Patches}


def options_of(kind: str) -> dict[str, Any]:
    """What can be said of a kind of network in a config, with its defaults."""
    given = {"bounds", "outputs", "periodic", "enrichment", "lift", "ansatz", "generator", "dtype"}
    found = signature(KINDS[kind].__init__).parameters.values()
    options = {p.name: p.default for p in found if p.default is not Parameter.empty and p.name not in given}
    return options | {"slabs": 1} | ({"stages": 1} if KINDS[kind] is MLP else {})


def build(
    kind: str,
    options: Mapping[str, Any],
    bounds: Tensor,
    coordinates: Sequence[str],
    outputs: int,
    enrichment: Sequence[Callable[[Tensor], Tensor]] = (),
    lift: Callable[[Tensor], Tensor] | None = None,
    periodic: Sequence[str] = (),
    time: str | None = None,
    ansatz: Ansatz | None = None,
    **more: Any,
) -> nn.Module:
    """A network as a config describes it: numbers by coordinate in the order of these; `more`: generator and dtype.

    Slabs are those of the coordinate `time`.

    Raises:
        ValueError: if a coordinate is not known, the kind takes no enrichment or no ansatz, or there is no time for slabs.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given["periodic"] = tuple(axis for axis, name in enumerate(coordinates) if name in periodic)
    for name, value in given.items():
        if isinstance(value, Mapping):
            for key in value:
                if key not in coordinates:
                    raise ValueError(f"network.{name}: there is no coordinate {key!r}; there are {', '.join(coordinates)}.")
            given[name] = tuple(value.get(key, 1) for key in coordinates)
    if enrichment or lift is not None:
        if "enrichment" not in signature(KINDS[kind].__init__).parameters:
            raise ValueError(
                f"The problem has an enrichment, or a lift, which networks of kind features or patches take; got the kind "
                f"{kind}."
            )
        given |= {"enrichment": enrichment, "lift": lift}
    if ansatz is not None and KINDS[kind] is not MLP:
        raise ValueError(f"The problem has an ansatz, which networks of kind mlp take; got the kind {kind}.")
    stages, slabs = given.pop("stages", 1), given.pop("slabs", 1)

    def staged(bounds: Tensor) -> nn.Module:
        shape = {"ansatz": ansatz} if ansatz is not None and stages == 1 else {}
        networks = [KINDS[kind](bounds, outputs, **given, **shape, **more) for _ in range(stages)]
        return networks[0] if stages == 1 else Multistage(networks, more.get("generator"), ansatz)

    if slabs != 1:
        if time is None:
            raise ValueError(
                "network.slabs: expected a problem in time, with a term at domain.start(...) that says how it begins; there is "
                "none. Leave slabs out, or name the coordinate that is time, as in Term(domain.start('t'), ...)."
            )
        axis, parts = list(coordinates).index(time), []
        edges = edges_of(slabs, *bounds[axis].tolist())
        for ends in pairwise(edges):
            within = bounds.clone()
            within[axis] = torch.tensor(ends, dtype=within.dtype)
            parts.append(staged(within))
        return Slabs(parts, edges, axis)
    return staged(bounds)
