"""Collocation: a Problem as a training task. Its losses are the mean squares of the residuals at collocation points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

from pinnsketch.blocks import Block, Part, Within, cut, known_terms
from pinnsketch.collocation.places import Places
from pinnsketch.collocation.plans import TRACED, Plans, agree, refuse_sketches
from pinnsketch.collocation.residuals import Plan, Residuals, name_before, require_finite
from pinnsketch.collocation.truth import Truth
from pinnsketch.compiled import Replay, holding, tensors_of
from pinnsketch.derivatives import Derivatives
from pinnsketch.jets import Jacobian, Outer, Use, by_point, by_rows, by_uses
from pinnsketch.layers import exact
from pinnsketch.points import DRAWS, Cell
from pinnsketch.problem import Problem, ProblemError, check_names, outside, unread
from pinnsketch.slabs import Slabs
from pinnsketch.trial import Trial

Forward = Callable[[Tensor], Tensor]

CHUNK_BYTES, MIN_CHUNK = (64 << 20, 4 << 30), 1000
"""What a piece of a batch keeps for the reverse pass: on a CPU its cache holds most of that; and points it has at least."""


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
        self.problem, self._seed, self._test = problem, seed, test
        self._pool = DRAWS[draw]
        if chunk != "auto" and not int(chunk) > 0:
            raise ProblemError(f"points: chunk must be auto or a number of points above 0; got {chunk}.")
        self._chunk = None if chunk == "auto" else int(chunk)
        self._to: dict[str, Any] = {"dtype": dtype, "device": device}
        known_terms("points", terms or {}, problem)
        known_terms("weights", weights or {}, problem)
        for name, term in problem.terms.items():
            check_names(problem, name, term)
        self.weights = {name: (weights or {}).get(name, term.weight) for name, term in problem.terms.items()}
        self._places = Places(problem, interior, boundary, terms or {}, sampler, seed, slabs, self._to)
        self._truth = Truth(problem, test, self._to)
        self.plans = Plans(Residuals(problem))
        self._choosing: WeakKeyDictionary[Trial, Replay[tuple[Block, ...]]] = WeakKeyDictionary()
        self.slabs, self._before = slabs, tuple[Trial, ...]()

    def put(self, parameters: Mapping[str, float]) -> None:
        """Give some parameters of the problem other values, and the rest their own.

        Raises:
            ProblemError: if one is not there, trains, or is asked for by no residual.
        """
        for name in parameters:
            if name not in self.problem.numbers:
                known = ", ".join(self.problem.numbers) or "none"
                raise ProblemError(f"train: expected parameters of the problem that are numbers ({known}); got {name!r}.")
            if not any(name in term.needs for term in self.problem.terms.values()):
                raise ProblemError(
                    f"train: no residual asks for the parameter {name!r} by name, so that another value would change nothing."
                )
        self.plans.residuals.put(parameters)

    def batch(self, draw: int = 0, times: int = 1) -> tuple[Block, ...]:
        """The collocation points of a draw: the same number gives the same points, another gives fresh ones.

        `times`: so many times as many on each region.
        """
        return tuple(self._following(self._places.block(i, draw, times)) for i in range(len(self._places)))

    @property
    def chooses(self) -> bool:
        """Whether points are drawn by their residuals."""
        return self._pool > 1

    def chosen(self, trial: Trial, draw: int = 0) -> tuple[Block, ...]:
        """The points of a draw for a trial as it is: those of `batch`, or by their residuals."""
        if not self.chooses:
            return self.batch(draw)
        pool, rng = self.batch(draw, self._pool), np.random.default_rng((self._seed, draw))
        given = pool, torch.as_tensor(rng.random(len(pool)), device=pool[0].x.device)
        if trial not in self._choosing:
            self._choosing[trial] = Replay(partial(self._chosen, ref(trial)))
        choice = self._choosing[trial]
        found = choice(given)
        return holding(found, (t.clone() for t in tensors_of(found))) if choice.captured else found

    def _chosen(self, trial: Callable[[], Any], given: tuple[tuple[Block, ...], Tensor]) -> tuple[Block, ...]:
        pool, offsets = given
        return self.drawn(pool, self.scaled(trial(), pool), self._places.counts, offsets)

    def renew(self) -> None:
        """Capture anew what chooses points: the residuals, or the network, are not what they were."""
        self._choosing.clear()

    @staticmethod
    def drawn(
        batch: tuple[Block, ...], scaled: Mapping[str, Tensor], most: Sequence[int], offsets: Iterable[float | Tensor]
    ) -> tuple[Block, ...]:
        """Of each block at most so many points, drawn by their residuals, given as `scaled`."""
        found = []
        for block, count, offset in zip(batch, most, offsets, strict=True):
            size = torch.cat([scaled[term].view(-1, len(block.x)) for term in block.terms]).norm(dim=0)
            found.append(block.drawn(size, count, offset))
        return tuple(found)

    def within(self, cells: Sequence[Cell], interior: int, boundary: int, draw: int = 0) -> list[Within]:
        """Points in each of some boxes, as `Places.within` has it."""
        found = self._places.within(cells, interior, boundary, draw)
        return [replace(part, block=self._following(part.block)) for part in found]

    def meets(self, cell: Cell) -> bool:
        """Whether the domain has points in a box."""
        return self._places.meets(cell)

    def elsewhere(self, interior: int, boundary: int, seed: int, draw: str = "even") -> Collocation:
        """The same task at other points: so many on each interior and each boundary region, drawn with another seed."""
        numbers: Any = {"interior": interior, "boundary": boundary, "draw": draw, "test": self._test}
        return Collocation(self.problem, **numbers, weights=self.weights, seed=seed, **self._to)

    def _following(self, block: Block) -> Block:
        """The block; where the present slab goes on from the one before, with what its residuals go on from."""
        return replace(block, columns=self._ended(block)) if self._places.follows(block) else block

    def _ended(self, block: Block) -> dict[str, Tensor]:
        """What the residuals of the start are, `(n, k)`, for the solution in the slab before: it is taken away from them."""
        assert self.slabs is not None
        network = self.slabs.networks[self.slabs.slab - 1]
        if not self._before or self._before[0].network is not network:
            self._before = (Trial(network),)
        (trial,) = self._before
        found = self.plans.run(trial, block, partial(self.plans.residuals.at, trial, block))
        return {name_before(name): r.detach() for name, r in found.items()}

    def residuals(self, trial: Trial, batch: tuple[Block, ...]) -> dict[str, Tensor]:
        """Each term's residual at its points, `(n, k)`."""
        found: dict[str, Tensor] = {}
        for block in batch:
            found |= self.plans.run(trial, block, partial(self.plans.residuals.at, trial, block))
        return {term: found[term] for term in self.problem.terms if term in found}

    def linearize(
        self, trial: Trial, batch: tuple[Block, ...], parameters: Sequence[nn.Parameter] | None = None
    ) -> tuple[Tensor, Jacobian]:
        """Residuals r `(N,)`, scaled so that the weighted loss is their sum of squares, and their Jacobian `(N, P)`.

        Rows are ordered by block, term, column and point; P counts `parameters`, or else all that train.

        Raises:
            ProblemError: if a residual mixes points: it has no row for each.
        """
        given = [p for p in trial.parameters() if p.requires_grad] if parameters is None else list(parameters)
        found = [self.plans.run(trial, block, partial(self._linearize, trial, block, given)) for block in batch]
        return torch.cat([r for r, _ in found]), Jacobian(found, [p.shape for p in given])

    def gives_rows(self, trial: Trial, batch: tuple[Block, ...], parameters: Sequence[nn.Parameter]) -> bool:
        """Whether one forward pass gives all rows of that Jacobian, so that `linearize` is quick."""
        plans = [(block, self.plan(trial, block)) for block in batch]
        with exact(trial.network):
            return all(plan.apart and self.plans.with_rows(trial, block, plan, list(parameters)).rows for block, plan in plans)

    def _linearize(
        self, trial: Trial, block: Block, parameters: list[nn.Parameter], plan: Plan
    ) -> tuple[Tensor, dict[int, Outer]]:
        if not plan.apart:
            raise ProblemError(f"Terms {', '.join(block.terms)}: a residual mixes points, so it has no Jacobian row for each.")
        with exact(trial.network):
            plan = self.plans.with_rows(trial, block, plan, parameters)
        if not plan.rows:
            refuse_sketches(trial, block.terms, "the forward pass does not give rows of the Jacobian")
        uses: list[Use] | None = [] if plan.rows else None
        columns = self._scaled(block, self.plans.residuals.at(trial, block, plan if plan.rows else Plan(), uses))
        rows = by_rows(columns, parameters) if uses is None else by_uses(columns, uses, parameters)
        return columns.detach().T.flatten(), rows

    def scaled(self, trial: Trial, batch: tuple[Block, ...]) -> dict[str, Tensor]:
        """The same r by term, `(n k,)` each, in the order of the rows; no gradient."""

        def residuals(block: Block, plan: Plan) -> dict[str, Tensor]:
            with torch.set_grad_enabled(plan.streams is None):
                found = self.plans.residuals.at(trial, block, plan)
            return {name: self._scaled(block, {name: r}).detach() for name, r in found.items()}

        found: dict[str, Tensor] = {}
        for block in batch:
            small = self.plan(trial, block).apart and block.x.device.type == "cpu"  # pieces that its cache holds
            parts = cut(block, -(-len(block.x) // MIN_CHUNK)) if small and len(block.x) > 2 * MIN_CHUNK else [block]
            each = [self.plans.run(trial, part, partial(residuals, part)) for part in parts]
            found |= {name: torch.cat([part[name] for part in each]).T.flatten() for name in each[0]}
        return found

    def by_term(self, trial: Trial, batch: tuple[Block, ...], parameters: list[nn.Parameter]) -> dict[str, Part]:
        """The gradient of each term's weighted loss, and the norm of what each point contributes to it.

        One reverse pass for each term; the norms are by the channel-Gram identity, from what that pass leaves at the layers.
        """
        found: dict[str, Part] = {}
        with exact(trial.network):
            for block in (block for piece in self.pieces(trial, batch) for block in piece):
                for name, part in self.plans.run(trial, block, partial(self._by_term, trial, block, parameters)).items():
                    found[name] = found[name] + part if name in found else part
        return {term: found[term] for term in self.problem.terms if term in found}

    def _by_term(self, trial: Trial, block: Block, parameters: list[nn.Parameter], plan: Plan) -> dict[str, Part]:
        plan = self.plans.with_rows(trial, block, plan, parameters) if plan.apart else plan
        uses: list[Use] | None = [] if plan.apart and plan.rows else None
        scaled = {name: self._scaled(block, {name: r}) for name, r in self.plans.residuals.at(trial, block, plan, uses).items()}
        if uses is None:
            how: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            each = [torch.autograd.grad(r.square().sum(), parameters, **how) for r in scaled.values()]
            return {name: Part(list(gradient), None) for name, gradient in zip(scaled, each, strict=True)}
        losses = torch.cat([r.square().sum(dim=1, keepdim=True) for r in scaled.values()], dim=1)
        gradients, norms = by_point(losses, uses, parameters)
        return {name: Part(list(gradients[t]), norms[t]) for t, name in enumerate(scaled)}

    def _scaled(self, block: Block, residuals: Mapping[str, Tensor]) -> Tensor:
        """All residuals of a block side by side `(n, c)`, scaled so that the loss is their sum of squares."""
        factor = {name: (self.weights[name] * block.share / r.numel()) ** 0.5 for name, r in residuals.items()}
        columns = torch.cat([factor[name] * r for name, r in residuals.items()], dim=1)
        return columns if block.factor is None else columns * block.factor[:, None]

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
        advice = "Let its ansatz be so too" if self.problem.ansatz else "Begin it with Periodic.of(domain)"
        self._expect_periodic("The network", lambda x: trial(x.to(trial.dtype)), advice)
        for name in self.known:
            self._expect_periodic(f"exact {name!r}", partial(self.exact, name), "Look at its formula, and at the ends")
        batch = self.batch()
        with exact(trial.network):
            residuals = self.residuals(trial, batch)
        for name, residual in residuals.items():
            block = next(block for block in batch if name in block.terms)
            require_finite(f"Term {name!r}: its residual", residual, block.x, self.problem.coordinates)
        if self.known and self._truth.values is not None:
            x, exacts = self._truth.values
            for name, values in exacts.items():
                require_finite(f"exact {name!r}: it", values.detach(), x, self.problem.coordinates)
        odd = [f"{name!r} is read by no residual: is it needed?" for name in unread(self.problem)] + outside(self.problem)
        return odd + self.notes

    def _expect_periodic(self, what: str, function: Forward, advice: str) -> None:
        """Refuse a function that differs between the ends of a periodic coordinate."""
        domain = self.problem.domain
        for name in domain.periodic:
            axis = domain.coordinates.index(name)
            low, high = self.test_points[:TRACED].clone(), self.test_points[:TRACED].clone()
            low[:, axis], high[:, axis] = domain.bounds[axis].tolist()
            with torch.no_grad():
                first, last = function(low), function(high)
            if not agree(first, last, first.dtype):
                raise ProblemError(f"{what} is not periodic in {name}, as the domain is. {advice}.")

    def residual_size(self, trial: Trial, x: Tensor) -> Tensor:
        """Root of the sum of squares of all interior residuals at any points `(n, d)`: `(n,)`."""
        return self.plans.residuals.size(trial, self._tensor(x))

    def plan(self, trial: Trial, block: Block) -> Plan:
        """How a block's residuals are evaluated: traced at a few points when it is first asked."""
        return self.plans.of(trial, block)

    @property
    def notes(self) -> list[str]:
        """Which terms are not evaluated by a forward pass, and why."""
        return self.plans.notes

    def namespace(self, derivatives: Derivatives, coefficients: Mapping[str, Tensor], block: Block) -> dict[str, Any]:
        """What residuals may ask for at the points of a block, by name, as `Residuals.namespace` has it."""
        return self.plans.residuals.namespace(derivatives, coefficients, block)

    def evaluate(self, name: str, names: Mapping[str, Any], n: int) -> Tensor:
        """One term's residual `(n, k)`, given what it may ask for by name, as `Residuals.evaluate` has it."""
        return self.plans.residuals.evaluate(name, names, n)

    def error(self, model: Trial) -> dict[str, float] | None:
        """Relative L2 errors against the exact solution, or a reference: overall, then by unknown; None without one."""
        return self._truth.error(model)

    @property
    def known(self) -> Mapping[str, Callable[..., Tensor]]:
        """The exact solutions, by unknown."""
        return self._truth.known

    @property
    def test_points(self) -> Tensor:
        """Points of the domain `(n, d)` at which errors are measured, none of which trains."""
        return self._truth.points

    def exact(self, unknown: str, x: Tensor) -> Tensor:
        """The exact solution of an unknown at points `(n, d)`: `(n, 1)`."""
        return self._truth.exact(unknown, x)

    def true_parameters(self) -> dict[str, Any]:
        """Parameters with the true value of unknown coefficients, or where that is not known their initial one."""
        return self._truth.parameters()

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, **self._to)
