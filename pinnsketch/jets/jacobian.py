"""Jacobian: the derivative of residuals at points by the parameters of a network, kept as outer products.

What a linear layer's weight W does to a residual r_n at point n passes through y_s = W x_s, s over the value and derivative
streams, so that dr_n/dW = sum_s g_sn x_sn^T with g_sn = dr_n/dy_sn. One reverse pass gives all g; J v, J^T w, J J^T and the
norm of each row then need no row itself: |dr_n/dW|^2 = <X_n X_n^T, G_n G_n^T> with one channel for each stream (channel Gram).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pinnsketch.jets.jet import NoRule, Use

PASSES = 100
"""What an entrywise pass over a matrix costs, in multiplications and additions for each entry."""
STRIP = 64
"""Rows of a product of a matrix with itself that are worth a call of their own."""
HELD = 2**26
"""Numbers of a Jacobian that are held at a time."""

PIECE = 512
"""Points at a time whose rows are taken along a basis: a cache holds what is made of them."""


@dataclass(frozen=True)
class Basis:
    """Orthonormal directions `left[:, a] right[:, b]^T` in which a parameter `(o, i)` may change, one for each pair (a, b).

    Args:
        left, right: orthogonal, `(o, o)` and `(i, i)`.
        a, b: which of their columns, `(s,)`.
    """

    left: Tensor
    right: Tensor
    a: Tensor
    b: Tensor

    @classmethod
    def random(cls, o: int, i: int, size: int, generator: torch.Generator, like: Tensor) -> Basis:
        """Random rotations, and `size` of their o i pairs of columns."""
        left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0].to(like) for n in (o, i))
        kept = torch.randperm(o * i, generator=generator)[:size].to(like.device)
        return cls(left, right, kept // i, kept % i)

    def lift(self, z: Tensor) -> Tensor:
        """The change `(o i,)` with coordinates z `(s,)`."""
        middle = z.new_zeros(len(self.left), len(self.right)).index_put_((self.a, self.b), z)
        return (self.left @ middle @ self.right.T).flatten()

    def matrix(self) -> Tensor:
        """The directions as columns, `(o i, s)`."""
        return torch.einsum("os,is->ois", self.left[:, self.a], self.right[:, self.b]).flatten(0, 1)


@dataclass(frozen=True)
class Outer:
    """Rows `sum_s g[s, c, n] x[s, n]^T` by one parameter `(o, i)`, for c residuals at n points.

    Args:
        x: what went into the parameter, `(S, n, i)`.
        g: derivatives of the residuals by what came out, `(S, c, n, o)`.
        columns: where each point met few columns of the parameter, which: `(n, k)`, and x is `(S, n, k)`.
        inputs: i, where columns are given.
    """

    x: Tensor
    g: Tensor
    columns: Tensor | None = None
    inputs: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i) of the parameter."""
        return self.g.shape[-1], self.x.shape[-1] if self.columns is None else self.inputs

    def rows(self) -> Tensor:
        """`(c n, o i)`."""
        o, i = self.shape
        return self.put(self.g.new_empty(self.g.shape[1] * self.g.shape[2], o * i))

    def local(self) -> Tensor:
        """The rows in those columns that each point met, `(c, n, o, k)`."""
        return torch.einsum("scno,snk->cnok", self.g, self.x)

    def put(self, out: Tensor) -> Tensor:
        """The rows, written to `(c n, o i)`."""
        (_, c, n, o), i = self.g.shape, self.shape[1]
        whole = out.unflatten(0, (c, n)).unflatten(2, (o, i))
        if self.columns is not None:
            local = self.local()
            whole.zero_().scatter_add_(3, self.columns[None, :, None].expand_as(local), local)
            return out
        x = self.x.transpose(0, 1)
        for k, part in enumerate(whole):
            torch.bmm(self.g[:, k].permute(1, 2, 0), x, out=part)
        return out

    def times(self, v: Tensor) -> Tensor:
        """The rows times a change `(o i,)` of the parameter, `(c n,)`."""
        if self.columns is not None:
            return torch.einsum("cnok,onk->cn", self.local(), v.view(self.shape)[:, self.columns]).flatten()
        y = self.x @ v.view(self.g.shape[-1], self.x.shape[-1]).T
        return torch.einsum("scno,sno->cn", self.g, y).flatten()

    def transposed(self, w: Tensor) -> Tensor:
        """The sum of the rows with weights `(c n,)`, `(o i,)`."""
        g = (w.view(*self.g.shape[1:3], 1) * self.g).sum(1)
        if self.columns is not None:
            parts = torch.einsum("sno,snk->onk", g, self.x).flatten(1)
            return g.new_zeros(self.shape).index_add_(1, self.columns.flatten(), parts).flatten()
        return torch.einsum("ko,ki->oi", g.flatten(0, 1), self.x.flatten(0, 1)).flatten()

    def gram(self, other: Outer) -> Tensor:
        """Inner products with another's rows, `(c n, c' n')`, by channels or by rows, whichever moves fewer numbers."""
        (s, c, n, o), (t, c2, n2, _), i = self.g.shape, other.g.shape, self.x.shape[-1]
        if s * t * (o + i + PASSES) > o * i or self.columns is not None or other.columns is not None:
            return _with_itself(self.rows()) if other is self else self.rows() @ other.rows().T
        found = self.g.new_zeros(c, n, c2, n2)
        for k in range(s):
            for m in range(t):
                inputs = self.x[k] @ other.x[m].T
                found.addcmul_(torch.einsum("cno,dmo->cndm", self.g[k], other.g[m]), inputs[None, :, None])
        return found.reshape(c * n, c2 * n2)

    def squares(self) -> Tensor:
        """The squared norm of each row, `(c n,)`, by the channel-Gram identity."""
        inputs = torch.einsum("sni,tni->stn", self.x, self.x)
        return torch.einsum("scno,tcno,stn->cn", self.g, self.g, inputs).flatten()

    def along(self, basis: Basis) -> Tensor:
        """The rows times the directions of a basis, `(s, c n)`: one row a direction."""
        (s, c, n, o), i = self.g.shape, self.x.shape[-1]
        if (o, i) != (len(basis.left), len(basis.right)) or self.columns is not None:
            return (self.rows() @ basis.matrix()).T
        found = self.g.new_empty(len(basis.a), c, n)
        for piece in torch.arange(n).split(PIECE):
            cells = slice(int(piece[0]), int(piece[-1]) + 1)
            g = (self.g[:, :, cells] @ basis.left).permute(0, 3, 1, 2).contiguous()
            x = (self.x[:, cells] @ basis.right).transpose(1, 2).contiguous()
            total = g[0][basis.a] * x[0][basis.b][:, None]
            for k in range(1, s):
                total.addcmul_(g[k][basis.a], x[k][basis.b][:, None])
            found[:, :, cells] = total
        return found.flatten(1)

    def part(self, start: int, end: int) -> Outer:
        """The rows of some of the points."""
        columns = None if self.columns is None else self.columns[start:end]
        return replace(self, x=self.x[:, start:end], g=self.g[:, :, start:end], columns=columns)

    def join(self, other: Outer) -> Outer:
        """The same parameter used twice."""
        if self.columns is not None or other.columns is not None:
            raise NoRule("no rule for a weight that is met twice, in some of its columns")
        return Outer(torch.cat([self.x, other.x]), torch.cat([self.g, other.g]))


