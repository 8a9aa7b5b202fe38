"""Random features in adaptive patches: solve, estimate, mark, refine (Dörfler 1996; Babuska & Guo 1988).

The weights of `network: {kind: patches}` are found by least squares as those of features are, in points that are drawn in each
patch: where the problem is linear by one solve, otherwise by steps of Gauss and Newton from the solution on coarser patches. The
residual at fresh points says in which patches it is large: the fewest that hold a share `bulk` of its square are halved, along
the coordinate in which the solution has most of its highest Legendre modes. A solve has the sparsity of the patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pinnsketch.methods.least_squares import DAMPING, FALLS, FRESH, SHORTEST, STILL, Weights, evaluate
from pinnsketch.methods.method import Evaluation, Objective
from pinnsketch.methods.multifrontal import Rows, dissected, least_squares
from pinnsketch.patches import Patches

ROWS, EDGE = 3, 3
"""Points of a patch for each of its features, and on a boundary for each along it."""
SHARE = 2
"""One in so many of these is enough to judge by."""
PIECE = 2048
"""Points whose rows are made at a time."""
NEWTON = 15
"""Steps of Gauss and Newton at most between refinements."""
CLOSE = 1.2
"""How many times its prediction the loss may be after a whole step for the next to be hardly worth it."""
ALIKE = 4.0
"""Of coordinates whose highest modes have energies no further apart, the longest side is halved."""
NODES, MOST = 10, 4096
"""Legendre modes along each coordinate; fewer, where that is more points for a patch."""
GAINS, TRIES = 0.9, 4
"""What refining must lower the fresh residual by in so many rounds."""


class Sample(NamedTuple):
    """Points of all patches: by block, the factor of each point's residuals and its patch."""

    blocks: list[Any]
    factors: list[Tensor]
    patches: list[Tensor]


class AdaptivePatches:
    """Least squares in the output weights of `network: {kind: patches}`, which it refines; a step is one solve.

    It ends where the residual at fresh points is `tolerance` times what it was at first, where all features are used, or where
    refining no longer helps.

    Args:
        parameters: what trains.
        bulk: the share of the squared residual that the patches hold which are halved next.
        tolerance: of the residual at fresh points, over what it was before any solve.
    """

    needs_residuals = True

    def __init__(self, parameters: Sequence[nn.Parameter], bulk: float = 0.6, tolerance: float = 1e-12) -> None:
        self._bulk, self._tolerance = bulk, tolerance
        self._affine: bool | None = None
        self._first, self._best = inf, inf
        self._history: list[float] = []
        """The residual at fresh points after each refinement."""
        self._tries = 0
        """Steps since the last refinement."""
        self._marked: list[tuple[int, int]] = []
        """Patches that are to be halved next, and along which coordinate."""
        self._kept: dict[str, Tensor] | None = None
        """The best network so far."""
        self._stalled: str | None = None

    def scale(self, factor: float) -> None:
        raise ValueError("patches solves for its weights: there is no lr that could decay.")

    @property
    def stalled(self) -> str | None:
        return self._stalled

    def step(self, objective: Objective) -> Evaluation:
        task, model = objective.task, objective.model
        if not isinstance(model.network, Patches):
            raise ValueError(
                f"method patches: expected a network of kind patches; got {type(model.network).__name__}. Set network: "
                "{kind: patches}, or use method features for features that have no patches of their own."
            )
        system = System(task, model)
        if self._affine is None:
            self._begin(system, objective.batch)
        elif self._marked:
            system.refine(self._marked, fit=not self._affine)
            self._marked, self._tries = [], 0
        solved = system.solve(bool(self._affine))
        if not isfinite(solved.loss):
            return evaluate(system.weights, objective.batch)
        self._tries += 1
        if self._affine or solved.settled or self._tries >= NEWTON:
            self._choose(system, solved.rounding)
        return evaluate(system.weights, objective.batch, None)

    def _begin(self, system: System, batch: Any) -> None:
        weights = system.weights
        weights.trace(batch)
        self._affine = weights.affine(batch)
        self._first = float(system.indicators().norm())

    def _choose(self, system: System, rounding: float) -> None:
        """Judge a solution, and choose which patches are halved next."""
        network, each = system.network, system.indicators()
        size = float(each.norm())
        self._history.append(size)
        if size <= self._tolerance * self._first:
            self._stalled = "the residual at fresh points has fallen to the tolerance"
        elif size <= rounding:
            self._stalled = "the residual at fresh points is about as small as rounding leaves it"
        elif len(self._history) > TRIES and size > GAINS * min(self._history[:-TRIES]):
            self._stalled = f"the last {TRIES} refinements did not lower the residual at fresh points"
        elif not network.room:
            self._stalled = f"all {network.output.in_features} features are used: a larger width could lower the residual"
        if size < self._best:
            self._best, self._kept = size, {name: value.clone() for name, value in system.model.state_dict().items()}
        elif self._stalled:
            system.model.load_state_dict(self._kept)
        if self._stalled is None:
            order = each.square().argsort(descending=True, stable=True)
            total = each.square()[order].cumsum(0)
            count = int((total < self._bulk * total[-1]).sum()) + 1
            self._marked = system.marked([network.leaves[k] for k in order[:count].tolist()])

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, "_" + name) for name in self._names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._names:
            setattr(self, "_" + name, state[name])

    _names = ("affine", "first", "best", "history", "tries", "marked", "kept", "stalled")


