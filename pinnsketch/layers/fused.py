"""Where a GPU does in one kernel what plain code takes many for: `pinnsketch.layers.kernels`, where Triton is there."""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton computes on a CPU, as tests do without a GPU."""


def fused(x: Tensor) -> Any:
    """The module of kernels for tensors like x; None: plain code is to run, as on a CPU, or where operations are recorded."""
    if not (x.is_cuda or INTERPRETED) or _get_current_dispatch_mode() is not None:
        return None
    if x.is_cuda and _tried.get(x.device) is None and torch.cuda.is_current_stream_capturing():
        return None  # no time to try
    if x.device not in _tried:
        _tried[x.device] = _works(x.device)
    return _kernels() if _tried[x.device] else None


_tried: dict[torch.device, bool] = {}


@cache
def _kernels() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pinnsketch.layers import kernels
    return kernels


def _works(device: torch.device) -> bool:
    """Whether a kernel can be built and run there: Triton may be missing, or its compiler, or the GPU be too old for it."""
    counter = torch.zeros((), dtype=torch.int64, device=device)
    try:
        return int(_kernels().next_seed(counter, 7, 1)) == _kernels().mix.STEP + 7 and int(counter) == 1
    except Exception:
        return False
