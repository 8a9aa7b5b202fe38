"""A gradient is that of autograd, however it is computed: at once, in pieces, compiled or captured; or a note says why not."""

import math
import re
import shutil
from copy import deepcopy
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pinnsketch import Box, Data, Problem, Term, Unknown, laplacian
from pinnsketch.blocks import Block
from pinnsketch.collocation import Collocation
from pinnsketch.compiled import holding, shape_of, tensors_of
from pinnsketch.config import ConfigError, make_config
from pinnsketch.gradient import PAYS, Gradient
from pinnsketch.library import load_problem, shipped
from pinnsketch.methods import SGD, Adam, Objective
from pinnsketch.network import MLP
from pinnsketch.problem import ProblemError
from pinnsketch.run import Run
from pinnsketch.train import Stage, train
from pinnsketch.trial import Trial

SQUARE = Box(x=(0, 1), y=(0, 1))
DATA = Data({"x": [0.1, 0.2, 0.7], "y": [0.3, 0.1, 0.5], "seen": [1.0, 0.0, 2.0]})
POISSON = {
    "law": Term(SQUARE.interior, lambda u, x, y: laplacian(u) + torch.sin(3 * x) * y),
    "sides": Term(SQUARE.boundary, lambda u: u, weight=100),
}
INVERSE = {
    "law": Term(SQUARE.interior, lambda u, k, x: k * laplacian(u) - x, weight=0.5),
    "sides": Term(SQUARE.boundary, lambda u, n: u.n + n[:, :1]),
    "data": Term(DATA, lambda u, seen: u.x - seen, weight=3),
}
ONE = {"flux": Term(SQUARE.boundary, lambda u, k, n: laplacian(u) - k * n[:, :1], weight=2)}

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler (c++, g++ or clang++) to compile with"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def made(terms, device="cpu", k=None, **options):
    terms = {"law": Term(SQUARE.interior, terms)} if callable(terms) else terms
    k = Unknown(0.7, positive=True) if terms is INVERSE else k
    problem = Problem(SQUARE, "u", terms, parameters={"k": k} if k else {})
    options = {"interior": 20, "boundary": 8, "sampler": "random"} | options
    network = MLP(torch.tensor(SQUARE.bounds), width=8, depth=2, generator=torch.Generator().manual_seed(0))
    return Trial(network.to(device), problem.coefficients), Collocation(problem, device=device, **options)


def plainly(trial, task, batch):
    """The loss, each term's, and the gradient, in one reverse pass."""
    losses = task.losses(trial, batch)
    loss = sum(task.weights[name] * losses[name] for name in task.weights)
    parameters = [p for p in trial.parameters() if p.requires_grad]
    return [loss.detach(), *(v.detach() for v in losses.values())], torch.autograd.grad(loss, parameters, allow_unused=True)


def agree(values, expected, tolerance=1e-12):
    """Also the numbers: the loss, the losses, and the sum of each gradient."""
    numbers, gradient = expected
    present = [g for g in gradient if g is not None]
    assert [g is None for g in values.gradient] == [g is None for g in gradient]
    scale = max(float(g.norm()) for g in present)
    sums = [0.0 if g is None else g.sum() for g in gradient]
    for found, exact in zip(values.numbers, [*numbers, *sums], strict=True):
        assert abs(float(found - exact)) <= tolerance * max(float(exact), scale)
    for found, exact in zip(values.gradient, gradient, strict=True):
        assert exact is None or float((found - exact).norm()) <= tolerance * float(exact.norm())


def same(trial, other):
    return all(torch.equal(a, b) for a, b in zip(trial.parameters(), other.parameters(), strict=True))


def moved(trial):
    for p in trial.parameters():
        p.data += 0.1


@pytest.mark.parametrize("terms", [POISSON, INVERSE], ids=["poisson", "inverse"])
def test_in_one_piece_it_is_that_of_autograd_bit_for_bit(terms):
    trial, task = made(terms)
    for draw in (0, 1):
        agree(Gradient(trial, task)(task.batch(draw)), plainly(trial, task, task.batch(draw)), tolerance=0)


def recorded(graph, inputs):
    """In place of a compiler: the record itself."""
    return lambda *tensors: graph(*tensors)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("compile", [False, True])
