"""Layers whose numbers are still to be set."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def blank(kind: type[Layer], *sizes: int, device: torch.device | None = None, **options: Any) -> Layer:
    """A layer for whose parameters nothing is drawn, not even global random numbers, as by `nn.utils.skip_init`.

    That one loads sympy, which takes half a second.
    """
    layer = kind(*sizes, device="meta", **options)
    layer.load_state_dict(
        {name: torch.empty(p.shape, dtype=p.dtype, device=device) for name, p in layer.named_parameters()}, assign=True
    )
    return layer
