"""The layers of a network: their names, their parameters, and what flows through them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.gauges import ITSELF
from pinnsketch.gauges.gauge import Activation


def inside(network: nn.Module) -> nn.Module:
    """The module itself, in a compiled or a distributed one."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if inner is None and isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = network.module
        if inner is None:
            return network
        network = inner


def layers_of(network: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Each module with parameters of its own that train; a shared parameter belongs to the first that has it."""
    seen: set[int] = set()
    itself = other_than([name for name, _ in network.named_modules()])
    for name, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        seen.update(map(id, own))
        if own:
            yield plain_name(name) or itself, own


def words_of(network: nn.Module, layers: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, list[str]]:
    """The names of the parameters of each layer, as they are called there."""
    last = {id(p): name.rpartition(".")[2] for name, p in network.named_parameters()}
    return {name: [last[id(p)] for p in parameters] for name, parameters in layers.items()}


def plain_name(name: str) -> str:
    """The name of a module, whether or not it was compiled."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def other_than(names: Collection[str]) -> str:
    """The name of the network itself, where it is none of these."""
    return f"({ITSELF})" if ITSELF in names else ITSELF


def dense(tensor: Tensor) -> Tensor:
    """The tensor, dense, with a last axis for real and imaginary part where it is complex."""
    whole = tensor.to_dense() if tensor.is_sparse else tensor
    return torch.view_as_real(whole) if whole.is_complex() else whole


@torch.no_grad()
def activations(network: nn.Module, layers: Collection[str], probe: Tensor) -> dict[str, Activation]:
    """What goes into each linear layer, comes out of it, and goes into the next, on the probe points; within `evaluating`."""
    seen: dict[str, list[Tensor]] = {}
    itself = next(iter(layers))  # the name of the root, where it has parameters of its own: it comes first
    named = ((plain_name(name) or itself, module) for name, module in network.named_modules())
    linear = {name: module for name, module in named if isinstance(module, nn.Linear)}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, [inputs[0], output])

    hooks = [module.register_forward_hook(keep(name)) for name, module in linear.items()]
    try:
        final = network(probe)
    finally:
        for hook in hooks:
            hook.remove()
    lasts = [final] if isinstance(final, Tensor) else [linear for _, linear in list(seen.values())[-1:]]
    nexts = [*(before for before, _ in list(seen.values())[1:]), *lasts]
    batch, rows = len(probe), zip(seen.items(), nexts, strict=False)
    found = {name: Activation(before, linear, after) for (name, (before, linear)), after in rows}
    return {name: a for name, a in found.items() if name in layers and all(t.ndim > 1 and len(t) == batch for t in a)}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A pass that leaves no trace: no running average moves, and what is random all the same leaves the generators alone."""
    modes = [(module, module.training) for module in network.modules()]
    devices = {p.device for p in network.parameters() if p.is_cuda}
    network.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
