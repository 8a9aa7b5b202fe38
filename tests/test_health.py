"""Each rule of health fires beyond its line and not before, in the right place, once, with numbers and advice."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from pinnsketch.config import make_config
from pinnsketch.gauges import Interval
from pinnsketch.health import RULES, WARM_UP, Finding, Health, Past, View
from pinnsketch.library import find_problem, load_problem
from pinnsketch.monitor import LayerReading, Monitor, Reading
from pinnsketch.run import Run

LAYERS = [f"layers.{i}" for i in range(4)]
WELL = LayerReading(
    1.0, 1e-3, drift=Interval(0.9, 0.88, 0.92), lags={1: Interval(0.9, 0.88, 0.92), 10: Interval(0.5, 0.4, 0.6)},
    dead=0.1, activation_rank=3.0, stable_rank=(2.0, 2.1),
)  # fmt: skip
NAN = Interval(math.nan, math.nan, math.nan)


def reading(layers=None, network=None, updates=1):
    """A healthy reading but for what is given by layer, or of the whole network."""
    held = {name: replace(WELL, **(layers or {}).get(name, {})) for name in LAYERS}
    return Reading(updates, held, replace(WELL, **(network or {})))


def cosines(one, ten=0.0, error=0.05):
    return {"lags": {1: Interval(one, one - error, one + error), 10: Interval(ten, ten - error, ten + error)}}


def terms(updates=1, norms=(1.0, 1.0), cosine=0.0, **more):
    """A comparison of two terms."""
    return {"terms": {"norms": dict(zip("ab", norms, strict=True)), "cosines": {"a, b": cosine}, "updates": updates, **more}}


def observed(health, looks, losses=None):
    """What is found at looks in a row, ten steps apart; losses: the sum at each look."""
    found = []
    for i, look in enumerate(looks):
        loss = {"a": losses[i] / 2, "b": losses[i] / 2} if losses is not None else None
        found += health.observe(1 + 10 * i, look, loss)
    return found


def stays(count, at=0.5):
    """Losses that are 1 at first, and then stay."""
    return [1.0] + [at] * (count - 1)


def kinds(findings):
    return [(finding.kind, finding.layer) for finding in findings]


N = 12
"""Looks in a row."""
LASTING = {
    "dead units": ({"layers.1": {"dead": 0.66}}, {"layers.1": {"dead": 0.64}}),
    "saturation": ({"layers.1": {"saturated": 0.51}}, {"layers.1": {"saturated": 0.49}}),
    "gradient rank collapse": (
        {"layers.1": {"stable_rank": (1.0, 1.49), "activation_rank": 1.014}},
        {"layers.1": {"stable_rank": (1.0, 1.51), "activation_rank": 1.016}},
    ),
    "activation rank collapse": ({"layers.1": {"activation_rank": 1.014}}, {"layers.1": {"activation_rank": 1.016}}),
    "vanishing gradient": ({"layers.1": {"gradient_norm": 0.99e-6}}, {"layers.1": {"gradient_norm": 1.01e-6}}),
}
"""By kind what is beyond the line of a layer, and what is just inside."""


@pytest.mark.parametrize("kind", LASTING)
def test_a_layer_beyond_the_line_is_found_after_patience_and_once(kind):
    beyond, inside = LASTING[kind]
    assert observed(Health(), [reading(inside)] * N) == []
    health = Health()
    found = [finding for finding in observed(health, [reading(beyond)] * N) if finding.kind == kind]
    patience = RULES[kind].patience
    assert [(f.layer, f.step) for f in found] == [("layers.1", 1 + 10 * (patience - 1))]
    assert found[0].advice == RULES[kind].advice
    assert not health


@pytest.mark.parametrize("kind", LASTING)
def test_what_does_not_last_is_not_found(kind):
    beyond, _ = LASTING[kind]
    looks = ([reading(beyond)] * (RULES[kind].patience - 1) + [reading()]) * 5
    assert observed(Health(), looks) == []


@pytest.mark.parametrize("kind", ["dead units", "activation rank collapse", "vanishing gradient"])
def test_of_trouble_that_spreads_only_the_first_layer_is_named(kind):
    (beyond,) = LASTING[kind][0].values()
    found = observed(Health(), [reading({"layers.1": beyond, "layers.2": beyond})] * N)
    assert [place for place in kinds(found) if place[0] == kind] == [(kind, "layers.1")]


def test_saturation_is_found_in_every_layer():
    found = observed(Health(), [reading({"layers.0": {"saturated": 0.9}, "layers.2": {"saturated": 0.9}})] * N)
    assert kinds(found) == [("saturation", "layers.0"), ("saturation", "layers.2")]


def test_the_outputs_of_the_network_are_no_hidden_units():
    last = {"dead": 1.0, "saturated": None, "activation_rank": 1.0, "stable_rank": (1.0, 1.0)}
    assert observed(Health(), [reading({LAYERS[-1]: last})] * N) == []


@pytest.mark.parametrize(("times", "count"), [(299, 0), (301, 1)])
def test_growth_is_judged_against_the_layers_own_mean(times, count):
    quiet = reading({"layers.0": {"gradient_norm": 1e-3}})
    grown = reading({"layers.0": {"gradient_norm": times * 1e-3}})
    assert len(observed(Health(), [quiet] * WARM_UP + [grown] * 3)) == count


def test_an_explosion_needs_a_mean_and_two_looks_and_moves_no_mean():
    quiet, loud = reading(), reading({"layers.2": {"gradient_norm": 1e6}})
    assert observed(Health(), [quiet] * (WARM_UP - 2) + [loud] * 2) == []
    assert observed(Health(), ([quiet] * WARM_UP + [loud]) * 5) == []
    assert kinds(observed(Health(), [quiet] * WARM_UP + [loud] * 2)) == [("exploding gradient", "layers.2")]


def test_layers_that_are_all_zero_are_at_a_minimum_and_not_vanishing():
    assert observed(Health(), [reading({name: {"gradient_norm": 0.0} for name in LAYERS})] * N) == []


@pytest.mark.parametrize("bad", range(4))
def test_gradients_that_are_not_finite_are_found_at_once_nearest_the_loss_and_once(bad):
    ill = {name: {"gradient_norm": math.nan, "non_finite": 1} for name in LAYERS[: bad + 1]}
    found = observed(Health(), [reading(), *[reading(ill)] * N])
    assert [(f.kind, f.layer, f.step) for f in found] == [("non-finite gradient", LAYERS[bad], 11)]
    assert f"in {bad + 1} of 4 layers" in found[0].evidence


def test_where_values_are_not_finite_the_first_layer_that_gives_such_is_named():
    ill = {name: {"gradient_norm": math.nan, "non_finite": 1} for name in LAYERS}
    ill |= {name: {**ill[name], "activation_rank": None} for name in LAYERS[2:]}
    assert kinds(observed(Health(), [reading(ill)])) == [("non-finite gradient", "layers.2")]


CONFLICT = {"cosine": -1.0, "norms": (1.0, 0.89)}


def test_terms_whose_gradients_cancel_conflict_where_the_loss_is_high_and_flat():
    look, near = reading(network=terms(**CONFLICT)), reading(network=terms(cosine=-1.0, norms=(1.0, 0.88)))
    (found,) = observed(Health(), [look] * N, stays(N))
    assert (found.kind, found.layer, found.term) == ("conflicting terms", "network", "a, b")
    assert "cancel but for 5.8 %" in found.evidence
    assert observed(Health(), [near] * N, stays(N)) == []
    assert observed(Health(), [look] * N, stays(N, at=0.08)) == []
    assert observed(Health(), [look] * N, [0.985**i for i in range(N)]) == []
    assert observed(Health(), [look] * N) == []


def test_two_terms_conflict_too_where_a_third_takes_part_in_their_balance():
    def look(third):
        norms = {"a": 1.0, "b": 0.8, "c": third}
        return reading(network={"terms": {"norms": norms, "cosines": {"a, b": -1.0, "a, c": -1.0, "b, c": 1.0}, "updates": 1}})

    assert [f.term for f in observed(Health(), [look(0.199)] * N, stays(N))] == ["a, b"]
    assert observed(Health(), [look(0.17)] * N, stays(N)) == []


def test_terms_are_imbalanced_where_the_weak_one_is_not_satisfied():
    def looks(ratio, fresh=2):
        return [reading(network=terms(updates=i // fresh, norms=(1.0, ratio))) for i in range(N)]

    (found,) = observed(Health(), looks(301), stays(N))
    assert (found.kind, found.term, found.step) == ("imbalanced terms", "a", 21)
    assert found.evidence == "its gradient is 1, that of b is 3e+02"
    assert found.advice == "Raise its entry in weights."
    assert observed(Health(), looks(299), stays(N)) == []
    assert observed(Health(), looks(301), stays(N, at=0.08)) == []
    assert [f.term for f in observed(Health(), looks(1.1e4), stays(N, at=0.08))] == ["a"]
    assert observed(Health(), looks(301, fresh=N), stays(N)) == []  # compared only once


def test_a_term_without_any_gradient_is_imbalanced():
    found = observed(Health(), [reading(network=terms(updates=i, norms=(0.0, 1.0))) for i in range(3)], stays(3))
    assert [f.term for f in found] == ["a"]


@pytest.mark.parametrize(("share", "at", "count"), [(0.51, 0.5, 1), (0.49, 0.5, 0), (0.51, 0.08, 0)])
def test_few_points_dominate_at_two_comparisons_while_the_loss_is_high(share, at, count):
    looks = [reading(network=terms(updates=i, top_share={"a": 0.1, "b": share})) for i in range(N)]
    found = observed(Health(), looks, stays(N, at))
    assert [(f.kind, f.term, f.step) for f in found] == [("few points dominate", "b", 11)][:count]
    assert all("1 % of the points make 51 %" in f.evidence for f in found)


def test_oscillation_is_certain_periodic_and_gets_nowhere():
    def looks(one=-0.9, ten=0.9, update=1e-3, error=0.05):
        return [reading(network={**cosines(one, ten, error), "update_ratio": update})] * N

    (found,) = observed(Health(), looks(), stays(N))
    assert (found.kind, found.step) == ("oscillation", 41)
    assert "below -0.85 for certain" in found.evidence
    assert found.advice == "Lower train.lr."
    assert observed(Health(), looks(one=-0.54), stays(N)) == []  # the bound, not the estimate
    assert observed(Health(), looks(one=-0.56), stays(N)) != []
    assert observed(Health(), looks(ten=0.5), stays(N)) == []
    assert observed(Health(), looks(ten=0.5, update=4e-3), stays(N)) != []
    assert observed(Health(), looks(), stays(N, at=0.04)) == []
    assert observed(Health(), looks(), [0.9**i for i in range(N)]) == []
    assert observed(Health(), [*looks()[:3], reading()] * 3, stays(N)) == []


def test_stagnation_is_an_update_of_nothing_while_some_loss_is_left():
    still, slow = ([reading(network={"update_ratio": size})] * N for size in (0.9e-7, 1.1e-7))
    (found,) = observed(Health(), still, stays(N))
    assert (found.kind, found.step) == ("stagnation", 21)
    assert "an update is 9e-08 of the parameters, with 50 % of the loss left" in found.evidence
    assert observed(Health(), slow, stays(N)) == []
    assert observed(Health(), still, stays(N, at=0.9e-3)) == []
    assert observed(Health(), still) == []


def test_noise_is_gradients_without_relation_and_a_loss_that_stays():
    def looks(one, ten):
        return [reading(network=cosines(one, ten))] * N

    (found,) = observed(Health(), looks(0.1, 0.0), stays(N, at=0.9))
    assert (found.kind, found.step) == ("noise-dominated gradient", 41)
    assert "are 0.05 on average, and 90 % of the loss is left" in found.evidence
    assert observed(Health(), looks(0.4, 0.3), stays(N, at=0.9)) == []  # 0.35 on average
    assert observed(Health(), looks(0.6, -0.4), stays(N, at=0.9)) == []  # each is like the one before
    assert observed(Health(), looks(0.1, 0.0), stays(N, at=0.6)) == []
    assert observed(Health(), looks(0.1, 0.0), [1 - 0.02 * i for i in range(N)]) == []


@pytest.mark.parametrize(
    ("stds", "count"),
    [((0.5, 0.6), 0), ((0.5, 10.1), 1), ((0.5, 9.9), 0), ((0.05, 0.09), 1), ((1.9e-3, 0.5), 1), ((2.1e-3, 0.5), 0),
     ((0.0, 1.0), 0), ((1e-7, 1.0), 0), ((0.0, 0.05), 1), ((math.nan, math.nan), 0)],
)  # fmt: skip
def test_inputs_are_scaled_unless_their_deviations_are_far_from_one(stds, count):
    found = observed(Health(), [reading({"layers.0": {"input_std": stds}})] * 3)
    assert kinds(found) == [("input scaling", "layers.0")][:count]
    assert all(f"from {stds[0]:.2g} to {stds[1]:.2g}" in f.evidence for f in found)


def test_what_hidden_layers_are_given_is_not_judged_as_inputs():
    assert observed(Health(), [reading({"layers.1": {"input_std": (0.0, 50.0)}})] * 3) == []


def test_a_reading_of_norms_alone_is_enough():
    bare = Reading(1, {name: LayerReading(1.0) for name in LAYERS}, LayerReading(2.0))
    assert observed(Health(), [bare] * N, stays(N)) == []
    assert observed(Health(), [Reading(1, {}, LayerReading(0.0))] * N) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_break_no_rule(value):
    words = ("gradient_norm", "update_ratio", "dead", "saturated", "activation_rank", "noise")
    ill = dict.fromkeys(words, value) | {"stable_rank": (value, value), "input_std": (value, value)}
    ill |= {"drift": NAN, "lags": {1: NAN, 10: Interval(value, value, value)}, "non_finite": 1}
    compared = {"norms": {"a": value, "b": 1.0}, "cosines": {"a, b": value}, "alignment": value, "ratio": value,
                "top_share": {"a": value}, "noise": value, "updates": 3}  # fmt: skip
    look = reading(dict.fromkeys(LAYERS, ill), {**ill, "terms": compared})
    health = Health()
    for losses in ({"a": value, "b": 1.0}, {"a": 1e300, "b": 1e300}, {"a": 1e308, "b": 1e308}, {"a": 0.0, "b": 0.0}, {}, None):
        for i in range(N):
            health.observe(i, look, losses)
    assert ("non-finite gradient", "layers.3") in kinds(health.findings)
    assert Health().observe(1, look, {"a": 0.0, "b": 0.0}) is not None
    json.dumps(health.state_dict(), allow_nan=True)


def test_a_loss_that_explodes_has_a_trend():
    for losses in ([1.0, 1e200, 1e250, 1e300, 1e308], [0.0] * 5):
        past = [Past({"a": loss}, 0.0, 0.0, 0.0, 1.0) for loss in losses]
        assert -1 <= View(reading(), past=past, first={"a": 1.0}).trend <= 1


def test_every_rule_names_what_to_do_and_a_finding_says_it_all():
    assert len(RULES) == 14
    assert all(rule.advice.endswith(".") and rule.patience > 0 for rule in RULES.values())
    finding = Finding("imbalanced terms", "network", 21, "numbers", "Advice.", "walls")
    assert str(finding) == "imbalanced terms in network, term walls at step 21: numbers. Advice."


@pytest.mark.parametrize("cut", [1, 3, 8, 11, 13, 22, 25])
def test_health_goes_on_from_its_state(cut):
    looks = [
        reading(
            {"layers.1": {"dead": 0.9 if i > 8 else 0.1, "gradient_norm": 1e4 if i > 20 else 1.0}},
            {**terms(i // 2, norms=(1.0, 400.0 if i > 4 else 1.0)), **cosines(-0.9 if i > 10 else 0.9, 0.9)},
        )
        for i in range(30)
    ]
    losses = stays(30)
    whole, first, again = Health(), Health(), Health()
    observed(whole, looks, losses)
    for i, look in enumerate(looks):
        if i == cut:
            again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        (again if i >= cut else first).observe(1 + 10 * i, look, {"a": losses[i] / 2, "b": losses[i] / 2})
    assert again.findings == whole.findings
    assert again.state_dict() == whole.state_dict()
    found = {finding.kind for finding in whole.findings}
    assert found == {"dead units", "exploding gradient", "imbalanced terms", "oscillation"}


def test_loading_a_state_does_not_tie_two_together():
    first, second = Health(), Health()
    observed(first, [reading()] * 4, stays(4))
    state = first.state_dict()
    kept = json.dumps(state)
    second.load_state_dict(state)
    observed(second, [reading({"layers.1": {"dead": 1.0}})] * N, stays(N))
    assert json.dumps(first.state_dict()) == json.dumps(state) == kept
    assert second.findings == [Finding(**found) for found in second.state_dict()["findings"]]


def trained(network, steps, spoil=lambda network, step: None, lr=2e-3):
    """Health after a plain loop that fits a function of two variables."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(128, 2, generator=generator) - 1
    y = torch.sin(3 * x[:, :1] + 2 * x[:, 1:])
    monitor, health = Monitor(network, x, readings="full"), Health()
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(1, steps + 1):
        spoil(network, step)
        optimizer.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        monitor.update(loss.item())
        if monitor.looked:
            health.observe(step, monitor.read(), {"fit": loss.item()})
    return health


