"""Training methods: one file each, one row each in `METHODS`; all run in the same loop and leave the gradient in `p.grad`."""

from __future__ import annotations

from pinnsketch.methods.adam import Adam
from pinnsketch.methods.lbfgs import LBFGS
from pinnsketch.methods.method import Evaluation, Method, Objective, Values
from pinnsketch.methods.mueller2023_natural_gradient import NaturalGradient
from pinnsketch.methods.sgd import SGD
from pinnsketch.methods.urban2025_ssbroyden import SSBroyden

METHODS: dict[str, type[Method]] = {
    "adam": Adam,
    "lbfgs": LBFGS,
    "natural_gradient": NaturalGradient,
    "sgd": SGD,
    "ssbroyden": SSBroyden,
}

__all__ = ["LBFGS", "METHODS", "SGD", "Adam", "Evaluation", "Method", "Objective", "SSBroyden", "Values"]
