"""The next slab of time (Wight & Zhao 2020, time marching; Krishnapriyan et al. 2021, sequence to sequence).

The network of the present slab has been trained and stays; that of the next one goes on where it ends. Its start is matched
by the residuals of the start themselves: in place of `r_0(u)` stands `r_0(u) - r_0(u_before)` at t_k, so that all that an
initial condition speaks of goes on across t_k, u_t as well as u. The points are drawn in the next slab.

A trained network begins with the weights of the one before (Webb, Jerad & Cartis 2026): it does what that did, one slab later.
Random features begin with the range R and the number that were found before, fitted to what u was at t_k; patches with the
boxes in which those before end.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.features import Features
from pinnsketch.jets import held
from pinnsketch.methods.dong2021_random_features import fit_to
from pinnsketch.methods.method import Evaluation, Objective
from pinnsketch.methods.next_part import NextPart, expect_more
from pinnsketch.methods.patch_system import PatchSystem
from pinnsketch.patches import Patches
from pinnsketch.slabs import Slabs


class NextSlab(NextPart):
    """Lets the network of the next slab of `network: {slabs: 4}` train, in place of the present one; takes one step."""

    method, part = "next_slab", "slab"

    def step(self, objective: Objective) -> Evaluation:
        task = objective.task
        slabs: Any = getattr(task, "slabs", None)
        expect_slabs(slabs, 1)
        before = slabs.acting
        slabs.begin(slabs.slab + 1)
        batch, model = task.batch(0), objective.model.around(slabs.acting)
        _follow(slabs, before, task, model, torch.cat([block.x for block in batch]))
        self._done = True
        losses = task.losses(model, batch)
        loss = torch.stack([task.weights[name] * value for name, value in losses.items()]).sum()
        given = [p for p in model.parameters() if p.requires_grad]
        for p, g in zip(given, torch.autograd.grad(loss, given, allow_unused=True), strict=True):
            p.grad = g
        numbers = {name: value.item() for name, value in losses.items()}
        return Evaluation(loss.item(), numbers, isfinite(loss.item()))


def _follow(slabs: Slabs, before: nn.Module, task: Any, model: Any, x: Tensor) -> None:
    """Let the network of the present slab, that of a model, begin by the one before, at points `(n, d)` of the slab."""
    new = slabs.acting

    def ended(x: Tensor) -> Tensor:
        """What u was at the end of the slab before."""
        return before(held(x, slabs.axis, slabs.edges[slabs.slab]))

    if isinstance(new, Patches):
        assert isinstance(before, Patches)
        new.follow(before, slabs.axis)
        PatchSystem(task, model).fit(ended)
        return
    with torch.no_grad():
        if not isinstance(new, Features):
            for p, q in zip(new.parameters(), before.parameters(), strict=True):
                p.copy_(q)
            return
        assert isinstance(before, Features)
        new.radius.copy_(before.radius)
        some = new.first(before.used)
        fit_to(some, ended, x.to(new.radius))
        new.take(some)


def expect_slabs(network: Any, count: int) -> None:
    """Refuse a network with fewer than so many slabs to come.

    Raises:
        ValueError: if it has fewer.
    """
    slabs, now = (len(network.networks), network.slab) if isinstance(network, Slabs) else (1, 0)
    expect_more(count, NextSlab.method, NextSlab.part, "slabs", slabs, now)
