"""Places: where the terms of a problem stand, and the points that are drawn there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinnsketch.blocks import Block, Within, group
from pinnsketch.geometry.shape import Region
from pinnsketch.marching import at_start, during, expect_march
from pinnsketch.points import Cell, Points, draw, draw_within
from pinnsketch.problem import Problem
from pinnsketch.slabs import Slabs

PROPOSED = 64
"""Points in a box, of 64 times as many tried at most, by one of which it meets the domain."""


class Places:
    """Where the terms of a problem stand: terms on the same place share points, of which each draw is a block.

    Args:
        problem: whose terms.
        interior, boundary, terms: how many points, as for `Collocation`.
        sampler: a name in `pinnsketch.points.SAMPLERS`.
        seed: of the points.
        slabs: of time; points are those of the present one.
        to: dtype and device of blocks.
    """

    def __init__(
        self,
        problem: Problem,
        interior: int,
        boundary: int,
        terms: Mapping[str, int],
        sampler: str,
        seed: int,
        slabs: Slabs | None,
        to: Mapping[str, Any],
    ) -> None:
        self._problem, self._sampler, self._seed, self._slabs, self._to = problem, sampler, seed, slabs, to
        self._parts: dict[tuple[int, ...], tuple[Points, float]] = {}
        self._places = group(problem, interior, boundary, terms)
        if slabs is not None:
            expect_march(problem, self._time)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def counts(self) -> list[int]:
        """How many points of each place are asked for; of data, all there are."""
        return [count if isinstance(where, Region) else sys.maxsize for where, count, _ in self._places]

    def block(self, index: int, number: int, times: int = 1) -> Block:
        """The points of a place in a draw; `times`: so many times as many."""
        where, count, names = self._places[index]
        if isinstance(where, Region):
            points, columns = draw(self._where(index), times * count, self._sampler, (self._seed, index, number)), {}
        else:
            table = where.columns()
            points = Points(np.stack([table.pop(name) for name in self._problem.coordinates], axis=1))
            columns = {name: self._tensor(values)[:, None] for name, values in table.items()}
        normal = None if points.normal is None else self._tensor(points.normal)
        return Block(names, self._tensor(points.x), normal, columns)

    def follows(self, block: Block) -> bool:
        """Whether a block is where the present slab goes on from the one before."""
        if self._slabs is None or not self._slabs.slab:
            return False
        where = next(where for where, _, names in self._places if names == block.terms)
        return at_start(where, self._time, self._problem)

    def within(self, cells: Sequence[Cell], interior: int, boundary: int, draw: int = 0) -> list[Within]:
        """Points in each of some boxes: so many of those parts of a region that lie in it; data is divided among the boxes.

        Args:
            cells: boxes that do not overlap and hold all of the domain.
            interior, boundary: how many points of interiors, and of boundaries, in each box.
            draw: its number. What is drawn in a box does not depend on the others.
        """
        found = []
        for index, (where, _, names) in enumerate(self._places):
            if isinstance(where, Region):
                n = boundary if where.has_normal else interior
                parts = [self._part(index, n, draw, cell) for cell in cells]
                counts = np.array([len(points.x) for points, _ in parts])
                shares = np.repeat([amount / max(len(points.x), 1) for points, amount in parts], counts)
                x, normals = np.concatenate([p.x for p, _ in parts]), [p.normal for p, _ in parts if p.normal is not None]
                block = Block(names, self._tensor(x), self._tensor(np.concatenate(normals)) if normals else None, {})
                which = np.repeat(np.arange(len(cells)), counts)
            else:
                block = self.block(index, 0)
                which = np.stack([cell.holds(block.x.double().cpu().numpy()) for cell in cells]).argmax(axis=0)
                shares = np.ones(len(which))
            if len(which):
                factor = self._tensor(np.sqrt(shares / shares.mean()))
                found.append(Within(block, factor, torch.as_tensor(which, device=block.x.device)))
        return found

    def meets(self, cell: Cell) -> bool:
        """Whether the domain has points in a box."""
        return draw_within(self._problem.domain.interior, cell, PROPOSED)[1] > 0

    def _part(self, index: int, count: int, number: int, cell: Cell) -> tuple[Points, float]:
        """What is drawn in one box, which is kept."""
        key = (index, count, number, self._slabs.slab if self._slabs else 0, *cell.key)
        if key not in self._parts:
            self._parts[key] = draw_within(self._where(index), cell, count, (self._seed, index, number))
        return self._parts[key]

    def _where(self, index: int) -> Region:
        """Where the points of a block are drawn: in the present slab."""
        where: Any = self._places[index][0]
        return where if self._slabs is None else during(where, self._time, *self._slabs.interval)

    @property
    def _time(self) -> str:
        assert self._slabs is not None
        return self._problem.coordinates[self._slabs.axis]

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, **self._to)
