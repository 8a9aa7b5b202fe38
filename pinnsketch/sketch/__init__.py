"""The sketch algebra: small linear images of big matrices. It knows no network."""

from pinnsketch.sketch.antil2025_three_sketch import AdaptiveRank, ThreeSketch
from pinnsketch.sketch.charikar2002_sign_fold import SignFold, cosine_interval

__all__ = ["AdaptiveRank", "SignFold", "ThreeSketch", "cosine_interval"]
