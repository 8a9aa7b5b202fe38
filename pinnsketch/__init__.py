"""pinnsketch: differential equations solved by neural networks, with gradients you can watch."""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pinnsketch.field import Field, bilaplacian, diff, div, div_grad, grad, laplacian
    from pinnsketch.geometry import Box, Disk, Polygon
    from pinnsketch.health import Finding, Health
    from pinnsketch.methods import Sketchy, SketchySOAP
    from pinnsketch.monitor import Monitor, Reading
    from pinnsketch.origin import Origin
    from pinnsketch.periodic import Periodic
    from pinnsketch.problem import Data, Problem, Reference, Term, Unknown
    from pinnsketch.reference import etdrk4
    from pinnsketch.replay import replay
    from pinnsketch.solution import Solution
    from pinnsketch.solve import solve
    from pinnsketch.train import Stage, train
else:

    def __getattr__(name: str) -> Any:
        """Loads a public name when it is first asked for: `pinnsketch --help` needs none, nor the seconds that torch takes."""
        if name not in _HOMES:
            raise AttributeError(f"module 'pinnsketch' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"pinnsketch.{_HOMES[name]}"), name)
        return found


try:
    __version__ = _version("pinnsketch")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Box", "Data", "Disk", "Field", "Finding", "Health", "Monitor", "Origin", "Periodic", "Polygon", "Problem", "Reading",
    "Reference", "Sketchy", "SketchySOAP", "Solution", "Stage", "Term", "Unknown", "bilaplacian", "diff", "div", "div_grad",
    "etdrk4", "grad", "laplacian", "replay", "solve", "train",
]  # fmt: skip

_ROOMS = {
    "field": "Field bilaplacian diff div div_grad grad laplacian", "geometry": "Box Disk Polygon", "health": "Finding Health",
    "methods": "Sketchy SketchySOAP", "monitor": "Monitor Reading", "origin": "Origin", "periodic": "Periodic",
    "problem": "Data Problem Reference Term Unknown", "reference": "etdrk4",
    "replay": "replay", "solution": "Solution", "solve": "solve", "train": "Stage train",
}  # fmt: skip
_HOMES = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps the names of functions: the import of `pinnsketch.solve` would put that module in place of the function `solve`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
