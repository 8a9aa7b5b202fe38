"""Random features in adaptive patches: solve, estimate, mark, refine (Dörfler 1996; Babuska & Guo 1988).

The weights of `network: {kind: patches}` are found by least squares as those of features are, at points that are drawn in each
patch: where the problem is linear by one solve, otherwise by steps of Gauss and Newton from the solution on coarser patches.
The residual at fresh points says in which patches it is large: the fewest that hold a share `bulk` of its square are halved,
along the coordinate in which the solution has most of its highest Legendre modes. A solve has the sparsity of the patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

from torch import Tensor, nn

from pinnsketch.methods.least_squares import evaluate
from pinnsketch.methods.method import Evaluation, Objective
from pinnsketch.methods.patch_system import PatchSystem
from pinnsketch.patches import Patches

NEWTON = 15
"""Steps of Gauss and Newton at most between refinements."""
MANY, GAINS = 16, 0.9
"""From so many patches on, twice as many must lower the fresh residual to so much of what it was."""


class AdaptivePatches:
    """Least squares in the output weights of `network: {kind: patches}`, which it refines; a step is one solve.

    It ends where the residual at fresh points is `tolerance` times what it was at first, where all features are used, or where
    twice as many no longer help, with the network that had the least.

    Args:
        parameters: what trains.
        bulk: the share of the squared residual that the patches hold which are halved next.
        tolerance: of the residual at fresh points, over what it was before any solve.
    """

    needs_residuals = True
    solves = True
    """A step is a solve: that the next one changes nothing is no trouble."""

    def __init__(self, parameters: Sequence[nn.Parameter], bulk: float = 0.9, tolerance: float = 1e-12) -> None:
        self._bulk, self._tolerance = bulk, tolerance
        self._system: PatchSystem | None = None
        self._affine: bool | None = None
        self._first = inf
        """The residual at fresh points before any solve."""
        self._history: list[tuple[int, float]] = []
        """Patches, and the residual at fresh points, before each refinement."""
        self._tries = 0
        """Steps since the last refinement."""
        self._marked: list[tuple[int, int]] = []
        """Patches that are to be halved next, and along which coordinate."""
        self._best: dict[str, Tensor] | None = None
        """The model with the least residual at fresh points."""
        self._stalled: str | None = None

    def scale(self, factor: float) -> None:
        raise ValueError("patches solves for its weights: there is no lr that could decay.")

    @property
    def stalled(self) -> str | None:
        return self._stalled

    def step(self, objective: Objective) -> Evaluation:
        system = self._system = self._system or self._begun(objective)
        if self._affine is None:
            self._affine, self._first = system.weights.affine(objective.batch), float(system.indicators().norm())
        if self._marked:
            system.refine(self._marked, fit=not self._affine)
            self._marked, self._tries = [], 0
        solved = system.solve(self._affine)
        self._tries += 1
        if isfinite(solved.loss) and (solved.settled or self._tries >= NEWTON):
            self._choose(system)
        return evaluate(system.weights, objective.batch)

    def _begun(self, objective: Objective) -> PatchSystem:
        network = objective.model.network
        if not isinstance(network, Patches):
            raise ValueError(
                f"method patches: expected a network of kind patches; got {type(network).__name__}. Set network: "
                "{kind: patches}, or use method features for features that are not refined."
            )
        system = PatchSystem(objective.task, objective.model)
        system.weights.trace(objective.batch)
        return system

    def _choose(self, system: PatchSystem) -> None:
        """Judge a solution, and choose which patches are halved next."""
        network, each = system.network, system.indicators()
        leaves, size = network.leaves, float(each.norm())
        sizes = [size, *(before for _, before in self._history)]
        earlier = [before for count, before in self._history if MANY <= count <= len(leaves) / 2]
        if size == min(sizes):
            self._best = {name: value.clone() for name, value in system.model.state_dict().items()}
        self._history.append((len(leaves), size))
        if size <= self._tolerance * self._first:
            self._stalled = "the residual at fresh points has fallen to the tolerance"
        elif earlier and min(sizes) > GAINS * min(earlier):
            self._stalled = "twice as many patches did not lower the residual at fresh points"
        elif not network.room:
            self._stalled = f"all {network.output.in_features} features are used: a larger width may lower the residual"
        if self._stalled and self._best is not None:
            system.model.load_state_dict(self._best)
            return
        square, order = each.square().sort(descending=True, stable=True)
        count = 1 + int((square.cumsum(0) < self._bulk * square.sum()).sum())
        self._marked = [(leaves[k], system.axis(leaves[k])) for k in order[:count].tolist()]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in KEPT:
            setattr(self, f"_{name}", state[name])


KEPT = ("affine", "first", "history", "tries", "marked", "best", "stalled")
"""What a checkpoint holds of the method."""
