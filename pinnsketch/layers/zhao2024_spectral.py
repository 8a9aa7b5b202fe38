"""Sparse Spectral Training (Zhao et al. 2024, arXiv 2405.15481): a weight is trained as its singular value decomposition.

W `(m, n)` is replaced by U diag(s) V^T, k = min(m, n) directions, none left out. All singular values train at all times; of the
singular vectors r pairs do, until others are drawn. With G the gradient of the loss by W,

    ds_i = u_i^T G v_i,    du_i = G v_i,    dv_i = G^T u_i,

the last two without the factor s_i that the gradient has ("enhanced"), so that directions of small s_i turn as fast as others.
After each step s <- max(s, 0) and u_i, v_i are normalised; now and then a new decomposition makes U and V orthogonal again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pinnsketch.blank import blank
from pinnsketch.layers.convert import converted, replaced
from pinnsketch.layers.restart import Restart, state_of


class SpectralLinear(nn.Module):
    """`y = x W^T + b` with W = U diag(s) V^T, of which s, b and the first r columns of U and V train.

    Args:
        weight: W to begin with, `(m, n)`.
        bias: b `(m,)`, or None.
        rank: r, at most k = min(m, n); with 0, singular values and bias are all that trains.
        factored: compute `((x V) * s) U^T`, which forms neither W nor G; otherwise W is formed, which takes fewer operations
            where x has more rows than W.

    Attributes: parameters `s (k,)`, `bias`, `u_active (m, r)`, `v_active (n, r)`; buffers `u_frozen`, `v_frozen`, the rest.
    """

    u_frozen: Tensor
    v_frozen: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int, factored: bool = False) -> None:
        super().__init__()
        u, s, v = decomposition(weight.detach())
        self.factored = factored
        self.s = nn.Parameter(s)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.u_active = nn.Parameter(u[:, :rank].clone(), requires_grad=rank > 0)
        self.v_active = nn.Parameter(v[:, :rank].clone(), requires_grad=rank > 0)
        self.register_buffer("u_frozen", u[:, rank:].clone())
        self.register_buffer("v_frozen", v[:, rank:].clone())

    @property
    def u(self) -> Tensor:
        """All left singular vectors `(m, k)`, the active ones first."""
        return torch.cat([self.u_active, self.u_frozen], dim=1)

    @property
    def v(self) -> Tensor:
        """All right singular vectors `(n, k)`, the active ones first."""
        return torch.cat([self.v_active, self.v_frozen], dim=1)

    @property
    def weight(self) -> Tensor:
        """W `(m, n)`; its derivatives are the enhanced ones.

        To U diag(s) V^T are added du V^T and U dv^T, with du and dv the active vectors less themselves. They are zero, and the
        derivatives by them are G v_i and G^T u_i, with no division by s_i.
        """
        u, v, du, dv = self._split()
        r = du.shape[1]
        return (u * self.s) @ v.T + du @ v[:, :r].T + u[:, :r] @ dv.T

    def _split(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U and V, taken for constants, and zeros `du (m, r)`, `dv (n, r)` that carry the derivatives."""
        du, dv = self.u_active - self.u_active.detach(), self.v_active - self.v_active.detach()
        return self.u.detach(), self.v.detach(), du, dv

    def forward(self, x: Tensor) -> Tensor:
        if not self.factored:
            return functional.linear(x, self.weight, self.bias)
        u, v, du, dv = self._split()
        r, h = du.shape[1], functional.linear(x, v.T)
        y = functional.linear(h * self.s, u, self.bias)
        if not r:
            return y
        return y + functional.linear(h[..., :r], du) + functional.linear(functional.linear(x, dv.T), u[:, :r])

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Put the directions in another order, `(k,)`; the first r are the active ones. W stays as it is."""
        self._place(self.u[:, order], self.s[order], self.v[:, order])

    @torch.no_grad()
    def decompose(self) -> None:
        """Decompose W anew: U and V become orthogonal, W stays as it is.

        A new direction takes the place and the sign of the old one that it is most like, so that what an optimizer keeps of
        that still belongs to it. Alike is (u' . u)(v' . v), and the assignment is the best for all together.
        """
        from scipy.optimize import linear_sum_assignment  # takes a while to load

        old_u, old_v = self.u, self.v
        u, s, v = decomposition((old_u * self.s) @ old_v.T)
        alike = (old_u.T @ u) * (old_v.T @ v)
        order = torch.from_numpy(linear_sum_assignment(alike.cpu().numpy(), maximize=True)[1]).to(s.device)
        u, s, v = u[:, order], s[order], v[:, order]
        sign = torch.where((old_u * u).sum(dim=0) + (old_v * v).sum(dim=0) < 0, -1.0, 1.0).to(s.dtype)
        self._place(u * sign, s, v * sign)

    @torch.no_grad()
    def normalise(self) -> None:
        """s <- max(s, 0), and active vectors to length 1."""
        self.s.clamp_(min=0)
        for active in (self.u_active, self.v_active):
            active.div_(torch.linalg.vector_norm(active, dim=0))

    def _place(self, u: Tensor, s: Tensor, v: Tensor) -> None:
        """Into the very tensors that are there, as optimizers and CUDA graphs hold these."""
        r = self.u_active.shape[1]
        self.s.copy_(s)
        for whole, active, frozen in ((u, self.u_active, self.u_frozen), (v, self.v_active, self.v_frozen)):
            active.copy_(whole[:, :r])
            frozen.copy_(whole[:, r:])

    def extra_repr(self) -> str:
        (m, r), n = self.u_active.shape, len(self.v_active)
        return f"in_features={n}, out_features={m}, rank={r}, bias={self.bias is not None}"


def decomposition(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(U, s, V)` of W, computed in float64, in the precision of W."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return u.to(weight.dtype), s.to(weight.dtype), vt.T.to(weight.dtype)


def spectral_layers(model: nn.Module, rank: int, pattern: str = "*", *, factored: bool = False) -> nn.Module:
    """A copy of a model whose linear layers are spectral, equal to it to rounding.

    Args:
        model: is left as it is.
        rank: pairs of singular vectors that train in each layer. Layers with no more rows or columns stay dense, all of
            their directions being trained so. With 0, all layers are converted, and singular values and biases train.
        pattern: names of the layers to convert, with the wildcards of `fnmatch`.
        factored: as for `SpectralLinear`.

    Raises:
        ValueError: if no layer can be converted; the message lists those that there are.
    """
    return converted(model, rank, pattern, lambda layer: SpectralLinear(layer.weight, layer.bias, rank, factored))


def dense_layers(model: nn.Module) -> nn.Module:
    """A copy of a model whose spectral layers are dense, equal to it: for methods that take no gradient but the true one."""

    def dense(layer: SpectralLinear) -> nn.Linear:
        weight, bias = layer.weight.detach(), layer.bias is not None
        made: Any = blank(nn.Linear, *reversed(weight.shape), bias=bias, dtype=weight.dtype, device=weight.device)
        made.weight = nn.Parameter(weight)
        made.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        return made

    named = model.named_modules(remove_duplicate=False)
    return replaced(model, [name for name, module in named if isinstance(module, SpectralLinear)], dense)


def adam_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Parameters that train, in groups for Adam: spectral ones take longer steps, so that weights move as far as dense ones.

    Adam moves each number by about lr, and so a dense W by lr sqrt(mn). Singular values that move by c lr move W by
    c lr sqrt(k), which is as far for c = sqrt(mn / k) = sqrt(max(m, n)). Active vectors move it by c lr sqrt((m + n) r) where
    singular values are 1, as far for c = sqrt(mn / ((m + n) r)).

    Args:
        model: has spectral layers.
        lr: step size of all other parameters, as for the dense model.
    """
    factors: dict[nn.Parameter, float] = {}
    for layer in model.modules():
        if isinstance(layer, SpectralLinear):
            (m, r), n = layer.u_active.shape, len(layer.v_active)
            factors[layer.s] = max(m, n) ** 0.5
            factors |= dict.fromkeys((layer.u_active, layer.v_active), (m * n / ((m + n) * max(r, 1))) ** 0.5)
    groups: dict[float, list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault(factors.get(p, 1.0), []).append(p)
    return [{"params": parameters, "lr": lr * factor} for factor, parameters in groups.items()]


class SpectralSchedule:
    """What Sparse Spectral Training does after each step of the optimizer: call `step()` there.

    Args:
        model: has spectral layers.
        optimizer: trains it.
        interval: steps after which other singular vectors become active, drawn without replacement.
        period: steps after which each layer is decomposed anew, before a draw due at the same step.
        uniform: a direction is drawn with probability (1 - uniform) s_i / sum(s) + uniform / k; with 0, as in the source, one
            with s_i = 0 never is.
        warm_up: steps after a draw in which those of the active vectors lengthen again.
        seed: of the draws.

    Raises:
        ValueError: if the model has no spectral layer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        interval: int = 200,
        period: int = 200,
        uniform: float = 0.5,
        warm_up: int = 5,
        seed: int = 0,
    ) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, SpectralLinear)]
        if not self._layers:
            raise ValueError("The model has no SpectralLinear: convert it by spectral_layers(model, rank) first.")
        self._optimizer, self._interval, self._period, self._uniform = optimizer, interval, period, uniform
        self._generator, self._index = torch.Generator().manual_seed(seed), 0
        active = [p for layer in self._layers for p in (layer.u_active, layer.v_active)]
        self._restart = Restart(active, optimizer, warm_up)
        self._restart.ready(1)

    @torch.no_grad()
    def step(self) -> None:
        """Normalise; every `period` steps decompose anew; every `interval` steps draw the vectors that train next."""
        self._restart.shorten(self._index % self._interval + 1)
        self._index += 1
        for layer in self._layers:
            layer.normalise()
            if self._index % self._period == 0:
                layer.decompose()
            if self._index % self._interval == 0:
                self._swap(layer)
        if self._index % self._interval == 0:
            self._restart.reset()
        self._restart.ready(self._index % self._interval + 1)

    def _swap(self, layer: SpectralLinear) -> None:
        """Draw the active directions. Moments of s move with their direction."""
        order = self.draw(layer.s)
        layer.reorder(order)
        for kept in state_of(self._optimizer, layer.s):
            if kept.shape == layer.s.shape:
                kept.copy_(kept[order])

    def draw(self, s: Tensor) -> Tensor:
        """An order of the directions `(k,)`, drawn without replacement: those that come first are active."""
        s = s.detach().double().cpu()
        law = (1 - self._uniform) * s / s.sum().clamp(min=torch.finfo(s.dtype).tiny) + self._uniform / len(s)
        return torch.multinomial(law.clamp(min=1e-300), len(s), generator=self._generator)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self._index, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, of a model and an optimizer that are as they were then."""
        self._index = state["index"]
        self._generator.set_state(state["generator"].cpu())
        self._restart.ready(self._index % self._interval + 1)
