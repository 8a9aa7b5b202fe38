"""What reverse passes leave at the layers that a forward pass has met: Jacobians of residuals as outer products, norms of rows.

One reverse pass of the sum over points gives the g of each point, since no point's residual depends on another point.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from pinnsketch.jets.jet import Use
from pinnsketch.jets.outer import PASSES, Outer


def by_uses(columns: Tensor, uses: Sequence[Use], parameters: Sequence[nn.Parameter]) -> dict[int, Outer]:
    """The outer products of residuals `(n, c)`, by number of the parameter, from the uses that a forward pass noted.

    Parameters that the pass did not meet in a linear layer are taken to act on the residual directly, each as a number that is
    the same for all points.
    """
    place = {id(p): k for k, p in enumerate(parameters)}
    n, uses = len(columns), _of(uses, place)
    slopes = [_gradient(column, _ends(uses)) for column in columns.unbind(1)]
    found: dict[int, Outer] = {}

    def note(parameter: Tensor | None, outer: Outer) -> None:
        k = place.get(id(parameter))
        if k is not None:
            found[k] = found[k].join(outer) if k in found else outer

    ones = columns.new_ones(1, n, 1)
    for u, use in enumerate(uses):
        value = _stack([slope[2 * u] for slope in slopes], 0)[None]
        parts = _stack([slope[2 * u + 1] for slope in slopes], 1)
        note(use.weight, _read(use, torch.cat([value, parts])))
        note(use.bias, Outer(ones, value))
    for k, parameter in enumerate(parameters):
        if k not in found:
            rows = _direct(columns, parameter)
            if rows is not None:
                found[k] = Outer(ones, rows[None])
    return found


def by_point(
    columns: Tensor, uses: Sequence[Use], parameters: Sequence[nn.Parameter]
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """Of each column of `(n, c)` the gradient of its sum by the parameters, and the norm of each point's part in it, `(c, n)`.

    One reverse pass for each column gives both: the norms by the channel-Gram identity, from what it leaves at the layers.
    """
    trained = {id(p) for p in parameters}
    uses = _of(uses, trained)
    ends, ones = _ends(uses), columns.new_ones(())
    weights, biases = dict[int, list[int]](), dict[int, list[int]]()
    for u, use in enumerate(uses):
        weights.setdefault(id(use.weight), []).append(u)
        biases.setdefault(id(use.bias), []).append(u)
    met = weights.keys() | biases.keys()
    shared = [group for key, group in weights.items() if key in trained]
    inputs = [_gram(_channels([part for u in group for part in (uses[u].x.value, uses[u].x.whole)])) for group in shared]
    direct = [rows for p in parameters if id(p) not in met and (rows := _direct(columns, p)) is not None]
    gradients, norms = [], []
    for c, column in enumerate(columns.unbind(1)):
        slopes = _gradient(column, [*ends, *parameters])
        square = sum((rows[c].square().sum(1) for rows in direct), ones.new_zeros(len(column)))
        for group, gram in zip(shared, inputs, strict=True):
            square = square + (gram * _gram(_channels([part for u in group for part in slopes[2 * u : 2 * u + 2]]))).sum((1, 2))
        for group in (group for key, group in biases.items() if key in trained):
            square = square + sum((slopes[2 * u] for u in group), ones.new_zeros(())).square().sum(1)
        gradients.append(slopes[len(ends) :])
        norms.append(square.clamp(min=0).sqrt())
    return gradients, torch.stack(norms)


def by_rows(columns: Tensor, parameters: Sequence[nn.Parameter]) -> dict[int, Outer]:
    """The outer products of residuals `(n, c)`, as by `by_uses`, by a reverse pass for each row: for any network, and slow."""
    n, c = columns.shape
    each = torch.eye(n * c, dtype=columns.dtype, device=columns.device).view(n * c, c, n).transpose(1, 2)
    gradients = torch.autograd.grad(columns, parameters, each, is_grads_batched=True, allow_unused=True)
    ones = columns.new_ones(1, n, 1)
    return {k: Outer(ones, g.reshape(1, c, n, -1)) for k, g in enumerate(gradients) if g is not None}


def _read(use: Use, g: Tensor) -> Outer:
    """The outer products of one use; where the input is wide and the output narrow, without streams that no residual reads."""
    x = [use.x.value, *use.x.whole]
    if len(x) * x[0].shape[-1] > PASSES * g.shape[1] * g.shape[-1]:
        read = g.flatten(1).ne(0).any(1).tolist()
        kept = [s for s, reads in enumerate(read) if reads] or [0]
        x, g = [x[s] for s in kept], g[kept]
    return Outer(_channels(x), g, use.columns, 0 if use.columns is None else use.weight.shape[1])


def _of(uses: Sequence[Use], parameters: Collection[int]) -> list[Use]:
    """The uses of these parameters, given by `id`: no others need a reverse pass, nor have one where a layer does not train."""
    return [use for use in uses if id(use.weight) in parameters or id(use.bias) in parameters]


def _ends(uses: Sequence[Use]) -> list[Tensor]:
    return [end for use in uses for end in (use.y.value, use.y.parts)]


def _channels(parts: Sequence[Tensor]) -> Tensor:
    """Values `(n, i)` and streams `(K, n, i)` one after another, `(S, n, i)`."""
    each = [part.detach() if part.ndim == 3 else part.detach()[None] for part in parts]
    return each[0] if len(each) == 1 else torch.cat(each)


def _gram(x: Tensor) -> Tensor:
    """Of channels `(S, n, i)` their inner products at each point, `(n, S, S)`."""
    if len(x) == 1:
        return x[0].square().sum(1)[:, None, None]
    return torch.bmm(x.transpose(0, 1), x.permute(1, 2, 0))


def _stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """torch.stack, which copies nothing if there is but one."""
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(list(tensors), dim)


def _gradient(column: Tensor, ends: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not ends:
        return ()
    found = torch.autograd.grad(column.sum(), ends, retain_graph=True, allow_unused=True, materialize_grads=True)
    return tuple(g.detach() for g in found)


def _direct(columns: Tensor, parameter: nn.Parameter) -> Tensor | None:
    """Rows `(c, n, k)` by a parameter that acts on all points alike: d(w^T dr/dp)/dw."""
    rows = []
    for column in columns.unbind(1):
        w = torch.ones_like(column, requires_grad=True)
        (slope,) = torch.autograd.grad((column * w).sum(), parameter, create_graph=True, allow_unused=True)
        if slope is None:
            rows.append(column.new_zeros(len(column), parameter.numel()))
            continue
        entries = [torch.autograd.grad(entry, w, retain_graph=True)[0] for entry in slope.flatten()]
        rows.append(torch.stack(entries, dim=1))
    found = torch.stack(rows).detach()
    return found if bool(found.any()) else None
