"""Plans: how the residuals of each block are evaluated, found by tracing them at a few points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pinnsketch.blocks import Block
from pinnsketch.collocation.residuals import Plan, Residuals
from pinnsketch.derivatives import Linked, Nested, Order
from pinnsketch.jets import Jacobian, NoRule, Streams, Use, by_uses
from pinnsketch.layers import exact, saved_bytes, sketched
from pinnsketch.problem import ProblemError
from pinnsketch.trial import Trial

TRACED = 16
"""Points at which a residual is traced."""


class Plans:
    """The plan of each block of terms for each trial, traced when it is first asked for.

    Args:
        residuals: what is evaluated.
    """

    def __init__(self, residuals: Residuals) -> None:
        self.residuals = residuals
        self.notes: list[str] = []
        """Which terms are not evaluated by a forward pass, and why."""
        self._plans: WeakKeyDictionary[Trial, dict[tuple[str, ...], Plan]] = WeakKeyDictionary()

    def of(self, trial: Trial, block: Block) -> Plan:
        """How a block's residuals are evaluated: traced at a few points when it is first asked."""
        plans = self._plans.setdefault(trial, {})
        if block.terms not in plans:
            with exact(trial.network):
                plan = self._trace(trial, block)
                if plan.streams is None or not plan.apart:  # near a solution, rounding may be all that is left of a residual
                    with shaken(trial), suppress(ProblemError):
                        plan = max(plan, self._trace(trial, block), key=lambda found: (found.apart, found.streams is not None))
            plans[block.terms] = plan
            self._say_why(block, plan)
        return plans[block.terms]

    def put(self, trial: Trial, block: Block, plan: Plan) -> None:
        """Evaluate a block by another plan than the one that was found."""
        self._plans.setdefault(trial, {})[block.terms] = plan

    def run(self, trial: Trial, block: Block, evaluate: Callable[[Plan], Any]) -> Any:
        """Evaluate by the block's plan, or nested if the residuals read what they did not read when they were traced."""
        plan = self.of(trial, block)
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

    def with_rows(self, trial: Trial, block: Block, plan: Plan, parameters: list[nn.Parameter]) -> Plan:
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
            columns = torch.cat([*self.residuals.at(trial, few, plan, uses).values()], dim=1)
            w = torch.linspace(1, 2, columns.numel(), dtype=few.x.dtype, device=few.x.device).view_as(columns)
            weighted = (columns * w).sum()
            expected = torch.autograd.grad(weighted, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows = by_uses(columns, uses, parameters)
            found = Jacobian([(columns.T.flatten(), rows)], [p.shape for p in parameters]).transposed(w.T.flatten())
        except torch.OutOfMemoryError:
            raise
        except (NoRule, RuntimeError, ValueError):
            return False
        return agree(found, torch.cat([g.flatten() for g in expected]), trial.dtype)

    def _say_why(self, block: Block, plan: Plan) -> None:
        if plan.why:
            terms = ", ".join(block.terms)
            note = f"{terms}: derivatives by nested differentiation, which is slower ({plan.why})."
            self.notes += [] if note in self.notes else [note]

    def _trace(self, trial: Trial, block: Block) -> Plan:
        """One forward pass is used only where it gives the residuals that nested differentiation gives."""
        few, reads = block.piece(0, TRACED), set[tuple[int, Order]]()
        try:
            slow = self.residuals.at(trial, few, Plan())
        except ProblemError:
            self.residuals.at(trial, block, Plan())  # say what is wrong in terms of all points
            raise
        half = (len(few.x) + 1) // 2
        alone = self.residuals.at(trial, block.piece(0, half), Plan())
        apart = all(agree(alone[name], r[:half], trial.dtype) for name, r in slow.items())
        try:
            linked = Linked(Nested(trial.network, few.x.to(trial.dtype)), few.x, reads)
            self.residuals.evaluate_all(trial, few, linked)
            plan = Plan(Streams.of(order for _, order in reads), linked.differentiated, apart)
            fast, why = self.residuals.at(trial, few, plan), "the results differ"
        except Exception as error:
            plan, fast, why = Plan(apart=apart), {}, str(error)
        if not all(name in fast and agree(fast[name], r, trial.dtype) for name, r in slow.items()):
            nested = Nested(trial.network, few.x.to(trial.dtype))
            self.residuals.evaluate_all(trial, few, nested)
            plan = Plan(apart=apart, why=why, passes=nested.passes)
        return replace(plan, saved=saved_bytes(lambda: self.residuals.at(trial, few, plan)) // len(few.x))


@contextmanager
def shaken(trial: nn.Module) -> Iterator[None]:
    """Meanwhile, each parameter has as much noise added as it has numbers of size."""
    parameters = [p for p in trial.parameters() if p.is_floating_point()]
    before, generator = [p.detach().clone() for p in parameters], torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for p in parameters:
                size = p.square().mean().sqrt()
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
                p.add_(noise * torch.where(size > 0, size, 1.0))
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


def agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Equal to half the digits of the precision that they are computed in, or to the rounding of numbers of size 1."""
    eps = torch.finfo(dtype).eps
    return a.shape == b.shape and bool(((a - b).abs() <= eps**0.5 * b.abs().max() + 100 * eps).all())


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
