"""The estimators of a weight gradient, one row each."""

from __future__ import annotations

from types import MappingProxyType

from pinnsketch.layers.antil2025_moving_average import MovingAverage
from pinnsketch.layers.bershatsky2022_random_projection import Projection
from pinnsketch.layers.chen2021_quantised import Quantised
from pinnsketch.layers.drineas2006_rows import Rows
from pinnsketch.layers.estimator import Estimator
from pinnsketch.layers.halko2011_low_rank import LowRank
from pinnsketch.layers.steele2014_split_mix import normal, signs

ESTIMATORS: MappingProxyType[str, Estimator] = MappingProxyType(
    {
        "rademacher": Projection(signs),
        "gaussian": Projection(normal, fourth=0.0),
        "rows": Rows(),
        "mean+rademacher": Projection(signs, mean=True),
        "lowrank+rademacher": LowRank(),
        "quantised": Quantised(),
        "ema": MovingAverage(),
    }
)
"""By name; `ema`, of the source paper, is biased."""


def estimator(name: str) -> Estimator:
    """An estimator by name.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"There is no estimator {name!r}; the estimators are {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name]
