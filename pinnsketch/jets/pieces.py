"""A function in pieces: each point goes to one of several networks, and its derivatives come from that one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pinnsketch.jets.jet import Jet


def in_pieces(functions: Sequence[Callable[[Any], Any]], which: Tensor, x: Any) -> Any:
    """Functions of points, each applied to its own points alone.

    Args:
        functions: map points `(n, d)`, or their jet, to values `(n, m)`, each row on its own.
        which: the number of the function for each point, `(n,)`.
        x: points `(n, d)`, or their jet.
    """
    numbers = which.unique().tolist()
    if len(numbers) < 2:
        return functions[numbers[0] if numbers else 0](x)
    rows = [(which == number).nonzero()[:, 0] for number in numbers]
    found = [functions[number](pick(x, own)) for number, own in zip(numbers, rows, strict=True)]
    back = torch.cat(rows).argsort()
    if not isinstance(x, Jet):
        return torch.cat(found)[back]
    value = torch.cat([part.value for part in found])[back]
    return x.like(value, torch.cat([part.whole for part in found], 1)[:, back])


def pick(x: Any, rows: Tensor) -> Any:
    """Some of the points of a tensor or a jet."""
    return x.like(x.value[rows], x.whole[:, rows]) if isinstance(x, Jet) else x[rows]


def held(x: Any, axis: int, at: Tensor) -> Any:
    """Points `(n, d)`, or their jet, with one coordinate put to a number, on which nothing depends any more."""
    value = x.value if isinstance(x, Jet) else x
    constant = torch.zeros_like(value[:, :1]) + at.to(value)
    return torch.cat([part for part in (x[:, :axis], constant, x[:, axis + 1 :]) if part.shape[1]], 1)
