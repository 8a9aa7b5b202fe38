"""Training methods: one file each, one row each in `METHODS`; all run in the same loop and leave the gradient in `p.grad`."""

from __future__ import annotations

from pinnsketch.methods.adam import Adam
from pinnsketch.methods.goldshlager2024_spring import Spring
from pinnsketch.methods.lbfgs import LBFGS
from pinnsketch.methods.method import Evaluation, Method, Objective, Values
from pinnsketch.methods.mueller2023_natural_gradient import NaturalGradient
from pinnsketch.methods.sgd import SGD
from pinnsketch.methods.webb2026_dsgnar import Dsgnar

METHODS: dict[str, type[Method]] = {
    "adam": Adam,
    "dsgnar": Dsgnar,
    "lbfgs": LBFGS,
    "natural_gradient": NaturalGradient,
    "sgd": SGD,
    "spring": Spring,
}

__all__ = ["LBFGS", "METHODS", "SGD", "Adam", "Evaluation", "Method", "Objective", "Values"]
