"""A configuration says what it means or is refused, each fault by its dotted path."""

import math
from collections.abc import Mapping
from datetime import date

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pinnsketch.config import ConfigError, RunConfig, dump_config, make_config, read_config
from pinnsketch.library import find_config, find_problem, load_problem
from pinnsketch.train import Stage

KEYS = "problem, parameters, network, points, weights, train, monitor, precision, device, threads"


def made(**sections):
    return make_config({"problem": "poisson", **sections})


def fault(**sections):
    with pytest.raises(ConfigError) as caught:
        made(**sections)
    return str(caught.value)


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "c.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(path)

    return read


@pytest.fixture
def refusal(read, tmp_path):
    def refusal(text):
        with pytest.raises(ConfigError) as caught:
            read(text)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / "c.yaml"))
        return message.removeprefix(str(tmp_path / "c.yaml"))

    return refusal


UNKNOWN_KEYS = {
    "top": ({"netwrok": {}}, f"config: there is no key 'netwrok' here; did you mean 'network'? (known: {KEYS})"),
    "network": (
        {"network": {"widht": 3}},
        "network: there is no key 'widht' here; did you mean 'width'? (known: kind, width, depth, activation",
    ),
    "points": ({"points": {"boundry": 3}}, "points: there is no key 'boundry' here; did you mean 'boundary'?"),
    "train": (
        {"train": {"methods": "adam"}},
        "train: there is no key 'methods' here",
    ),
    "monitor": (
        {"monitor": {"ranks": 3}},
        "monitor: there is no key 'ranks' here; did you mean 'rank'? "
        "(known: every, readings, terms, lags, entries, size, rank, decay, adaptive, tensorboard)",
    ),
    "not text": ({"network": {3: 4}}, "network: there is no key 3 here (known: kind, width, depth, activation"),
    "adam": ({"train": {"method": "adam", "rl": 1}}, "adam has no option 'rl' (known: steps, decay, parameters, lr, betas)"),
    "lbfgs": (
        {"train": [{"method": "adam"}, {"method": "lbfgs", "lr": 1}]},
        "train.schedule.1: lbfgs has no option 'lr' (known: steps, decay, parameters, history, evaluations)",
    ),
    "close option": (
        {"train": {"method": "lbfgs", "histroy": 1}},
        "lbfgs has no option 'histroy'; did you mean 'history'? (known: steps, decay, parameters, history, evaluations)",
    ),
}


@pytest.mark.parametrize(("sections", "text"), UNKNOWN_KEYS.values(), ids=UNKNOWN_KEYS)
def test_an_unknown_key_is_refused_with_its_path_the_known_keys_and_a_close_one(sections, text):
    assert text in fault(**sections)


UNKNOWN_NAMES = {
    "network": ({"network": {"kind": "mpl"}}, "network.kind: there is no network 'mpl'; did you mean 'mlp'? (known: mlp"),
    "activation": (
        {"network": {"activation": "tahn"}},
        "network.activation: there is no activation 'tahn'; did you mean 'tanh'? (known: tanh, sin, silu, gelu",
    ),
    "sampler": (
        {"points": {"sampler": "sobel"}},
        "points.sampler: there is no sampler 'sobel'; did you mean 'sobol'? (known: sobol, latin_hypercube, random, grid",
    ),
    "method": (
        {"train": {"method": "adma"}},
        "train.schedule.0.method: there is no method 'adma'; did you mean 'adam'? (known: adam, dsgnar, features, lbfgs",
    ),
    "precision": ({"precision": "float16"}, "precision: expected 'float64', 'float32' or 'mixed'; got 'float16'"),
}


@pytest.mark.parametrize(("sections", "text"), UNKNOWN_NAMES.values(), ids=UNKNOWN_NAMES)
def test_an_unknown_name_is_refused_with_the_known_ones(sections, text):
    assert text in fault(**sections)


