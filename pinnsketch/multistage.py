"""Multistage networks: the sum of several, of which one trains at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pinnsketch.ansatz import Ansatz

FASTEST = 32.0
"""Factor of the fastest unit in the first layer of a later stage."""


class Multistage(nn.Module):
    """A sum of networks that train one after another, each on what the sum so far leaves (Wang & Lai 2024).

        u = N_1(x) + sum_k size_k N_k(x),    k > 1

    Stages that have not begun are left out. What a network leaves is smooth in most places and sharp in a few: the units of
    the first layer of later stages have factors from 1 to `FASTEST`, evenly spaced in their logarithm, and centres that are
    uniform in the box. Their last layers are as drawn until the method `next_stage` sets them to zero.

    Args:
        networks: of each stage, which map points `(n, d)` to values `(n, m)`.
        generator: draws the centres.
        ansatz: what the sum is made into, or None.

    Maps points `(n, d)` to values `(n, m)`.
    """

    sizes: Tensor
    """size_k by output, `(stages, m)`."""

    def __init__(
        self, networks: Sequence[nn.Module], generator: torch.Generator | None = None, ansatz: Ansatz | None = None
    ) -> None:
        super().__init__()
        self.ansatz, self.networks = ansatz, nn.ModuleList(networks)
        bias = [*networks[0].parameters()][-1].detach()
        self.register_buffer("sizes", torch.ones(len(networks), len(bias), dtype=bias.dtype))
        for network in networks[1:]:
            first, shift, *_ = network.parameters()
            centres = 2 * torch.rand(first.shape, generator=generator, dtype=first.dtype) - 1
            with torch.no_grad():
                first.mul_(torch.logspace(0, 1, len(first), base=FASTEST, dtype=first.dtype)[:, None])
                shift.copy_(-(first * centres).sum(1))
        self.begin(0)

    def begin(self, stage: int) -> None:
        """Let the network of a stage, from 0 on, join the sum; it alone trains."""
        self.stage = stage
        for k, network in enumerate(self.networks):
            network.requires_grad_(k == stage)

    def forward(self, x: Tensor) -> Tensor:
        found = self.networks[0](x)
        for k in range(1, self.stage + 1):
            found = found + self.sizes[k] * self.networks[k](x)
        return found if self.ansatz is None else self.ansatz(found, x)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        trains = any(p.requires_grad for p in self.parameters())
        self.begin(int(state))
        if not trains:  # in a slab of time that is done, or has not begun
            self.requires_grad_(False)
