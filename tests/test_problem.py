"""Problems say what is wrong with them before training; Collocation turns them into residuals at points."""

from math import inf, nan, pi

import numpy as np
import pytest
import torch
from torch import nn, sin

from pinnsketch.collocation import Collocation, relative_l2
from pinnsketch.derivatives import Nested
from pinnsketch.geometry import Box, Disk, EmptyRegion
from pinnsketch.network import MLP
from pinnsketch.problem import Data, Problem, ProblemError, Term, Unknown, parameters_of
from pinnsketch.trial import Trial

DOMAIN = Box(x=(-1, 1), t=(0, 1))
SMALL = {"interior": 16, "boundary": 8, "test": 200}


def burgers(u, nu):
    return u.t + u * u.x - nu * u.xx


def problem(**changes):
    given = {
        "domain": DOMAIN,
        "unknowns": "u",
        "parameters": {"nu": 0.1},
        "terms": {
            "burgers": Term(DOMAIN.interior, burgers),
            "walls": Term(DOMAIN.sides("x"), lambda u: u),
            "start": Term(DOMAIN.start("t"), lambda u, x: u + sin(pi * x)),
        },
    }
    return Problem(**(given | changes))


def one(residual, where=DOMAIN.interior, **changes):
    """A problem with a single term called "law"."""
    return problem(**({"terms": {"law": Term(where, residual)}, "parameters": {}} | changes))


def trial(task, outputs=None, seed=0):
    bounds = torch.tensor(task.problem.domain.bounds)
    outputs = outputs or len(task.problem.unknowns)
    net = MLP(bounds, outputs, width=8, depth=2, generator=torch.Generator().manual_seed(seed))
    return Trial(net, task.problem.coefficients)


def residuals(task, draw=0):
    return task.residuals(trial(task), task.batch(draw))


# Names


def test_a_residual_gets_by_name_what_it_asks_for_in_any_order():
    seen = {}

    def law(t, n, u, k, x, scale=2.0):
        seen.update(t=t, n=n, u=u, k=k, x=x, scale=scale)
        return u * k

    task = Collocation(one(law, DOMAIN.boundary, parameters={"k": 3.0}), **SMALL)
    batch = task.batch()
    task.residuals(trial(task), batch)
    torch.testing.assert_close(torch.cat([seen["x"], seen["t"]], dim=1), batch[0].x)
    assert seen["n"] is batch[0].normal
    assert (seen["k"], seen["scale"]) == (3.0, 2.0)
    assert repr(seen["u"]) == "<unknown u(x, t)>"


def test_a_system_has_one_output_for_each_unknown_in_order():
    task = Collocation(one(lambda p, u, v: torch.cat([u, v, p], 1), unknowns="u v, p"), **SMALL)
    net, batch = trial(task), task.batch()
    assert task.problem.unknowns == ("u", "v", "p")
    torch.testing.assert_close(task.residuals(net, batch)["law"], net(batch[0].x))


def test_residuals_of_a_closed_form_solution_vanish():
    decay = problem(terms={"heat": Term(DOMAIN.interior, lambda u, nu: u.t - nu * u.xx)})
    task = Collocation(decay, **SMALL)
    block = task.batch()[0]
    exact = Nested(lambda z: sin(pi * z[:, :1]) * torch.exp(-0.1 * pi**2 * z[:, 1:]), block.x)
    names = task.namespace(exact, {}, block)
    residual = decay.terms["heat"].residual(names["u"], names["nu"])
    torch.testing.assert_close(residual, torch.zeros_like(residual), rtol=0, atol=1e-12)


def test_residuals_keep_the_order_of_the_terms():
    interior, walls = DOMAIN.interior, DOMAIN.sides("x")
    terms = {"a": Term(interior, lambda u: u), "b": Term(walls, lambda u: u), "c": Term(interior, lambda u: u.x)}
    assert list(residuals(Collocation(problem(terms=terms, parameters={}), **SMALL))) == ["a", "b", "c"]


def variadic(u, *rest):
    return u


def needs_nothing_known(x, t):
    return x * t


