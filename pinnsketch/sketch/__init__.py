"""The sketch algebra: small linear images of big matrices. It knows no network."""

from pinnsketch.sketch.antil2025_three_sketch import AdaptiveRank, ThreeSketch
from pinnsketch.sketch.charikar2002_count_sketch import CountSketch
from pinnsketch.sketch.charikar2002_sign_fold import SignFold, cells_of, cosine_interval
from pinnsketch.sketch.ghashami2016_frequent_directions import FrequentDirections
from pinnsketch.sketch.rutishauser1969_simultaneous_iteration import BlockSubspace
from pinnsketch.sketch.tropp2019_three_sketch import ErrorRank, TwoSidedSketch

__all__ = [
    "AdaptiveRank",
    "BlockSubspace",
    "CountSketch",
    "ErrorRank",
    "FrequentDirections",
    "SignFold",
    "ThreeSketch",
    "TwoSidedSketch",
    "cells_of",
    "cosine_interval",
]
