"""What autograd keeps for the reverse pass, measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(function: Callable[[], Any]) -> int:
    """Bytes that a function keeps for its reverse pass: each storage once, and none of parameters, which are there anyway."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not any(isinstance(owner, nn.Parameter) for owner in (tensor, tensor._base)):
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = function()
    del results
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
