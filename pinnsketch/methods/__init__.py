"""Training methods: one file each, one row each in `METHODS`; all run in the same loop and leave the gradient in `p.grad`."""

from __future__ import annotations

from pinnsketch.methods.adam import Adam
from pinnsketch.methods.cyr2020_polish import Polish
from pinnsketch.methods.dong2021_random_features import RandomFeatures
from pinnsketch.methods.lbfgs import LBFGS
from pinnsketch.methods.method import Evaluation, Method, Objective, Values
from pinnsketch.methods.mueller2023_natural_gradient import NaturalGradient
from pinnsketch.methods.sgd import SGD

METHODS: dict[str, type[Method]] = {
    "adam": Adam,
    "lbfgs": LBFGS,
    "natural_gradient": NaturalGradient,
    "features": RandomFeatures,
    "polish": Polish,
    "sgd": SGD,
}

__all__ = ["LBFGS", "METHODS", "SGD", "Adam", "Evaluation", "Method", "Objective", "Values"]
