"""The image task: batches of a data set and their loss for the same train loop, and the network trained on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pinnsketch.blank import blank
from pinnsketch.datasets import Images


class Sine(nn.Module):
    """The sine of each number."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "sin": Sine, "silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU,
}  # fmt: skip
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


KINDS: dict[str, tuple[int, ...]] = {"mlp": (), "conv": (32, 64, 128)}
"""Networks, each with the channels of its convolutions, two for each number."""


class ImageNetwork(nn.Module):
    """A classifier: convolutions if it has any, `depth` hidden layers of `width`, and one score for each class.

    For each number of `channels` there are two convolutions of 3 x 3, each with its activation, then the mean of each 2 x 2.

    Args:
        shape: of an image, `(C, H, W)`.
        classes: how many.
        kind: a name in KINDS.
        channels: of the convolutions; None: those in KINDS.
        width, depth: units of a hidden layer, and number of these.
        activation: a name in ACTIVATIONS.
        init: how weights are drawn, a name in INITS.
        gain: factor of the drawn weights.
        bias: initial bias of the hidden layers; the last starts at zero.
        generator: draws the weights; equal generators give equal networks.
        dtype: of all parameters.

    Attributes:
        layers: convolutions and linear layers, the last of which is the output; all others are hidden.
        activations: one for each hidden layer.
        widest: units of the widest hidden layer.

    Maps images `(N, C, H, W)` to scores `(N, classes)`, whose softmax is the probability of each class.

    Raises:
        ValueError: if an image is too small to be halved as often.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        kind: str = "mlp",
        channels: Sequence[int] | None = None,
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
        channels = KINDS[kind] if channels is None else channels
        count, *size = shape
        small = [side >> len(channels) for side in size]
        if not all(small):
            raise ValueError(f"network.channels: expected at most {min(size).bit_length() - 1} numbers, since each halves an "
                             f"image of {size[0]} x {size[1]}; got {len(channels)}")  # fmt: skip
        convolutions = list(pairwise([count, *(c for c in channels for _ in range(2))]))
        inputs = convolutions[-1][1] if convolutions else count
        sizes = [inputs * int(np.prod(small)), *[width] * depth, classes]
        layers: list[nn.Conv2d | nn.Linear] = [
            *(blank(nn.Conv2d, a, b, 3, padding=1, dtype=dtype) for a, b in convolutions),
            *(blank(nn.Linear, a, b, dtype=dtype) for a, b in pairwise(sizes)),
        ]
        with torch.no_grad():
            for layer in layers:
                INITS[init](layer.weight, generator=generator).mul_(gain)
                cast(Tensor, layer.bias).fill_(0.0 if layer is layers[-1] else bias)
        self._convolutions = len(convolutions)
        self.widest = max([width, *(c * int(np.prod(size)) // 4 ** (i // 2) for i, (_, c) in enumerate(convolutions))])
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(ACTIVATIONS[activation]() for _ in layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[-1](self.hidden(x, range(len(self.activations))).flatten(1))

    def hidden(self, y: Tensor, which: Iterable[int]) -> Tensor:
        """What some hidden layers, one after another, make of the output of the one before them, or of images."""
        for i in which:
            y = y if i < self._convolutions else y.flatten(1)
            y = self.activations[i](self.layers[i](y))
            y = y if self.shares_output(i) else halved(y)
        return y

    def inputs(self, x: Tensor, measure: Callable[[Callable[[], Any]], int]) -> dict[str, int]:
        """What each hidden layer alone, without its activation, keeps of its input for images x, as measured by a function."""
        found = {}
        for i, layer in enumerate(self.layers[:-1]):
            found[f"layers.{i}"] = measure(partial(layer, x if i < self._convolutions else x.flatten(1)))
            with torch.no_grad():
                x = self.hidden(x, [i])
        return found

    def shares_output(self, i: int) -> bool:
        """Whether the output of an activation is the next layer's input, and not halved before."""
        return i >= self._convolutions or i % 2 == 0


def halved(y: Tensor) -> Tensor:
    """The mean of each 2 x 2 of `(N, C, H, W)`, without a last odd row or column: its reverse pass needs no numbers kept."""
    h, w = (side // 2 for side in y.shape[-2:])
    return y[..., : 2 * h, : 2 * w].unflatten(-1, (w, 2)).unflatten(-3, (h, 2)).mean((-3, -1))
