"""LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen weight and a trained change of low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinnsketch.layers.convert import converted


class LoRALinear(nn.Module):
    """`y = x (W + scale B A)^T + b`, of which A, B and b train; B is zero at first (section 4.1).

    Args:
        weight: W, frozen, `(m, n)`.
        bias: b `(m,)`, or None.
        rank: r.
        scale: alpha / r in the source.
        generator: draws A, uniform within +-1 / sqrt(n).

    Attributes: parameters `a (r, n)`, `b (m, r)`, `bias`; buffer `base`, W.
    """

    base: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("base", weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.a = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.b = nn.Parameter(weight.new_empty(len(weight), rank))
        self.start(generator)

    @property
    def weight(self) -> Tensor:
        """W + scale B A, `(m, n)`."""
        return self.base + self.scale * (self.b @ self.a)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Draw A, and set B to zero."""
        uniform = torch.rand(self.a.shape, generator=generator, dtype=torch.float64)
        self.a.copy_((2 * uniform - 1) / math.sqrt(self.a.shape[1]))
        self.b.zero_()

    @torch.no_grad()
    def merge(self) -> None:
        """Add the change to the frozen weight; `start` then begins another."""
        self.base.copy_(self.weight)


def lora_layers(model: nn.Module, rank: int, pattern: str = "*", *, scale: float = 1.0, seed: int = 0) -> nn.Module:
    """A copy of a model whose linear layers train by a change of low rank, equal to it at first.

    Args:
        model: is left as it is.
        rank: of the change. Layers with no more rows or columns stay dense.
        pattern: names of the layers to convert, with the wildcards of `fnmatch`.
        scale: factor of the change.
        seed: of the first A.

    Raises:
        ValueError: if no layer can be converted; the message lists those that there are.
    """
    generator = torch.Generator().manual_seed(seed)
    return converted(model, rank, pattern, lambda layer: LoRALinear(layer.weight, layer.bias, rank, scale, generator))
