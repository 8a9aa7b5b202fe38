"""What converters share: a copy of a network with some of its layers replaced."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


def converted(model: nn.Module, rank: int, pattern: str, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A copy of a model in which `make` replaces linear layers.

    Args:
        model: is left as it is.
        rank: a layer that has no more rows or no more columns stays as it is: `rank` directions are all it has.
        pattern: of the names of layers, with the wildcards of `fnmatch`.
        make: gives the new layer for an old one.

    Raises:
        ValueError: if there is no such layer; the message lists those that there are.
    """
    if rank < 0:
        raise ValueError(f"rank: expected 0 or more; got {rank}.")
    linear = {name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Linear)}
    chosen = [name for name in linear if fnmatchcase(name, pattern) and min(linear[name].weight.shape) > rank]
    if not chosen:
        shapes = ", ".join(f"{name!r} {tuple(module.weight.shape)}" for name, module in linear.items()) or "none"
        raise ValueError(
            f"No linear layer matches {pattern!r} and has more than {rank} rows and columns; the linear layers are {shapes}."
        )
    return replaced(model, chosen, make)


def replaced(model: nn.Module, names: Collection[str], make: Callable[[Any], nn.Module]) -> nn.Module:
    """A copy of a model in which `make` replaces the modules of these names; one that has several is replaced once."""
    copy = deepcopy(model)
    old = {name: copy.get_submodule(name) for name in names}
    new = {module: make(module) for module in old.values()}
    for name, module in old.items():
        parent, _, last = name.rpartition(".")
        if not name:
            return new[module]
        setattr(copy.get_submodule(parent), last, new[module])
    return copy
