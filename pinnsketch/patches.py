"""Patches: random features in boxes that are halved where a solution is sharp, under windows that sum to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import comb, log
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.blank import blank
from pinnsketch.enrichment import Enrichment
from pinnsketch.features import activation_of
from pinnsketch.jets import Jet, sparse_linear

REACH = 0.35
"""How far a window reaches beyond its box, over the width of that."""
VANISHES = 6.0
"""Where (1 - erf) / 2 has fallen to the rounding of 1."""
SPREAD = 1e-9
"""Of the highest polynomials in the features of a box, beside the lowest, in float64: far above rounding, and still small."""
FAR = 1e3
"""Where the edges of windows lie that would end at the ends of the domain."""


class Patches(nn.Module):
    """Random features in the leaves of a tree of boxes.

        u = sum_k w_k(x) sum_j v_kj sigma(a_kj . (x - c_kj)) + F_0(x) + sum_i s_i F_i(x),    w_k = phi_k / sum_l phi_l

    The bump phi_k of box k is a product over coordinates of (erf(z - low) - erf(z - high)) / 2, z in units of REACH / VANISHES
    of its width: away from its neighbours a window w_k is zero to rounding, and they sum to one whatever the boxes are.
    Directions a_kj are uniform in [-R, R]^d over half the width of a box, centres c_kj uniform in it, so that features shrink
    with their box (Babuska & Guo 1988: a corner needs boxes that halve towards it). In a box that is small enough a solution
    is a polynomial, and F features hold those up to a degree p, the better the smaller R is, by weights of size R^-p; so R is
    such that R^p = SPREAD. Only v and s train, from zero. There is one box at first; the method `patches` splits those with the
    largest residuals.

    Along a periodic coordinate a point sees each box at its nearest image, so that windows wrap around; it is halved at first,
    so that no window meets itself, and all that happens half a turn away from a box is zero to rounding.

    Args:
        bounds: lower and upper end of each input, `(d, 2)`.
        outputs: number of outputs m.
        width: number of features that there is room for.
        each: number F of features of a box.
        activation: sigma: tanh or sin.
        frequency: factor of R.
        periodic: which inputs are, by number.
        enrichment: fields F_i that map points `(n, d)` to values `(n, m)`, such as the singular ones of a corner.
        lift: F_0, or None.
        generator: draws the features; equal generators give equal networks.
        dtype: of all parameters.

    Maps points `(n, d)` to values `(n, m)`.

    Raises:
        ValueError: if there is no room for the features of the first boxes, or an activation is not known.
    """

    bounds: Tensor
    """Lower and upper end of each input, in double precision, `(d, 2)`."""
    center: Tensor
    scale: Tensor
    directions: Tensor
    """a_kj over R and half the width of the box, `(K, F, d)`."""
    centres: Tensor
    """c_kj from the middle of the box, over half its width, `(K, F, d)`."""
    level: Tensor
    """How often each box was halved along each coordinate, `(K, d)`."""
    place: Tensor
    """Its place among the 2^level along each coordinate, `(K, d)`."""
    used: Tensor
    """Which boxes are leaves that meet the domain, `(K,)`."""
    count: Tensor
    """How many boxes there are; others are room for more."""
    wraps: Tensor
    """1 for periodic coordinates, whose period is 2 when scaled, and 0 for others, `(d,)`."""

    def __init__(
        self,
        bounds: Tensor,
        outputs: int = 1,
        *,
        width: int = 2000,
        each: int = 80,
        activation: str = "tanh",
        frequency: float = 1.0,
        periodic: Sequence[int] = (),
        enrichment: Sequence[Callable[[Tensor], Tensor]] = (),
        lift: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self._activation = activation_of(activation)
        first = 2 ** len(periodic)
        if width < first * each:
            some = "one patch" if first == 1 else f"{first} patches, with which periodic coordinates begin"
            raise ValueError(f"Patches: expected a width of {first * each} features or more, those of {some}; got {width}.")
        low, high = bounds.to(dtype).T
        k, d = width // each, len(low)
        self.register_buffer("bounds", bounds.double(), persistent=False)
        self.register_buffer("center", (low + high) / 2)
        self.register_buffer("scale", 2 / (high - low))
        drawn = 2 * torch.rand(2, k, each, d, generator=generator, dtype=dtype) - 1
        self.register_buffer("directions", drawn[0])
        self.register_buffer("centres", drawn[1])
        self.register_buffer("level", torch.zeros(k, d, dtype=torch.int64))
        self.register_buffer("place", torch.zeros(k, d, dtype=torch.int64))
        self.register_buffer("used", torch.arange(k) == 0)
        self.register_buffer("count", torch.ones((), dtype=torch.int64))
        wraps = torch.tensor([float(axis in periodic) for axis in range(d)], dtype=dtype)
        self.register_buffer("wraps", wraps, persistent=False)
        degree = next(p for p in count(1) if comb(p + d, d) >= each)
        digits = log(torch.finfo(dtype).eps) / log(torch.finfo(torch.float64).eps)
        self.radius = frequency * SPREAD ** (digits / degree)
        self.output = blank(nn.Linear, k * each, outputs, bias=False, dtype=dtype)
        nn.init.zeros_(self.output.weight)
        for axis in periodic:
            for box in self.leaves:
                self.split(box, axis)
        self.singular = Enrichment.of(enrichment, lift, dtype)

    @property
    def each(self) -> int:
        """The number F of features of a box."""
        return self.directions.shape[1]

    @property
    def room(self) -> int:
        """How many more boxes there is room for."""
        return len(self.level) - int(self.count)

    @property
    def leaves(self) -> list[int]:
        """The boxes that are leaves and meet the domain."""
        return self.used.nonzero()[:, 0].tolist()

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Lower and upper corners of all boxes in coordinates scaled to [-1, 1], `(K, d)` each."""
        width = (2 / (1 << self.level)).to(self.center)  # exact; powers are not, on a GPU
        low = self.place * width - 1
        return low, low + width

    def corners(self) -> tuple[Tensor, Tensor]:
        """The same in coordinates as they are, in double precision; a box that ends with the domain ends there exactly."""
        low, high = self.bounds.T
        first, last = ((1 + corner.double()) / 2 for corner in self.boxes())
        return low * (1 - first) + high * first, low * (1 - last) + high * last

    def split(self, box: int, axis: int) -> int:
        """Halve a box: it becomes its lower half, and the box whose number is given the upper one."""
        new = int(self.count)
        self.count += 1
        for part in (self.level, self.place, self.used):
            part[new] = part[box]
        for k, side in ((box, 0), (new, 1)):
            self.level[k, axis] += 1
            self.place[k, axis] = 2 * self.place[k, axis] + side
        return new

    def follow(self, other: Patches, axis: int) -> None:
        """Have the boxes in which another, of the same width, ends along a coordinate, and along it no halvings."""
        last = torch.tensor([k for k in other.leaves if other.place[k, axis] + 1 == 2 ** other.level[k, axis]])
        n = len(last)
        for part, of in ((self.level, other.level), (self.place, other.place)):
            part[:n] = of[last]
            part[:n, axis] = 0
        self.used[:] = torch.arange(len(self.used), device=self.used.device) < n
        self.count.fill_(n)

    def unbalanced(self) -> list[tuple[int, int]]:
        """Leaves that are more than twice as wide as one that they touch, along the coordinate in which they touch it."""
        boxes, (low, high) = self.used.nonzero()[:, 0], self.boxes()
        middle, width, level = ((low + high) / 2)[boxes], (high - low)[boxes], self.level[boxes]
        apart, reach = middle[:, None] - middle, (width[:, None] + width) / 2
        apart = (apart - self.images(apart)).abs()
        touch, beside = apart <= reach, apart == reach
        wide = touch.all(2, keepdim=True) & beside & (level[:, None] < level - 1)
        found = wide.any(1).nonzero().tolist()
        return [(int(boxes[k]), axis) for k, axis in dict(reversed(found)).items()][::-1]

    def near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes whose windows do not vanish at points `(n, d)`: `(n, A)`, and which of these are meant, `(n, A)`.

        Where a point has fewer than A, its first is repeated.
        """
        boxes, (low, high) = self.used.nonzero()[:, 0], self._edges()
        z = self.within(x, boxes.expand(len(x), -1))
        inside = ((z > low[boxes] - 2 * REACH) & (z < high[boxes] + 2 * REACH)).all(2)
        point, which = inside.nonzero().unbind(1)
        counts = inside.sum(1)
        most = max(int(counts.max()), 1) if len(x) else 1
        ends = counts.cumsum(0)
        rank = torch.arange(len(point), device=x.device) - (ends - counts)[point]
        meant = torch.arange(most, device=x.device) < counts[:, None]
        index = boxes[:1].expand(len(x), most).clone()
        index[point, rank] = boxes[which]
        return torch.where(meant, index, index[:, :1]), meant

    def forward(self, x: Any) -> Any:
        found = self.regular(x)
        return found if self.singular is None else found + self.singular(x)

    def regular(self, x: Any) -> Any:
        """The part of the features of boxes, at points `(n, d)`: `(n, m)`."""
        plain = x.value if isinstance(x, Jet) else x.detach()
        index, meant = self.near(plain)
        columns = (index[..., None] * self.each + torch.arange(self.each, device=index.device)).flatten(1)
        return sparse_linear(self.hidden(x, index, meant), self.output.weight, columns)

    def hidden(self, x: Any, index: Tensor, meant: Tensor) -> Any:
        """The features of boxes `(n, A)` at points `(n, d)`, under their windows: `(n, A F)`."""
        z, slopes = self.within(x, index), self.radius * self.directions
        shift = -(slopes * self.centres).sum(2)
        features = self._activation(torch.einsum("nad,nafd->naf", z, slopes[index]) + shift[index])
        n, boxes = index.shape
        windows = self._windows(z, index, meant).reshape(n, boxes, 1)
        return (features * windows).reshape(n, boxes * self.each)

    def windows(self, x: Any, index: Tensor, meant: Tensor) -> Any:
        """The windows of boxes `(n, A)` at points `(n, d)`: `(n, A)`; zero for what is not meant."""
        return self._windows(self.within(x, index), index, meant)

    def _windows(self, z: Any, index: Tensor, meant: Tensor) -> Any:
        (low, high), scale = self._edges(), VANISHES / (2 * REACH)
        rise = torch.erf((z - low[index]) * scale) - torch.erf((z - high[index]) * scale)
        bump = rise[..., 0]
        for axis in range(1, rise.shape[2]):
            bump = bump * rise[..., axis]
        bump = bump * (meant * 0.5 ** rise.shape[2])
        return bump / (bump.sum(1, keepdim=True) + 1e-30)

    def within(self, x: Any, index: Tensor) -> Any:
        """Points `(n, d)` in the coordinates of boxes `(n, A)`, from -1 to 1 in each, or in its nearest image: `(n, A, d)`."""
        y, (low, high) = (x - self.center) * self.scale, self.boxes()
        plain = y.value if isinstance(y, Jet) else y.detach()
        middle = ((low + high) / 2)[index]
        middle = middle + self.images(plain[:, None] - middle)
        return (y.reshape(len(index), 1, y.shape[1]) - middle) * (2 / (high - low))[index]

    def images(self, apart: Tensor) -> Tensor:
        """The whole turns in distances `(..., d)` in scaled coordinates: without them they are those on a circle."""
        return 2 * torch.round(self.wraps * apart / 2)

    def _edges(self) -> tuple[Tensor, Tensor]:
        """The ends of boxes in their own coordinates, far away where a box ends with the domain, `(K, d)` each."""
        (low, high), ends = self.boxes(), self.wraps == 0
        return torch.where(ends & (low <= -1), -FAR, -1.0).to(low), torch.where(ends & (high >= 1), FAR, 1.0).to(low)
