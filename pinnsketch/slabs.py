"""Slabs of time: one network for each, trained one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.jets import Jet, held, in_pieces
from pinnsketch.multistage import Multistage


def edges_of(slabs: int | Sequence[float], low: float, high: float) -> list[float]:
    """Where slabs begin and end: so many of equal length, or as they are given.

    Raises:
        ValueError: if those that are given do not rise from the first moment to the last.
    """
    if isinstance(slabs, int):
        return [low + (high - low) * k / slabs for k in range(slabs)] + [high]
    edges = [float(edge) for edge in slabs]
    if len(edges) < 2 or [*sorted(set(edges))] != edges or (edges[0], edges[-1]) != (low, high):
        raise ValueError(
            f"network.slabs: expected edges that rise from {low:g} to {high:g}, the first and last moment of the problem, as "
            f"in [{low:g}, {(low + high) / 2:g}, {high:g}]; got {edges}."
        )
    return edges


class Slabs(nn.Module):
    """Networks for one slab of time each, that train one after another (Wight & Zhao 2020; Krishnapriyan et al. 2021).

        u(x, t) = N_k(x, t),    t_k <= t < t_(k+1)

    Where no slab has begun yet, u stays what it is at the end of the present one. Only its network trains.

    Args:
        networks: of each slab, which map points `(n, d)` to values `(n, m)`.
        edges: `t_0 < t_1 < ...`, one more than networks.
        axis: the column of the points that is time.

    Maps points `(n, d)` to values `(n, m)`.
    """

    edges: Tensor
    """t_k, in double precision."""

    def __init__(self, networks: Sequence[nn.Module], edges: Sequence[float], axis: int) -> None:
        super().__init__()
        self.networks, self.axis = nn.ModuleList(networks), axis
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float64))
        self.begin(0)

    def begin(self, slab: int) -> None:
        """Let the network of a slab, from 0 on, train, and no other."""
        self.slab = slab
        for k, network in enumerate(self.networks):
            network.requires_grad_(k == slab)
        if isinstance(self.acting, Multistage):
            self.acting.begin(self.acting.stage)

    @property
    def acting(self) -> nn.Module:
        """The network of the present slab."""
        return self.networks[self.slab]

    @property
    def interval(self) -> tuple[float, float]:
        """Where the present slab begins and ends."""
        low, high = self.edges[self.slab : self.slab + 2].tolist()
        return low, high

    def place(self, x: Any) -> Tensor:
        """The slab that each point lies in, `(n,)`; the number of slabs begun where none has."""
        t, begun = (x.value if isinstance(x, Jet) else x)[:, self.axis].detach().contiguous(), self.slab + 1
        edges = self.edges.to(t)
        found = torch.bucketize(t, edges[1:begun], right=True)
        return found if begun == len(self.networks) else torch.where(t > edges[begun], begun, found)

    def forward(self, x: Any) -> Any:
        return in_pieces([*self.networks[: self.slab + 1], self._stays], self.place(x), x)

    def _stays(self, x: Any) -> Any:
        return self.acting(held(x, self.axis, self.edges[self.slab + 1]))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.slab)

    def set_extra_state(self, state: Tensor) -> None:
        self.begin(int(state))