WRONG_VALUES = {
    "bool width": ({"network": {"width": True}}, "network.width: expected a whole number; got True"),
    "bool weight": ({"weights": {"a": True}}, "weights.a: expected a number; got True"),
    "bool decay": ({"monitor": {"decay": False}}, "monitor.decay: expected a number; got False"),
    "bool lr": ({"train": {"method": "adam", "lr": True}}, "lr: expected a number above 0; got True"),
    "bool steps": ({"train": {"method": "adam", "steps": True}}, "train.schedule.0.steps: expected a whole number; got True"),
    "number for bool": ({"monitor": {"adaptive": 3}}, "monitor.adaptive: expected true or false; got 3"),
    "half": ({"network": {"width": 3.5}}, "network.width: expected a whole number; got 3.5"),
    "zero": ({"network": {"depth": 0}}, "network.depth: expected greater than 0; got 0"),
    "negative": ({"threads": -1}, "threads: expected greater than or equal to 0; got -1"),
    "words": ({"points": {"interior": "many"}}, "points.interior: expected a whole number; got 'many'"),
    "nested": ({"points": {"terms": {"sides": 0}}}, "points.terms.sides: expected greater than 0; got 0"),
    "infinite": ({"weights": {"a": math.inf}}, "weights.a: expected a finite number; got inf"),
    "nan": ({"weights": {"a": math.nan}}, "weights.a: expected"),
    "decay": ({"monitor": {"decay": 1}}, "monitor.decay: expected less than 1; got 1"),
    "size": ({"monitor": {"size": 3}}, "monitor.size: expected greater than or equal to 8; got 3"),
    "lr": ({"train": {"method": "adam", "lr": "fast"}}, "lr: expected a number above 0; got 'fast'"),
    "nan lr": ({"train": {"method": "adam", "lr": math.nan}}, "lr: expected a number above 0; got nan"),
    "inf lr": ({"train": {"method": "adam", "lr": math.inf}}, "lr: expected a number above 0; got inf"),
    "betas": ({"train": {"method": "adam", "betas": [0.9]}}, "betas: expected 2 numbers from 0 to 1; got [0.9]"),
    "beta": ({"train": {"method": "adam", "betas": 0.9}}, "betas: expected 2 numbers from 0 to 1; got 0.9"),
    "history": ({"train": {"method": "lbfgs", "history": 2.5}}, "history: expected a whole number above 0; got 2.5"),
    "section": ({"network": 3}, "network: expected keys and values (kind, width, depth, activation"),
    "list": ({"parameters": [1]}, "parameters: expected keys and values; got [1]"),
    "no list": ({"train": {"schedule": 3}}, "train.schedule: expected a list; got 3"),
    "stage": ({"train": [3]}, "train.schedule.0: expected keys and values (method, steps"),
    "train": ({"train": "adam"}, "train: expected keys and values, as in {method: adam}"),
    "problem": ({"problem": 3}, "problem: expected text; got 3"),
    "device": ({"device": 3}, "device: expected text; got 3"),
}


