"""Uniform sampling of rows without replacement, scaled: the simplest of Drineas, Kannan & Mahoney (2006).

`G~ = (n / q) sum over the q sampled rows of delta_i a_i^T`, in groups of n rows, with
`E |G~ - G|^2 = n (n - q) / q s^2` and s^2 the sample variance of the n outer products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pinnsketch.layers.estimator import Part, parts
from pinnsketch.layers.steele2014_split_mix import STEP, integers


class Rows:
    """Keep some rows as they are."""

    unbiased = True

    def save(self, x: Tensor, seed: Tensor, keep: float) -> tuple[Tensor, ...]:
        return (torch.cat([_chosen(x, part, seed + i * STEP // 3) for i, part in enumerate(parts(len(x), keep, x.shape[1]))]),)

    def factors(self, delta: Tensor, saved: tuple[Tensor, ...], seed: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        found = [
            _chosen(delta, part, seed + i * STEP // 3) * (part.size / part.kept)
            for i, part in enumerate(parts(len(delta), keep, saved[0].shape[1]))
        ]
        return torch.cat(found), saved[0]

    def variance(self, delta: Tensor, x: Tensor, keep: float, seed: Tensor) -> Tensor:
        total = x.new_zeros(())
        for part in parts(len(x), keep, x.shape[1]):
            d, a, n = part.of(delta), part.of(x), part.size
            squares = (d.square().sum(2) * a.square().sum(2)).sum(1) - (d.mT @ a).square().sum((1, 2)) / n
            total = total + (n * (n - part.kept) / part.kept * squares / max(n - 1, 1)).sum()
        return total


def _chosen(x: Tensor, part: Part, seed: Tensor) -> Tensor:
    """The rows with the smallest random keys, in each group, `(count kept, d)`."""
    order = integers(seed, part.count * part.size).view(part.count, part.size).argsort(1)[:, : part.kept]
    first = torch.arange(part.start, part.start + part.count * part.size, part.size, device=x.device)
    return x[(order + first[:, None]).flatten()]
