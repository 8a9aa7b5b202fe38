"""Copies of a model with other layers: `sketch_layers`, whose copy shares its parameters, and what other converters use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from copy import deepcopy
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinnsketch.layers.convolution import SketchConv2d
from pinnsketch.layers.linear import SketchLinear
from pinnsketch.layers.options import Options
from pinnsketch.layers.packed import Packed, PackedReLU
from pinnsketch.layers.sketched import Stream

LAYERS = MappingProxyType(
    {nn.Linear: SketchLinear, nn.Conv2d: SketchConv2d, SketchLinear: SketchLinear, SketchConv2d: SketchConv2d}
)
MODULES = MappingProxyType({nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.GELU: "gelu"})
FUNCTIONS: MappingProxyType[Callable[..., Tensor], str] = MappingProxyType(
    {
        torch.tanh: "tanh", torch.sigmoid: "sigmoid", torch.sin: "sin", functional.silu: "silu", functional.gelu: "gelu",
        torch.relu: "relu", functional.relu: "relu",
    }
)  # fmt: skip
"""What may stand in an attribute of a module, as in `pinnsketch.network.MLP`."""


def replaced(
    model: nn.Module, names: Collection[str], make: Callable[[Any], nn.Module], shared: Iterable[nn.Parameter] = ()
) -> nn.Module:
    """A copy of a model in which `make` replaces the modules of these names; one that has several is replaced once.

    Args:
        model: is left as it is.
        names: of modules.
        make: gives the new module for that of the copy, or that itself, changed.
        shared: parameters that the copy has too, in place of copies of them.
    """
    copy = deepcopy(model, {id(p): p for p in shared})
    old = {name: copy.get_submodule(name) for name in names}
    new = {module: make(module) for module in old.values()}
    for name, module in old.items():
        parent, _, last = name.rpartition(".")
        if not name:
            return new[module]
        setattr(copy.get_submodule(parent), last, new[module])
    return copy


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


def sketch_layers(
    model: nn.Module,
    pattern: str = "*",
    *,
    estimator: str = "mean+rademacher",
    keep: float = 0.25,
    weight_gradient: str = "sketched",
    activations: str = "packed",
    seed: int = 0,
) -> nn.Module:
    """A copy of a model in which linear layers and 2-D convolutions keep only a sketch of their inputs.

    The copy has the parameters of the given model, not copies of them; the given model stays as it is. Layers that are of a
    class of their own are left as they are: so are those within nn.MultiheadAttention, whose products are fused.

    Args:
        model: any module.
        pattern: the layers by name, with `*` and `?`.
        estimator, keep, weight_gradient: of each of them, as in `SketchLinear`.
        activations: `packed`: activations keep few bits, but for those whose output a layer keeps that is not sketched;
            `exact`: they stay as they are, and where they keep their output, as tanh and relu do, little is saved.
        seed: of all random numbers; each layer has its own, by its name.

    Raises:
        ValueError: if no layer has such a name, or an option is not known.
    """
    if activations not in ("exact", "packed"):
        raise ValueError(f"activations: expected exact or packed; got {activations!r}.")
    known = [name for name, module in model.named_modules() if type(module) in LAYERS]
    chosen = [name for name in known if fnmatchcase(name, pattern)]
    if not chosen:
        raise ValueError(f"pattern: no layer is named {pattern!r}; the layers are {', '.join(known) or 'none'}.")

    def sketching(module: Any) -> nn.Module:
        module.__class__ = LAYERS[type(module)]
        module.sketch_as(Options(weight_gradient, estimator, keep), seed)
        return module

    copy = replaced(model, chosen, sketching, model.parameters())
    if activations == "packed" and weight_gradient == "sketched":
        _pack_activations(copy, seed)
    for name, module in copy.named_modules():
        if isinstance(module, Stream):
            module.stream = crc32(name.encode())
    return copy


def _pack_activations(model: nn.Module, seed: int) -> None:
    for module in list(model.modules()):
        after = dict(zip(module, [*module][1:], strict=False)) if isinstance(module, nn.Sequential) else {}
        for name, child in list(module.named_children()):
            packed, follower = _packed(child, seed), after.get(child)
            if packed is not None and not (type(follower) in LAYERS and not _active(follower)):
                setattr(module, name, packed.train(child.training))
        for name, value in list(vars(module).items()):
            if not name.startswith("__") and callable(value) and _hashable(value) in FUNCTIONS:
                setattr(module, name, _by_name(FUNCTIONS[value], False, seed))


def _hashable(value: Any) -> Any:
    return value if value.__hash__ is not None else None


def _packed(module: nn.Module, seed: int) -> nn.Module | None:
    """What takes the place of an activation; None: it stays."""
    if type(module) is nn.ReLU:
        return PackedReLU(module.inplace)
    name = MODULES.get(type(module))
    plain = not getattr(module, "inplace", False) and getattr(module, "approximate", "none") == "none"
    return _by_name(name, False, seed) if name and plain else None


def _by_name(name: str, inplace: bool, seed: int) -> nn.Module:
    return PackedReLU(inplace) if name == "relu" else Packed(name, seed=seed)


def _active(module: Any) -> bool:
    return isinstance(module, (SketchLinear, SketchConv2d)) and module.options.active


def sketched(model: nn.Module) -> list[str]:
    """Names of the layers whose gradients are estimates: sketched ones and packed smooth activations."""
    return [name for name, module in model.named_modules() if _active(module) or isinstance(module, Packed)]


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without what sketched layers add to it: it loads, strictly, into the model that was converted."""
    own = {f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, Stream)}
    averages = {
        f"{name}.{buffer}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, SketchLinear)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    kept = {word: tensor for word, tensor in model.state_dict().items() if word not in averages}
    return {word: tensor for word, tensor in kept.items() if word.removesuffix("counter") not in own}


def set_keep(model: nn.Module, keep: float) -> bool:
    """Give all sketched layers another share, as a schedule or an adaptive rank has it; returns whether that changed any."""
    layers = [module for module in model.modules() if isinstance(module, (SketchLinear, SketchConv2d))]
    changed = any(layer.options.keep != keep for layer in layers)
    for layer in layers:
        layer.options.keep = keep
    return changed
