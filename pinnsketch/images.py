"""The image task: batches of a data set and their loss for the same train loop, and the network trained on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pinnsketch.datasets import Images
from pinnsketch.network import ACTIVATIONS as SMOOTH

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {**SMOOTH, "relu": torch.relu}
"""Those of PDE networks, and relu, which has no second derivative and would be of no use there."""
INITS: dict[str, Callable[..., Tensor]] = {
    "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "xavier": nn.init.xavier_normal_,
}
"""He et al. (2015): standard deviation sqrt(2 / inputs); Glorot & Bengio (2010): sqrt(2 / (inputs + outputs))."""
NONE = -100
"""The class of a row that fills up a batch: cross entropy leaves it out."""
CHUNK = 1000
"""Test images that are evaluated at a time."""


class ImageTask:
    """Classify images: a `Task` of the train loop.

    A batch is `(x, y)`: images `(batch, C, H, W)`, scaled so that each channel of the training images has mean 0 and standard
    deviation 1, and classes `(batch,)`. Every epoch takes each training image once, in an order of its own; rows that fill up
    its last batch have the class `NONE` and no part in the loss, so that all batches have one shape.

    Args:
        images: the data set.
        batch: images in a batch.
        seed: of the orders.
        dtype: of the scaled images.
        device: where they are kept.

    Attributes:
        batches: in an epoch.

    Raises:
        ValueError: if a batch is larger than the training set.
    """

    weights = MappingProxyType({"cross_entropy": 1.0})

    def __init__(
        self,
        images: Images,
        batch: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        count = len(images.train_x)
        if batch > count:
            raise ValueError(f"train.batch: expected at most the {count:,} training images of {images.name}; got {batch:,}")
        self.batches, self._batch, self._seed, self._device = -(-count // batch), batch, seed, device
        mean, std = (torch.tensor(values, dtype=dtype, device=device)[:, None, None] for values in moments(images.train_x))

        def scaled(x: Tensor) -> Tensor:
            return x.to(device, dtype).sub_(mean).div_(std)

        blank = images.train_x.new_zeros(1, *images.train_x.shape[1:])
        self._x = scaled(torch.cat([images.train_x, blank]))
        self._y = torch.cat([images.train_y, torch.tensor([NONE])]).to(device)
        self._test_x, self._test_y = scaled(images.test_x), images.test_y.to(device)
        self._order: tuple[int, Tensor | None] = (-1, None)

    def batch(self, draw: int) -> tuple[Tensor, Tensor]:
        """The batch of a draw, which is determined by seed and draw alone."""
        epoch, place = divmod(draw, self.batches)
        if self._order[0] != epoch:
            self._order = epoch, self._shuffled(epoch)
        rows = self._order[1][place]  # type: ignore[index]
        return self._x[rows], self._y[rows]

    def _shuffled(self, epoch: int) -> Tensor:
        """The rows of each batch of an epoch, `(batches, batch)`."""
        count, rng = len(self._y) - 1, np.random.default_rng((self._seed, epoch))
        rows = np.full(self.batches * self._batch, count)
        rows[:count] = rng.permutation(count)
        return torch.from_numpy(rows).reshape(self.batches, self._batch).to(self._device)

    def probe(self, count: int) -> Tensor:
        """The first so many training images, scaled."""
        return self._x[: min(count, len(self._x) - 1)].clone()

    def losses(self, model: Any, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The mean cross entropy of a batch."""
        x, y = batch
        return {"cross_entropy": cross_entropy(model(x), y, ignore_index=NONE)}

    @torch.no_grad()
    def error(self, model: Any) -> dict[str, float]:
        """The share of the test images that are classified wrongly."""
        pieces = zip(self._test_x.split(CHUNK), self._test_y.split(CHUNK), strict=True)
        wrong = sum((model(x).argmax(dim=1) != y).sum() for x, y in pieces)
        return {"overall": float(wrong) / len(self._test_y)}


def moments(x: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of images `(N, C, H, W)` of bytes, from exact counts; 1 in place of 0."""
    levels = torch.arange(256, dtype=torch.float64)
    shares = [torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel() for channel in x.unbind(1)]
    means = [float(share @ levels) for share in shares]
    stds = [float(share @ (levels - mean) ** 2) ** 0.5 or 1.0 for share, mean in zip(shares, means, strict=True)]
    return means, stds


class ImageNetwork(nn.Module):
    """A fully connected classifier: `depth` hidden layers of `width`, and one score for each class.

    Args:
        shape: of an image, `(C, H, W)`.
        classes: how many.
        width, depth: units of a hidden layer, and number of these.
        activation: a name in ACTIVATIONS.
        init: how weights are drawn, a name in INITS.
        gain: factor of the drawn weights.
        bias: initial bias of the hidden layers; the last starts at zero.
        generator: draws the weights; equal generators give equal networks.
        dtype: of all parameters.

    Maps images `(N, C, H, W)` to scores `(N, classes)`, whose softmax is the probability of each class.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: int = 128,
        depth: int = 2,
        activation: str = "relu",
        init: str = "kaiming",
        gain: float = 1.0,
        bias: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self._activation = ACTIVATIONS[activation]
        sizes = [int(np.prod(shape)), *[width] * depth, classes]
        # skip_init leaves the global random numbers alone
        layers: list[nn.Linear] = [nn.utils.skip_init(nn.Linear, a, b, dtype=dtype) for a, b in pairwise(sizes)]
        with torch.no_grad():
            for layer in layers:
                INITS[init](layer.weight, generator=generator).mul_(gain)
                layer.bias.fill_(0.0 if layer is layers[-1] else bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1)
        for layer in self.layers[:-1]:
            y = self._activation(layer(y))
        return self.layers[-1](y)