INTERIOR = DOMAIN.interior
WRONG = {
    "no unknowns": (lambda: problem(unknowns=""), 'at least one unknown, as in unknowns="u"'),
    "no terms": (lambda: problem(terms={}), "at least one term, as in terms="),
    "unknown called like a coordinate": (lambda: problem(unknowns="u x"), "x: one name for two things among unknowns, coord"),
    "unknown twice": (lambda: problem(unknowns="u u"), "u: one name for two things"),
    "parameter called like an unknown": (lambda: problem(parameters={"nu": 1, "u": 2}), "u: one name for two things"),
    "called n": (lambda: problem(parameters={"nu": 1, "n": 2}), "Nothing can be called 'n': it is the outward normal"),
    "no Term": (lambda: problem(terms={"law": burgers}), r"Term 'law': expected Term\(region, residual\); got function"),
    "other coordinates": (
        lambda: one(lambda u: u, Box(x=(0, 1), y=(0, 1)).interior),
        "Term 'law': its region has coordinates x, y, the domain x, t",
    ),
    "a shape for a region": (lambda: one(lambda u: u, DOMAIN), "Term 'law': expected a region, as in domain.interior.*got Box"),
    "zero weight": (
        lambda: problem(terms={"law": Term(INTERIOR, burgers, weight=0)}),
        "'law': its weight must be positive and finite; got 0",
    ),
    "nan weight": (lambda: problem(terms={"law": Term(INTERIOR, burgers, weight=nan)}), "positive and finite; got nan"),
    "misspelt": (
        lambda: problem(parameters={"viscosity": 1}, terms={"law": Term(INTERIOR, lambda u, viscocity: u)}),
        "Term 'law': its residual asks for 'viscocity'.* Did you mean 'viscosity'. It may ask for u, x, t, viscosity",
    ),
    "like nothing": (lambda: one(lambda u, qqqq: u), "asks for 'qqqq', which is not known here. It may ask for u, x, t"),
    "normal inside": (lambda: one(lambda u, n: u), "asks for 'n', .* The normal n exists on boundaries only"),
    "variadic": (lambda: one(variadic), r"variadic\(\): \*rest cannot be matched by name; list what it needs"),
    "no unknown read": (lambda: one(needs_nothing_known), "Term 'law': its residual reads no unknown, so nothing could"),
    "exact of nothing": (lambda: problem(exact={"v": lambda x: x}), "exact: 'v' is no unknown; the unknowns are u"),
    "exact asks for an unknown": (lambda: problem(exact=lambda u: u), "exact 'u' asks for 'u'; it may ask for x, t, nu"),
    "one exact for two": (lambda: problem(unknowns="u v", exact=lambda x: x), "exact: give a function for each of u, v"),
    "positive from zero": (
        lambda: Unknown(0, positive=True),
        r"Unknown\(0, positive=True\): the initial value must be positive",
    ),
}


@pytest.mark.parametrize(("build", "message"), WRONG.values(), ids=WRONG)
def test_a_problem_that_cannot_be_is_refused_when_it_is_written(build, message):
    with pytest.raises(ProblemError, match=message):
        build()


def test_parameters_with_a_default_are_no_needs():
    assert parameters_of(lambda u, x, k=2, *, nu: u) == ("u", "x", "nu")


# Residuals


RESIDUALS = {
    "flat": (lambda u: u.value[:, 0], r"Term 'law': its residual must be a tensor of shape \(16, 1\).*got shape \(16,\)"),
    "mean": (lambda u: u.value.mean(), r"must be a tensor of shape \(16, 1\), one row a point; got shape \(\)"),
    "transposed": (lambda u: u.value.T, r"must be a tensor of shape \(16, 1\), one row a point; got shape \(1, 16\)"),
    "number": (lambda u: 0.0, r"must be a tensor of shape \(16, 1\), one row a point; got float"),
    "nothing": (lambda u: None, "got NoneType"),
    "shapes that do not fit": (lambda u: u - torch.ones(3, 3), "Term 'law'.*must match the size"),
    "no such derivative": (lambda u: u.y, r"Term 'law': u\.y: 'y' is no coordinate here; the coordinates are x, t"),
    "no normal": (lambda u: u.n, r"Term 'law': u\.n: an interior has no normal; put this term on a boundary"),
}


@pytest.mark.parametrize(("residual", "message"), RESIDUALS.values(), ids=RESIDUALS)
def test_a_residual_of_the_wrong_kind_is_refused_with_its_term(residual, message):
    with pytest.raises(ProblemError, match=message):
        residuals(Collocation(one(residual), **SMALL))


