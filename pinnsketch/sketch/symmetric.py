"""Eigenvectors of symmetric matrices, where they are found soonest."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 128
"""Rows up to which a matrix on a GPU is brought to the host: there the launches of one decomposition take milliseconds."""


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `(n,)`, rising, and eigenvectors `(n, n)` of a symmetric matrix, in its dtype and on its device.

    Nothing is gained by staying on the GPU: `eigh` waits there too, to check its status.
    """
    values, vectors = torch.linalg.eigh(matrix.cpu() if matrix.is_cuda and len(matrix) <= SMALL else matrix)
    return values.to(matrix.device), vectors.to(matrix.device)
