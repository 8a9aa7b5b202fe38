"""Training methods: one file each, one row each in `METHODS`; all run in the same loop and leave the gradient in `p.grad`."""

from __future__ import annotations

from pinnsketch.methods.adam import Adam
from pinnsketch.methods.cyr2020_polish import Polish
from pinnsketch.methods.dong2021_random_features import RandomFeatures
from pinnsketch.methods.dorfler1996_patches import AdaptivePatches
from pinnsketch.methods.feinberg2023_sketchy import Sketchy, SketchySOAP
from pinnsketch.methods.first_order import method_of
from pinnsketch.methods.goldshlager2024_spring import Spring
from pinnsketch.methods.gupta2018_shampoo import Shampoo
from pinnsketch.methods.jordan2024_muon import Muon
from pinnsketch.methods.lbfgs import LBFGS
from pinnsketch.methods.method import Evaluation, Method, Objective, Values
from pinnsketch.methods.mueller2023_natural_gradient import NaturalGradient
from pinnsketch.methods.rathore2024_nncg import NNCG
from pinnsketch.methods.sgd import SGD
from pinnsketch.methods.urban2025_ssbroyden import SSBroyden
from pinnsketch.methods.vyas2024_soap import SOAP
from pinnsketch.methods.wang2024_multistage import NextStage
from pinnsketch.methods.webb2026_dsgnar import Dsgnar
from pinnsketch.methods.wight2020_time_marching import NextSlab

METHODS: dict[str, type[Method]] = {
    "adam": Adam,
    "dsgnar": Dsgnar,
    "features": RandomFeatures,
    "lbfgs": LBFGS,
    "muon": method_of(Muon),
    "natural_gradient": NaturalGradient,
    "next_slab": NextSlab,
    "next_stage": NextStage,
    "nncg": NNCG,
    "patches": AdaptivePatches,
    "polish": Polish,
    "sgd": SGD,
    "shampoo": method_of(Shampoo),
    "sketchy": method_of(Sketchy),
    "sketchy_soap": method_of(SketchySOAP),
    "soap": method_of(SOAP),
    "spring": Spring,
    "ssbroyden": SSBroyden,
}

__all__ = [
    "LBFGS", "METHODS", "SGD", "SOAP", "Adam", "Evaluation", "Method", "Muon", "Objective", "SSBroyden", "Shampoo", "Sketchy",
    "SketchySOAP", "Values",
]  # fmt: skip