@pytest.mark.parametrize(("sections", "text"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value_is_refused_with_its_path_what_was_expected_and_what_came(sections, text):
    assert text in fault(**sections)


def test_every_fault_is_listed_at_once():
    message = fault(network={"width": "a"}, monitor={"rank": 0}, weights={"b": -1})
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == ["network.width", "weights.b", "monitor.rank"]


def test_a_config_without_a_problem_is_refused():
    with pytest.raises(ConfigError, match=r"^here: problem: is missing$"):
        make_config({}, "here")


def test_a_wrong_option_of_a_method_is_named_by_its_whole_dotted_path():
    assert "train.schedule.0.lr: expected" in fault(train={"method": "adam", "lr": "fast"})


@pytest.mark.parametrize(
    ("word", "value"),
    [("2e-3", 2e-3), ("1e3", 1e3), ("-1E-3", -1e-3), ("+1e3", 1e3), ("1.e3", 1e3), ("1.5e+3", 1500.0), ("2.0e-3", 2e-3)],
)
def test_numbers_with_an_exponent_are_numbers(read, word, value):
    assert read(f"problem: p\nparameters: {{k: {word}}}").parameters == {"k": value}


def test_a_number_may_begin_with_its_point(read):
    assert read("problem: p\nparameters: {k: .5e3}").parameters == {"k": 500.0}


def test_a_count_may_be_written_with_an_exponent_where_it_is_whole(read):
    config = read("problem: p\npoints: {interior: 1e3}\ntrain: {method: lbfgs, steps: 2e2, history: 1e1}")
    assert config.points.interior == 1000
    assert config.train.schedule[0].stage() == Stage("lbfgs", 200, {"history": 10})


def test_one_method_a_list_and_a_schedule_are_the_same_training():
    stage = {"method": "adam", "steps": 7, "lr": 0.01}
    one, listed, full = (made(train=train) for train in (stage, [stage], {"schedule": [stage]}))
    assert one == listed == full
    assert [s.stage() for s in one.train.schedule] == [Stage("adam", 7, {"lr": 0.01})]


def test_seed_log_and_checkpoint_stand_beside_one_method_as_beside_a_schedule():
    rest = {"seed": 3, "log": 4, "checkpoint": 5}
    assert made(train={"method": "lbfgs", **rest}) == made(train={"schedule": [{"method": "lbfgs"}], **rest})


def test_a_method_and_a_schedule_together_are_refused():
    assert "train: give either a method or a schedule of methods, not both" in fault(train={"method": "adam", "schedule": []})


@pytest.mark.parametrize("train", [[], {"schedule": []}])
def test_an_empty_schedule_is_refused(train):
    assert "train.schedule: the schedule is empty; give at least one method" in fault(train=train)


def test_a_grid_that_is_to_be_resampled_is_refused():
    text = "points: a grid gives the same points at every draw, so resample would do nothing: set it to 0"
    assert text in fault(points={"sampler": "grid", "resample": 10})


def test_the_monitor_is_on_off_or_described():
    assert made(monitor=True) == made() == made(monitor={})
    assert made(monitor=False).monitor is None
    assert made(monitor=None).monitor is None
    assert made(monitor={"rank": 2}).monitor.rank == 2


SYNTAX = {
    "tab": ("problem: p\n\tnetwork: 3", r"found character '\t' that cannot start any token in line 2, column 1"),
    "unclosed": ("problem: [p\n", "expected ',' or ']', but got '<stream end>' in line 2"),
    "indent": ("problem: p\nweights: {a: 1}\n  c: 3", "in line 3"),
    "two documents": ("---\nproblem: p\n---\nproblem: q", "found another document in line 3"),
    "date": ("problem: p\nparameters: {x: 2001-99-99}", "month must be in 1..12"),
    "NUL": (b"problem: \x00", "special characters are not allowed"),
    "object": ("problem: !!python/object/apply:os.system ['echo hi']", "python/object/apply:os.system' in line 1"),
    "name": ("problem: !!python/name:os.system", "python/name:os.system' in line 1"),
    "tuple": ("problem: p\nparameters: {a: !!python/tuple [1]}", "python/tuple' in line 2"),
    "recursive": ("problem: &p {a: *p}", "the alias *p is not supported in line 1"),
    "deep": ("problem: " + "[" * 3000, "maximum recursion depth exceeded"),
    "twice": ("problem: p\nproblem: q\n", "the key 'problem' stands twice in line"),
    "twice inside": ("problem: p\nnetwork: {width: 3, width: 4}\n", "the key 'width' stands twice in line 2"),
}


@pytest.mark.parametrize(("text", "words"), SYNTAX.values(), ids=SYNTAX)
def test_wrong_yaml_is_refused_with_the_file_the_fault_and_the_line(refusal, text, words):
    message = refusal(text)
    assert message.startswith(" is not valid YAML: ")
    assert words in message


def test_a_key_that_stands_twice_is_named_with_the_line_of_the_second(refusal):
    assert "the key 'problem' stands twice in line 3" in refusal("problem: p\nthreads: 1\nproblem: q\n")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("- a\n- b", "list"), ("hello", "str"), ("", "an empty file"), ("# nothing\n", "an empty file"), ("3", "int")],
)
def test_what_holds_no_keys_and_values_is_refused(refusal, text, kind):
    assert refusal(text) == f": expected keys and values, at least 'problem: NAME'; got {kind}."


def test_a_binary_file_is_refused(refusal):
    assert refusal(b"\x80\x02\xff\xfe") == " is not text in UTF-8; is it a YAML file?"


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read .*nix\.yaml: No such file or directory"):
        read_config(tmp_path / "nix.yaml")
    with pytest.raises(ConfigError, match=r"Cannot read .*: Is a directory"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["problem: p\nparameters: {[1, 2]: 3}", "problem: p\n? {a: b}\n: 3"])
def test_a_key_that_is_a_list_or_a_mapping_is_refused(refusal, text):
    assert "is not valid YAML" in refusal(text)


def test_an_empty_number_is_refused(refusal):
    assert "is not valid YAML" in refusal("problem: p\nthreads: !!int ''")


def laughs(levels):
    """Each level holds nine of the one before: 9^levels in a few lines of text."""
    lines = ["  a0: &a0 [x]"] + [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels + 1)]
    return "problem: poisson\nparameters:\n" + "\n".join(lines) + "\n"


def test_a_bomb_of_anchors_is_refused_without_unfolding_it(tmp_path):
    """Unfolded it would be 9^30 values: reading is by reference, if not refused at once."""
    path = tmp_path / "c.yaml"
    path.write_text(laughs(30))
    with pytest.raises(ValueError, match=r"alias|anchor|parameters: poisson\.py has no parameter 'a0'") as caught:
        load_problem(find_problem("poisson", tmp_path), read_config(path).parameters)
    assert len(str(caught.value)) < 1000


def test_a_message_does_not_unfold_a_bomb_of_anchors(refusal):
    assert len(refusal(laughs(4) + "threads: *a4\n")) < 2000


