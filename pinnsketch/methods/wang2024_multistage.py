"""The next stage of a multistage network (Wang & Lai 2024): another network N, for the error e of those before it.

With an output as small as e, N learns e as well as the first network learned u. How small that is, the residuals r of the sum
so far tell, with their Jacobian J by the parameters of N: the change `c = -J^T (J J^T)^-1 r` takes r away to first order, so
that what it does to the output of N is the error that r belongs to. The root mean square of that is the size.

The last layer of N then starts from zero, so that the function does not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.methods.least_squares import Weights, evaluate
from pinnsketch.methods.method import Evaluation, Objective
from pinnsketch.methods.next_part import NextPart, expect_more
from pinnsketch.multistage import Multistage

FLOOR = 1e-13
"""What is added to the diagonal of J J^T, over its trace."""


class NextStage(NextPart):
    """Freezes the network that trains, and lets the next one of `network: {stages: 2}` or more train; takes one step."""

    method, part = "next_stage", "network"

    def step(self, objective: Objective) -> Evaluation:
        task, model, batch = objective.task, objective.model, objective.batch
        network: Any = model.network
        expect_stages(network, 1)
        r = Weights(task, model).residuals(batch)
        for p in self._parameters:
            p.grad = None
        if bool(r.isfinite().all()):
            network.begin(network.stage + 1)
            new, size = network.networks[network.stage], network.sizes[network.stage]
            size.fill_(torch.finfo(size.dtype).eps)  # for J as it is where N is zero
            size.copy_(_error(new, Weights(task, model, list(new.parameters())), batch, r, size[0].item()))
            for p in new.layers[-1].parameters():
                nn.init.zeros_(p)
            self._done = True
        return evaluate(Weights(task, model), batch)


def _error(new: nn.Module, weights: Weights, batch: Any, r: Tensor, unit: float) -> Tensor:
    """Root mean square of e, by unknown `(m,)`, with J from an output that is multiplied by `unit`."""
    jacobian, start, x = weights.linearize(batch)[1], weights.now, torch.cat([block.x for block in batch])
    kernel = jacobian.gram()
    kernel.diagonal().add_(FLOOR * kernel.diagonal().sum())
    c = unit * jacobian.transposed(torch.linalg.solve(kernel, r.to(kernel)))
    limits = torch.finfo(start.dtype)
    reach = limits.eps ** (1 / 3) / float(c.norm().clamp(min=limits.tiny))

    def output(w: Tensor) -> Tensor:
        weights.place(w)
        with torch.no_grad():
            return new(x.to(start))

    e = (output(start + reach * c) - output(start - reach * c)) / (2 * reach)
    weights.place(start)
    size = e.square().mean(0).sqrt()
    return size.clamp(min=max(limits.eps * float(size.max()), limits.tiny**0.5))


def expect_stages(network: nn.Module, count: int) -> None:
    """Refuse a network with fewer than so many stages to come.

    Raises:
        ValueError: if it has fewer.
    """
    stages, now = (len(network.networks), network.stage) if isinstance(network, Multistage) else (1, 0)
    expect_more(count, NextStage.method, NextStage.part, "stages", stages, now)
