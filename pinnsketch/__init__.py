"""pinnsketch: differential equations solved by neural networks, with gradients you can watch."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from pinnsketch.field import Field, bilaplacian, diff, div, div_grad, grad, laplacian
from pinnsketch.geometry import Box, Disk, Polygon
from pinnsketch.monitor import Monitor
from pinnsketch.problem import Data, Problem, Term, Unknown
from pinnsketch.solution import Solution
from pinnsketch.solve import solve
from pinnsketch.train import Stage, train

try:
    __version__ = _version("pinnsketch")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Box", "Data", "Disk", "Field", "Monitor", "Polygon", "Problem", "Solution", "Stage", "Term", "Unknown",
    "bilaplacian", "diff", "div", "div_grad", "grad", "laplacian", "solve", "train",
]  # fmt: skip