class Solve(NamedTuple):
    """What a solve came to: the loss after it, whether another step would hardly lower it, the norm that rounding leaves."""

    loss: float
    settled: bool
    rounding: float


class System:
    """The residuals of a task in the weights of patches, at points of these patches."""

    def __init__(self, task: Any, model: Any) -> None:
        self.task, self.model, self.network = task, model, model.network
        self.weights = Weights(task, model)
        self._trained = self.weights.parameters
        self._sample: Sample | None = None

    def sample(self, fresh: bool = False) -> Sample:
        """The points of all patches."""
        if fresh or self._sample is None:
            network, d = self.network, self.network.level.shape[1]
            edge = EDGE * round(network.each ** ((d - 1) / d))
            share = SHARE if fresh else 1
            cells = [self._cell(k) for k in network.leaves]
            drawn = self.task.within(cells, ROWS * network.each // share, max(edge // share, 1), FRESH if fresh else 0)
            drawn = [part for part in drawn if len(part.block.x)]
            found = Sample([p.block for p in drawn], [p.factor for p in drawn], [p.box for p in drawn])
            if fresh:
                return found
            self._sample = found
        return self._sample

    def _cell(self, k: int) -> Any:
        network = self.network
        low, high = (((edge[k] / network.scale) + network.center).cpu().numpy() for edge in network.boxes())
        key = (*network.level[k].tolist(), *network.place[k].tolist())
        return self.task.cell(low, high, key)

    def residuals(self, sample: Sample) -> list[Tensor]:
        """Scaled residuals of each block with its factors, `(c, n)`."""
        found = []
        for block, factor in zip(sample.blocks, sample.factors, strict=True):
            pieces = []
            for k in range(0, len(block.x), PIECE):
                piece = block.piece(k, k + PIECE)
                each = self.task.scaled(self.model, (piece,)).values()
                pieces.append(torch.cat([r.view(-1, len(piece.x)) for r in each]))
            found.append(torch.cat(pieces, dim=1) * factor)
        return found

    def indicators(self) -> Tensor:
        """The norm of the residuals of each leaf at fresh points."""
        sample = self.sample(fresh=True)
        found = self.network.center.new_zeros(len(self.network.leaves))
        for r, patch in zip(self.residuals(sample), sample.patches, strict=True):
            found.index_add_(0, patch, r.square().sum(0))
        return found.sqrt()

    def loss(self) -> float:
        return sum(float(r.square().sum()) for r in self.residuals(self.sample()))

    def rows(self) -> tuple[list[Rows], float]:
        """Rows of the Jacobian with minus the residuals on their right, and the loss."""
        sample, groups, loss = self.sample(), dict[tuple[int, ...], list[tuple[Tensor, Tensor]]](), 0.0
        for block, factor in zip(sample.blocks, sample.factors, strict=True):
            for k in range(0, len(block.x), PIECE):
                piece, scale = block.piece(k, k + PIECE), factor[k : k + PIECE]
                r, jacobian = self.task.linearize(self.model, (piece,), self._trained)
                r = r.view(-1, len(piece.x)) * scale
                loss += float(r.square().sum())
                if not isfinite(loss):
                    return [], loss
                self._add(groups, piece.x, -r, scale, jacobian.blocks[0])
        return [_joined(blocks, parts) for blocks, parts in groups.items()], loss

    def _add(self, groups: Any, x: Tensor, right: Tensor, scale: Tensor, outers: Any) -> None:
        network, n, c = self.network, len(x), len(right)
        local = outers[0].local() * scale[:, None, None]
        o = local.shape[2]
        local = local.view(c, n, o, -1, network.each).permute(1, 0, 3, 2, 4).reshape(n, c, -1, o * network.each)
        dense = [
            outers[k].rows().view(c, n, -1).transpose(0, 1) * scale[:, None, None] for k in range(1, len(self._trained)) if k in outers
        ]
        for boxes, points in self._groups(x):
            entries = [local[points][:, :, : len(boxes)].flatten(2), *(part[points] for part in dense)]
            rows = torch.cat(entries, dim=2).flatten(0, 1)
            blocks = (*boxes, -1) if dense else boxes
            groups.setdefault(blocks, []).append((rows, right[:, points].T.reshape(-1, 1)))

    def _groups(self, x: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
        """Points by the patches they are near to."""
        index, meant = self.network.near(x)
        keys, which = np.unique(torch.where(meant, index, -1).cpu().numpy(), axis=0, return_inverse=True)
        order = np.argsort(which.reshape(-1), kind="stable")
        cuts = np.cumsum(np.bincount(which.reshape(-1), minlength=len(keys)))[:-1]
        points = [torch.as_tensor(part, device=x.device) for part in np.split(order, cuts)]
        return [(tuple(k for k in key if k >= 0), part) for key, part in zip(keys.tolist(), points, strict=True)]

    def least(self, rows: Sequence[Rows], size: int) -> dict[int, Tensor]:
        """The least-squares solution of rows, by patch."""
        joined: dict[int, set[int]] = {k: set() for k in self.network.leaves}
        for part in rows:
            for k in part.blocks:
                if k >= 0:
                    joined[k] |= set(part.blocks)
        low, high = self.network.boxes()
        centres = dict(enumerate((low + high).tolist()))
        order = dissected([k for k in joined if joined[k]], joined, centres)
        sizes = dict.fromkeys(order, size)
        if any(-1 in part.blocks for part in rows):
            order, sizes[-1] = [*order, -1], sum(p.numel() for p in self._trained[1:])
        return least_squares(rows, sizes, order)

    def solve(self, affine: bool) -> Solve:
        """One step of Gauss and Newton: to the minimum where the residuals are affine, else as far as they fall along it."""
        start = self.weights.now
        if affine:
            self.weights.place(torch.zeros_like(start))
        rows, before = self.rows()
        if not isfinite(before):
            self.weights.place(start)
            return Solve(before, True, 0.0)
        outputs, origin = self.network.output.out_features, self.weights.now
        found = self.least(rows, outputs * self.network.each)
        step, predicted = self._vector(found), 0.0
        for part in rows:
            predicted += float((part.right - part.entries @ torch.cat([found[b] for b in part.blocks])).square().sum())
        if affine:
            self.weights.place(step)
            return Solve(predicted, True, _rounding(rows, self._by_block()))
        length, after = 1.0, inf
        while length >= SHORTEST:
            self.weights.place(origin + length * step)
            after = self.loss()
            if after < before:
                break
            length /= 2
        else:
            self.weights.place(origin)
            after = before
        falls = after < STILL * before and predicted < FALLS * before and not (length == 1 and after < CLOSE * predicted)
        return Solve(after, not falls, _rounding(rows, self._by_block()))

    def _by_block(self) -> dict[int, Tensor]:
        """The present parameters by patch, `(size, 1)`."""
        each, (weight, *rest) = self.network.each, self.weights.parts
        found = {k: weight[:, k * each : (k + 1) * each].reshape(-1, 1) for k in self.network.leaves}
        return found | ({-1: torch.cat([p.reshape(-1, 1) for p in rest])} if rest else {})

    def _vector(self, found: dict[int, Tensor]) -> Tensor:
        """A solution as a change of all parameters."""
        weight = torch.zeros_like(self.network.output.weight)
        each = self.network.each
        for k, part in found.items():
            if k >= 0:
                weight[:, k * each : (k + 1) * each] = part.view(len(weight), each)
        rest = [found[-1][:, 0]] if -1 in found else [weight.new_zeros(p.numel()) for p in self._trained[1:]]
        return torch.cat([weight.flatten(), *rest])

    def marked(self, boxes: Sequence[int]) -> list[tuple[int, int]]:
        """Which boxes are halved along which coordinate, as far as there is room."""
        return [(k, self.axis(k)) for k in boxes[: self.network.room]]

    def axis(self, k: int) -> int:
        """The coordinate along which the function in a box has most of its high Legendre modes."""
        d = self.network.level.shape[1]
        count = max(3, min(NODES, int(MOST ** (1 / d))))
        nodes, mass = np.polynomial.legendre.leggauss(count)
        transform = np.polynomial.legendre.legvander(nodes, count - 1).T * mass * np.sqrt(np.arange(count) + 0.5)[:, None]
        low, high = ((edge[k] / self.network.scale + self.network.center) for edge in self.network.boxes())
        grid = torch.cartesian_prod(*[torch.as_tensor(nodes)] * d).view(-1, d).to(low)
        with torch.no_grad():
            values = self.network((low + high) / 2 + grid * (high - low) / 2)
        modes = values.T.cpu().numpy().reshape(-1, *[count] * d)
        for axis in range(1, d + 1):
            modes = np.moveaxis(np.tensordot(transform, modes, axes=(1, axis)), 0, axis)
        energy = [float((np.moveaxis(modes, axis, 0)[count // 2 :] ** 2).sum()) for axis in range(1, d + 1)]
        level = self.network.level[k].tolist()
        return min((a for a in range(d) if ALIKE * energy[a] >= max(energy)), key=lambda a: (level[a], a))

    def refine(self, marked: Sequence[tuple[int, int]], fit: bool) -> None:
        """Halve boxes, and neighbours that would be more than twice as wide.

        Args:
            marked: boxes, and along which coordinate.
            fit: let the function stay as it is, as far as the new features can.
        """
        network, before = self.network, deepcopy(self.network) if fit else None
        for k, axis in marked:
            self._split(k, axis)
        while network.room and (wide := network.unbalanced()):
            for k, axis in wide[: network.room]:
                self._split(k, axis)
        self._sample = None
        if before is not None:
            self._fit(before)

    def _split(self, k: int, axis: int) -> None:
        for part in (k, self.network.split(k, axis)):
            self.network.used[part] = self.task.meets(self._cell(part))

    def _fit(self, other: Patches) -> None:
        """Let the network be near another at the points of all patches."""
        rows = []
        for block in self.sample().blocks:
            for k in range(0, len(block.x), PIECE):
                x = block.x[k : k + PIECE]
                with torch.no_grad():
                    hidden, right = self.network.hidden(x, *self.network.near(x)), other(x)
                for boxes, points in self._groups(x):
                    rows.append(Rows(boxes, hidden[points, : len(boxes) * self.network.each], right[points]))
        weight = self.network.output.weight
        with torch.no_grad():
            weight.zero_()
            for k, part in self.least(rows, self.network.each).items():
                weight[:, k * self.network.each : (k + 1) * self.network.each] = part.T


def _joined(blocks: tuple[int, ...], parts: Sequence[tuple[Tensor, Tensor]]) -> Rows:
    return Rows(blocks, torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts]))


def _rounding(rows: Sequence[Rows], x: Mapping[int, Tensor]) -> float:
    """mu |D x|: a residual of that norm is as small as rounding leaves it; D are the norms of columns."""
    size: dict[int, Any] = {}
    for part in rows:
        sizes = [len(x[b]) for b in part.blocks]
        for b, piece in zip(part.blocks, part.entries.square().sum(0).split(sizes), strict=True):
            size[b] = size.get(b, 0.0) + piece
    eps = torch.finfo(rows[0].entries.dtype).eps
    return DAMPING * eps * sum(float((norms * x[b][:, 0].square()).sum()) for b, norms in size.items()) ** 0.5
