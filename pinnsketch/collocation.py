"""Collocation: a Problem as a training task. Its losses are the mean squares of the residuals at collocation points."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from inspect import unwrap
from math import hypot, inf
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from pinnsketch.blocks import Block, Part, Within, cut, group, known_terms
from pinnsketch.derivatives import Derivatives, Linked, Nested, Order, Widened
from pinnsketch.field import Field, FieldError
from pinnsketch.geometry.shape import Region
from pinnsketch.jets import Jacobian, Jets, NoRule, Outer, Streams, Use, by_point, by_rows, by_uses
from pinnsketch.layers import exact, sketched
from pinnsketch.marching import at_start, during, expect_march
from pinnsketch.points import DRAWS, Cell, Points, draw, draw_within
from pinnsketch.problem import Problem, ProblemError, Unknown, check_names, parameters_of, unread
from pinnsketch.slabs import Slabs
from pinnsketch.trial import Trial

Forward = Callable[[Tensor], Tensor]

TRACED = 16
"""Points at which a residual is traced."""
CHUNK_BYTES, MIN_CHUNK = (64 << 20, 4 << 30), 1000
"""What a piece of a batch keeps for the reverse pass: on a CPU its cache holds most of that; and points it has at least."""
PROPOSED = 64
"""Points in a box, of 64 times as many tried at most, by one of which it meets the domain."""
TEST_SEED = 271828
"""Errors are measured at points drawn with this seed, whatever the seed of training."""


@dataclass(frozen=True)
class Plan:
    """How the residuals of a block are evaluated.

    Args:
        streams: what one forward pass carries; None: nested differentiation.
        linked: whether the residuals differentiate expressions, as `diff` and `div` do.
        apart: whether each point's residual depends on that point alone.
        saved: bytes that a point keeps for the reverse pass.
        why: no forward pass is used, or "".
        passes: through the network, or back through it.
        rows: whether that pass gives rows of the Jacobian; None: not known yet.
    """

    streams: Streams | None = None
    linked: bool = False
    apart: bool = False
    saved: int = 0
    why: str = ""
    passes: int = 1
    rows: bool | None = None


class Collocation:
    """The task of making a problem's residuals vanish at collocation points.

    Args:
        problem: what to solve.
        interior, boundary: points on each interior region and on each boundary region.
        terms: number of points by term name, before `Term.points` and the two numbers above.
        sampler: a name in `pinnsketch.points.SAMPLERS`.
        draw: a name in `pinnsketch.points.DRAWS`.
        weights: loss weights by term name, in place of `Term.weight`.
        chunk: evaluate at most so many points at a time; "auto": what suits the machine's cache or memory.
        test: number of points at which errors are measured.
        seed: of the collocation points.
        slabs: of time, if the solution is sought in one after another: points are those of the present one.
        dtype, device: of all tensors.

    Raises:
        ProblemError: if a residual asks for what is not there.
        EmptyRegion: if a region has no points.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        interior: int = 1000,
        boundary: int = 200,
        terms: Mapping[str, int] | None = None,
        sampler: str = "sobol",
        draw: str = "even",
        weights: Mapping[str, float] | None = None,
        chunk: int | str = "auto",
        test: int = 4096,
        seed: int = 0,
        slabs: Slabs | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.problem, self._sampler, self._seed, self._test = problem, sampler, seed, test
        self._pool = DRAWS[draw]
        if chunk != "auto" and not int(chunk) > 0:
            raise ProblemError(f"points: chunk must be auto or a number of points above 0; got {chunk}.")
        self._chunk = None if chunk == "auto" else int(chunk)
        self._to: dict[str, Any] = {"dtype": dtype, "device": device}
        known_terms("points", terms or {}, problem)
        known_terms("weights", weights or {}, problem)
        for name, term in problem.terms.items():
            check_names(problem, name, term)
        self._parameters = {name: value for name, value in problem.parameters.items() if not isinstance(value, Unknown)}
        self.weights = {name: (weights or {}).get(name, term.weight) for name, term in problem.terms.items()}
        self.notes: list[str] = []
        self._plans: WeakKeyDictionary[Trial, dict[tuple[str, ...], Plan]] = WeakKeyDictionary()
        self._parts: dict[tuple[int, ...], tuple[Points, float]] = {}
        self._places = group(problem, interior, boundary, terms or {})
        self.slabs, self._before = slabs, tuple[Trial, ...]()
        if slabs is not None:
            expect_march(problem, self._time)

    def batch(self, draw: int = 0) -> tuple[Block, ...]:
        """The collocation points of a draw: the same number gives the same points, another gives fresh ones."""
        return tuple(self._block(i, draw) for i in range(len(self._places)))

    @property
    def chooses(self) -> bool:
        """Whether points are drawn by their residuals."""
        return self._pool > 1

    def chosen(self, trial: Trial, draw: int = 0) -> tuple[Block, ...]:
        """The points of a draw for a trial as it is: those of `batch`, or by their residuals."""
        if not self.chooses:
            return self.batch(draw)
        pool = tuple(self._block(i, draw, self._pool) for i in range(len(self._places)))
        most = [count if isinstance(where, Region) else sys.maxsize for where, count, _ in self._places]
        rng = np.random.default_rng((self._seed, draw))
        return self.drawn(pool, self.scaled(trial, pool), most, rng.random(len(pool)).tolist())

    @staticmethod
    def drawn(
        batch: tuple[Block, ...], scaled: Mapping[str, Tensor], most: Sequence[int], offsets: Sequence[float]
    ) -> tuple[Block, ...]:
        """Of each block at most so many points, drawn by their residuals, given as `scaled`."""
        found = []
        for block, count, offset in zip(batch, most, offsets, strict=True):
            size = torch.cat([scaled[term].view(-1, len(block.x)) for term in block.terms]).norm(dim=0)
            found.append(block.drawn(size, count, offset))
        return tuple(found)

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
                block = self._block(index, 0)
                which = np.stack([cell.holds(block.x.double().cpu().numpy()) for cell in cells]).argmax(axis=0)
                shares = np.ones(len(which))
            if len(which):
                factor = self._tensor(np.sqrt(shares / shares.mean()))
                found.append(Within(block, factor, torch.as_tensor(which, device=block.x.device)))
        return found

    def meets(self, cell: Cell) -> bool:
        """Whether the domain has points in a box."""
        return draw_within(self.problem.domain.interior, cell, PROPOSED)[1] > 0

    def _part(self, index: int, count: int, number: int, cell: Cell) -> tuple[Points, float]:
        """What is drawn in one box, which is kept."""
        key = (index, count, number, *cell.key)
        if key not in self._parts:
            where: Any = self._places[index][0]
            self._parts[key] = draw_within(where, cell, count, (self._seed, index, number))
        return self._parts[key]

    def elsewhere(self, interior: int, boundary: int, seed: int) -> Collocation:
        """The same task at other points: so many on each interior and each boundary region, drawn with another seed."""
        numbers: Any = {"interior": interior, "boundary": boundary, "test": self._test}
        return Collocation(self.problem, **numbers, weights=self.weights, seed=seed, **self._to)

    def _block(self, index: int, number: int, times: int = 1) -> Block:
        where, count, names = self._places[index]
        if isinstance(where, Region):
            if self.slabs is not None:
                where = during(where, self._time, *self.slabs.interval)
            points, columns = draw(where, times * count, self._sampler, (self._seed, index, number)), {}
        else:
            table = where.columns()
            points = Points(np.stack([table.pop(name) for name in self.problem.coordinates], axis=1))
            columns = {name: self._tensor(values)[:, None] for name, values in table.items()}
        normal = None if points.normal is None else self._tensor(points.normal)
        block = Block(names, self._tensor(points.x), normal, columns)
        if self.slabs is None or not self.slabs.slab or not at_start(self._places[index][0], self._time, self.problem):
            return block
        return replace(block, columns=self._ended(block))

    @property
    def _time(self) -> str:
        assert self.slabs is not None
        return self.problem.coordinates[self.slabs.axis]

    def _ended(self, block: Block) -> dict[str, Tensor]:
        """What the residuals of the start are, `(n, k)`, for the solution in the slab before: it is taken away from them."""
        assert self.slabs is not None
        network = self.slabs.networks[self.slabs.slab - 1]
        if not self._before or self._before[0].network is not network:
            self._before = (Trial(network),)
        (trial,) = self._before
        found = self._planned(trial, block, partial(self._residuals, trial, block))
        return {_before(name): r.detach() for name, r in found.items()}

    def residuals(self, trial: Trial, batch: tuple[Block, ...]) -> dict[str, Tensor]:
        """Each term's residual at its points, `(n, k)`."""
        found: dict[str, Tensor] = {}
        for block in batch:
            found |= self._planned(trial, block, partial(self._residuals, trial, block))
        return {term: found[term] for term in self.problem.terms if term in found}

    def _planned(self, trial: Trial, block: Block, evaluate: Callable[[Plan], Any]) -> Any:
        """Evaluate by the block's plan, or nested if the residuals read what they did not read when they were traced."""
        plan = self.plan(trial, block)
        if plan.streams is None:
            refuse_sketches(trial, block.terms, plan.why)
        try:
            return evaluate(plan)
        except (NoRule, ProblemError) as error:
            if plan.streams is None:
                raise
            refuse_sketches(trial, block.terms, str(error))
            nested = replace(plan, streams=None, linked=False, rows=False, why=str(error))
            found = evaluate(nested)
            self._plans[trial][block.terms] = nested
            self._say_why(block, nested)
            return found

    def linearize(
        self, trial: Trial, batch: tuple[Block, ...], parameters: Sequence[nn.Parameter] | None = None
    ) -> tuple[Tensor, Jacobian]:
        """Residuals r `(N,)`, scaled so that the weighted loss is their sum of squares, and their Jacobian `(N, P)`.

        Rows are ordered by block, term, column and point; P counts `parameters`, or else all that train.

        Raises:
            ProblemError: if a residual mixes points: it has no row for each.
        """
        given = [p for p in trial.parameters() if p.requires_grad] if parameters is None else list(parameters)
        found = [self._planned(trial, block, partial(self._linearize, trial, block, given)) for block in batch]
        return torch.cat([r for r, _ in found]), Jacobian(found, [p.shape for p in given])

    def gives_rows(self, trial: Trial, batch: tuple[Block, ...], parameters: Sequence[nn.Parameter]) -> bool:
        """Whether one forward pass gives all rows of that Jacobian, so that `linearize` is quick."""
        plans = [(block, self.plan(trial, block)) for block in batch]
        with exact(trial.network):
            return all(plan.apart and self._with_rows(trial, block, plan, list(parameters)).rows for block, plan in plans)

    def _linearize(
        self, trial: Trial, block: Block, parameters: list[nn.Parameter], plan: Plan
    ) -> tuple[Tensor, dict[int, Outer]]:
        if not plan.apart:
            raise ProblemError(f"Terms {', '.join(block.terms)}: a residual mixes points, so it has no Jacobian row for each.")
        with exact(trial.network):
            plan = self._with_rows(trial, block, plan, parameters)
        if not plan.rows:
            refuse_sketches(trial, block.terms, "the forward pass does not give rows of the Jacobian")
        uses: list[Use] | None = [] if plan.rows else None
        columns = self._scaled(block, self._residuals(trial, block, plan if plan.rows else Plan(), uses))
        rows = by_rows(columns, parameters) if uses is None else by_uses(columns, uses, parameters)
        return columns.detach().T.flatten(), rows

    def scaled(self, trial: Trial, batch: tuple[Block, ...]) -> dict[str, Tensor]:
        """The same r by term, `(n k,)` each, in the order of the rows; no gradient."""

        def residuals(block: Block, plan: Plan) -> dict[str, Tensor]:
            with torch.set_grad_enabled(plan.streams is None):
                return self._residuals(trial, block, plan)

        found: dict[str, Tensor] = {}
        for block in batch:
            each = self._planned(trial, block, partial(residuals, block))
            found |= {name: self._scaled(block, {name: r}).detach().T.flatten() for name, r in each.items()}
        return found

    def by_term(self, trial: Trial, batch: tuple[Block, ...], parameters: list[nn.Parameter]) -> dict[str, Part]:
        """The gradient of each term's weighted loss, and the norm of what each point contributes to it.

        One reverse pass for each term; the norms are by the channel-Gram identity, from what that pass leaves at the layers.
        """
        found: dict[str, Part] = {}
        with exact(trial.network):
            for block in (block for piece in self.pieces(trial, batch) for block in piece):
                for name, part in self._planned(trial, block, partial(self._by_term, trial, block, parameters)).items():
                    found[name] = found[name] + part if name in found else part
        return {term: found[term] for term in self.problem.terms if term in found}

    def _by_term(self, trial: Trial, block: Block, parameters: list[nn.Parameter], plan: Plan) -> dict[str, Part]:
        plan = self._with_rows(trial, block, plan, parameters) if plan.apart else plan
        uses: list[Use] | None = [] if plan.apart and plan.rows else None
        scaled = {name: self._scaled(block, {name: r}) for name, r in self._residuals(trial, block, plan, uses).items()}
        if uses is None:
            how: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            each = [torch.autograd.grad(r.square().sum(), parameters, **how) for r in scaled.values()]
            return {name: Part(list(gradient), None) for name, gradient in zip(scaled, each, strict=True)}
        losses = torch.cat([r.square().sum(dim=1, keepdim=True) for r in scaled.values()], dim=1)
        gradients, norms = by_point(losses, uses, parameters)
        return {name: Part(list(gradients[t]), norms[t]) for t, name in enumerate(scaled)}

    def _with_rows(self, trial: Trial, block: Block, plan: Plan, parameters: list[nn.Parameter]) -> Plan:
        """The plan, with it known whether the forward pass gives rows of the Jacobian."""
        if plan.rows is None:
            few = block.piece(0, TRACED)
            plan = self._plans[trial][block.terms] = replace(plan, rows=self._rows_are_right(trial, few, plan, parameters))
        return plan

    def _rows_are_right(self, trial: Trial, few: Block, plan: Plan, parameters: list[nn.Parameter]) -> bool:
        """Whether the outer products of the forward pass give the gradient that a reverse pass gives."""
        if plan.streams is None:
            return False
        try:
            uses: list[Use] = []
            columns = torch.cat([*self._residuals(trial, few, plan, uses).values()], dim=1)
            w = torch.linspace(1, 2, columns.numel(), **self._to).view_as(columns)
            weighted = (columns * w).sum()
            expected = torch.autograd.grad(weighted, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows = by_uses(columns, uses, parameters)
            found = Jacobian([(columns.T.flatten(), rows)], [p.shape for p in parameters]).transposed(w.T.flatten())
        except (NoRule, RuntimeError):
            return False
        return _agree(found, torch.cat([g.flatten() for g in expected]), trial.dtype)

    def _scaled(self, block: Block, residuals: Mapping[str, Tensor]) -> Tensor:
        """All residuals of a block side by side `(n, c)`, scaled so that the loss is their sum of squares."""
        factor = {name: (self.weights[name] * block.share / r.numel()) ** 0.5 for name, r in residuals.items()}
        columns = torch.cat([factor[name] * r for name, r in residuals.items()], dim=1)
        return columns if block.factor is None else columns * block.factor[:, None]

    def _residuals(self, trial: Trial, block: Block, plan: Plan, uses: list[Use] | None = None) -> dict[str, Tensor]:
        x = block.x.to(trial.dtype)
        derivatives: Derivatives = (
            Nested(trial.network, x) if plan.streams is None else Jets(trial.network, x, plan.streams, uses)
        )
        if trial.dtype != block.x.dtype:
            derivatives = Widened(derivatives, block.x)
        if plan.linked or (plan.streams is None and trial.dtype != block.x.dtype):
            derivatives = Linked(derivatives, block.x)
        return self._evaluate_all(trial, block, derivatives)

    def _evaluate_all(self, trial: Trial, block: Block, derivatives: Derivatives) -> dict[str, Tensor]:
        names = self.namespace(derivatives, trial.coefficients, block)
        return {term: self.evaluate(term, names, len(block.x)) for term in block.terms}

    def plan(self, trial: Trial, block: Block) -> Plan:
        """How a block's residuals are evaluated: traced at a few points when it is first asked."""
        plans = self._plans.setdefault(trial, {})
        if block.terms not in plans:
            with exact(trial.network):
                plan = plans[block.terms] = self._trace(trial, block)
            self._say_why(block, plan)
        return plans[block.terms]

    def _say_why(self, block: Block, plan: Plan) -> None:
        if plan.why:
            terms = ", ".join(block.terms)
            note = f"{terms}: derivatives by nested differentiation, which is slower ({plan.why})."
            self.notes += [] if note in self.notes else [note]

    def _trace(self, trial: Trial, block: Block) -> Plan:
        """One forward pass is used only where it gives the residuals that nested differentiation gives."""
        few, reads = block.piece(0, TRACED), set[tuple[int, Order]]()
        try:
            slow = self._residuals(trial, few, Plan())
        except ProblemError:
            self._residuals(trial, block, Plan())  # say what is wrong in terms of all points
            raise
        half = (len(few.x) + 1) // 2
        alone = self._residuals(trial, block.piece(0, half), Plan())
        apart = all(_agree(alone[name], r[:half], trial.dtype) for name, r in slow.items())
        try:
            linked = Linked(Nested(trial.network, few.x.to(trial.dtype)), few.x, reads)
            self._evaluate_all(trial, few, linked)
            plan = Plan(Streams.of(order for _, order in reads), linked.differentiated, apart)
            fast, why = self._residuals(trial, few, plan), "the results differ"
        except Exception as error:
            plan, fast, why = Plan(apart=apart), {}, str(error)
        if not all(name in fast and _agree(fast[name], r, trial.dtype) for name, r in slow.items()):
            nested = Nested(trial.network, few.x.to(trial.dtype))
            self._evaluate_all(trial, few, nested)
            plan = Plan(apart=apart, why=why, passes=nested.passes)
        return replace(plan, saved=saved_bytes(lambda: self._residuals(trial, few, plan)) // len(few.x))

    def pieces(self, trial: Trial, batch: tuple[Block, ...]) -> list[tuple[Block, ...]]:
        """A batch in parts that are evaluated one after another; their losses add up to those of the batch.

        A block is cut where it is larger than the chunk that the task was made with, and no residual in it mixes points.
        """
        whole, parts = [], []
        for block in batch:
            count = -(-len(block.x) // self._chunk_of(self.plan(trial, block)))
            if count == 1:
                whole.append(block)
            else:
                parts += [(piece,) for piece in cut(block, count)]
        return [*([tuple(whole)] if whole else []), *parts]

    def saved(self, trial: Trial, piece: tuple[Block, ...]) -> int:
        """Bytes that a piece keeps for its reverse pass."""
        return sum(self.plan(trial, block).saved * len(block.x) for block in piece)

    def _chunk_of(self, plan: Plan) -> int:
        if not plan.apart:
            return sys.maxsize
        return self._chunk or max(MIN_CHUNK, CHUNK_BYTES[torch.device(self._to["device"]).type != "cpu"] // max(plan.saved, 1))

    def namespace(self, derivatives: Derivatives, coefficients: Mapping[str, Tensor], block: Block) -> dict[str, Any]:
        """What residuals may ask for at the points of a block, by name.

        Args:
            derivatives: of the unknowns, at the points of the block.
            coefficients: values of the unknown coefficients.
            block: the points.
        """
        coordinates = self.problem.coordinates
        fields = {name: Field(name, i, coordinates, derivatives, block.normal) for i, name in enumerate(self.problem.unknowns)}
        columns = dict(zip(coordinates, derivatives.columns, strict=True))
        return {**fields, **columns, **self._parameters, **coefficients, **block.columns, "n": block.normal}

    def evaluate(self, name: str, names: Mapping[str, Any], n: int) -> Tensor:
        """One term's residual `(n, k)`, given what it may ask for by name.

        Raises:
            ProblemError: if it fails or has the wrong shape; the message names the term.
        """
        term = self.problem.terms[name]
        try:
            residual = term.residual(**{need: names[need] for need in term.needs})
        except NoRule:
            raise
        except FieldError as error:
            raise ProblemError(f"Term {name!r}: {error}") from None
        except Exception as error:
            raise ProblemError(f"Term {name!r}: its residual failed ({_words(term.residual, error)}") from error
        residual = residual.value if isinstance(residual, Field) else residual
        if not isinstance(residual, Tensor) or not _one_row_a_point(residual, n):
            got = f"shape {tuple(residual.shape)}" if isinstance(residual, Tensor) else type(residual).__name__
            raise ProblemError(
                f"Term {name!r}: its residual must be a tensor of shape ({n}, 1), one row a point; got {got}. "
                "Unknowns and coordinates come as (n, 1): keep that shape."
            )
        before = names.get(_before(name))
        return residual if before is None else residual - before

    def losses(self, model: Trial, batch: tuple[Block, ...]) -> dict[str, Tensor]:
        """Each term's mean square residual, a scalar, before weighting; of a piece, its part of that."""
        share = {name: block.share for block in batch for name in block.terms}
        factor = {name: block.factor[:, None] for block in batch if block.factor is not None for name in block.terms}
        residuals = {name: r * factor[name] if name in factor else r for name, r in self.residuals(model, batch).items()}
        return {
            name: r.square().mean() * share[name] if share[name] < 1 else r.square().mean() for name, r in residuals.items()
        }

    def check(self, trial: Trial) -> list[str]:
        """Evaluate everything once, before training.

        Returns: warnings.

        Raises:
            ProblemError: if a residual fails, has the wrong shape, or is not finite at some point; the message names it.
        """
        with torch.no_grad():
            outputs = trial(self._tensor(self.problem.domain.bounds.mean(axis=1)[None, :]).to(trial.dtype)).shape[-1]
        if outputs != len(self.problem.unknowns):
            raise ProblemError(
                f"The network has {outputs} outputs; the problem has {len(self.problem.unknowns)} unknowns "
                f"({', '.join(self.problem.unknowns)})."
            )
        self._expect_periodic("The network", lambda x: trial(x.to(trial.dtype)), "Begin it with Periodic.of(domain)")
        for name in self.known:
            self._expect_periodic(f"exact {name!r}", partial(self.exact, name), "Look at its formula, and at the ends")
        batch = self.batch()
        with exact(trial.network):
            residuals = self.residuals(trial, batch)
        for name, residual in residuals.items():
            block = next(block for block in batch if name in block.terms)
            require_finite(f"Term {name!r}: its residual", residual, block.x, self.problem.coordinates)
        if self.known and self._exact is not None:
            for name, values in self._exact[1].items():
                require_finite(f"exact {name!r}: it", values.detach(), self._exact[0], self.problem.coordinates)
        return [f"{name!r} is read by no residual: is it needed?" for name in unread(self.problem)] + self.notes

    def _expect_periodic(self, what: str, function: Forward, advice: str) -> None:
        """Refuse a function that differs between the ends of a periodic coordinate."""
        domain = self.problem.domain
        for name in domain.periodic:
            axis = domain.coordinates.index(name)
            low, high = self.test_points[:TRACED].clone(), self.test_points[:TRACED].clone()
            low[:, axis], high[:, axis] = domain.bounds[axis].tolist()
            with torch.no_grad():
                first, last = function(low), function(high)
            if not _agree(first, last, first.dtype):
                raise ProblemError(f"{what} is not periodic in {name}, as the domain is. {advice}.")

    def error(self, model: Trial) -> dict[str, float] | None:
        """Relative L2 errors against the exact solution, or a reference: overall, then by unknown; None without one."""
        if self._exact is None:
            return None
        x, exact = self._exact
        with torch.no_grad():
            found = model(x.to(model.dtype))
        columns = dict(zip(self.problem.unknowns, found.split(1, dim=1), strict=True))
        return relative_l2({name: (columns[name], exact[name]) for name in exact})

    def residual_size(self, trial: Trial, x: Tensor) -> Tensor:
        """Root of the sum of squares of all interior residuals at any points `(n, d)`: `(n,)`."""
        inside = [name for name, t in self.problem.terms.items() if isinstance(t.where, Region) and not t.where.has_normal]
        points = self._tensor(x)
        derivatives = Linked(Widened(Nested(trial.network, points.to(trial.dtype)), points), points)
        names = self.namespace(derivatives, trial.coefficients, Block(tuple(inside), points, None, {}))
        with exact(trial.network):
            found = [self.evaluate(name, names, len(x)).detach() for name in inside]
        return torch.cat(found, dim=1).norm(dim=1) if found else x.new_zeros(len(x))

    @property
    def known(self) -> Mapping[str, Callable[..., Tensor]]:
        """The exact solutions, by unknown."""
        return self.problem.exact or {}  # type: ignore[return-value]

    @cached_property
    def _exact(self) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Points, and by unknown what it is there."""
        found = self.problem.tabulated
        if found is not None:
            return self._tensor(found.points), {name: self._tensor(v)[:, None] for name, v in found.values.items()}
        if not self.known:
            return None
        return self.test_points, {name: self.exact(name, self.test_points) for name in self.known}

    @cached_property
    def test_points(self) -> Tensor:
        """Points of the domain `(n, d)` at which errors are measured, none of which trains."""
        return self._tensor(draw(self.problem.domain.interior, self._test, "sobol", (TEST_SEED,)).x)

    def exact(self, unknown: str, x: Tensor) -> Tensor:
        """The exact solution of an unknown at points `(n, d)`: `(n, 1)`."""
        function = self.known[unknown]
        names = {**dict(zip(self.problem.coordinates, x.split(1, dim=1), strict=True)), **self.true_parameters()}
        try:
            values = torch.as_tensor(function(**{need: names[need] for need in parameters_of(function)}), **self._to)
        except Exception as error:
            raise ProblemError(f"exact {unknown!r} failed ({_words(function, error)}") from error
        if values.ndim and values.shape != (len(x), 1):
            raise ProblemError(f"exact {unknown!r}: expected values of shape ({len(x)}, 1); got {tuple(values.shape)}.")
        return values.expand(len(x), 1)

    def true_parameters(self) -> dict[str, Any]:
        """Parameters with the true value of unknown coefficients, or where that is not known their initial one."""
        unknown = {
            name: torch.tensor(c.initial if c.exact is None else c.exact, **self._to)
            for name, c in self.problem.coefficients.items()
        }
        return {**self._parameters, **unknown}

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, **self._to)


def _before(term: str) -> str:
    """The name of what is taken away from a residual, which no residual can ask for."""
    return f"before {term}"


def _agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Equal to half the digits of the precision that they are computed in, or to the rounding of numbers of size 1."""
    eps = torch.finfo(dtype).eps
    return a.shape == b.shape and bool(((a - b).abs() <= eps**0.5 * b.abs().max() + 100 * eps).all())


def saved_bytes(evaluate: Callable[[], Mapping[str, Tensor]]) -> int:
    """Bytes that an evaluation keeps for its reverse pass, each tensor counted once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = evaluate()
    del results
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _words(function: Callable[..., Any], error: Exception) -> str:
    """Where a user's function failed, in its own file if it got that far, and why; closes a bracket."""
    lines = traceback.extract_tb(error.__traceback__)
    code = getattr(unwrap(function), "__code__", None)
    line = next((frame for frame in reversed(lines) if code and frame.filename == code.co_filename), lines[-1])
    asked = getattr(error, "name", None) if isinstance(error, NameError) else None
    hint = f". If {asked!r} belongs to the problem, add it to the parameters of {function.__name__}" if asked else ""
    return f"{Path(line.filename).name}, line {line.lineno}): {type(error).__name__}: {error}{hint}"


def _one_row_a_point(residual: Tensor, n: int) -> bool:
    """Shape `(n, k)`; but `(n, n)` is taken for an accident of broadcasting `(n, 1)` against `(n,)`."""
    return residual.ndim == 2 and residual.shape[0] == n and not residual.shape[1] == n > 4


def refuse_sketches(trial: Trial, terms: tuple[str, ...], why: str) -> None:
    """Sketched layers train by the forward pass alone, where a layer is one product on values and derivatives.

    Raises:
        ProblemError: if the network has one.
    """
    names = sketched(trial.network)
    if names:
        raise ProblemError(
            f"Terms {', '.join(terms)}: expected derivatives by one forward pass, since the weight gradients of layers "
            f"{', '.join(names)} are sketched; got nested differentiation ({why}), which differentiates their backward passes "
            "again: these have no derivative, and keep what a sketch would spare. Use weight_gradient: exact for this problem."
        )


def relative_l2(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """`|found - exact| / |exact|`, of all pairs of `(n, 1)` tensors together ("overall") and of each."""
    sizes = {name: (float((found - exact).norm()), float(exact.norm())) for name, (found, exact) in pairs.items()}
    off, size = (hypot(*(pair[i] for pair in sizes.values())) for i in (0, 1))
    return {name: _ratio(*pair) for name, pair in {"overall": (off, size), **sizes}.items()}


def _ratio(off: float, size: float) -> float:
    return off / size if size else inf if off else 0.0


def require_finite(what: str, values: Tensor, x: Tensor, coordinates: tuple[str, ...], when: str = "before training") -> None:
    """Refuse values `(n, k)` with NaN or infinite rows, naming the first point."""
    bad = ~values.isfinite().all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        place = ", ".join(f"{c}={value:.6g}" for c, value in zip(coordinates, x[row].tolist(), strict=True))
        raise ProblemError(
            f"{what} is not finite at {int(bad.sum())} of {len(x)} points {when}, first at "
            f"{place}. Look for a division by zero, a logarithm or a root outside its range."
        )
