"""Reference: a solution at points, where no exact one is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinnsketch.geometry.shape import Array
from pinnsketch.problem.error import ProblemError

FOLDER = Path(__file__).parents[1] / "references"
"""Where those lie that are shipped."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A solution at points, computed by another method, and how good it is.

    Args:
        points: `(n, d)`, coordinates in the order of the domain.
        values: by unknown, `(n,)`; unknowns may be left out.
        error: its own relative L2 error, as far as that is known.

    Raises:
        ProblemError: if shapes do not fit, or a number is not finite.
    """

    points: Array
    values: Mapping[str, Array]
    error: float

    def __post_init__(self) -> None:
        shapes = {name: np.shape(values) for name, values in self.values.items()}
        if np.ndim(self.points) != 2 or not shapes or set(shapes.values()) != {(len(self.points),)}:
            raise ProblemError(
                f"Reference: expected points (n, d), and values (n,) by unknown; got {np.shape(self.points)}, {shapes}."
            )
        if not all(np.isfinite(array).all() for array in (self.points, np.array(self.error), *self.values.values())):
            raise ProblemError("Reference: points, values and error must be finite.")

    @classmethod
    def load(cls, source: str | Path) -> Reference:
        """Read one that was saved: a path, or the name of a shipped one.

        Raises:
            ProblemError: if there is none.
        """
        shipped = FOLDER / f"{source}.npz"
        try:
            with np.load(shipped if shipped.is_file() else source) as file:
                values = {name.removeprefix("value_"): file[name] for name in file.files if name.startswith("value_")}
                return cls(file["points"], values, float(file["error"]))
        except (OSError, KeyError, ValueError) as error:
            known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.npz")))
            raise ProblemError(f"Reference: cannot read {source} ({error}). Shipped: {known}.") from None

    def save(self, path: str | Path) -> None:
        """Write it to a file `.npz`."""
        named: dict[str, Any] = {f"value_{name}": values for name, values in self.values.items()}
        np.savez_compressed(path, points=self.points, error=self.error, **named)
