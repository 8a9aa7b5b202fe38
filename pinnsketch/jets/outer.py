"""Outer: rows of a Jacobian by one parameter, kept as the outer products that a linear layer makes of them.

What a linear layer's weight W does to a residual r_n at point n passes through y_s = W x_s, s over the value and derivative
streams, so that dr_n/dW = sum_s g_sn x_sn^T with g_sn = dr_n/dy_sn. J v, J^T w, J J^T and the norm of each row then need no row
itself: |dr_n/dW|^2 = <X_n X_n^T, G_n G_n^T> with one channel for each stream (channel Gram).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pinnsketch.jets.jet import NoRule
from pinnsketch.jets.squares import rows_by_rows

PASSES = 100
"""What an entrywise pass over a matrix costs, in multiplications and additions for each entry."""
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

    def by_rows(self) -> int:
        """Products that an entry of a kernel takes by rows."""
        o, i = self.shape
        return o * i

    def by_channels(self, other: Outer) -> int:
        """The same by channels."""
        (o, i), channels = self.shape, len(self.g) * len(other.g)
        return channels * (o + i + PASSES)

    def spared(self) -> int:
        """How many fewer these are, of products with its own rows."""
        return 0 if self.columns is not None else max(0, self.by_rows() - self.by_channels(self))

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
        (s, c, n, _), (t, c2, n2, _) = self.g.shape, other.g.shape
        if self.by_channels(other) > self.by_rows() or self.columns is not None or other.columns is not None:
            return rows_by_rows(self.rows()) if other is self else self.rows() @ other.rows().T
        found = self.g.new_zeros(c, n, c2, n2)
        for k in range(s):
            for m in range(k if other is self else 0, t):
                inputs, share = self.x[k] @ other.x[m].T, 0.5 if other is self and k == m else 1.0
                found.addcmul_(torch.einsum("cno,dmo->cndm", self.g[k], other.g[m]), inputs[None, :, None], value=share)
        found = found.reshape(c * n, c2 * n2)
        return found + found.T if other is self else found  # what streams k, m give is what m, k give, transposed

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
