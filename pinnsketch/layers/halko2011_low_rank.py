"""Leading directions exact, the rest projected at random: the range finder of Halko, Martinsson & Tropp (2011, algorithm 4.3).

One sketch B = S_0 A and one product Y = A B^T lead to a basis U `(n, r)`, by Cholesky. Kept are U, U^T A and S (A - U U^T A):

    G~ = (U^T delta)^T (U^T A) + (S delta)^T S (A - U U^T A),

which is unbiased whatever U is. Given U, its variance is that of the projection of delta against A - U U^T A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pinnsketch.layers.bershatsky2022_random_projection import spread
from pinnsketch.layers.estimator import GROUP, Part, parts
from pinnsketch.layers.steele2014_split_mix import STEP, signs

WIDE = 8 * GROUP
"""Groups are as large as they may be: a basis of many rows costs no more of the share than that of few."""
SHARE = 0.5
"""Of the numbers kept, what goes to the directions."""


class LowRank:
    """Keep a basis, the projection on it, and a sketch of the rest; groups with no room for a direction are sketched."""

    unbiased = True

    def save(self, x: Tensor, seed: Tensor, keep: float) -> tuple[Tensor, ...]:
        found: list[list[Tensor]] = [[], []]
        for i, part in enumerate(parts(len(x), keep, WIDE)):
            a = part.of(x)
            u, s = self._maps(a, part, keep, seed + i * STEP // 3)
            low = u.mT @ a
            found[0].append(u.flatten())
            found[1].append(torch.cat([low, s @ a - (s @ u) @ low], dim=1).flatten(0, 1))
        return torch.cat(found[0]), torch.cat(found[1])

    def factors(self, delta: Tensor, saved: tuple[Tensor, ...], seed: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        bases, right = saved
        found, start = [], 0
        for i, part in enumerate(parts(len(delta), keep, WIDE)):
            d = part.of(delta)
            r, q = _sizes(part, right.shape[1], keep)
            u = bases[start : start + part.count * part.size * r].view(part.count, part.size, r)
            start += u.numel()
            s = _sketch(seed + i * STEP // 3, part, q, delta.dtype)
            found.append(torch.cat([u.mT @ d, s @ d], dim=1).flatten(0, 1))
        return torch.cat(found), right

    def variance(self, delta: Tensor, x: Tensor, keep: float, seed: Tensor) -> Tensor:
        total = x.new_zeros(())
        for i, part in enumerate(parts(len(x), keep, WIDE)):
            d, a = part.of(delta), part.of(x)
            u, s = self._maps(a, part, keep, seed + i * STEP // 3)
            total = total + (spread(d, a - u @ (u.mT @ a), 2.0) / s.shape[1]).sum()
        return total

    def _maps(self, a: Tensor, part: Part, keep: float, seed: Tensor) -> tuple[Tensor, Tensor]:
        """U `(count, size, r)` and S `(count, q, size)` for the rows a `(count, size, d)`."""
        r, q = _sizes(part, a.shape[2], keep)
        return _basis(a, r, seed + GAP), _sketch(seed, part, q, a.dtype)


GAP = STEP // 5
"""Between the seeds of S and of S_0."""


def _sizes(part: Part, width: int, keep: float) -> tuple[int, int]:
    """Directions r and random rows q of a group, such that `r (size + width) + q width` numbers are within its share."""
    room = max(keep * part.size * width, width)
    r = min(int(SHARE * room / (part.size + width)), part.size, width)
    return r, max(1, int((room - r * (part.size + width)) / width + 1e-9))


def _sketch(seed: Tensor, part: Part, q: int, dtype: torch.dtype) -> Tensor:
    return signs(seed, (part.count, q, part.size), q**-0.5, dtype)


def _basis(a: Tensor, r: int, seed: Tensor) -> Tensor:
    """An orthonormal basis of about the range of the rows, `(count, size, r)`."""
    count, size, _ = a.shape
    if not r:
        return a.new_zeros(count, size, 0)
    wide = a.to(torch.promote_types(a.dtype, torch.float32))
    y = wide @ (signs(seed, (count, r, size), size**-0.5, wide.dtype) @ wide).mT
    gram = y.mT @ y
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    tiny = torch.finfo(wide.dtype)
    shift = (trace * (10 * tiny.eps) + tiny.tiny) * torch.eye(r, dtype=wide.dtype, device=a.device)
    lower = torch.linalg.cholesky_ex(gram + shift)[0]
    return torch.linalg.solve_triangular(lower, y.mT, upper=False).mT.to(a.dtype)