def net(activation, depth=4, width=24):
    torch.manual_seed(0)
    sizes = [2, *[width] * depth, 1]
    layers = [module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def kill(network, step):
    if step == 41:
        network[2].bias.fill_(-30.0)


@torch.no_grad()
def saturate(network, step):
    if step == 41:
        network[4].weight.mul_(300.0)


@torch.no_grad()
def alike(network, step):
    if step > 40:
        network[4].weight.copy_(network[4].weight[:1].clone().expand(24, 24))
        network[4].bias.fill_(0.0)


@pytest.mark.parametrize(
    ("kind", "layer", "activation", "depth", "spoil", "lr"),
    [
        ("dead units", "2", nn.ReLU, 4, kill, 2e-3),
        ("saturation", "4", nn.Tanh, 4, saturate, 2e-3),
        ("activation rank collapse", "4", nn.Tanh, 4, alike, 2e-3),
        ("vanishing gradient", "0", nn.Sigmoid, 14, lambda network, step: None, 2e-3),
        ("stagnation", "network", nn.Tanh, 4, lambda network, step: None, 1e-10),
    ],
)
def test_trouble_planted_in_a_plain_loop_is_found_within_50_steps(kind, layer, activation, depth, spoil, lr):
    health = trained(net(activation, depth), 95, spoil, lr)
    found = next(finding for finding in health.findings if finding.kind == kind)
    assert found.layer == layer
    assert found.step <= 91


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_plain_loop_that_goes_well_raises_no_alarm(activation):
    assert trained(net(activation), 300).findings == []


def test_terms_planted_in_a_run_are_found_by_name():
    source = find_problem("heat", Path.cwd())
    config = make_config(
        {
            "problem": "heat", "network": {"width": 16, "depth": 3}, "points": {"interior": 100, "boundary": 40},
            "weights": {"ends": 1e-4}, "train": {"method": "adam", "steps": 50, "compile": False},
            "monitor": {"readings": ["drift", "units", "terms"], "terms": 20},
        }
    )  # fmt: skip
    run = Run(load_problem(source), config)
    for _ in run:
        pass
    assert [(f.kind, f.term) for f in run.health.findings] == [("imbalanced terms", "ends")]


def test_one_direction_is_no_trouble_for_a_network_of_one_input():
    ill = {"layers.0": {"activation_rank": 1.001, "dead": 0.0}, "layers.1": {"dead": 0.0}}
    several, single = ({**ill, "layers.0": ill["layers.0"] | {"input_std": stds}} for stds in ((0.5, 0.6), (0.5, 0.5)))
    assert {f.kind for f in observed(Health(), [reading(several)] * 3)} == {"activation rank collapse"}
    assert observed(Health(), [reading(single)] * 3) == []
