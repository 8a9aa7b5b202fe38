"""Gauges: what a monitor reads at a look. A gauge is one row in `GAUGES`."""

from collections.abc import Callable, Sequence

from pinnsketch.gauges.covariance import Covariance
from pinnsketch.gauges.drift import Drift
from pinnsketch.gauges.gauge import ITSELF, WHOLE, Gauge, Interval, Look, Setup
from pinnsketch.gauges.memory import LongMemory
from pinnsketch.gauges.paper import Paper
from pinnsketch.gauges.spectrum import Spectrum, StableRank
from pinnsketch.gauges.units import Units

GAUGES: dict[str, Callable[[Setup], Gauge]] = {
    "drift": Drift,
    "memory": LongMemory,
    "units": Units,
    "stable_rank": StableRank,
    "spectrum": Spectrum,
    "covariance": Covariance,
    "paper": Paper,
}
DEFAULT = ("drift", "memory", "units", "covariance", "terms")
"""What a monitor reads unless told otherwise; `terms` is fed by the training loop, not by a look."""
NAMES = (*GAUGES, "terms")


def chosen(readings: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the gauges that a word or a list of names asks for: "default", "full", or names.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(readings, str):
        words = {"default": DEFAULT, "full": NAMES, "none": ()}
        if readings not in words:
            raise ValueError(f"Monitor: readings must be {', '.join(words)} or a list of {', '.join(NAMES)}; got {readings!r}.")
        return words[readings]
    for name in readings:
        if name not in NAMES:
            raise ValueError(f"Monitor: there is no reading {name!r}; the readings are {', '.join(NAMES)}.")
    return tuple(readings)


__all__ = ["GAUGES", "ITSELF", "NAMES", "WHOLE", "Gauge", "Interval", "Look", "Setup", "chosen"]