def test_a_residual_that_is_an_unknown_itself_is_its_values():
    task = Collocation(one(lambda u: u), **SMALL)
    net, batch = trial(task), task.batch()
    torch.testing.assert_close(task.residuals(net, batch)["law"], net(batch[0].x))


def test_losses_are_mean_squares_of_residuals_before_weighting():
    task = Collocation(problem(), weights={"walls": 7.0}, **SMALL)
    net, batch = trial(task), task.batch()
    found = task.residuals(net, batch)
    for name, loss in task.losses(net, batch).items():
        assert loss.item() == pytest.approx((found[name] ** 2).mean().item())
    assert task.weights == {"burgers": 1.0, "walls": 7.0, "start": 1.0}


def test_check_names_the_term_and_the_point_where_a_residual_is_not_finite():
    task = Collocation(one(lambda u, x: u + torch.where(x < 0, torch.log(x), x)), **SMALL)
    x = task.batch()[0].x
    row = int((x[:, 0] < 0).nonzero()[0])
    place = f"x={x[row, 0]:.6g}, t={x[row, 1]:.6g}"
    count = int((x[:, 0] < 0).sum())
    with pytest.raises(ProblemError, match=f"Term 'law'.*not finite at {count} of 16 points.*first at {place}"):
        task.check(trial(task))


def test_check_refuses_a_network_with_the_wrong_number_of_outputs():
    task = Collocation(problem(), **SMALL)
    with pytest.raises(ProblemError, match=r"The network has 3 outputs; the problem has 1 unknowns \(u\)"):
        task.check(trial(task, outputs=3))


def test_check_warns_of_what_no_residual_reads():
    task = Collocation(problem(unknowns="u v", parameters={"nu": 0.1, "rho": 1.0}), **SMALL)
    assert task.check(trial(task)) == [f"{name!r} is read by no residual: is it needed?" for name in ("v", "rho")]


def test_data_outside_of_the_domain_is_warned_of_with_its_first_place():
    disk = Disk(radius=1)
    seen = {"x": [0.0, 1.0, 0.8, 3.0], "y": [0.0, 0.0, 0.8, 0.0], "u_seen": [0.0] * 4}
    terms = {"law": Term(disk.interior, lambda u: u.xx), "probes": Term(Data(seen), lambda u, u_seen: u - u_seen)}
    task = Collocation(Problem(disk, "u", terms), interior=20)
    expected = "Term 'probes': 2 of 4 data points lie outside the domain, first x=0.8, y=0.8."
    assert task.check(trial(task)) == [expected]


def test_check_is_silent_on_a_sound_problem():
    task = Collocation(problem(), **SMALL)
    assert task.check(trial(task)) == []


# Points


def names_and_sizes(task):
    return [(block.terms, len(block.x)) for block in task.batch()]


def test_terms_on_the_same_region_share_a_block_and_different_counts_do_not():
    walls, start = DOMAIN.sides("x"), DOMAIN.start("t")
    terms = {
        "a": Term(DOMAIN.interior, lambda u: u),
        "b": Term(walls, lambda u: u),
        "c": Term(Box(x=(-1, 1), t=(0, 1)).interior, lambda u: u.x),
        "d": Term(DOMAIN.interior, lambda u: u.t, points=5),
        "e": Term(start, lambda u: u),
    }
    shared = problem(terms=terms, parameters={})
    assert names_and_sizes(Collocation(shared, **SMALL)) == [(("a", "c"), 16), (("b",), 8), (("d",), 5), (("e",), 8)]
    counted = Collocation(shared, terms={"c": 5, "d": 3}, **SMALL)
    assert names_and_sizes(counted) == [(("a",), 16), (("b",), 8), (("c",), 5), (("d",), 3), (("e",), 8)]


def test_terms_in_one_block_see_the_very_same_points():
    seen = []
    terms = {name: Term(DOMAIN.interior, lambda u, x: seen.append(x) or u) for name in "ab"}
    residuals(Collocation(problem(terms=terms, parameters={}), **SMALL))
    assert seen[0] is seen[1]