class Jacobian:
    """The derivative of N residuals by P parameters, `(N, P)`, as a linear map.

    Args:
        blocks: in order, the residuals `(n,)` that share points with, by number of the parameter, their outer products.
        shapes: of the parameters, in the order of their entries in a vector.
    """

    def __init__(self, blocks: Sequence[tuple[Tensor, Mapping[int, Outer]]], shapes: Sequence[torch.Size]) -> None:
        self._blocks, self._like = [block for _, block in blocks], blocks[0][0]
        self._rows, self._sizes, self._shapes = [len(r) for r, _ in blocks], [shape.numel() for shape in shapes], shapes

    @property
    def blocks(self) -> list[Mapping[int, Outer]]:
        """The outer products by number of the parameter, of the residuals that share points with."""
        return self._blocks

    @property
    def shape(self) -> tuple[int, int]:
        return sum(self._rows), sum(self._sizes)

    def dense(self) -> Tensor:
        """All entries, `(N, P)`."""
        found = self._zeros(*self.shape)
        for part, block in zip(found.split(self._rows), self._blocks, strict=True):
            columns = part.split(self._sizes, dim=1)
            for k, outer in block.items():
                outer.put(columns[k])
        return found

    def times(self, v: Tensor) -> Tensor:
        """J v, `(N,)`, for a change v `(P,)` of the parameters."""
        parts = v.split(self._sizes)
        return self._by_block(lambda k, outer: outer.times(parts[k]))

    def transposed(self, w: Tensor) -> Tensor:
        """J^T w, `(P,)`, for weights w `(N,)` of the residuals."""
        found = [self._zeros(size) for size in self._sizes]
        for block, part in zip(self._blocks, w.split(self._rows), strict=True):
            for k, outer in block.items():
                found[k] = found[k] + outer.transposed(part)
        return torch.cat(found)

    def gram(self) -> Tensor:
        """J J^T, `(N, N)`."""
        blocks, found = list(zip(self._rows, self._blocks, strict=True)), dict[tuple[int, int], Tensor]()
        for i, a in enumerate(blocks):
            for j, b in enumerate(blocks[i:], start=i):
                found[i, j] = self._inner(a, b)
                found[j, i] = found[i, j].T
        return torch.cat([torch.cat([found[i, j] for j in range(len(blocks))], 1) for i in range(len(blocks))])

    def normal(self) -> Tensor:
        """J^T J, `(P, P)`, of rows that are made piece by piece."""
        size = self.shape[1]
        found = self._zeros(size, size)
        for n, block in zip(self._rows, self._blocks, strict=True):
            points = next((outer.g.shape[2] for outer in block.values()), n)
            each = max(1, HELD // (size * (n // points)))
            for start in range(0, points, each):
                end = min(start + each, points)
                part = {k: outer.part(start, end) for k, outer in block.items()}
                rows = Jacobian([(self._like.new_empty((end - start) * (n // points)), part)], self._shapes).dense()
                _add_square(found, rows)
        return found.triu_().add_(found.triu(1).T)

    def square(self) -> Tensor:
        """J J^T or J^T J, whichever is smaller."""
        return self.gram() if self.shape[0] <= self.shape[1] else self.normal()

    def along(self, bases: Sequence[Basis]) -> Tensor:
        """J B transposed, `(s, N)`, for the directions B of all parameters: s counts those of all bases."""
        found = self._like.new_zeros(sum(len(basis.a) for basis in bases), self.shape[0])
        column = 0
        for n, block in zip(self._rows, self._blocks, strict=True):
            row = 0
            for k, basis in enumerate(bases):
                if k in block:
                    found[row : row + len(basis.a), column : column + n] = block[k].along(basis)
                row += len(basis.a)
            column += n
        return found

    def norms(self) -> Tensor:
        """The norm of each row, `(N,)`: of the gradient of each residual."""
        return self._by_block(lambda k, outer: outer.squares()).sqrt()

    def _by_block(self, number: Callable[[int, Outer], Tensor]) -> Tensor:
        """One number for each row, the sum over parameters."""
        blocks = zip(self._rows, self._blocks, strict=True)
        return torch.cat([sum((number(k, outer) for k, outer in block.items()), self._zeros(n)) for n, block in blocks])

    def _inner(self, a: tuple[int, Mapping[int, Outer]], b: tuple[int, Mapping[int, Outer]]) -> Tensor:
        (n, left), (m, right) = a, b
        return sum((left[k].gram(right[k]) for k in left if k in right), self._zeros(n, m))

    def _zeros(self, *shape: int) -> Tensor:
        return self._like.new_zeros(shape)


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


def _read(use: Use, g: Tensor) -> Outer:
    """The outer products of one use; where the input is wide and the output narrow, without streams that no residual reads."""
    x = [use.x.value, *use.x.whole]
    if len(x) * x[0].shape[-1] > PASSES * g.shape[1] * g.shape[-1]:
        read = g.flatten(1).ne(0).any(1).tolist()
        kept = [s for s, reads in enumerate(read) if reads] or [0]
        x, g = [x[s] for s in kept], g[kept]
    return Outer(_channels(x), g, use.columns, 0 if use.columns is None else use.weight.shape[1])


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


def _with_itself(rows: Tensor) -> Tensor:
    """rows rows^T, in strips above the diagonal: little more than half of the work of a full product."""
    n = len(rows)
    size = max(STRIP, -(-n // 8))
    if size >= n:
        return rows @ rows.T
    found = rows.new_empty(n, n)
    for start in range(0, n, size):
        strip = rows[start : start + size] @ rows[start:].T
        found[start : start + size, start:] = strip
        found[start:, start : start + size] = strip.T
    return found


def _add_square(total: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to what lies above the diagonal, in strips."""
    n = len(total)
    size = max(STRIP, -(-n // 8))
    for start in range(0, n, size):
        total[start : start + size, start:].addmm_(rows[:, start : start + size].T, rows[:, start:])


def _stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """torch.stack, which copies nothing if there is but one."""
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(list(tensors), dim)


def by_rows(columns: Tensor, parameters: Sequence[nn.Parameter]) -> dict[int, Outer]:
    """The same by one reverse pass for each residual at each point: for any network, and slow."""
    n, c = columns.shape
    each = torch.eye(n * c, dtype=columns.dtype, device=columns.device).view(n * c, c, n).transpose(1, 2)
    gradients = torch.autograd.grad(columns, parameters, each, is_grads_batched=True, allow_unused=True)
    ones = columns.new_ones(1, n, 1)
    return {k: Outer(ones, g.reshape(1, c, n, -1)) for k, g in enumerate(gradients) if g is not None}


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
