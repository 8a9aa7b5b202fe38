"""Health finds planted trouble in the right layer, soon and once, and raises no alarm over healthy training."""

import json
import math

import numpy as np
import pytest

from pinnsketch.health import EXPLODING, PATIENCE, VANISHING, WARM_UP, Finding, Health
from pinnsketch.monitor import LayerReading, Reading

LAYERS = [f"layers.{i}" for i in range(4)]


def reading(norms, bad=()):
    layers = {
        name: LayerReading(norm, 1e-3, 0.9, (0.88, 0.92), 3.0, int(name in bad))
        for name, norm in zip(LAYERS, norms, strict=True)
    }
    return Reading(1, layers)


def healthy(n, seed=0, size=1.0):
    """Norms that wander over some 12 orders of magnitude as a loss falls and rises, layers apart by up to 100, noisily."""
    rng = np.random.default_rng(seed)
    trend = -6 + 6 * np.cos(2 * np.pi * np.arange(n) / 5000)
    return size * 10 ** (trend[:, None] + np.array([0, -1, -2, -0.5]) + 0.3 * rng.standard_normal((n, 4)))


def observed(health, rows, start=1):
    return [finding for i, row in enumerate(rows) for finding in health.observe(start + i, reading(row))]


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_ten_thousand_healthy_readings_raise_no_alarm(size):
    health = Health()
    assert observed(health, healthy(10_000, size=size)) == []
    assert bool(health)
    assert health.findings == []


def test_a_healthy_fall_and_a_fresh_start_raise_no_alarm():
    """The end of L-BFGS may be 1e-9 of its beginning, all layers together; a fresh draw of points lifts it 100 times."""
    falling = np.outer(10 ** np.linspace(0, -9, 60), np.ones(4))
    assert observed(Health(), [*falling, *(100 * falling[-1:]).repeat(60, axis=0)]) == []


@pytest.mark.parametrize("layer", range(4))
def test_a_vanishing_layer_is_found_within_a_few_readings_and_once(layer):
    health, rows = Health(), healthy(100)
    rows[50:, layer] *= 1e-12
    found = observed(health, rows)
    assert [(f.kind, f.layer, f.step) for f in found] == [("vanishing", LAYERS[layer], 50 + PATIENCE)]
    assert health.findings == found
    assert not health


def test_a_layer_that_never_had_a_gradient_is_vanishing():
    rows = healthy(20)
    rows[:, 2] = 0
    assert [(f.kind, f.layer) for f in observed(Health(), rows)] == [("vanishing", "layers.2")]


def test_layers_that_are_all_zero_are_at_a_minimum_and_not_vanishing():
    assert observed(Health(), np.zeros((50, 4))) == []


def test_a_layer_just_above_the_share_does_not_vanish_and_one_just_below_does():
    for share, count in ((1.01, 0), (0.99, 1)):
        assert len(observed(Health(), [[1.0, 1.0, share * VANISHING, 1.0]] * 10)) == count


@pytest.mark.parametrize("layer", range(4))
def test_an_exploding_layer_is_found_within_a_few_readings_and_once(layer):
    rows = np.ones((100, 4)) * 10 ** (0.1 * np.random.default_rng(0).standard_normal((100, 4)))
    rows[50:, layer] *= 1e5
    found = observed(Health(), rows)
    assert [(f.kind, f.layer, f.step) for f in found] == [("exploding", LAYERS[layer], 50 + PATIENCE)]


def test_growth_is_judged_against_the_layers_own_mean():
    for factor, count in ((0.9 * EXPLODING, 0), (1.1 * EXPLODING, 1)):
        found = observed(Health(), [*[[1e-3, 1.0, 1.0, 1.0]] * 30, *[[factor * 1e-3, 1.0, 1.0, 1.0]] * PATIENCE])
        assert len(found) == count


def test_the_mean_is_a_geometric_one_with_a_long_memory():
    health, log_mean = Health(), None
    for row in healthy(50):
        health.observe(1, reading(row))
        now = math.log(row[1])
        log_mean = now if log_mean is None else 0.95 * log_mean + 0.05 * now
    assert health.state_dict()["means"]["layers.1"] == pytest.approx(log_mean)


def test_nothing_explodes_before_a_mean_is_known():
    rows = [[1.0] * 4] * (WARM_UP - PATIENCE) + [[1e6] * 4] * PATIENCE
    assert observed(Health(), rows) == []
    rows = [[1.0] * 4] * WARM_UP + [[1e6] * 4] * PATIENCE
    assert {f.kind for f in observed(Health(), rows)} == {"exploding"}


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize("length", [1, PATIENCE - 1])
def test_a_few_outliers_do_not_alarm_and_do_not_move_the_mean(factor, length):
    rows = np.ones((200, 4))
    for start in (20, 60, 150):
        rows[start : start + length, 1] *= factor
    assert observed(Health(), rows) == []


