"""SketchConv2d: a convolution whose backward pass needs only sketched images in place of its input.

The rows that a sketch mixes are the samples of a batch, so q sketched images S x `(q, C, H, W)` are kept, exact in space, and
the weight gradient is that of a convolution of these with S delta. An unfolded input, whose rows would be patches, is k^2 times
as large as the input itself. With G_ij the weight gradient of image i and the delta of image j,

    E |G~ - G|^2 = 1/q sum over i != j of (|G_ij|^2 + <G_ij, G_ji>)

for random signs; with the mean image kept exactly, of centred images and deltas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinnsketch.layers.antil2025_moving_average import MovingAverage
from pinnsketch.layers.options import Options
from pinnsketch.layers.sketched import Call, Sketched, Stream, without_autocast

Pair = tuple[int, int]


@dataclass(frozen=True)
class ImagesProduct:
    """The convolution of images `(N, C, H, W)` with a weight; a row is an image."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def rows(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)

    def input_gradient(self, delta: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return self._backward(delta, weight.new_empty(1).expand(shape), weight, (True, False, False))[0]

    def weight_gradient(self, left: Tensor, right: Tensor, delta: torch.Size, x: torch.Size, weight: Tensor) -> Tensor:
        images, deltas = right.view(-1, *x[1:]), left.view(-1, *delta[1:])
        return self._backward(deltas, images, weight, (False, True, False))[1]

    def bias_gradient(self, delta: Tensor) -> Tensor:
        return delta.sum((0, 2, 3))

    def _backward(self, delta: Tensor, x: Tensor, weight: Tensor, asked: tuple[bool, bool, bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            delta, x, weight, None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups, asked
        )


class SketchConv2d(nn.Conv2d):
    """nn.Conv2d that keeps sketched images for the weight gradient, in place of its input.

    The output is that of nn.Conv2d bit for bit, the gradients by input and bias are exact, and the gradient by the weight is
    estimated in training mode; it is exact in evaluation mode, for an image without a batch axis, and for so few images that
    less than one would be kept.

    Args:
        in_channels, out_channels, kernel_size, *args, **kwargs: as in nn.Conv2d.
        weight_gradient: `sketched`, or `exact`, which is nn.Conv2d bit for bit.
        estimator: a name in `ESTIMATORS` other than `ema`.
        keep: share of the numbers of the input that is kept.
        seed: of the sketches; give layers different ones, or convert a whole model by `sketch_layers`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        *args: Any,
        weight_gradient: str = "sketched",
        estimator: str = "mean+rademacher",
        keep: float = 0.25,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)
        self.sketch_as(Options(weight_gradient, estimator, keep), seed)

    def sketch_as(self, options: Options, seed: int) -> None:
        """Set how the weight gradient is made, and begin its random numbers.

        Raises:
            ValueError: for the estimator `ema`.
        """
        if isinstance(options.estimator, MovingAverage):
            raise ValueError("estimator: ema, as its source has it, is for linear layers; name another for a convolution.")
        self.options, self.random = options, Stream(seed, self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or not self.options.sketches(self.random, self.weight, x, len(x)):
            return super().forward(x)
        padded, padding = self._padded(x)
        product = ImagesProduct(_pair(self.stride), padding, _pair(self.dilation), self.groups)
        call = Call(product, self.options.estimator, self.options.keep, self.options.note)

        def sketched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return Sketched.apply(x, weight, bias, self.random.next(x), call)

        return without_autocast(sketched, padded, self.weight, self.bias)

    def _padded(self, x: Tensor) -> tuple[Tensor, Pair]:
        """The input, padded by what equal zeros on both sides cannot give, and the zeros that are still to be added."""
        if self.padding_mode != "zeros":
            return functional.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
        if not isinstance(self.padding, str):
            return x, _pair(self.padding)
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if (left, top) == (right, bottom):
            return x, (top, left)
        return functional.pad(x, (0, right - left, 0, bottom - top)), (top, left)  # "same" has the greater part there

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.options}"


def _pair(sizes: tuple[int, ...]) -> Pair:
    return sizes[0], sizes[1]
