"""Collocation: a Problem as a training task. Its losses are the mean squares of the residuals at collocation points."""

from pinnsketch.collocation.collocation import Collocation
from pinnsketch.collocation.residuals import Plan, require_finite
from pinnsketch.collocation.truth import relative_l2

__all__ = ["Collocation", "Plan", "relative_l2", "require_finite"]