@pytest.mark.parametrize("sampler", ["sobol", "latin_hypercube", "random"])
def test_batches_are_pure_functions_of_seed_and_draw(sampler):
    def x(seed, draw, before=0):
        task = Collocation(problem(), seed=seed, sampler=sampler, **SMALL)
        for other in range(before):
            task.batch(other)
        return torch.cat([block.x for block in task.batch(draw)])

    assert torch.equal(x(0, 3), x(0, 3, before=5))
    assert not torch.equal(x(0, 3), x(0, 4))
    assert not torch.equal(x(0, 3), x(1, 3))


def test_points_have_the_dtype_asked_for():
    for block in Collocation(problem(), dtype=torch.float32, **SMALL).batch():
        assert block.x.dtype == torch.float32
        assert block.normal is None or block.normal.dtype == torch.float32


@pytest.mark.parametrize("option", ["terms", "weights"])
def test_settings_for_a_term_that_is_not_there_are_refused(option):
    with pytest.raises(ProblemError, match="there is no term 'wall'; the terms are burgers, walls, start"):
        Collocation(problem(), **{option: {"wall": 10}})


def test_a_number_of_points_for_data_is_refused():
    data = Term(Data({"x": [0.0], "t": [0.5]}), lambda u: u)
    with pytest.raises(ProblemError, match="points: term 'probe' is put on data, whose number is given; remove 'probe' here"):
        Collocation(problem(terms={"probe": data}, parameters={}), terms={"probe": 9})


def test_an_empty_region_is_refused_with_its_name():
    task = Collocation(one(lambda u: u, DOMAIN.interior.where(lambda x: x > 5, name="far")), **SMALL)
    with pytest.raises(EmptyRegion, match=r"far of Box.* is empty"):
        task.batch()


# Unknown coefficients


def decay(initial=4.0, positive=True, exact=0.5):
    """u' = -k u with u = exp(-t / 2) given: k must become 1/2."""
    domain = Box(t=(0, 1))
    return Problem(
        domain,
        "u",
        {
            "decay": Term(domain.interior, lambda u, k: u.t + k * u),
            "given": Term(domain.interior, lambda u, t: u - torch.exp(-t / 2)),
        },
        parameters={"k": Unknown(initial, positive=positive, exact=exact)},
        exact=lambda t, k: torch.exp(-k * t),
    )


@pytest.mark.parametrize("positive", [True, False])
def test_an_unknown_coefficient_starts_at_its_initial_value_and_is_found(positive):
    task = Collocation(decay(positive=positive), **SMALL)
    net, batch, seen = trial(task), task.batch(), []
    assert net.coefficients["k"].item() == pytest.approx(4.0)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        total = sum(task.losses(net, batch).values())
        total.backward()
        seen.append(net.coefficients["k"].item())
        return total

    optimizer.step(loss)
    assert net.coefficients["k"].item() == pytest.approx(0.5, abs=0.01)
    assert not positive or min(seen) > 0


def test_a_positive_coefficient_stays_positive_however_hard_it_is_pushed():
    net = Trial(nn.Linear(1, 1), {"k": Unknown(1.0, positive=True), "c": Unknown(1.0)})
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for _ in range(30):
        optimizer.zero_grad()
        sum(net.coefficients.values()).backward()
        optimizer.step()
    assert 0 < net.coefficients["k"] < 0.1
    assert net.coefficients["c"].item() == pytest.approx(-29)


def test_a_term_may_read_a_coefficient_alone():
    task = Collocation(one(lambda k, x: (k - 2) * torch.ones_like(x), parameters={"k": Unknown(5.0)}), **SMALL)
    assert residuals(task)["law"].unique().item() == pytest.approx(3.0)


# Exact solutions


def test_error_is_the_relative_l2_distance_to_the_exact_solution():
    exact = {"u": lambda x, t, nu: torch.exp(-nu * t) * sin(x), "v": lambda x: x**2 + 1}
    task = Collocation(problem(unknowns="u v p", exact=exact), **SMALL)
    seen = []
    net = trial(task)
    net.network.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    found = task.error(net)
    ((x, out),) = (tuple(map(torch.Tensor.numpy, pair)) for pair in seen)
    truth = np.stack([np.exp(-0.1 * x[:, 1]) * np.sin(x[:, 0]), x[:, 0] ** 2 + 1], axis=1)
    off = out[:, :2] - truth
    direct = {"overall": np.linalg.norm(off) / np.linalg.norm(truth)}
    direct |= {name: np.linalg.norm(off[:, i]) / np.linalg.norm(truth[:, i]) for i, name in enumerate("uv")}
    assert len(x) == 200
    assert found == pytest.approx(direct, rel=1e-12)