def test_pieces_add_up_to_the_whole_recorded_once_for_each_shape_or_not(compile, chunk, monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", recorded)
    trial, task = made(INVERSE, chunk=chunk)
    gradient = Gradient(trial, task, compile=compile)
    for draw in (0, 1):
        agree(gradient(task.batch(draw)), plainly(trial, task, task.batch(draw)))
        moved(trial)
    assert gradient.notes == []
    assert len(gradient._ready) == compile * len({shape_of(piece) for piece in task.pieces(trial, task.batch())})


@pytest.fixture(scope="module")
def compiled():
    """A gradient, compiled when it is first called; one parameter is frozen, and the loss does not depend on another."""
    trial, task = made(ONE, k=Unknown(0.7))
    trial.network.layers[1].weight.requires_grad_(False)
    return trial, task, Gradient(trial, task, compile=True)


@needs_compiler
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_compiled_it_is_the_same_for_other_points_and_for_other_parameters(compiled, draw):
    trial, task, gradient = compiled
    for _ in range(2):
        agree(gradient(task.batch(draw)), plainly(trial, task, task.batch(draw)))
        moved(trial)
    assert gradient.notes == []
    assert [g is None for g in gradient(task.batch()).gradient] == [False] * 4 + [True, False]
    assert len(gradient._ready) == 1


def reading(u):
    return u * u.value.detach().mean().item()


SLOWER = "Operations are run one by one, which is slower: not compiled ("


@pytest.mark.parametrize("residual", [reading, lambda u: u if u.value.mean() > 0 else laplacian(u)], ids=["item", "if"])
def test_a_residual_that_depends_on_values_in_python_is_not_compiled_and_stays_right(residual):
    trial, task = made(residual)
    gradient = Gradient(trial, task, compile=True)
    for _ in range(2):
        agree(gradient(task.batch()), plainly(trial, task, task.batch()), tolerance=0)
    (note,) = gradient.notes
    assert re.fullmatch(re.escape(SLOWER) + r".*data-dependent control flow.*\)\.", note)


@pytest.mark.parametrize("noise", [torch.rand_like, torch.randn_like, nn.functional.dropout])
def test_a_residual_that_draws_random_numbers_is_not_compiled(noise):
    trial, task = made(lambda u: u + noise(u.value))
    gradient = Gradient(trial, task, compile=True)
    assert float(gradient(task.batch()).numbers[0]) != float(gradient(task.batch()).numbers[0])
    (note,) = gradient.notes
    assert note.startswith(f"{SLOWER}it draws random numbers (aten.")


def no_compiler(graph, inputs):
    raise RuntimeError("No working C++ compiler found.\nmore")


def off_by(size):
    """In place of a compiler: the record, with a gradient somewhat wrong."""
    return lambda graph, inputs: lambda *tensors: [*graph(*tensors)[:-1], graph(*tensors)[-1] * (1 + size)]


@pytest.mark.parametrize("chunk", [100, 5])
@pytest.mark.parametrize(
    ("compiler", "why"),
    [(no_compiler, "No working C++ compiler found"), *((off_by(x), "the compiled results differ") for x in (1e-6, math.nan))],
    ids=["no compiler", "off", "not a number"],
)
def test_what_cannot_be_compiled_or_comes_out_wrong_is_not_used_and_noted_once(compiler, why, chunk, monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", compiler)
    trial, task = made(POISSON, chunk=chunk)
    gradient = Gradient(trial, task, compile=True)
    for draw in (0, 1):
        agree(gradient(task.batch(draw)), plainly(trial, task, task.batch(draw)))
    assert gradient.notes == [f"{SLOWER}{why})."]


def test_what_a_point_keeps_is_the_same_however_few_points_a_term_has():
    terms = {
        "values": Term(SQUARE.interior, lambda u, x: u - x, points=40),
        "pin": Term(Data({"x": [0.5], "y": [0.5]}), lambda u, x: u - x),
    }
    trial, task = made(terms)
    many, one = (task.plan(trial, block).saved for block in task.batch())
    assert many <= one <= 1.05 * many  # and not the weights of the network besides


@pytest.mark.parametrize("chunk", [20, 5])
def test_auto_compiles_each_shape_once_where_the_work_repays_it(chunk, monkeypatch):
    trial, task = made(lambda u: laplacian(u), chunk=chunk)
    made_for, saved = [], task.saved(trial, task.batch())

    def count(function, model, batch):
        made_for.append(batch)
        return lambda batch: function(model, batch)

    monkeypatch.setattr("pinnsketch.gradient.compile_function", count)
    monkeypatch.setitem(PAYS, "cpu", saved * 100)
    for compile, steps, expected in (("auto", 100, 0), ("auto", 101, 1), (False, 10**9, 0), (True, 0, 1)):
        made_for.clear()
        gradient = Gradient(trial, task, compile=compile, steps=steps)
        for draw in (0, 1):
            agree(gradient(task.batch(draw)), plainly(trial, task, task.batch(draw)))
        assert len(made_for) == expected


def test_a_gradient_that_is_zero_by_symmetry_is_no_reason_to_refuse(monkeypatch):
    """An odd network, an odd solution and symmetric points: the gradient by a hidden bias is rounding."""
    square = Box(x=(-1, 1), y=(-1, 1))
    problem = Problem(square, "u", {"sides": Term(square.boundary, lambda u, x: u.n + u - x)})
    task = Collocation(problem, boundary=16, sampler="grid")
    trial = Trial(MLP(torch.tensor(square.bounds), width=8, depth=2, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr("torch._inductor.compile", lambda graph, inputs: lambda *t: [found + 1e-17 for found in graph(*t)])
    gradient = Gradient(trial, task, compile=True)
    gradient(task.batch())
    assert gradient.notes == []


def block(normal=True, columns=("a", "b"), n=3):
    values = iter(torch.arange(100.0).view(-1, 1, 1).expand(-1, n, 1))
    return Block(("t",), next(values), next(values) if normal else None, {name: next(values) for name in columns}, 0.5)


BATCHES = {
    "tensor": torch.arange(3.0),
    "tuple": (torch.arange(3.0), torch.ones(2)),
    "nested": (torch.arange(3.0), [torch.ones(2), (torch.zeros(1),)], ()),
    "block": block(),
    "blocks": (block(), block(normal=False), block(columns=()), block(normal=False, columns=())),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_batch_holds_the_tensors_that_are_put_into_it_in_the_same_places(batch):
    tensors = tensors_of(batch)
    other = holding(batch, iter([-t for t in tensors]))
    assert all(torch.equal(a, -b) for a, b in zip(tensors_of(other), tensors, strict=True))
    assert shape_of(other) == shape_of(batch)
    assert type(other) is type(batch)
    assert all(a is b for a, b in zip(tensors_of(holding(other, iter(tensors))), tensors, strict=True))
    if isinstance(batch, Block):
        assert (other.terms, other.share, list(other.columns)) == (batch.terms, batch.share, list(batch.columns))


def test_batches_differ_in_shape_where_sizes_or_terms_do():
    other = Block(("s",), *(getattr(block(), field) for field in ("x", "normal", "columns")))
    batches = [(block(),), (other,), (block(n=4),), (block(normal=False),), (block(), block())]
    assert len({shape_of(batch) for batch in batches}) == len(batches)


@pytest.mark.parametrize("compile", [False, "auto", True])
def test_a_task_needs_no_more_than_weights_batch_losses_and_error(compile, monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", recorded)
    torch.manual_seed(0)
    model, x = nn.Linear(1, 1), torch.linspace(0, 1, 5)[:, None]
    task = SimpleNamespace(
        weights={"fit": 2.0},
        batch=lambda draw: (x + draw, 3 * (x + draw)),
        losses=lambda model, batch: {"fit": (model(batch[0]) - batch[1]).square().mean()},
        error=lambda model: None,
    )
    gradient = Gradient(model, task, compile=compile, steps=10)
    losses = [step.loss for step in train(model, task, [Stage("lbfgs", 20)], gradient=gradient)]
    assert losses[-1] < 1e-8
    assert all(after <= before for before, after in pairwise(losses))
    assert gradient.notes == []


def run_of(folder=None, monitor=False, compile=True):
    path = shipped("problems") / "poisson.py"
    schedule = [{"method": "adam", "steps": 6}, {"method": "lbfgs", "steps": 5}]
    config = {
        "problem": str(path),
        "network": {"width": 8, "depth": 2},
        "points": {"interior": 20, "boundary": 8, "resample": 3, "test": 64},
        "train": {"schedule": schedule, "checkpoint": 1, "compile": compile},
        "monitor": {"every": 2, "size": 64} if monitor else False,
        "device": "cpu",
    }
    return Run(load_problem(path), make_config(config), folder, source=path)


@needs_compiler
def test_a_compiled_run_ends_bit_for_bit_the_same_with_or_without_monitor_and_if_it_was_stopped(tmp_path):
    whole = run_of()
    assert len(list(whole)) == 11
    watched, stopped, eager = run_of(monitor=True), run_of(tmp_path), run_of(compile=False)
    list(watched)
    next(step for step in stopped if step.index == 4)
    resumed = Run.resume(tmp_path)
    assert [step.index for step in resumed] == list(range(5, 12))
    assert all(same(run.trial, whole.trial) for run in (watched, resumed))
    assert all(run.gradient.notes == [] and run.gradient._ready for run in (whole, watched, resumed))
    list(eager)
    for a, b in zip(eager.trial.parameters(), whole.trial.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("section", [{"train": {"compile": "maybe"}}, {"points": {"chunk": 0}}, {"points": {"chunk": "some"}}])
def test_another_word_for_compile_or_chunk_is_refused_with_what_it_may_be(section):
    with pytest.raises(ConfigError) as caught:
        make_config({"problem": "poisson", **section})
    ((outer, ((key, value),)),) = ((outer, inner.items()) for outer, inner in section.items())
    assert re.fullmatch(rf"config: {outer}\.{key}: expected .*auto.*; got {value!r}", str(caught.value))


def test_a_chunk_of_no_points_is_refused_from_python_too():
    with pytest.raises(ProblemError, match="points: chunk must be auto or a number of points above 0; got 0"):
        made(POISSON, chunk=0)


# --- on a GPU ---


def trained(compile, residual=POISSON):
    trial, task = made(residual, device="cuda", seed=1)
    gradient = Gradient(trial, task, compile=compile)
    losses = [step.loss for step in train(trial, task, [Stage("adam", 30)], resample=7, gradient=gradient)]
    return trial, losses, gradient


@needs_gpu
def test_captured_it_trains_bit_for_bit_as_launched_one_by_one():
    (trial, losses, gradient), (other, others, plain) = trained("auto"), trained(False)
    assert losses == others
    assert same(trial, other)
    assert gradient.notes == plain.notes == []
    assert gradient._captured is not None
    assert plain._captured is None


@needs_gpu
@pytest.mark.parametrize("kind", [Adam, SGD, partial(SGD, momentum=0.9)])
def test_a_learning_rate_that_changes_after_the_capture_takes_effect(kind):
    trial, task = made(POISSON, device="cuda")
    gradient, parameters = Gradient(trial, task, compile="auto"), list(trial.parameters())
    method, objective = kind(parameters, lr=0.01), Objective(parameters, partial(gradient, task.batch()), tuple(task.weights))
    for _ in range(5):
        method.step(objective)
    start = deepcopy(trial)
    method.step(objective)
    assert method._inside._graphed._graph is not None
    assert not same(trial, start)
    method.scale(0.0)
    before = deepcopy(trial)
    method.step(objective)
    assert same(trial, before)


@needs_gpu
def test_a_residual_that_waits_for_the_gpu_is_not_captured_and_noted_once():
    (trial, losses, gradient), (other, others, _) = trained("auto", reading), trained(False, reading)
    assert losses == others
    assert same(trial, other)
    (note,) = gradient.notes
    assert note.startswith("Kernels are launched one by one, which is slower: no CUDA graph (")


@pytest.mark.parametrize("precision", ["float64", "float32", "mixed"])
def test_no_precision_depends_on_torchs_default(precision):
    def losses():
        config = make_config(
            {
                "problem": "p.py",
                "precision": precision,
                "points": {"interior": 20, "boundary": 8},
                "train": {"method": "adam", "steps": 5},
            }
        )
        return [(step.loss, step.losses) for step in Run(load_problem(shipped("problems") / "poisson.py"), config)]

    before, expected = torch.get_default_dtype(), losses()
    try:
        torch.set_default_dtype(torch.float64)
        assert losses() == expected
    finally:
        torch.set_default_dtype(before)