def test_outliers_that_do_not_follow_one_another_do_not_add_up():
    rows = np.ones((200, 4))
    rows[20::2, 1] = 1e7
    assert observed(Health(), rows) == []


@pytest.mark.parametrize("bad", range(4))
def test_non_finite_gradients_are_found_at_once_in_the_layer_nearest_the_loss_and_once(bad):
    """Gradients flow from the last layer to the first, so trouble that begins in one is seen in all before it."""
    health = Health()
    rows = healthy(30)
    observed(health, rows[:20])
    found = []
    for i, row in enumerate(rows[20:]):
        row[: bad + 1] = math.nan
        found += health.observe(21 + i, reading(row, LAYERS[: bad + 1]))
    assert [(f.kind, f.layer, f.step) for f in found] == [("non-finite", LAYERS[bad], 21)]
    assert f"in {bad + 1} of 4 layers" in found[0].evidence


def test_a_network_that_is_non_finite_throughout_is_judged_without_a_failure():
    health = Health()
    found = [f for i in range(20) for f in health.observe(i, reading([math.nan] * 4, LAYERS))]
    assert [f.kind for f in found] == ["non-finite"]


def test_other_layers_are_still_judged_beside_a_non_finite_one():
    health = Health()
    found = [f for i in range(5) for f in health.observe(i, reading([1.0, 1e-20, 1.0, math.inf], ["layers.3"]))]
    assert [(f.kind, f.layer) for f in found] == [("non-finite", "layers.3"), ("vanishing", "layers.1")]


def test_each_kind_of_trouble_is_found_once_in_each_layer():
    rows = np.ones((100, 4))
    rows[20:40, [0, 2]] = 1e-12
    rows[60:80, [0, 2]] = 1e-12
    rows[80:, 0] = 1e9
    kinds = [(f.kind, f.layer) for f in observed(Health(), rows)]
    assert len(kinds) == len(set(kinds))
    assert {("vanishing", "layers.0"), ("vanishing", "layers.2"), ("exploding", "layers.0")} <= set(kinds)


@pytest.mark.parametrize(
    ("kind", "last", "evidence", "advice"),
    [
        ("vanishing", [1.0, 2e-12, 3.0, 1.0], "norm 2e-12 against 3 in layers.2", "Lower network.depth"),
        ("exploding", [1.0, 2e5, 1.0, 1.0], "norm 2e+05, 200000 times its running mean", "Lower train.lr"),
        ("non-finite", [1.0, math.nan, 1.0, 1.0], "infinite or NaN entries, in 1 of 4 layers", "Lower train.lr"),
    ],
)
def test_a_finding_names_its_layer_and_step_and_gives_evidence_and_advice(kind, last, evidence, advice):
    health = Health()
    observed(health, [[1.0] * 4] * 20)
    bad = [name for name, norm in zip(LAYERS, last, strict=True) if math.isnan(norm)]
    found = [f for i in range(PATIENCE) for f in health.observe(700 + 10 * i, reading(last, bad)) if f.kind == kind]
    step = 700 if kind == "non-finite" else 700 + 10 * (PATIENCE - 1)
    assert str(found[0]).startswith(f"{kind} gradient in layers.1 at step {step}: {evidence}. {advice}")
    assert str(found[0]).endswith(".")


@pytest.mark.parametrize("cut", [5, 51, 52, 60])
def test_health_goes_on_from_its_state(cut):
    rows = np.ones((100, 4))
    rows[50:, 1], rows[55:, 3] = 1e-12, 1e6
    whole, first, again = Health(), Health(), Health()
    observed(whole, rows)
    observed(first, rows[:cut])
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.findings == first.findings
    observed(again, rows[cut:], start=cut + 1)
    assert again.findings == whole.findings
    assert again.state_dict() == whole.state_dict()
    assert {f.kind for f in whole.findings} == {"vanishing", "exploding"}


def test_loading_a_state_does_not_tie_two_together():
    first, second = Health(), Health()
    observed(first, healthy(20))
    state = first.state_dict()
    kept = json.dumps(state)
    second.load_state_dict(state)
    observed(second, [[1.0, 1e-20, 1.0, 1.0]] * 30)
    assert json.dumps(first.state_dict()) == json.dumps(state) == kept
    assert second.findings[0] == Finding(**second.state_dict()["findings"][0])
