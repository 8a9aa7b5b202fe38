"""Random features: a network whose hidden layer is drawn and stays, so that finding the output layer is linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinnsketch.blank import blank
from pinnsketch.enrichment import Enrichment
from pinnsketch.periodic import Periodic

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "sin": torch.sin}
STEEPNESS = 6.0
"""Of a window's edge over the width of its patch: at the next edge it has fallen to 6e-6."""


class Features(nn.Module):
    """Random features (Dong & Li 2021; Chen, Chi, E & Yang 2022): one hidden layer that does not train.

        u = w_0 + sum_j w_j psi_j(x) sigma(a_j . (x - c_j)) + F_0(x) + sum_k v_k F_k(x),    a_j uniform in [-R, R]^d

    in coordinates scaled from `bounds` to [-1, 1]. The centres c_j are uniform in the box; with `patches` they are uniform in
    one patch each, a_j is scaled to the patch, and psi_j is the window of that patch: the windows are smooth and sum to 1.
    Only w and v train, from zero.

    Args:
        bounds: lower and upper end of each input, `(d, 2)`.
        outputs: number of outputs m.
        width: number M of features, shared evenly by the patches.
        activation: sigma: tanh or sin.
        frequency: R; the method `features` starts its search there.
        patches: number of patches along each coordinate, one for all or one for each.
        periodic: which inputs are, by number: a and c are then of their cosines and sines, with `harmonics`.
        enrichment: fields F_k that map points `(n, d)` to values `(n, m)`, such as the singular ones of a corner.
        lift: F_0, or None.
        generator: draws the features; equal generators give equal networks.
        dtype: of all parameters.

    Maps points `(n, d)` to values `(n, m)`.

    Raises:
        ValueError: if there are more patches than features, patches along a periodic input, or an activation is not known.
    """

    directions: Tensor
    """a_j over R and the width of a patch, `(M, inputs)`."""
    centres: Tensor
    """c_j, `(M, inputs)`."""
    radius: Tensor
    """R along each coordinate, `(d,)`."""

    def __init__(
        self,
        bounds: Tensor,
        outputs: int = 1,
        *,
        width: int = 1000,
        activation: str = "tanh",
        frequency: float = 1.0,
        patches: int | Sequence[int] = 1,
        periodic: Sequence[int] = (),
        harmonics: int = 1,
        enrichment: Sequence[Callable[[Tensor], Tensor]] = (),
        lift: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self._activation = activation_of(activation)
        d = len(bounds)
        self.inputs = Periodic(bounds, periodic, harmonics, dtype)
        self.patches = (patches,) * d if isinstance(patches, int) else tuple(patches)
        each = width // prod(self.patches)
        if not each:
            raise ValueError(
                f"Features: expected at least one for each of {prod(self.patches)} patches; got a width of {width}."
            )
        if any(self.patches[axis] > 1 for axis in periodic):
            raise ValueError(f"Features: expected one patch along each periodic coordinate; got patches {self.patches}.")
        shape = 2, each * prod(self.patches), self.inputs.inputs
        drawn = 2 * torch.rand(shape, generator=generator, dtype=dtype) - 1
        widths = 2 / torch.tensor(self.patches, dtype=dtype)
        places = torch.cartesian_prod(*(torch.arange(k, dtype=dtype) for k in self.patches)).view(-1, d)
        self.register_buffer("directions", drawn[0] * 2 / widths[self.inputs.columns] / self.inputs.slopes)
        centres = (places.repeat(each, 1) + (drawn[1, :, :d] + 1) / 2) * widths - 1
        self.register_buffer("centres", self.inputs.turned(centres))
        self.register_buffer("radius", torch.full((d,), float(frequency), dtype=dtype))
        self.output = blank(nn.Linear, len(drawn[0]), outputs, dtype=dtype)
        for p in self.output.parameters():
            nn.init.zeros_(p)
        self.singular = Enrichment.of(enrichment, lift, dtype)

    @property
    def width(self) -> int:
        """The number of features M."""
        return len(self.directions)

    @property
    def used(self) -> int:
        """The number of features up to the last one with a weight that is not zero; 0: it is blank."""
        own = self.output.weight.ne(0).any(0)
        count = prod(self.patches)
        return (int(own.nonzero()[-1]) // count + 1) * count if bool(own.any()) else 0

    def first(self, width: int) -> Features:
        """A network of so many of the features, as many for each patch, with an output layer of its own."""
        count = prod(self.patches)
        kept = max(min(width, self.width) // count, 1) * count
        found = Features.__new__(Features)
        nn.Module.__init__(found)
        found.inputs, found.patches, found._activation = self.inputs, self.patches, self._activation
        found.register_buffer("radius", self.radius.clone())
        found.register_buffer("directions", self.directions[:kept])
        found.register_buffer("centres", self.centres[:kept])
        outputs, like = self.output.out_features, self.output.weight
        found.output = blank(nn.Linear, kept, outputs, dtype=like.dtype, device=like.device)
        found.singular = deepcopy(self.singular)
        found.take(self)
        return found

    def take(self, other: Features) -> None:
        """Be the function that a network of more or fewer of the same features is; features that it lacks have weight zero."""
        with torch.no_grad():
            self.radius.copy_(other.radius)
            self.output.bias.copy_(other.output.bias)
            self.output.weight.zero_()
            kept = min(self.output.in_features, other.output.in_features)
            self.output.weight[:, :kept] = other.output.weight[:, :kept]
            if self.singular is not None and other.singular is not None:
                self.singular.load_state_dict(other.singular.state_dict())

    def forward(self, x: Any) -> Any:
        found = self.output(self.hidden(x))
        return found if self.singular is None else found + self.singular(x)

    def hidden(self, x: Any) -> Any:
        """All functions that the output layer combines, at points `(n, d)`."""
        y = self.inputs.scaled(x)
        weight = self.directions * self.radius[self.inputs.columns]
        features = self._activation(functional.linear(self.inputs.turned(y), weight, -(weight * self.centres).sum(1)))
        if prod(self.patches) > 1:
            features = features.reshape(len_of(x), -1, prod(self.patches)) * self._windows(y)
            features = features.reshape(len_of(x), self.width)
        return features

    def _windows(self, y: Any) -> Any:
        """The windows of all patches at points `(n, d)`: `(n, 1, patches)`, products of one along each coordinate."""
        found: Any = None
        for axis, count in enumerate(self.patches):
            if count == 1:
                continue
            along = windows(y[:, axis : axis + 1], count)
            found = along if found is None else (found.reshape(len_of(y), -1, 1) * along.reshape(len_of(y), 1, count))
            found = found.reshape(len_of(y), -1)
        return found.reshape(len_of(y), 1, -1)


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of features that has a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"There are no features {name!r}; there are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def len_of(x: Any) -> int:
    """The number of points of a tensor or a jet."""
    return x.shape[0]


def windows(y: Any, count: int) -> Any:
    """A partition of unity of [-1, 1] in so many patches of equal width, at points `(n, 1)`: `(n, count)`.

    Steps s_k = (1 + tanh) / 2 rise at the edges between patches, and psi_k = s_k - s_(k+1), with s_0 = 1 and s_count = 0: they
    are smooth, positive and telescope to 1.
    """
    like = y.value if hasattr(y, "value") else y
    edges = torch.linspace(-1, 1, count + 1, dtype=like.dtype, device=like.device)[1:-1]
    steps = 0.5 * torch.tanh((y - edges) * (STEEPNESS * count / 2)) + 0.5
    difference = torch.zeros(count - 1, count, dtype=like.dtype, device=like.device)
    rows = torch.arange(count - 1)
    difference[rows, rows], difference[rows, rows + 1] = -1.0, 1.0
    return functional.linear(steps, difference.T.contiguous()) + torch.eye(count, dtype=like.dtype, device=like.device)[0]
