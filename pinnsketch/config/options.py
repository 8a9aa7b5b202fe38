"""The options of training methods in a configuration: those that the constructor of a method takes, and their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticCustomError

from pinnsketch.config.section import did_you_mean, is_number
from pinnsketch.methods import METHODS
from pinnsketch.train import Stage


def options_of(method: str) -> dict[str, Parameter]:
    """The parameters of its constructor that have a default, by name."""
    found = signature(METHODS[method].__init__, eval_str=True).parameters.values()
    return {p.name: p for p in found if p.default is not Parameter.empty}


def make_stage(method: str, steps: int, options: Mapping[str, Any], decay: str) -> Stage:
    """A stage of training with options as they stand in a configuration."""
    known = options_of(method)

    def typed(name: str, value: Any) -> Any:
        return value if isinstance(value, str) else type(known[name].default)(value)

    return Stage(method, steps, {name: typed(name, value) for name, value in options.items()}, decay)


def check_decay(method: str, decay: str) -> None:
    """Refuse a step size that falls where the method has none."""
    if decay != "none" and "lr" not in options_of(method):
        raise PydanticCustomError(
            "decay", f"{method} finds the length of each step itself, so there is no lr that could decay: leave it out",
            {"key": "decay"},
        )  # fmt: skip


def check_options(method: str, options: Mapping[str, Any], beside: tuple[str, ...]) -> None:
    """Refuse what is no option of a method, or not of its kind; `beside`: keys that may stand there too."""
    known = options_of(method)
    for name, value in options.items():
        if name not in known:
            raise PydanticCustomError("unknown_key", f"{method} has no option {name!r}{did_you_mean(name, (*beside, *known))}")
        _check_option(name, value, known[name])


def _check_option(name: str, value: Any, option: Parameter) -> None:
    """An option must be of the kind of its default: positive numbers, a share where that is zero, or a pair of shares.

    Words must be among those of its annotation.
    """
    default, words = option.default, _words(option.annotation)
    if value in words:
        return
    if isinstance(default, str):
        raise PydanticCustomError("option", f"there is no {name} {value!r}{did_you_mean(value, words)}", {"key": name})
    if default == 0:
        kind, fits = "a number from 0 to 1", is_number(value) and 0 <= value < 1
    elif isinstance(default, tuple):
        kind = f"{len(default)} numbers from 0 to 1"
        fits = isinstance(value, list) and len(value) == len(default) and all(is_number(v) and 0 <= v < 1 for v in value)
    else:
        kind = f"{' or '.join([*words, 'a'])} {'whole ' if isinstance(default, int) else ''}number above 0"
        fits = is_number(value) and 0 < value < float("inf") and (isinstance(default, float) or value == int(value))
    if not fits:
        raise PydanticCustomError("option", f"expected {kind}; got {value!r}", {"key": name})


def _words(annotation: Any) -> tuple[str, ...]:
    """The words that an option may be: those of a Literal, alone or in a union."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for part in get_args(annotation) for word in _words(part))
