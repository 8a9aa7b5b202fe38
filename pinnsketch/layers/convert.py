"""What converters share: a copy of a network with some of its linear layers replaced."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from fnmatch import fnmatchcase

from torch import nn


def converted(model: nn.Module, rank: int, pattern: str, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A copy of a model in which `make` replaces linear layers.

    Args:
        model: is left as it is.
        rank: a layer that has no more rows or no more columns stays as it is: `rank` directions are all it has.
        pattern: of the names of layers, with the wildcards of `fnmatch`.
        make: gives the new layer for an old one, which it must not change.

    Raises:
        ValueError: if there is no such layer; the message lists those that there are.
    """
    if rank < 0:
        raise ValueError(f"rank: expected 0 or more; got {rank}.")
    copy = deepcopy(model)
    linear = {name: module for name, module in copy.named_modules(remove_duplicate=False) if isinstance(module, nn.Linear)}
    chosen = [name for name in linear if fnmatchcase(name, pattern) and min(linear[name].weight.shape) > rank]
    if not chosen:
        shapes = ", ".join(f"{name!r} {tuple(module.weight.shape)}" for name, module in linear.items()) or "none"
        raise ValueError(
            f"No linear layer matches {pattern!r} and has more than {rank} rows and columns; the linear layers are {shapes}."
        )
    made = {id(linear[name]): make(linear[name]) for name in chosen}
    for name in chosen:
        parent, _, last = name.rpartition(".")
        if not name:
            return made[id(copy)]
        setattr(copy.get_submodule(parent), last, made[id(linear[name])])
    return copy
