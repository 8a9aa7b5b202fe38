"""The residuals of a task in the weights of patches, at points of these patches, and their least-squares solution.

Residuals inside a patch are weighed by its size h, those on sides by its root (as mesh-dependent norms have it: Aziz, Kellogg &
Stephens 1985): a residual in a small part of the domain makes a small error. Without that a corner, at which the derivatives of
a solution have no finite mean square, would be all that counts (Cox & Fix 1984; Lee, Manteuffel & Westphal 2006).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pinnsketch.blocks import Within
from pinnsketch.geometry import Region
from pinnsketch.methods.least_squares import FALLS, FRESH, SHORTEST, STILL, Weights
from pinnsketch.methods.multifrontal import Rows, dissected, least_squares
from pinnsketch.patches import Patches
from pinnsketch.points import Cell

ROWS, EDGE = 3, 3
"""Points of a patch for each of its features, and on a boundary for each along it."""
INSIDE, SIDES = 1.0, 0.5
"""Powers of the size of a patch that residuals are weighed by."""
SHARE = 2
"""One in so many of these is enough to judge by."""
PIECE = 1 << 10, 1 << 13
"""Points whose rows are made at a time: on a CPU its cache holds most of them; a GPU wants more."""
WATCHED = 4
"""Whole steps within which the loss must have fallen."""
CLOSE = 1.2
"""How many times its prediction the loss may be after a whole step for the next to be hardly worth it."""
ALIKE = 4.0
"""Of coordinates whose highest modes have energies no further apart, the longest side is halved."""
NODES, MOST = 10, 4096
"""Legendre modes along each coordinate; fewer, where these would take more points."""
REST = -1
"""The block of columns of all parameters but the weights of patches."""


class Solve(NamedTuple):
    """What a solve came to: the loss after it, and whether another would hardly lower it."""

    loss: float
    settled: bool


class PatchSystem:
    """Residuals and rows of their Jacobian at points that are drawn in each patch, with the sparsity of the patches.

    Args:
        task, model: as in `Objective`; the network of the model is one of patches.
    """

    def __init__(self, task: Any, model: Any) -> None:
        self.task, self.model, self.weights = task, model, Weights(task, model)
        self.network: Patches = model.network
        self._points: list[Within] | None = None
        self._piece = PIECE[model.device.type != "cpu"]

    def points(self, fresh: bool = False) -> list[Within]:
        """The points of all patches, those near to the same number of patches together; fresh: others, and fewer."""
        if self._points is not None and not fresh:
            return self._points
        d, each, share = self.network.level.shape[1], self.network.each, SHARE if fresh else 1
        interior, boundary = ROWS * each // share, max(EDGE * round(each ** ((d - 1) / d)) // share, 1)
        cells = self.cells(self.network.leaves)
        drawn = map(self._weighed, self.task.within(cells, interior, boundary, FRESH if fresh else 0))
        found = [part.at(self.network.near(part.block.x)[1].sum(1).argsort(stable=True)) for part in drawn]
        if not fresh:
            self._points = found
        return found

    def cells(self, boxes: Sequence[int]) -> list[Cell]:
        """These boxes as places to draw points in."""
        low, high = (corner[boxes].cpu().numpy() for corner in self.network.corners())
        keys = torch.cat([self.network.level[boxes], self.network.place[boxes]], dim=1).tolist()
        return [Cell(low[k], high[k], tuple(key)) for k, key in enumerate(keys)]

    def _weighed(self, part: Within) -> Within:
        """The points with the size of their patch, over that of the domain, in their factors; data stays as it is."""
        where = self.task.problem.terms[part.block.terms[0]].where
        power = (SIDES if where.has_normal else INSIDE) if isinstance(where, Region) else 0.0
        level = self.network.level[self.network.leaves].to(part.factor).mean(1)
        return replace(part, factor=part.factor * 2 ** (-power * level[part.cell]))

    def residuals(self, points: Sequence[Within]) -> list[Tensor]:
        """Scaled residuals at points with their factors, `(c, n)` by block."""
        found = []
        for part in points:
            pieces = [part.block.piece(k, k + self._piece) for k in range(0, len(part.block.x), self._piece)]
            each = [[r.view(-1, len(p.x)) for r in self.task.scaled(self.model, (p,)).values()] for p in pieces]
            found.append(torch.cat([torch.cat(columns) for columns in each], dim=1) * part.factor)
        return found

    def indicators(self) -> Tensor:
        """The norm of the residuals in each leaf at fresh points; infinite where one is no number."""
        points = self.points(fresh=True)
        found = self.network.center.new_zeros(len(self.network.leaves))
        for r, part in zip(self.residuals(points), points, strict=True):
            found.index_add_(0, part.cell, r.square().sum(0))
        return torch.nan_to_num(found.sqrt(), nan=inf, posinf=inf)

    def loss(self) -> float:
        return float(torch.stack([r.square().sum() for r in self.residuals(self.points())]).sum())

    def rows(self) -> tuple[list[Rows], float]:
        """Rows of the Jacobian with minus the residuals on their right, and the loss; none where it is not finite."""
        groups, loss = dict[tuple[int, ...], list[Rows]](), 0.0
        for part in self.points():
            for k in range(0, len(part.block.x), self._piece):
                piece, factor = part.block.piece(k, k + self._piece), part.factor[k : k + self._piece]
                r, jacobian = self.task.linearize(self.model, (piece,), self.weights.parameters)
                r = r.view(-1, len(piece.x)) * factor
                loss += float(r.square().sum())
                if not isfinite(loss):
                    return [], loss
                for rows in self._by_patches(piece.x, -r, factor, jacobian.blocks[0]):
                    groups.setdefault(rows.blocks, []).append(rows)
        return [Rows.joined(parts) for parts in groups.values()], loss

    def _by_patches(self, x: Tensor, right: Tensor, factor: Tensor, outers: Mapping[int, Any]) -> list[Rows]:
        """Rows of residuals `(c, n)` at points `(n, d)`, those of points that are near to the same patches together."""
        (c, n), each = right.shape, self.network.each
        local = outers[0].local() * factor[:, None, None]
        local = local.unflatten(3, (-1, each)).permute(1, 0, 3, 2, 4).flatten(3)
        rest = [outers[k].rows().view(c, n, -1).transpose(0, 1) * factor[:, None, None] for k in sorted(outers) if k]
        found = []
        for boxes, points in self._groups(x):
            entries = torch.cat([local[points, :, : len(boxes)].flatten(2), *(part[points] for part in rest)], dim=2)
            blocks = (*boxes, REST) if rest else boxes
            found.append(Rows(blocks, entries.flatten(0, 1), right[:, points].T.reshape(-1, 1)))
        return found

    def _groups(self, x: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
        """Points by the patches that they are near to."""
        index, meant = self.network.near(x)
        keys, which = np.unique(torch.where(meant, index, -1).cpu().numpy(), axis=0, return_inverse=True)
        which = which.reshape(-1)
        points = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which, minlength=len(keys)))[:-1])
        boxes = [tuple(k for k in key if k >= 0) for key in keys.tolist()]
        return [(key, torch.as_tensor(part, device=x.device)) for key, part in zip(boxes, points, strict=True) if key]

    def least(self, rows: Sequence[Rows], size: int) -> dict[int, Tensor]:
        """The least-squares solution, by patch `(size, q)`."""
        joined: dict[int, set[int]] = {}
        for part in rows:
            for k in part.blocks:
                joined.setdefault(k, set()).update(part.blocks)
        rest = joined.pop(REST, None)
        low, high = self.network.boxes()
        order = dissected(sorted(joined), joined, (low + high).tolist())
        sizes = dict.fromkeys(joined, size)
        if rest is not None:
            order, sizes[REST] = [*order, (REST,)], sum(p.numel() for p in self.weights.parameters[1:])
        return least_squares(rows, sizes, order)

    def solve(self, affine: bool) -> Solve:
        """One step of Gauss and Newton: to the minimum where the residuals are affine, else as far as they fall along it."""
        start = self.weights.now
        if affine:
            self.weights.place(torch.zeros_like(start))
        rows, before = self.rows()
        if not isfinite(before):
            self.weights.place(start)
            return Solve(before, True)
        origin, found = self.weights.now, self.least(rows, self.network.output.out_features * self.network.each)
        step, predicted = self._vector(found), float(torch.stack([part.off(found) for part in rows]).sum())
        if affine:
            self.weights.place(step)
            return Solve(predicted, True)
        length, after = 0.5, self._ahead(step, before)
        while length >= SHORTEST and not after < before:
            self.weights.place(origin + length * step)
            after, length = self.loss(), length / 2
        if not after < before:
            self.weights.place(origin)
            after = before
        done = length == 0.5 and after < CLOSE * predicted
        falls = after < STILL * before and predicted < FALLS * before
        return Solve(after, done or not falls)

    def _ahead(self, step: Tensor, before: float) -> float:
        """The loss after a whole step and, as long as each halves it at least, further ones, until it is lower than before.

        After a whole step what is left is of second order: more than before, where residuals were small and the step was not.
        A line search would cut it short, though the next step may take that away (Chamberlain et al. 1982, the watchdog).
        """
        after = last = inf
        for tried in range(WATCHED):
            if tried:
                rows, last = self.rows()
                step = self._vector(self.least(rows, self.network.output.out_features * self.network.each))
            self.weights.place(self.weights.now + step)
            after = self.loss()
            if after < before or not after < last / 2:
                break
        return after

    def _vector(self, found: Mapping[int, Tensor]) -> Tensor:
        """A change of all parameters, given by patch."""
        weight, each = torch.zeros_like(self.network.output.weight), self.network.each
        for k, part in found.items():
            if k != REST:
                weight[:, k * each : (k + 1) * each] = part.view(-1, each)
        rest = [found[REST][:, 0]] if REST in found else [p.new_zeros(p.numel()) for p in self.weights.parameters[1:]]
        return torch.cat([weight.flatten(), *rest]).detach()

    def axis(self, k: int) -> int:
        """The coordinate along which the function in a box has most of its highest Legendre modes."""
        d, (low, high) = self.network.level.shape[1], (corner[k].to(self.network.center) for corner in self.network.corners())
        count = max(3, min(NODES, int(MOST ** (1 / d))))
        nodes, mass = np.polynomial.legendre.leggauss(count)
        transform = np.polynomial.legendre.legvander(nodes, count - 1).T * mass * np.sqrt(np.arange(count) + 0.5)[:, None]
        grid = torch.cartesian_prod(*[torch.as_tensor(nodes)] * d).view(-1, d).to(low)
        with torch.no_grad():
            modes = self.network.regular((low + high) / 2 + grid * (high - low) / 2).T.cpu().numpy().reshape(-1, *[count] * d)
        for axis in range(1, d + 1):
            modes = np.moveaxis(np.tensordot(transform, modes, axes=(1, axis)), 0, axis)
        energy = [float(np.square(np.moveaxis(modes, axis, 0)[count // 2 :]).sum()) for axis in range(1, d + 1)]
        level = self.network.level[k].tolist()
        return min((a for a in range(d) if ALIKE * energy[a] >= max(energy)), key=lambda a: (level[a], a))

    def refine(self, marked: Sequence[tuple[int, int]], fit: bool) -> None:
        """Halve boxes, and neighbours that would be more than twice as wide.

        Args:
            marked: boxes, and along which coordinate.
            fit: let the function stay as it is, as far as the new features can; else weights are out of date.
        """
        before = deepcopy(self.network) if fit else None
        while marked and self.network.room:
            for k, axis in marked[: self.network.room]:
                parts = [k, self.network.split(k, axis)]
                for part, cell in zip(parts, self.cells(parts), strict=True):
                    self.network.used[part] = self.task.meets(cell)
            marked = self.network.unbalanced()
        self._points = None
        if before is not None:
            self.fit(before)

    def fit(self, other: Callable[[Tensor], Tensor]) -> None:
        """Let the network be near a function of points `(n, d)` at points of all patches."""
        rows, each = [], self.network.each
        for part in self.points(fresh=True):
            for x in part.block.x.split(self._piece):
                with torch.no_grad():
                    hidden, right = self.network.hidden(x, *self.network.near(x)), other(x)
                    right = right if self.network.singular is None else right - self.network.singular(x)
                rows += [Rows(boxes, hidden[p, : len(boxes) * each], right[p]) for boxes, p in self._groups(x)]
        with torch.no_grad():
            for k, found in self.least(rows, each).items():
                self.network.output.weight[:, k * each : (k + 1) * each] = found.T
