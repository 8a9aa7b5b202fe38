"""Error against seconds of other packages on the problems of accuracy.py, trained by Adam and L-BFGS as ours is beside them.

DeepXDE (`dde.Model`, PyTorch), PINA (its `Trainer`) and jinns (`jinns.solve`) go in as their documentation shows: 1,000 steps
of Adam at 1e-3, then L-BFGS until the time is up, in float64, with the network, its inputs and the distribution of its first
weights, the number of points and the weights of the terms as `adam, lbfgs` of pinnsketch has them; points are drawn as each
package draws them. "DeepXDE, its example" has the network, points and Adam steps of the example that DeepXDE ships for the
equation, weights 1, and Adam takes half of the time at most. jinns has a natural gradient of its own, which goes in with its
defaults. L-BFGS of the peers keeps 100 steps and has their line search.

Each training has a process and two cores of its own; set-up, and compilation in JAX, are part of the time, imports and the
measuring of errors are not. What goes on for longer than half as much again and 90 s is ended, and named in the file, as is
what a package cannot do. Where a coordinate is periodic, all networks are given its cosine and sine. In jinns, time is a
coordinate like the others, since its initial conditions hold no derivative, all sides have as many points as the one with most,
and the pressure of the cavity is known up to a constant, which its error does not see. The packages come in the order of
`PEERS`, each with all problems, then the next seed, and variants of a package last.

    python benchmarks/peer_accuracy.py [--quick] [--jobs N] [--only PATTERN] [--seeds N] [--most SECONDS] [--out FILE]

Needs, beside pinnsketch: deepxde, pina-mathlab, jinns (Python 3.11 or newer); what is not installed is left out.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace as changed
from functools import partial
from importlib.util import find_spec
from itertools import pairwise, product
from math import inf, isfinite
from statistics import median
from typing import Any

import numpy as np
from beside import figure
from equations import PROBLEMS, Condition, Equations, Face
from harness import Campaign, Row, parser, wanted, write

Curve = list[tuple[float, float]]
Values = Callable[[Any], Any]
ADAM = 1000
MARKS = (1, 2, 4, 5, 10, 20, 30, 60, 120, 300)


class Watch:
    """Measures the error at the marks, outside of the time, and says when the time is up."""

    def __init__(self, seconds: float, points: Any, values: Any) -> None:
        self.seconds, self.points, self.values = seconds, points, values
        self.curve, self.spent, self.began = Curve(), 0.0, time.perf_counter()

    def up(self, values: Values) -> bool:
        now = time.perf_counter() - self.began - self.spent
        marks = [mark for mark in MARKS if self.curve == [] or mark > self.curve[-1][0]]
        if now >= min(marks[0], self.seconds):
            stopped = time.perf_counter()
            off = np.asarray(values(self.points))[:, : self.values.shape[1]] - self.values
            error = float(np.linalg.norm(off) / np.linalg.norm(self.values))
            self.curve.append((now, error if isfinite(error) else inf))
            self.spent += time.perf_counter() - stopped
        return now >= self.seconds

    @property
    def over(self) -> bool:
        return bool(self.curve) and self.curve[-1][0] >= self.seconds

    def end(self, values: Values) -> None:
        """Where training ends before its time."""
        if not self.over:
            self.seconds = 0.0
            self.up(values)


class Point:
    """Coordinates, unknowns and derivatives of one package, as equations.py asks for them."""

    def __init__(self, coordinates: Mapping[str, Any], derivative: Callable[..., Any], functions: Any) -> None:
        self.__dict__ |= coordinates
        self._derivative, self.m = derivative, functions

    def __getitem__(self, names: str | tuple[str, ...]) -> Any:
        return self._derivative(*([names] if isinstance(names, str) else names))


def columns(x: Any, axes: list[str]) -> dict[str, Any]:
    return {axis: x[..., i : i + 1] for i, axis in enumerate(axes)}


def given(condition: Condition, coordinates: Mapping[str, Any], functions: Any) -> Any:
    return 0.0 if condition.value is None else condition.value(Point(coordinates, no_derivative, functions))


def no_derivative(*names: str) -> Any:
    raise KeyError(f"A boundary value knows coordinates only, not {names}.")


def inputs(e: Equations, x: Any, functions: Any) -> list[Any]:
    """What a network is given for points `(..., d)`."""
    return e.inputs(Point(columns(x, list(e.bounds)), no_derivative, functions))


def on(face: Face, x: Any, axes: list[str]) -> bool:
    """Whether a point is on a face."""
    for axis, value in face.items():
        low, high = value if isinstance(value, tuple) else (value, value)
        if not low - 1e-12 <= x[axes.index(axis)] <= high + 1e-12:
            return False
    return True


EXAMPLES: dict[str, tuple[int, int, int, int, int, int]] = {
    "heat": (20, 3, 2540, 80, 160, 20_000),
    "Burgers": (20, 3, 2540, 80, 160, 15_000),
    "Allen-Cahn": (20, 3, 8000, 400, 800, 40_000),
    "wave, c = 2": (100, 3, 360, 360, 360, 10_000),
    "Helmholtz (1, 4)": (150, 3, 1600, 160, 0, 5_000),
    "Kovasznay, Re 40": (50, 4, 2601, 400, 0, 30_000),
    "L-shape": (50, 4, 1200, 120, 0, 50_000),
}
"""Width, depth, points inside, on the boundary, at the start, steps of Adam, in the examples that come with DeepXDE 1.15."""


def deepxde(name: str, seed: int, watch: Watch, example: bool = False) -> None:
    import deepxde as dde
    import torch

    e = PROBLEMS[name]
    axes, unknowns = list(e.bounds), e.unknowns.split()
    width, depth, inside, boundary = e.size
    start, steps = boundary, ADAM
    if example:
        width, depth, inside, boundary, start, steps = EXAMPLES[name]

    def derivative(u: Any, x: Any) -> Callable[..., Any]:
        def of(unknown: str, *along: str) -> Any:
            k, places = unknowns.index(unknown), [axes.index(axis) for axis in along]
            if not places:
                return u[:, k : k + 1]
            if len(places) == 1:
                return dde.grad.jacobian(u, x, i=k, j=places[0])
            second = dde.grad.hessian(u, x, component=k, i=places[0], j=places[1])
            return second if len(places) == 2 else dde.grad.jacobian(second, x, i=0, j=places[2])

        return of

    def equations(x: Any, u: Any) -> list[Any]:
        return e.equations(Point(columns(x, axes), derivative(u, x), torch))

    low, high = np.array(list(e.bounds.values()), float).T
    timed, counts = axes[-1] == "t", {"num_domain": inside, "num_boundary": boundary}
    if timed:
        shape = dde.geometry.GeometryXTime(dde.geometry.Interval(low[0], high[0]), dde.geometry.TimeDomain(low[1], high[1]))
        counts["num_initial"] = start
    elif e.missing:
        gap = np.array(list(e.missing.values()), float).T
        shape = dde.geometry.CSGDifference(dde.geometry.Rectangle(low, high), dde.geometry.Rectangle(*gap))
    else:
        shape = dde.geometry.Rectangle(low, high) if len(axes) == 2 else dde.geometry.Hypercube(low, high)

    def made(condition: Condition) -> Any:
        k, value = unknowns.index(condition.unknown), condition.value
        initial = "t" in condition.faces[0]

        def where(x: Any, on_it: bool) -> bool:
            return any(on(face, x, axes) for face in condition.faces)

        def target(x: Any) -> Any:
            return np.zeros((len(x), 1)) if value is None else given(condition, columns(x, axes), np)

        if [*condition.faces[0]] == axes:
            return dde.icbc.PointSetBC([[*face.values()] for face in condition.faces], 0.0, component=k)
        if condition.along:
            return dde.icbc.OperatorBC(shape, lambda x, u, _: derivative(u, x)(condition.unknown, condition.along), where)
        return (dde.icbc.IC if initial else dde.icbc.DirichletBC)(shape, target, where, component=k)

    data = (dde.data.TimePDE if timed else dde.data.PDE)(shape, equations, [made(c) for c in e.conditions], **counts)
    net = dde.nn.FNN([len(axes) + bool(e.periodic), *[width] * depth, len(unknowns)], "tanh", "Glorot normal")
    if e.periodic or not example:
        net.apply_feature_transform(lambda x: torch.cat(inputs(e, x, torch), 1))
    model = dde.Model(data, net)
    weights = None if example else [1.0] * len(unknowns) + [c.weight for c in e.conditions]

    def values(x: Any) -> Any:
        with torch.no_grad():
            return net(torch.as_tensor(x)).numpy()

    class Look(dde.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self) -> None:
            half = example and model.opt_name == "adam" and time.perf_counter() - watch.began > watch.seconds / 2
            model.stop_training = watch.up(values) or half

    model.compile("adam", lr=1e-3, loss_weights=weights, verbose=0)
    model.train(iterations=steps, callbacks=[Look()], verbose=0)
    if watch.over:
        return
    dde.optimizers.set_LBFGS_options(maxiter=10**7)
    dde.optimizers.LBFGS_options |= {"iter_per_step": 20, "fun_per_step": 25}
    model.compile("L-BFGS", loss_weights=weights, verbose=0)
    model.train(callbacks=[Look()], verbose=0)
    watch.end(values)


def pina(name: str, seed: int, watch: Watch) -> None:
    import torch
    from lightning.pytorch import seed_everything
    from lightning.pytorch.callbacks import Callback
    from pina import Condition as PinaCondition
    from pina import Trainer
    from pina.callback import SwitchOptimizer
    from pina.domain import CartesianDomain, Difference
    from pina.equation import Equation
    from pina.model import FeedForward
    from pina.operator import grad
    from pina.optim import TorchOptimizer
    from pina.problem import SpatialProblem
    from pina.solver import PhysicsInformedSingleModelSolver
    from pina.weighting import ScalarWeighting

    seed_everything(seed, verbose=False)
    torch.set_default_dtype(torch.float64)
    e = PROBLEMS[name]
    axes, unknowns = list(e.bounds), e.unknowns.split()
    width, depth, inside, boundary = e.size

    def point(x: Any, u: Any) -> Point:
        known: dict[tuple[str, ...], Any] = {}

        def of(unknown: str, *along: str) -> Any:
            if not along:
                return u.extract([unknown]).tensor
            if along not in known:
                label, below = unknown, u
                for i, axis in enumerate(along):
                    key = (unknown, *along[: i + 1])
                    if key not in known:
                        known[key] = grad(below, x, components=[label], d=[axis])
                    below = known[key]
                    label = f"d{label}d{axis}"
            return known[(unknown, *along)].extract([label]).tensor

        return Point({axis: x.extract([axis]).tensor for axis in axes}, of, torch)

    def inner(x: Any, u: Any) -> Any:
        residuals = e.equations(point(x, u))
        return torch.cat(residuals, 1) * len(residuals) ** 0.5

    def edge_of(condition: Condition) -> Any:
        def edge(x: Any, u: Any) -> Any:
            p = point(x, u)
            found = p[(condition.unknown, condition.along) if condition.along else condition.unknown]
            return found - given(condition, {axis: getattr(p, axis) for axis in axes}, torch)

        return edge

    whole = CartesianDomain({axis: list(ends) for axis, ends in e.bounds.items()})
    places = {"inside": whole}
    if e.missing:
        places["inside"] = Difference([whole, CartesianDomain({axis: list(ends) for axis, ends in e.missing.items()})])
    terms, weights, counts = {"inside": PinaCondition(domain="inside", equation=Equation(inner))}, {"inside": 1.0}, {}
    for i, condition in enumerate(e.conditions):
        for k, face in enumerate(condition.faces):
            key = f"{i}_{k}"
            ranges = {axis: face.get(axis, ends) for axis, ends in e.bounds.items()}
            places[key] = CartesianDomain({axis: list(r) if isinstance(r, tuple) else r for axis, r in ranges.items()})
            terms[key] = PinaCondition(domain=key, equation=Equation(edge_of(condition)))
            weights[key], counts[key] = condition.weight / len(condition.faces), -(-boundary // len(condition.faces))

    class Shown(SpatialProblem):
        output_variables = unknowns
        spatial_domain = whole
        domains = places
        conditions = terms

    problem = Shown()
    problem.discretise_domain(inside, "random", domains=["inside"])
    for key, count in counts.items():
        problem.discretise_domain(count, "random", domains=[key])
    order = [axes.index(axis) for axis in problem.input_variables]  # sorted by name, in every sample of a domain

    class Inputs(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.cat(inputs(e, x.as_subclass(torch.Tensor)[:, np.argsort(order)], torch), 1)

    layers = FeedForward(len(axes) + bool(e.periodic), len(unknowns), layers=[width] * depth, func=torch.nn.Tanh)
    for weight in layers.parameters():
        torch.nn.init.xavier_normal_(weight) if weight.ndim == 2 else torch.nn.init.zeros_(weight)
    model = torch.nn.Sequential(Inputs(), layers)
    solver = PhysicsInformedSingleModelSolver(
        problem, model, optimizer=TorchOptimizer(torch.optim.Adam, lr=1e-3), weighting=ScalarWeighting(weights)
    )

    def values(x: Any) -> Any:
        with torch.no_grad():
            return model(torch.as_tensor(x)[:, order]).numpy()

    class Look(Callback):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.should_stop = watch.up(values)

    lbfgs = TorchOptimizer(
        torch.optim.LBFGS, line_search_fn="strong_wolfe", history_size=100, tolerance_grad=1e-8, tolerance_change=0.0
    )  # as DeepXDE has it
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(solver, max_epochs=10**7, accelerator="cpu", callbacks=[Look(), SwitchOptimizer(lbfgs, ADAM)], **quiet).train()


def jinns(name: str, seed: int, watch: Watch, natural: bool = False) -> None:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jinns
    import optax
    from jinns.data import CubicMeshPDEStatio
    from jinns.loss import BoundaryConditionAbstract, LossPDEStatio, LossWeightsPDEStatio, PDEStatio
    from jinns.parameters import Params
    from jinns.solver import GetJinnsVariableName

    e = PROBLEMS[name]
    axes, unknowns = list(e.bounds), e.unknowns.split()
    width, depth, inside, boundary = e.size
    key = jax.random.PRNGKey(seed)

    def point(x: Any, u: Any, params: Any) -> Point:
        def of(unknown: str, *along: str) -> Any:
            def value(z: Any) -> Any:
                return u(z, params)[unknowns.index(unknown)]

            for axis in along:
                value = derived(value, axes.index(axis))
            return value(x)[None]

        return Point({axis: x[i : i + 1] for i, axis in enumerate(axes)}, of, jnp)

    def derived(f: Any, i: int) -> Any:
        return lambda z: jax.jvp(f, (z,), (jnp.eye(len(axes))[i],))[1]

    class Inside(PDEStatio):  # type: ignore[misc]
        def equation(self, x: Any, u: Any, params: Any) -> Any:
            return jnp.concatenate(e.equations(point(x, u, params)))

    faces = [{axis: end} for axis, ends in e.bounds.items() for end in ends]

    class Edges(BoundaryConditionAbstract):  # type: ignore[misc]
        def residuals(self, inputs: Any, u: Any, params: Any) -> Any:
            found = []
            for i, face in enumerate(faces):
                p, parts = point(inputs[..., i], u, params), []
                for c in e.conditions:
                    if face in [dict(f) for f in c.faces]:
                        off = p[(c.unknown, c.along) if c.along else c.unknown] - given(c, p.__dict__, jnp)
                        parts.append((c.weight / len(c.faces)) ** 0.5 * off)
                if parts:
                    found.append(jnp.concatenate(parts))
            return tuple(found)

        def equation_u(self, inputs: Any, u: Any, params: Any) -> Any:
            return self.residuals(inputs, u, params)

        def equation_f(self, inputs: Any, params: Any, gridify: bool = False) -> Any:
            known = [sum(face in [dict(f) for f in c.faces] for c in e.conditions) for face in faces]
            return tuple(jnp.zeros(count) for count in known if count)

    sizes = [len(axes) + bool(e.periodic), *[width] * depth, len(unknowns)]
    layers: list[Any] = [(lambda x: jnp.concatenate(inputs(e, x, jnp)),)]
    for a, b in pairwise(sizes):
        layers += [(eqx.nn.Linear, a, b), (jax.nn.tanh,)]
    key, sub = jax.random.split(key)
    u, nn_params = jinns.nn.PINN_MLP.create(key=sub, eqx_list=tuple(layers[:-1]), eq_type="PDEStatio")
    weights, form = jax.tree.flatten(nn_params)
    draws = zip(weights, jax.random.split(sub, len(weights)), strict=True)
    drawn = [(2 / sum(w.shape)) ** 0.5 * jax.random.normal(k, w.shape) if w.ndim == 2 else 0 * w for w, k in draws]
    params = Params(nn_params=jax.tree.unflatten(form, drawn), eq_params={})
    low, high = zip(*e.bounds.values(), strict=True)
    per_face = max(-(-boundary // len(c.faces)) for c in e.conditions if len(c.faces[0]) == 1)
    key, sub = jax.random.split(key)
    data = CubicMeshPDEStatio(
        key=sub, n=inside, nb=4 * per_face, omega_border_batch_size=None, dim=len(axes),
        min_pts=tuple(map(float, low)), max_pts=tuple(map(float, high)), method="uniform",
    )  # fmt: skip
    loss = LossPDEStatio(
        u=u, dynamic_loss=Inside(), boundary_condition=Edges(),
        loss_weights=LossWeightsPDEStatio(dyn_loss=1.0, boundary_loss=1.0), params=params,
    )  # fmt: skip

    evaluate = jax.jit(lambda params, x: jax.vmap(lambda z: u(z, params))(x))

    def trained(steps: int, params: Any, optimizer: Any, count: int, **more: Any) -> Any:
        """By `count` steps of `jinns.solve` at a time, compiled once, without a word to Python in between."""

        @jax.jit
        def some(params: Any, state: Any, data: Any, key: Any) -> tuple[Any, Any]:
            found = jinns.solve(
                n_iter=count, init_params=params, opt_state=state, data=data, loss=loss, optimizer=optimizer, key=key,
                print_loss_every=count, verbose=False, ahead_of_time=False, **more,
            )  # fmt: skip
            return found[0], found[5]

        state = jax.tree.map(lambda a: jnp.asarray(a, a.dtype), optimizer.init(params))  # of weak types: all is compiled twice
        for step in range(0, steps, count):
            params, state = jax.block_until_ready(some(params, state, data, jax.random.fold_in(key, step)))
            if watch.up(partial(evaluate, params)):
                break
        return params

    if natural:
        search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)  # the default, less its printing
        trained(200_000, params, jinns.optimizers.vanilla_ngd(linesearch=search), 1)
        return
    params = trained(ADAM, params, optax.adam(1e-3), 5)
    if watch.over:
        return
    used = {"value": "train_loss_value", "grad": "grads", "loss": "loss", "batch": "batch"}
    extra = {"value_fn": callback_loss, **{word: GetJinnsVariableName(local) for word, local in used.items()}}
    trained(200_000, params, optax.lbfgs(memory_size=100), 5, extra_optax_args_and_kwargs=extra)


def callback_loss(params: Any, loss: Any, batch: Any) -> Any:
    return loss.evaluate(params, batch)[0]


def ours(name: str, seed: int, watch: Watch) -> None:
    import accuracy

    width, depth, inside, boundary = PROBLEMS[name].size
    way = {"adam, lbfgs": accuracy.quasi(width, depth, inside, boundary)}
    accuracy.CASES[name] = changed(accuracy.CASES[name], ways=way)
    watch.curve = accuracy.one(name, "adam, lbfgs", seed, "cpu", watch.seconds)


def anything(name: str, e: Equations) -> str:
    return ""


def boundaries(name: str, e: Equations) -> str:
    return "jinns has boundary points in up to two dimensions, on boxes" if len(e.bounds) > 2 or e.missing else ""


PEERS: dict[str, tuple[str, Callable[..., None], dict[str, Any], Callable[[str, Equations], str]]] = {
    "pinnsketch": ("pinnsketch", ours, {}, anything),
    "DeepXDE": ("deepxde", deepxde, {}, anything),
    "PINA": ("pina", pina, {}, anything),
    "jinns": ("jinns", jinns, {}, boundaries),
    "DeepXDE, its example": (
        "deepxde", deepxde, {"example": True}, lambda name, e: "" if name in EXAMPLES else "DeepXDE has no example of it",
    ),
    "jinns, natural gradient": (
        "jinns", jinns, {"natural": True},
        lambda name, e: boundaries(name, e) or ("a step solves with a full matrix of 7,851 weights" if e.size[0] == 50 else ""),
    ),
}  # fmt: skip
"""By name: what must be installed, what trains, its options, and why it does not take a problem."""
LEFT_OUT = {
    "Poisson 100D": "a step of nested derivatives takes minutes on two cores",
    "wave, c = 2, held ends": "the same equation with an ansatz",
    "cavity, Re 100, smooth lid": "the lid that jumps stands for both",
    "cavity, Re 100, enriched": "the same flow with patches that know its corners",
    "cavity, Re 1000, enriched": "the same",
    "cavity, Re 1000": "two cores get nowhere near it in the time",
    "cavity, Re 1000, smooth lid": "the same",
    "L-shape, enriched": "the same equation with features that know the corner",
}
"""Problems of accuracy.py."""


def one(name: str, peer: str, seed: int, seconds: float) -> Curve:
    """Seconds and errors of a training on the cores that its process has."""
    os.environ["DDE_BACKEND"], os.environ["JAX_PLATFORMS"] = "pytorch", "cpu"
    os.environ["JAX_ENABLE_X64"] = "1"
    warnings.simplefilter("ignore")
    package, train, options, _ = PEERS[peer]
    if package == "deepxde":
        import deepxde as dde

        dde.config.set_default_float("float64")
        dde.config.set_random_seed(seed)
    elif package == "pina":
        import pina.solver  # noqa: F401
    elif package == "jinns":
        import_jinns()
    import torch
    from classical import measured

    torch.set_num_threads(2)
    loaded(torch)
    watch = Watch(seconds, *measured(name, ""))
    watch.began = time.perf_counter()
    train(name, seed, watch, **options)
    return watch.curve


def import_jinns() -> None:
    """`TypeVar(name=..., bound=...)`, as jinns has it, ends Python 3.12 before 3.12.6 (python/cpython#118814)."""
    import typing

    known: Any = typing.TypeVar

    class ByPosition(type):
        def __call__(cls, name: str, *types: Any, **more: Any) -> Any:
            return known(name, *types, **more)

        def __instancecheck__(cls, found: Any) -> bool:
            return isinstance(found, known)

    typing.TypeVar = ByPosition("TypeVar", (), {})
    try:
        import jinns  # noqa: F401
    finally:
        typing.TypeVar = known


def loaded(torch: Any) -> None:
    """What the first step of an optimizer imports is no part of the time."""
    weight = torch.ones(2, requires_grad=True)
    for optimizer in (torch.optim.Adam([weight]), torch.optim.LBFGS([weight])):
        weight.square().sum().backward()
        optimizer.step(lambda: weight.square().sum())


def rows(name: str, peer: str, curves: list[Curve]) -> list[Row]:
    found = []
    for mark in sorted({mark for mark in MARKS if mark <= max(curve[-1][0] for curve in curves)}):
        errors = [next((error for t, error in reversed(curve) if t <= 1.02 * mark + 0.2), inf) for curve in curves]
        if median(errors) < inf:
            spread = f"{min(errors):.1e} to {max(errors):.1e}, {len(errors)} seeds"
            found.append(Row(f"{name}: {peer}, {mark} s", median(errors), "relative L2", peer=spread))
    last, seconds = median(curve[-1][1] for curve in curves), median(curve[-1][0] for curve in curves)
    return [*found, Row(f"{name}: {peer}, at the end", last, "relative L2", peer=f"{seconds:.3g} s")]


def main() -> None:
    words = parser("peers", __doc__.splitlines()[0])
    words.add_argument("--jobs", type=int, default=1, help="trainings at a time, of two cores each")
    words.add_argument("--only", default="*", help="'problem: package' by name, with * and ?, separated by semicolons")
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--most", type=float, default=60, help="seconds of a training, at most")
    given: Any = words.parse_args()
    if given.quick:
        given.seeds, given.most, given.only = 1, 5.0, "heat: *"
    os.environ["OMP_NUM_THREADS"] = "2"
    campaign = Campaign(given.out, one, given.jobs, cores=2, limit=1.5 * given.most + 90)
    absent = sorted({package for package, *_ in PEERS.values() if find_spec(package) is None})
    jobs, left_out = {}, [f"{package} is not installed" for package in absent]
    left_out += [f"{name}: {why}" for name, why in LEFT_OUT.items()]
    for seed, peer in sorted(product(range(given.seeds), PEERS), key=lambda job: bool(PEERS[job[1]][2])):
        package, _, _, lacks = PEERS[peer]
        for name, e in PROBLEMS.items():
            why = lacks(name, e)
            if why and seed == 0:
                left_out.append(f"{name}: {peer}: {why}")
            elif not why and package not in absent and wanted(f"{name}: {peer}", given.only):
                jobs[f"{name}: {peer}, seed {seed}"] = (name, peer, seed, given.most)
    campaign.run(jobs, lambda curve: " ".join(f"{t:.3g} s {e:.1e}" for t, e in curve))
    place = {name: k for k, name in enumerate(PROBLEMS)}
    runs = dict(sorted(campaign.runs.items(), key=lambda item: place[item[0].partition(": ")[0]]))
    curves: dict[tuple[str, str], list[Curve]] = {}
    for key, curve in runs.items():
        name, _, rest = key.partition(": ")
        curves.setdefault((name, rest.rpartition(", seed ")[0]), []).append(curve)
    table = [row for (name, peer), found in curves.items() for row in rows(name, peer, found)]
    packages = ("torch", "jax", "deepxde", "pina-mathlab", "jinns", "pinnsketch")
    if not table:
        raise SystemExit("\n".join([*left_out, *campaign.failed]) or "Nothing to run.")
    more = {"commands": campaign.commands, "left_out": left_out, "failures": campaign.failures}
    write(given.out, table, packages, curves=runs, **more)
    figure(given.out)


if __name__ == "__main__":
    main()
