"""Solution: what a run returns. Call it at points; ask it for its error, its health, a figure; save and load it safely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from pinnsketch import checkpoint
from pinnsketch.collocation import Collocation
from pinnsketch.derivatives import Linked, Nested, Widened
from pinnsketch.estimate import estimated
from pinnsketch.field import Field
from pinnsketch.health import Health
from pinnsketch.marching import time_of
from pinnsketch.network import build
from pinnsketch.problem import Problem, parameters_of
from pinnsketch.trial import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = NDArray[np.float64]


class Solution:
    """The unknown functions, found.

    Call it with coordinates by name, arrays that broadcast: `solution(x=0.5, y=np.linspace(0, 1, 11))`.

    Attributes:
        metrics: the run in numbers, as in metrics.json.
        history: what was logged during the run.
        health: what the monitor found; true where it found nothing.
    """

    def __init__(
        self,
        trial: Trial,
        metrics: Mapping[str, Any],
        *,
        problem: Problem | None = None,
        task: Collocation | None = None,
        network: Mapping[str, Any] | None = None,
        names: Mapping[str, Any] | None = None,
        enriched: bool = False,
        history: list[dict[str, Any]] | None = None,
        health: Health | None = None,
    ) -> None:
        self.trial, self.metrics, self.problem, self.task, self._network = trial, dict(metrics), problem, task, network
        self._names, self._enriched = dict(names or {}), enriched or bool(problem and (problem.enriched or problem.ansatz))
        if problem is not None:
            self._names = {
                "coordinates": list(problem.coordinates),
                "unknowns": list(problem.unknowns),
                "bounds": problem.domain.bounds.tolist(),
                "periodic": list(problem.domain.periodic),
                "time": time_of(problem) if (network or {}).get("slabs", 1) != 1 else None,
            }
        self.history, self.health = history or [], Health() if health is None else health

    @property
    def outcome(self) -> str:
        """ "solved", "interrupted" or "non-finite"."""
        return str(self.metrics["outcome"])

    @property
    def error(self) -> dict[str, float] | None:
        """Relative L2 errors against the exact solution, "overall" and of each unknown; None where none is known."""
        return self.metrics["relative_l2"]

    @property
    def estimate(self) -> dict[str, Any] | None:
        """The error as it is estimated without an exact solution (`pinnsketch.estimate.Estimate`), or `why` it is not.

        Computed when it is first asked for; None for a loaded solution that was saved before that.
        """
        if "estimate" not in self.metrics and self.task is not None:
            self.metrics["estimate"] = estimated(self.trial, self.task)
        return self.metrics.get("estimate")

    @property
    def coefficients(self) -> dict[str, float]:
        """The unknown coefficients, found."""
        return self.trial.values()

    @property
    def coordinates(self) -> tuple[str, ...]:
        return tuple(self._names["coordinates"])

    @property
    def unknowns(self) -> tuple[str, ...]:
        return tuple(self._names["unknowns"])

    def __call__(self, **coordinates: ArrayLike) -> Values | dict[str, Values]:
        """Values at points given by coordinate name: an array of their broadcast shape; for several unknowns one each.

        Raises:
            ValueError: if a coordinate is missing or unknown.
        """
        x, shape = self._points(coordinates)
        found = {name: column.reshape(shape) for name, column in zip(self.unknowns, self.at(x).T, strict=True)}
        return found if len(found) > 1 else next(iter(found.values()))

    def evaluate(self, expression: Callable[..., Any], **coordinates: ArrayLike) -> Values:
        """What is written as a residual is, at points given by coordinate name: `evaluate(lambda u: u.x, x=0.5, y=0.1)`.

        Args:
            expression: a function of unknowns, coordinates, parameters and coefficients by name, which returns one number a
                point; of a loaded solution the parameters that are numbers are not known.
            coordinates: of the points, arrays that broadcast.

        Raises:
            ValueError: if a coordinate or what the expression asks for is not known, or it gives more or less than that.
        """
        x, shape = self._points(coordinates)
        like, points = next(self.trial.parameters()), torch.as_tensor(x)
        points = points.to(like.device)
        derivatives = Linked(Widened(Nested(self.trial.network, points.to(like.dtype)), points), points)
        names: dict[str, Any] = dict(zip(self.coordinates, derivatives.columns, strict=True))
        names |= {name: Field(name, k, self.coordinates, derivatives) for k, name in enumerate(self.unknowns)}
        names |= {**(self.problem.numbers if self.problem else {}), **self.trial.coefficients}
        needs = parameters_of(expression)
        for need in needs:
            if need not in names:
                raise ValueError(f"evaluate: the expression asks for {need!r}; it may ask for {', '.join(names)}.")
        found = expression(**{need: names[need] for need in needs})
        found = torch.as_tensor(found.value if isinstance(found, Field) else found)
        if found.shape != (len(x), 1):
            raise ValueError(f"evaluate: expected one number a point, ({len(x)}, 1); got shape {tuple(found.shape)}.")
        return found.detach().double().cpu().numpy().reshape(shape)

    def _points(self, coordinates: Mapping[str, ArrayLike]) -> tuple[Values, tuple[int, ...]]:
        """Points `(n, d)`, and the shape in which they were given.

        Raises:
            ValueError: if a coordinate is missing or unknown.
        """
        if set(coordinates) != set(self.coordinates):
            raise ValueError(f"Expected the coordinates {', '.join(self.coordinates)}; got {', '.join(coordinates) or 'none'}.")
        arrays = np.broadcast_arrays(*(np.asarray(coordinates[name], dtype=float) for name in self.coordinates))
        return np.stack([array.reshape(-1) for array in arrays], axis=1), arrays[0].shape

    def at(self, x: Values) -> Values:
        """Values `(n, m)` at points `(n, d)`."""
        like = next(self.trial.parameters())
        with torch.no_grad():
            return self.trial(torch.as_tensor(x, dtype=like.dtype, device=like.device)).double().cpu().numpy()

    def plot(self) -> Figure:
        """A figure of the solution, with reference, error and residual where they are known."""
        from pinnsketch.report.figures import solution_figure

        return solution_figure(self)

    def save(self, path: str | Path) -> None:
        """Write the solution to a file that `Solution.load` reads.

        Raises:
            OSError: if it cannot be written.
        """
        checkpoint.save(
            Path(path),
            {
                "format": 1,
                "network": dict(self._network) if self._network else None,
                "enriched": self._enriched,
                "names": self._names,
                "state": self.trial.state_dict(),
                "coefficients": self.coefficients,
                "precision": str(next(self.trial.parameters()).dtype).removeprefix("torch."),
                "metrics": self.metrics,
                "history": self.history,
                "health": self.health.state_dict(),
            },
        )

    @classmethod
    def load(cls, path: str | Path, network: nn.Module | None = None, problem: Problem | None = None) -> Solution:
        """Read a saved solution; no code in the file can run.

        Args:
            path: what `save` wrote, or the folder of a run.
            network: the module that was trained, where it was your own and not one that a config describes.
            problem: where it has an ansatz or an enrichment, whose functions are not in the file.

        Raises:
            CheckpointError: if the file is no saved solution.
        """
        path = Path(path)
        path = path / "model.pt" if path.is_dir() else path
        state = checkpoint.load(path)
        if "names" not in state or "state" not in state:
            raise checkpoint.CheckpointError(f"{path} holds no solution; a run folder has it in model.pt.")
        if network is None and state["network"] is None:
            raise checkpoint.CheckpointError(f"{path} was trained with your own network: give it, as in load(path, network).")
        enriched = bool(state.get("enriched", False))
        if network is None and enriched and problem is None:
            raise checkpoint.CheckpointError(
                f"{path} was trained with an ansatz or an enrichment: give its problem, as in load(path, problem=p)."
            )
        if network is None:
            options, dtype = dict(state["network"]), getattr(torch, state["precision"])
            names = state["names"]
            bounds = torch.tensor(names["bounds"], dtype=torch.float64)
            functions = (problem.enriching, problem.lifting) if problem else ((), None)
            place = names.get("periodic", ()), names.get("time"), problem.shaping if problem else None
            described = names["coordinates"], len(names["unknowns"]), *functions, *place
            network = build(options.pop("kind"), options, bounds, *described, dtype=dtype)
        trial = Trial(network)
        own = {name.removeprefix("network."): value for name, value in state["state"].items() if name.startswith("network.")}
        try:
            trial.network.load_state_dict(own)
        except RuntimeError as error:
            raise checkpoint.CheckpointError(f"{path} does not fit this network. {error}") from None
        for name, value in state["coefficients"].items():
            trial.fix(name, value)
        health = Health()
        health.load_state_dict(state["health"])
        kept = {word: state[word] for word in ("metrics", "names", "network", "history")}
        return cls(trial, **kept, health=health, enriched=enriched)

    def __repr__(self) -> str:
        error = "" if not self.error else f", relative L2 error {self.error['overall']:.2e}"
        return f"<Solution of {', '.join(self.unknowns)} on {', '.join(self.coordinates)}: {self.outcome}{error}>"
