"""Trial: the network of the unknown functions together with the unknown coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from pinnsketch.ansatz import Ansatz
from pinnsketch.enrichment import Enrichment
from pinnsketch.problem import ProblemError, Unknown


class Trial(nn.Module):
    """A trial solution: the network of the unknown functions, and the unknown coefficients.

    Args:
        network: maps points `(n, d)` to values `(n, m)`, one column for each unknown.
        coefficients: the coefficients that train.
    """

    def __init__(self, network: nn.Module, coefficients: Mapping[str, Unknown] | None = None) -> None:
        super().__init__()
        self.network = network
        self._part: tuple[Trial, ...] = ()
        self._positive = {name: unknown.positive for name, unknown in (coefficients or {}).items()}
        reference = next(network.parameters(), None)
        if reference is None:
            raise ProblemError("The network has no parameters: there is nothing to train.")
        self.raw = nn.ParameterDict()
        for name, unknown in (coefficients or {}).items():
            initial = torch.tensor(float(unknown.initial), dtype=reference.dtype, device=reference.device)
            self.raw[name] = nn.Parameter(initial.log() if unknown.positive else initial)

    @property
    def coefficients(self) -> dict[str, Tensor]:
        """Present values of the unknown coefficients, each a scalar."""
        return {name: raw.exp() if self._positive[name] else raw for name, raw in self.raw.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the network computes in."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def acting(self) -> Trial:
        """What trains now: this, or of a network in slabs of time the part in the present one, with the same coefficients."""
        network = getattr(self.network, "acting", self.network)
        if network is self.network:
            return self
        if not self._part or self._part[0].network is not network:
            self._part = (self.around(network),)
        return self._part[0]

    def around(self, network: nn.Module) -> Trial:
        """A trial of another network with these same coefficients."""
        found = Trial(network)
        found.raw, found._positive = self.raw, self._positive
        return found

    def put(self, parameters: Mapping[str, float]) -> None:
        """Give the ansatz, or fields that the network is enriched with, other values of some parameters of the problem."""
        for part in self.modules():
            if isinstance(part, (Ansatz, Enrichment)):
                part.put(parameters)

    def values(self) -> dict[str, float]:
        """Present values of the unknown coefficients, as numbers."""
        return {name: float(value.detach()) for name, value in self.coefficients.items()}

    def slopes(self) -> dict[str, float]:
        """Derivatives of the coefficients that train by the parameters that stand for them."""
        known = self.values()
        return {name: known[name] if self._positive[name] else 1.0 for name, raw in self.raw.items() if raw.requires_grad}

    def on(self, network: nn.Module) -> Trial:
        """Another network with copies of the coefficients."""
        found = Trial(network)
        found._positive, found.raw = dict(self._positive), deepcopy(self.raw)
        return found

    def take(self, other: Trial) -> None:
        """Be the function that another is, of more or fewer features of the same kind, with its coefficients."""
        self.network.take(other.network)  # type: ignore[operator]
        with torch.no_grad():
            for name, raw in self.raw.items():
                raw.copy_(other.raw[name])

    def fix(self, name: str, value: float) -> None:
        """Add a coefficient that is known, and trains no more."""
        self._positive[name] = False
        self.raw[name] = nn.Parameter(torch.tensor(value, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)
