"""ProblemError: what is raised where a problem is not well posed as written; and what it says of a function that failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from inspect import signature, unwrap
from pathlib import Path
from typing import Any


class ProblemError(ValueError):
    """A problem that cannot be solved as it is written."""


def failure(function: Callable[..., Any], error: Exception) -> str:
    """Where a user's function failed, in its own file if it got that far, and why; closes a bracket."""
    lines = traceback.extract_tb(error.__traceback__)
    code = getattr(unwrap(function), "__code__", None)
    line = next((frame for frame in reversed(lines) if code and frame.filename == code.co_filename), lines[-1])
    place, why = f"{Path(line.filename).name}, line {line.lineno}", f"{type(error).__name__}: {error}".rstrip(".")
    return f"{place}): {why}{_hint(function, error)}"


def _hint(function: Callable[..., Any], error: Exception) -> str:
    """What to write in place of what failed, where that is a common slip."""
    asked = getattr(error, "name", None) if isinstance(error, NameError) else None
    if asked:
        unknown, _, axes = asked.partition("_")
        if axes and unknown in signature(function).parameters:
            return f". A derivative is written {unknown}.{axes}"
        return f". If {asked!r} belongs to the problem, add it to the parameters of {function.__name__}"
    if any(words in str(error) for words in ("numpy() on Tensor", "converted to Python scalars", "loop of ufunc")):
        return ". In a problem use functions of torch, as torch.sin: those of numpy and math have no derivatives"
    return ""
