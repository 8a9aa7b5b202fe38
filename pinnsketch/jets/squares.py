"""Products of a matrix with itself, in strips: little more than half of the work of a full product."""

from __future__ import annotations

from torch import Tensor

STRIP = 64
"""Rows or columns that are worth a call of their own."""


def rows_by_rows(rows: Tensor) -> Tensor:
    """rows rows^T, of which the strips are the part on and above the diagonal."""
    n = len(rows)
    size = _strip(n)
    if size >= n:
        return rows @ rows.T
    found = rows.new_empty(n, n)
    for start in range(0, n, size):
        strip = rows[start : start + size] @ rows[start:].T
        found[start : start + size, start:] = strip
        found[start:, start : start + size] = strip.T
    return found


def add_columns_by_columns(total: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to what lies above the diagonal."""
    n = len(total)
    size = _strip(n)
    for start in range(0, n, size):
        total[start : start + size, start:].addmm_(rows[:, start : start + size].T, rows[:, start:])


def _strip(n: int) -> int:
    return max(STRIP, -(-n // 8))
