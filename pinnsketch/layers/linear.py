"""SketchLinear: a linear layer whose backward pass needs only a sketch of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinnsketch.jets import Jet, linear
from pinnsketch.layers.antil2025_moving_average import DECAY, MovingAverage, columns
from pinnsketch.layers.options import Options
from pinnsketch.layers.sketched import Call, Sketched, Stream, without_autocast


class RowsProduct:
    """`y = x W^T + b`; a row is what the last axis holds."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    def rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])

    def input_gradient(self, delta: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return delta @ weight

    def weight_gradient(self, left: Tensor, right: Tensor, delta: torch.Size, x: torch.Size, weight: Tensor) -> Tensor:
        return left.mT @ right

    def bias_gradient(self, delta: Tensor) -> Tensor:
        return self.rows(delta).sum(0)


ROWS = RowsProduct()


class SketchLinear(nn.Linear):
    """nn.Linear that keeps a sketch of its input for the weight gradient, in place of the input.

    The output is that of nn.Linear bit for bit, the gradients by input and bias are exact, and the gradient by the weight is
    estimated in training mode; it is exact in evaluation mode, and for so few rows that less than one would be kept.

    Args:
        in_features, out_features, bias, device, dtype: as in nn.Linear.
        weight_gradient: `sketched`, or `exact`, which is nn.Linear bit for bit.
        estimator: a name in `ESTIMATORS`.
        keep: share of the numbers of the input that is kept.
        seed: of the sketches; give layers different ones, or convert a whole model by `sketch_layers`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        weight_gradient: str = "sketched",
        estimator: str = "mean+rademacher",
        keep: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.sketch_as(Options(weight_gradient, estimator, keep), seed)

    def sketch_as(self, options: Options, seed: int) -> None:
        """Set how the weight gradient is made, and begin its random numbers."""
        self.options, self.random = options, Stream(seed, self.weight.device)
        if isinstance(options.estimator, MovingAverage):
            k = columns(options.keep)
            for name, size in (("x", self.in_features), ("y", self.out_features), ("z", self.out_features)):
                self.register_buffer(f"average_{name}", self.weight.new_zeros(size, k))

    def forward(self, x: Any) -> Any:
        if isinstance(x, Jet):
            return linear(x, self.weight, self.bias, product=self._product)
        return self._product(x, self.weight, self.bias)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product of rows and weight, sketched where the weight's gradient is asked for."""
        if not self.options.sketches(self.random, weight, x, x.numel() // max(x.shape[-1], 1)):
            return functional.linear(x, weight, bias)
        return without_autocast(self._sketched, x, weight, bias)

    def _sketched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        options, seed, memory = self.options, self.random.next(x), tuple[Tensor, ...]()
        if isinstance(options.estimator, MovingAverage):
            seed = torch.zeros_like(seed)  # the projections of an average stay the same
            memory = self._remember(options.estimator, x.detach(), weight.detach(), bias, seed)
        return Sketched.apply(x, weight, bias, seed, Call(ROWS, options.estimator, options.keep, options.note, memory))

    @torch.no_grad()
    def _remember(
        self, average: MovingAverage, x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor
    ) -> tuple[Tensor, ...]:
        """Equations (5a) to (5c): the moving averages with this batch, which backward will read as they then are."""
        rows = ROWS.rows(x)
        batch = average.save(rows, seed, self.options.keep, functional.linear(rows, weight, bias))
        kept = tuple(getattr(self, f"average_{name}") for name in "xyz")
        for old, new in zip(kept, batch, strict=True):
            old.lerp_(new.to(old.dtype), 1 - DECAY)
        return kept

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):  # which a plain layer does not have
            state_dict.setdefault(prefix + name, buffer)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.options}"
