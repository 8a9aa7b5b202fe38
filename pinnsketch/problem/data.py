"""Data: measured values, from a CSV file or given as columns."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinnsketch.geometry.shape import Array
from pinnsketch.problem.error import ProblemError


@dataclass(frozen=True, eq=False)
class Data:
    """Measured values: a CSV file with a header, or columns given by name.

    Columns named like the coordinates say where; a residual may ask for any other column by its name.

    Args:
        source: path of the CSV file (a relative one is found beside the problem file), or a mapping of equally long columns.
    """

    source: str | Path | Mapping[str, Any]

    def columns(self) -> dict[str, Array]:
        """Each column by name, `(n,)`.

        Raises:
            ProblemError: if the file is missing or a value is not a finite number; the message names its place.
        """
        if isinstance(self.source, Mapping):
            found = {name: self._column(name, values) for name, values in self.source.items()}
        else:
            found = _read_csv(Path(self.source))
        lengths = {name: len(values) for name, values in found.items()}
        if not found or min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
            raise ProblemError(f"{self}: columns must be equally long and not empty; got {lengths or 'none'}.")
        for name, values in found.items():
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ProblemError(f"{self}: column {name!r} is not finite in row {row + 1} ({values[row]}).")
        return found

    def _column(self, name: str, values: Any) -> Array:
        try:
            return np.asarray(values, dtype=float).reshape(-1)
        except (TypeError, ValueError):
            raise ProblemError(f"{self}: column {name!r} must be numbers; got {values!r:.60}.") from None

    def beside(self, folder: Path) -> Data:
        """The same data, a relative path taken from `folder`."""
        if isinstance(self.source, Mapping) or Path(self.source).is_absolute():
            return self
        return Data(folder / self.source)

    def __str__(self) -> str:
        return f"Data({', '.join(self.source)})" if isinstance(self.source, Mapping) else f"Data({str(self.source)!r})"


def _read_csv(path: Path) -> dict[str, Array]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"Data: cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    if len(rows) < 2:
        raise ProblemError(f"Data: {path} needs a header line and at least one row of numbers.")
    header = [name.strip() for name in rows[0][1]]
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ProblemError(f"Data: {path}: two columns are called {twice[0]!r}.")
    table = np.array([_numbers(path, line, row, len(header)) for line, row in rows[1:]])
    return dict(zip(header, table.T, strict=True))


def _numbers(path: Path, line: int, row: list[str], count: int) -> list[float]:
    try:
        numbers = [float(cell) for cell in row]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ProblemError(f"Data: {path}, line {line}: expected {count} numbers; got {','.join(row)!r}.")
    return numbers