def test_a_problem_path_is_relative_to_the_yaml_file(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "problems").mkdir()
    (tmp_path / "problems" / "mine.py").write_text("")
    (tmp_path / "configs" / "mine.yaml").write_text("problem: ../problems/mine.py\n")
    monkeypatch.chdir(tmp_path / "problems")
    config, folder = find_config("../configs/mine.yaml")
    assert find_problem(config.problem, folder).samefile(tmp_path / "problems" / "mine.py")


def test_a_problem_file_that_is_not_there_is_named_with_its_whole_path(tmp_path):
    with pytest.raises(ConfigError, match=f"problem: there is no file {tmp_path}/mine.py"):
        find_problem("mine.py", tmp_path)
    with pytest.raises(
        ConfigError, match=r"there is no problem 'poissn'; did you mean 'poisson'\? \(known: allen_cahn, burgers"
    ):
        find_problem("poissn", tmp_path)


def test_a_config_and_its_sections_are_frozen():
    config = made(train={"method": "adam"})
    with pytest.raises(ValidationError, match="frozen"):
        config.threads = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.network.width = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.train.schedule[0].steps = 3


def test_the_mapping_that_is_given_is_left_as_it_was():
    given_ = {"problem": "p", "train": {"method": "adam", "seed": 1}, "monitor": True}
    make_config(given_)
    assert given_ == {"problem": "p", "train": {"method": "adam", "seed": 1}, "monitor": True}


count = st.integers(1, 10**6)
positive = st.floats(1e-300, 1e300)
name = st.text("abcxyz_é ü:#'\"-", min_size=1, max_size=8)
stage = st.one_of(
    st.fixed_dictionaries({"method": st.just("adam")}, optional={"steps": count, "lr": positive}),
    st.fixed_dictionaries({"method": st.just("lbfgs")}, optional={"steps": count, "history": count, "evaluations": count}),
)
share = st.floats(0, 1, exclude_max=True)
configs = st.fixed_dictionaries(
    {"problem": name},
    optional={
        "parameters": st.dictionaries(
            name, st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), name), max_size=3
        ),
        "network": st.fixed_dictionaries(
            {}, optional={"width": count, "depth": count, "activation": st.sampled_from(["sin", "gelu"])}
        ),
        "points": st.fixed_dictionaries(
            {},
            optional={
                "interior": count,
                "terms": st.dictionaries(name, count, max_size=2),
                "sampler": st.sampled_from(["sobol", "random"]),
                "resample": st.integers(0, 99),
            },
        ),
        "weights": st.dictionaries(name, positive, max_size=3),
        "train": st.one_of(
            stage,
            st.lists(stage, min_size=1, max_size=3),
            st.fixed_dictionaries(
                {"schedule": st.lists(stage, min_size=1, max_size=3)}, optional={"seed": count, "log": count}
            ),
        ),
        "monitor": st.one_of(
            st.booleans(),
            st.none(),
            st.fixed_dictionaries({}, optional={"rank": count, "decay": share, "adaptive": st.booleans()}),
        ),
        "precision": st.sampled_from(["float32", "float64", "mixed"]),
        "threads": st.integers(0, 64),
    },
)


@given(configs)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back_equal(tmp_path, sections):
    config = make_config(sections)
    path = tmp_path / "written.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert read_config(path) == config


def test_betas_survive_writing_and_reading(tmp_path):
    config = made(train={"method": "adam", "betas": [0.8, 0.95]})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "c.yaml").train.schedule[0].stage() == Stage("adam", 2000, {"betas": (0.8, 0.95)})


def test_text_that_looks_like_a_number_survives_writing_and_reading(read):
    config = made(parameters={"code": "1e3"})
    assert read(dump_config(config)) == config


def test_a_date_among_the_parameters_survives_writing_and_reading(read):
    config = made(parameters={"day": date(2001, 1, 1)})
    assert read(dump_config(config)) == config


def test_a_written_config_spells_every_default_out():
    written, config = yaml.safe_load(dump_config(made())), made()
    assert list(written) == list(RunConfig.model_fields)
    for key, section in written.items():
        if isinstance(section, Mapping) and key not in ("parameters", "weights"):
            assert list(section) == list(type(getattr(config, key)).model_fields)


def test_a_slip_in_a_key_of_train_beside_a_method_is_taken_for_that_key():
    message = fault(train={"method": "adam", "steps": 5, "compiel": True})
    assert "train: there is no key 'compiel' here; did you mean 'compile'?" in message
    assert "adam has no option 'momentum'" in fault(train={"method": "adam", "momentum": 0.9})
    assert "method: expected text; got ['adam']" in fault(train={"method": ["adam"], "compiel": True})


def test_methods_that_need_a_jacobian_are_refused_in_mixed_precision():
    text = "precision: natural_gradient solves with the Jacobian of the residuals, which wants one precision throughout"
    assert text in fault(precision="mixed", train={"method": "natural_gradient"})
