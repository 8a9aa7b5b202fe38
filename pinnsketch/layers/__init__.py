"""Layers whose backward pass needs only a sketch of their input: less memory, for a noisier weight gradient."""

from pinnsketch.layers.convert import plain_state_dict, set_keep, sketch_layers, sketched
from pinnsketch.layers.convolution import SketchConv2d
from pinnsketch.layers.estimator import Estimator
from pinnsketch.layers.estimators import ESTIMATORS
from pinnsketch.layers.linear import SketchLinear
from pinnsketch.layers.packed import Packed, PackedGELU, PackedReLU, PackedSigmoid, PackedSiLU, PackedSin, PackedTanh
from pinnsketch.layers.rank import AutomaticRank
from pinnsketch.layers.saved import saved_bytes
from pinnsketch.layers.sketched import exact, frozen

__all__ = [
    "ESTIMATORS",
    "AutomaticRank",
    "Estimator",
    "Packed",
    "PackedGELU",
    "PackedReLU",
    "PackedSiLU",
    "PackedSigmoid",
    "PackedSin",
    "PackedTanh",
    "SketchConv2d",
    "SketchLinear",
    "exact",
    "frozen",
    "plain_state_dict",
    "saved_bytes",
    "set_keep",
    "sketch_layers",
    "sketched",
]
