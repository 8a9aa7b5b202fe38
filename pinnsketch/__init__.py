"""pinnsketch: differential equations solved by neural networks, with gradients you can watch."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

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

try:
    __version__ = _version("pinnsketch")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Box", "Data", "Disk", "Field", "Finding", "Health", "Monitor", "Origin", "Periodic", "Polygon", "Problem", "Reading",
    "Reference", "Sketchy", "SketchySOAP", "Solution", "Stage", "Term", "Unknown", "bilaplacian", "diff", "div", "div_grad",
    "etdrk4", "grad", "laplacian", "replay", "solve", "train",
]  # fmt: skip
