"""One Adam step of others on the same PDE, network, points and precision: DeepXDE, PINA, JAX. Each is None where it is absent.

DeepXDE runs its own training function. Of PINA only the operators are used, in a bare loop, which spares it its trainer. JAX is
written as jaxpi and jinns write it: the residual at one point by forward mode over `jax.grad`, `vmap` over points, `jit` over
the whole step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from pinnsketch import Box

Step = Callable[[], Any]
WIDTHS = [50] * 4


def deepxde(name: str, domain: Box, n: int, dtype: torch.dtype, outputs: int) -> Step | None:
    try:
        os.environ["DDE_BACKEND"] = "pytorch"
        import deepxde as dde
    except ImportError:
        return None

    def d(u: Any, x: Any, *along: int, of: int = 0) -> Any:
        if len(along) == 1:
            return dde.grad.jacobian(u, x, i=of, j=along[0])
        if len(along) == 2:
            return dde.grad.hessian(u, x, component=of, i=along[0], j=along[1])
        return d(d(u, x, *along[:2], of=of), x, *along[2:])

    pdes: dict[str, Callable[..., Any]] = {
        "Poisson 2D": lambda x, u: d(u, x, 0, 0) + d(u, x, 1, 1) - 1,
        "Poisson 5D": lambda x, u: sum(d(u, x, i, i) for i in range(5)) - 1,
        "Burgers": lambda x, u: d(u, x, 1) + u * d(u, x, 0) - 0.01 * d(u, x, 0, 0),
        "KdV": lambda x, u: d(u, x, 1) + 6 * u * d(u, x, 0) + d(u, x, 0, 0, 0),
        "biharmonic": lambda x, u: d(u, x, 0, 0, 0, 0) + 2 * d(u, x, 0, 0, 1, 1) + d(u, x, 1, 1, 1, 1) - 1,
        "Navier-Stokes 2D": lambda x, w: [
            w[:, :1] * d(w, x, 0) + w[:, 1:2] * d(w, x, 1) + d(w, x, 0, of=2) - (d(w, x, 0, 0) + d(w, x, 1, 1)) / 40,
            w[:, :1] * d(w, x, 0, of=1) + w[:, 1:2] * d(w, x, 1, of=1) + d(w, x, 1, of=2)
            - (d(w, x, 0, 0, of=1) + d(w, x, 1, 1, of=1)) / 40,
            d(w, x, 0) + d(w, x, 1, of=1),
        ],
    }  # fmt: skip
    dde.config.set_default_float(str(dtype).removeprefix("torch."))
    low, high = domain.bounds.T.tolist()
    shape = dde.geometry.Rectangle(low, high) if len(low) == 2 else dde.geometry.Hypercube(low, high)
    data = dde.data.PDE(shape, pdes[name], [], num_domain=n)
    model = dde.Model(data, dde.nn.FNN([len(low), *WIDTHS, outputs], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-3, verbose=0)
    model.train(iterations=1, verbose=0)
    state = model.train_state
    return lambda: model._train_step(state.X_train, state.y_train, state.train_aux_vars)


def pina(name: str, domain: Box, n: int, dtype: torch.dtype, outputs: int) -> Step | None:
    try:
        from pina import LabelTensor
        from pina.model import FeedForward
        from pina.operator import grad, laplacian
    except ImportError:
        return None
    coordinates = list(domain.coordinates)

    def kdv(u: Any, p: Any) -> Any:
        first = grad(u, p, components=["u"])
        second = grad(first, p, components=["dudx"], d=["x"])
        third = grad(second, p, components=["ddudxdx"], d=["x"])
        return first.extract(["dudt"]) + 6 * u * first.extract(["dudx"]) + third

    def burgers(u: Any, p: Any) -> Any:
        first = grad(u, p, components=["u"])
        return first.extract(["dudt"]) + u * first.extract(["dudx"]) - 0.01 * laplacian(u, p, components=["u"], d=["x"])

    pdes: dict[str, Callable[..., Any]] = {
        "Poisson 2D": lambda u, p: laplacian(u, p, components=["u"], d=coordinates) - 1,
        "Poisson 5D": lambda u, p: laplacian(u, p, components=["u"], d=coordinates) - 1,
        "Burgers": burgers,
        "KdV": kdv,
    }
    if name not in pdes:
        return None
    low, high = domain.bounds.T
    model = FeedForward(len(coordinates), outputs, layers=WIDTHS, func=torch.nn.Tanh).to(dtype)
    values = torch.tensor(np.random.default_rng(0).uniform(low, high, (n, len(coordinates))), dtype=dtype)
    points = LabelTensor(values, coordinates).requires_grad_()
    adam = torch.optim.Adam(model.parameters())

    def step() -> None:
        adam.zero_grad()
        u = model(points)
        u.labels = ["u"]
        pdes[name](u, points).tensor.square().mean().backward()
        adam.step()

    return step


def jax(name: str, domain: Box, n: int, dtype: torch.dtype, outputs: int, gpu: bool = False) -> Step | None:
    try:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    if (jax.default_backend() == "gpu") != gpu:
        return None
    jax.config.update("jax_enable_x64", dtype == torch.float64)
    random, sizes = np.random.default_rng(0), [len(domain.coordinates), *WIDTHS, outputs]
    kind = np.float64 if dtype == torch.float64 else np.float32
    layers = [(random.normal(0, (2 / (a + b)) ** 0.5, (a, b)).astype(kind), np.zeros(b, kind)) for a, b in pairwise(sizes)]

    def network(parameters: Any, x: Any) -> Any:
        for w, b in parameters[:-1]:
            x = jnp.tanh(x @ w + b)
        w, b = parameters[-1]
        return (x @ w + b)[0]

    def along(f: Any, axis: int) -> Any:
        return lambda x: jax.jvp(f, (x,), (jnp.eye(len(x), dtype=x.dtype)[axis],))[1]

    def residual(parameters: Any, x: Any) -> Any:
        u = lambda x: network(parameters, x)  # noqa: E731
        if name.startswith("Poisson"):
            return sum(along(along(u, i), i)(x) for i in range(len(x))) - 1
        u_x = along(u, 0)
        if name == "Burgers":
            return along(u, 1)(x) + u(x) * u_x(x) - 0.01 * along(u_x, 0)(x)
        if name == "KdV":
            return along(u, 1)(x) + 6 * u(x) * u_x(x) + along(along(u_x, 0), 0)(x)
        u_xx, u_yy = along(u_x, 0), along(along(u, 1), 1)
        fourth = along(along(u_xx, 0), 0)(x) + 2 * along(along(u_xx, 1), 1)(x) + along(along(u_yy, 1), 1)(x)
        return fourth - 1

    if name == "Navier-Stokes 2D":
        return None
    low, high = domain.bounds.T
    points = jnp.asarray(random.uniform(low, high, (n, len(low))).astype(kind))

    def loss(parameters: Any) -> Any:
        return jnp.mean(jax.vmap(residual, (None, 0))(parameters, points) ** 2)

    @jax.jit
    def adam(parameters: Any, first: Any, second: Any, count: Any) -> Any:
        gradient = jax.grad(loss)(parameters)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        a, b = 1 - 0.9**count, 1 - 0.999**count
        moved = jax.tree.map(lambda p, m, v: p - 1e-3 * (m / a) / (jnp.sqrt(v / b) + 1e-8), parameters, first, second)
        return moved, first, second, count + 1

    zero = jax.tree.map(lambda p: jnp.zeros_like(p), layers)
    state = [(layers, zero, zero, jnp.asarray(1.0, kind))]

    def step() -> None:
        state[0] = adam(*state[0])
        jax.block_until_ready(state[0][0])

    return step