def test_error_does_not_depend_on_the_seed_of_training_and_is_none_without_an_exact_solution():
    first, other = (Collocation(decay(), seed=seed, **SMALL) for seed in (0, 1))
    assert first.error(trial(first)) == other.error(trial(other))
    bare = Collocation(problem(), **SMALL)
    assert bare.error(trial(bare)) is None


def test_the_exact_solution_reads_the_true_coefficient_and_the_initial_one_where_that_is_not_known():
    t = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(Collocation(decay()).exact("u", t), torch.exp(-0.5 * t))
    torch.testing.assert_close(Collocation(decay(exact=None)).exact("u", t), torch.exp(-4.0 * t))


def test_a_constant_exact_solution_may_be_a_number():
    task = Collocation(problem(exact=lambda: 3.0), **SMALL)
    assert task.exact("u", torch.zeros(4, 2)).tolist() == [[3.0]] * 4


def test_relative_l2_of_a_scaled_solution_is_its_excess():
    exact = torch.rand(50, 1, generator=torch.Generator().manual_seed(0))
    assert relative_l2({"u": (1.25 * exact, exact)})["u"] == pytest.approx(0.25, rel=1e-5)


def test_relative_l2_against_zero_is_infinite_unless_zero_was_found():
    zero, one = torch.zeros(3, 1), torch.ones(3, 1)
    assert relative_l2({"u": (zero, zero), "v": (one, zero)}) == {"overall": inf, "u": 0.0, "v": inf}


# Data


def probe(source, residual=lambda u, u_obs: u - u_obs):
    return problem(terms={"probe": Term(Data(source), residual)}, parameters={})


COLUMNS = {"t": [0.1, 0.2, 0.3], "u_obs": [5.0, 6.0, 7.0], "x": [-0.5, 0.0, 0.5]}


@pytest.fixture
def csv(tmp_path):
    def write(text):
        (tmp_path / "probe.csv").write_text(text, encoding="utf-8")
        return tmp_path / "probe.csv"

    return write


def test_data_columns_reach_the_residual_and_coordinates_say_where(csv):
    rows = zip(*COLUMNS.values(), strict=True)
    text = "\n".join([", ".join(COLUMNS), *(", ".join(map(str, row)) for row in rows)])
    for source in (COLUMNS, csv(text), csv("\ufeff" + text + "\n\n")):
        task = Collocation(probe(source), **SMALL)
        net, batch = trial(task), task.batch()
        place = torch.tensor([COLUMNS["x"], COLUMNS["t"]], dtype=torch.float64).T
        torch.testing.assert_close(batch[0].x, place)
        expected = net(place) - torch.tensor(COLUMNS["u_obs"], dtype=torch.float64)[:, None]
        torch.testing.assert_close(task.residuals(net, batch)["probe"], expected)
        assert task.check(net) == []


def test_terms_on_the_same_data_share_a_block_and_every_draw_gives_it_again():
    data = Data(COLUMNS)
    terms = {"value": Term(data, lambda u, u_obs: u - u_obs), "slope": Term(data, lambda u: u.x)}
    task = Collocation(problem(terms=terms, parameters={}), **SMALL)
    assert names_and_sizes(task) == [(("value", "slope"), 3)]
    assert torch.equal(task.batch(0)[0].x, task.batch(1)[0].x)


def test_a_relative_path_is_found_beside_the_problem_file(csv):
    path = csv("x,t,u_obs\n0,0.5,1\n")
    task = Collocation(probe("probe.csv").beside(path.parent), **SMALL)
    assert residuals(task)["probe"].shape == (1, 1)
    assert Data(path).beside(path.parent / "elsewhere").source == path


def test_a_missing_column_is_refused_when_the_run_is_set_up():
    with pytest.raises(ProblemError, match=r"Term 'probe': its residual asks for 'u_obs'.*It may ask for u, x, t, w"):
        Collocation(probe({"x": [0.0], "t": [0.5], "w": [1.0]}), **SMALL)


