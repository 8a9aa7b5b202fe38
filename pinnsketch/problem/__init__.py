"""Problem, Term, Unknown, Data: named residuals on regions. A residual is a function whose parameters are matched by name."""

from pinnsketch.problem.data import Data
from pinnsketch.problem.error import ProblemError, failure
from pinnsketch.problem.problem import Problem, check_names, outside, unread
from pinnsketch.problem.reference import Reference
from pinnsketch.problem.term import Term, Unknown, parameters_of

__all__ = [
    "Data",
    "Problem",
    "ProblemError",
    "Reference",
    "Term",
    "Unknown",
    "check_names",
    "failure",
    "outside",
    "parameters_of",
    "unread",
]