FILES = {
    "word": ("x,t,u_obs\n0,1,2\n0,one,2\n", r"probe\.csv, line 3: expected 3 numbers; got '0,one,2'"),
    "short row": ("x,t,u_obs\n0,1\n", r"probe\.csv, line 2: expected 3 numbers; got '0,1'"),
    "long row": ("x,t,u_obs\n0,1,2,3\n", r"probe\.csv, line 2: expected 3 numbers; got '0,1,2,3'"),
    "nan": ("x,t,u_obs\n0,1,2\n0,1,nan\n", r"probe\.csv'\): column 'u_obs' is not finite in row 2 \(nan\)"),
    "infinite": ("x,t,u_obs\n0,inf,2\n", r"probe\.csv'\): column 't' is not finite in row 1 \(inf\)"),
    "header only": ("x,t,u_obs\n", r"probe\.csv needs a header line and at least one row of numbers"),
    "empty": ("", r"probe\.csv needs a header line"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_bad_cell_is_refused_with_its_place(csv, text, message):
    with pytest.raises(ProblemError, match=message):
        Collocation(probe(csv(text)), **SMALL)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(ProblemError, match=r"Data: cannot read .*nowhere\.csv: No such file or directory"):
        Collocation(probe(tmp_path / "nowhere.csv"), **SMALL)


@pytest.mark.parametrize("columns", [{}, {"x": [], "t": []}, {"x": [0.0, 1.0], "t": [0.5]}])
def test_columns_must_be_equally_long_and_not_empty(columns):
    with pytest.raises(ProblemError, match="columns must be equally long and not empty; got"):
        Data(columns).columns()


# Known gaps: each is accepted, or fails with a bare error, where a ProblemError should name the culprit.


def run(given, **options):
    task = Collocation(given, **(SMALL | options))
    net = trial(task)
    task.check(net)
    return task.losses(net, task.batch())


SILENT = {
    "column called like an unknown": (lambda csv: run(probe(COLUMNS | {"u": [1, 2, 3]}, lambda u: u)), "'u'"),
    "column called like a parameter": (
        lambda csv: run(
            problem(terms={"probe": Term(Data(COLUMNS | {"nu": [1, 2, 3]}), lambda u, nu: u - nu)}, parameters={"nu": 0.1})
        ),
        "'nu'",
    ),
    "data without a coordinate": (lambda csv: run(probe({"x": [0.0], "u_obs": [1.0]})), "'t'"),
    "words in a column": (lambda csv: run(probe(COLUMNS | {"u_obs": ["a", "b", "c"]})), "'u_obs'"),
    "one cell for a row": (lambda csv: run(probe(csv("x,t,u_obs\n0.5\n"))), "line 2: expected 3 numbers"),
    "blank lines count": (lambda csv: run(probe(csv("x,t,u_obs\n\n0,one,2\n"))), "line 3: expected 3 numbers"),
    "a column twice": (lambda csv: run(probe(csv("x,t,u_obs,u_obs\n0,1,2,3\n"))), "'u_obs'"),
    "broadcast to n x n": (lambda csv: run(one(lambda u, x: u - x[:, 0])), r"Term 'law'.*\(16, 16\)"),
    "no points for a term": (lambda csv: run(problem(), terms={"walls": 0}), "'walls'"),
    "negative weight": (lambda csv: run(problem(), weights={"walls": -1.0}), "'walls'"),
}


@pytest.mark.parametrize(("build", "message"), SILENT.values(), ids=SILENT)
def test_what_would_go_wrong_in_silence_is_refused_by_name(csv, build, message):
    with pytest.raises(ProblemError, match=message):
        build(csv)


def test_check_warns_of_a_coefficient_that_only_the_exact_solution_reads():
    task = Collocation(one(lambda u: u, parameters={"k": Unknown(1.0)}, exact=lambda x, k: k * x), **SMALL)
    assert any("'k'" in warning for warning in task.check(trial(task)))


def test_a_name_that_a_residual_does_not_have_is_said_with_where_to_add_it():
    from pinnsketch import Box, Problem, Term
    from pinnsketch.check import check

    box = Box(x=(0, 1))

    def law(u):
        return u.xx + missing  # noqa: F821

    with pytest.raises(ValueError, match=r"'missing' is not defined. If 'missing' belongs to the problem, add it to"):
        check(Problem(box, "u", {"law": Term(box.interior, law)}))
