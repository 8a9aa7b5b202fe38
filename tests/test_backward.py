"""The reverse pass of image networks: exact or right in the mean, on the layers it says, resumed exactly; falling steps."""

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from command import pinnsketch
from matplotlib.image import imread
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy, linear

from pinnsketch.backward import FIRST, Backward, Recomputed, hidden
from pinnsketch.config import ConfigError, make_config, validate
from pinnsketch.datasets import load
from pinnsketch.image_compare import ImageComparison, backward_of
from pinnsketch.image_config import BackwardConfig, ImageConfig
from pinnsketch.image_run import ImageRun, read_network
from pinnsketch.images import ImageNetwork, ImageTask, halved
from pinnsketch.layers import ESTIMATORS, SketchConv2d, SketchLinear, saved_bytes
from pinnsketch.train import DECAYS, Stage, train

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MLP = {"width": 16, "depth": 3, "activation": "tanh", "init": "xavier"}
CONV = {"kind": "conv", "channels": [4, 6], "width": 16, "depth": 2}
TEXT = "data: digits\nnetwork: {width: 16, depth: 3}\ntrain: {epochs: 1, batch: 200}\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("d.yaml").write_text(TEXT)
    return tmp_path


def made(backward=None, network=MLP, monitor=False, precision="float32", **train):
    given = {"data": "digits", "network": network, "train": {"epochs": 2, "batch": 300, **train}, "monitor": monitor}
    return validate(ImageConfig, {**given, "backward": backward or {}, "precision": precision}, "c")


def trained(config, folder=None, steps=None, **given):
    run = ImageRun(config, folder, **given)
    for _ in zip(range(steps or run.total), run, strict=False):
        pass
    return run


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def network(given=MLP, dtype=torch.float64, **more):
    return ImageNetwork((1, 8, 8), 10, **given, dtype=dtype, generator=torch.Generator().manual_seed(0), **more)


def gradient(model, x, y):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(cross_entropy(model(x), y), parameters)])


@pytest.fixture
def batch():
    return ImageTask(load("digits"), 64, dtype=torch.float64).batch(0)


# --- networks ------------------------------------------------------------------------------------------------------------


def test_a_convolutional_network_is_its_formula(batch):
    net = network({**CONV, "activation": "tanh"})
    assert [tuple(p.shape) for p in net.parameters() if p.ndim > 1] == [
        (4, 1, 3, 3), (4, 4, 3, 3), (6, 4, 3, 3), (6, 6, 3, 3), (16, 24), (16, 16), (10, 16),
    ]  # fmt: skip
    weights = [(net.get_parameter(f"layers.{i}.weight"), net.get_parameter(f"layers.{i}.bias")) for i in range(7)]
    x, _ = batch
    y = x
    for i, (w, b) in enumerate(weights[:4]):
        y = torch.tanh(conv2d(y, w, b, padding=1))
        y = avg_pool2d(y, 2) if i % 2 else y
    y = y.reshape(len(x), -1)
    for w, b in weights[4:6]:
        y = torch.tanh(linear(y, w, b))
    torch.testing.assert_close(net(x), linear(y, *weights[6]))


def test_halving_is_the_mean_of_each_square_and_keeps_nothing_for_its_reverse_pass():
    x = torch.randn(2, 3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(halved(x), avg_pool2d(x, 2))
    assert saved_bytes(lambda: halved(x)) == 0
    assert saved_bytes(lambda: avg_pool2d(x, 2)) > 0
    torch.autograd.gradcheck(halved, (x,))


def test_names_and_numbers_of_a_fully_connected_network_are_as_before():
    net = network()
    assert list(net.state_dict()) == [f"layers.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
    rng = torch.Generator().manual_seed(0)
    first = nn.init.xavier_normal_(torch.empty(16, 64, dtype=torch.float64), generator=rng)
    assert torch.equal(net.layers[0].weight, first)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match=r"network.channels: expected at most 3 numbers, .* 8 x 8; got 4"):
        network({"kind": "conv", "channels": [2, 2, 2, 2]})


@pytest.mark.usefixtures("numbers_only")
def test_a_convolutional_network_learns_resumes_and_is_read_again(here):
    config = made(network=CONV, batch=32, epochs=4, lr=5e-3)
    whole = trained(config, here / "w")
    assert whole.finish().metrics["test_accuracy"] > 0.5
    assert same(read_network(here / "w" / "model.pt"), whole.network)
    trained(config, here / "r", steps=50).finish(interrupted=True)
    again = ImageRun.resume(here / "r")
    assert [step.index for step in again][-1] == whole.total
    assert same(again.network, whole.network)


# --- which layers, and how much they keep -------------------------------------------------------------------------------------


def kinds(model):
    return [type(layer) for layer in model.layers]


def test_all_hidden_layers_are_sketched_the_first_too_and_the_output_layer_is_exact():
    net = network()
    found = Backward("sketched").apply(net)
    assert kinds(found) == [SketchLinear] * 3 + [nn.Linear]
    assert kinds(net) == [nn.Linear] * 4
    assert all(p is q for p, q in zip(net.parameters(), found.parameters(), strict=True))
    assert kinds(Backward("sketched").apply(network(CONV))) == [SketchConv2d] * 4 + [SketchLinear] * 2 + [nn.Linear]


def test_where_chooses_layers_for_sketches_and_for_the_control_alike():
    assert hidden(network(), "layers.[12]") == ["layers.1", "layers.2"]
    found = Backward("sketched", where="layers.[12]").apply(network())
    assert kinds(found) == [nn.Linear, SketchLinear, SketchLinear, nn.Linear]
    control = Backward("frozen", where="layers.[12]").apply(network())
    assert [layer.weight.requires_grad for layer in control.layers] == [True, False, False, True]
    with pytest.raises(
        ValueError, match=r"backward.where: no hidden layer is called 'layers.3'; the hidden layers are layers.0,"
    ):
        Backward("sketched", where="layers.3").apply(network())


def test_activations_whose_output_is_kept_by_an_exact_layer_stay_exact():
    found = Backward("sketched", where="layers.2").apply(network())
    assert [type(a) is nn.Tanh for a in found.activations] == [True, False, True]
    found = Backward("sketched", convolutions=1.0).apply(network({**CONV, "activation": "tanh"}))
    assert kinds(found) == [nn.Conv2d] * 4 + [SketchLinear] * 2 + [nn.Linear]
    assert [type(a) is nn.Tanh for a in found.activations] == [True, False, True, False, False, True]
    assert all(type(a) is nn.Tanh for a in Backward("sketched", activations="exact").apply(network()).activations)


def test_hidden_layers_keep_the_share_of_their_inputs_that_is_asked_for():
    exact, other = (ImageRun(made(way, batch=128)).memory() for way in (None, {"method": "sketched", "keep": 0.25}))
    assert exact["layers"] == {f"layers.{i}": 4 * 128 * n for i, n in enumerate((64, 16, 16))}
    seed = 8
    assert other["layers"] == {f"layers.{i}": 4 * 32 * n + seed for i, n in enumerate((64, 16, 16))}
    assert other["inputs"] == sum(other["layers"].values())
    assert other["saved"] < exact["saved"]
    assert exact["peak"] is None or exact["peak"] > 0


def test_convolutions_keep_a_share_of_their_own():
    way = {"method": "sketched", "keep": 0.25, "convolutions": 0.5}
    exact, other = (ImageRun(made(w, CONV, batch=128)).memory()["layers"] for w in (None, way))
    shares = [(other[name] - 8) / exact[name] for name in exact]
    assert shares == [0.5] * 4 + [0.25] * 2


def test_frozen_hidden_layers_keep_nothing_and_measuring_leaves_the_run_as_it_was():
    run = ImageRun(made({"method": "frozen"}))
    assert run.memory()["inputs"] == 0
    runs = [ImageRun(made({"method": "sketched"})) for _ in range(2)]
    runs[0].memory()
    for run in runs:
        for _ in run:
            pass
    assert same(runs[0].network, runs[1].network)


# --- gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [MLP, CONV], ids=["mlp", "conv"])
def test_recomputing_changes_no_bit_and_keeps_less(given):
    exact, other = (trained(made({"method": method}, given)) for method in ("exact", "checkpoint"))
    assert same(exact.network, other.network)
    assert [row["loss"] for row in exact.history] == [row["loss"] for row in other.history]
    assert isinstance(other.evaluated, Recomputed)
    assert other.memory()["saved"] < exact.memory()["saved"]


@pytest.mark.parametrize("count", range(1, 10))
def test_each_hidden_layer_is_in_one_of_about_sqrt_n_segments(count):
    segments = Recomputed(network({**MLP, "depth": count}))._segments
    assert [i for segment in segments for i in segment] == list(range(count))
    assert len(segments) <= math.ceil(math.sqrt(count))


def test_a_share_of_one_changes_no_bit():
    assert same(*(trained(made(way)).network for way in (None, {"method": "sketched", "keep": 1})))


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if ESTIMATORS[name].unbiased])
def test_a_sketched_gradient_is_right_in_the_mean(estimator, batch):
    net = network()
    expected = gradient(net, *batch)
    model = Backward("sketched", estimator, keep=0.25).apply(net)
    draws = torch.stack([gradient(model, *batch) for _ in range(300)])
    off, error = draws.mean(0) - expected, draws.std(0) / math.sqrt(len(draws))
    assert float((off / error.clamp(min=1e-9)).square().mean()) < 1.25
    assert float(off.norm()) < 0.1 * float(draws.std(0).norm())
    assert not torch.equal(draws[0], draws[1])


def test_frozen_hidden_layers_do_not_move_and_the_output_layer_does():
    run = ImageRun(made({"method": "frozen"}, epochs=1))
    before = deepcopy(run.network.state_dict())
    for _ in run:
        pass
    moved = {name for name, p in run.network.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == {"layers.3.weight", "layers.3.bias"}


def test_a_sketched_network_learns_digits_and_the_control_does_not_as_well():
    accuracies = {}
    for method in ("exact", "sketched", "frozen"):
        config = made({"method": method}, {**MLP, "width": 64}, epochs=12, batch=64, decay="cosine", lr=3e-3)
        accuracies[method] = trained(config).finish().metrics["test_accuracy"]
    assert accuracies["sketched"] > accuracies["exact"] - 0.03
    assert accuracies["sketched"] > accuracies["frozen"] + 0.1


# --- exactness of runs ---------------------------------------------------------------------------------------------------

RESUMED = {
    "sketched": {"method": "sketched"},
    "ema": {"method": "sketched", "estimator": "ema"},
    "quantised": {"method": "sketched", "estimator": "quantised"},
    "auto": {"method": "sketched", "keep": "auto"},
    "checkpoint": {"method": "checkpoint"},
    "frozen": {"method": "frozen"},
}


@pytest.mark.usefixtures("numbers_only")
@pytest.mark.parametrize("way", RESUMED.values(), ids=RESUMED)
def test_a_run_stopped_at_any_step_and_resumed_ends_bit_for_bit_where_the_unstopped_one_ends(way, here):
    config = made(way, monitor={"every": 2}, decay="cosine", epochs=3, batch=600)
    whole = trained(config)
    assert whole.total == 9
    for stop in (1, 3, 5):
        trained(config, here / str(stop), steps=stop).finish(interrupted=True)
        again = ImageRun.resume(here / str(stop))
        assert [step.index for step in again] == list(range(stop + 1, 10))
        assert same(again.network, whole.network)
        assert same(again.evaluated, whole.evaluated)
        assert [row | {"seconds": 0} for row in again.history] == [row | {"seconds": 0} for row in whole.history]


def test_monitoring_of_a_sketched_run_is_bitwise_invisible():
    watched, bare = (trained(made({"method": "sketched"}, monitor=monitor)) for monitor in ({"every": 1}, False))
    assert same(watched.network, bare.network)
    assert [(row["loss"], row["error"]) for row in watched.history] == [(row["loss"], row["error"]) for row in bare.history]
    assert list(watched.history[-1]["layers"]) == [f"layers.{i}" for i in range(4)]


def test_sketched_runs_leave_global_random_numbers_alone():
    state = torch.get_rng_state()
    trained(made({"method": "sketched", "estimator": "gaussian"}))
    assert torch.equal(state, torch.get_rng_state())


def test_an_automatic_share_is_set_anew_after_each_epoch():
    run = ImageRun(made({"method": "sketched", "keep": "auto"}, epochs=3))
    shares = [{layer.options.keep for layer in run.evaluated.layers[:-1]}]
    for step in run:
        if step.index % run.task.batches == 0:
            shares.append({layer.options.keep for layer in run.evaluated.layers[:-1]})
    assert shares[0] == {FIRST}
    assert len(shares[-1]) > 1
    kept = sum(layer.options.keep * layer.in_features for layer in run.evaluated.layers[:-1])
    assert kept <= 2 * FIRST * sum(layer.in_features for layer in run.evaluated.layers[:-1])


@needs_gpu
@pytest.mark.parametrize("name", ["sketched", "quantised", "auto", "checkpoint", "frozen", "exact"])
@pytest.mark.parametrize("given", [MLP, CONV], ids=["mlp", "conv"])
def test_ways_of_going_backward_are_captured_as_one_cuda_graph(name, given):
    """All but `ema`, whose pseudoinverse waits for the GPU; anew where shares have changed."""
    way = RESUMED.get(name, {"method": "exact"})
    run = trained(made(way, given, epochs=3, decay="cosine"))
    assert run.gradient.notes == []
    assert run.gradient._captured is not None
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert run.memory()["peak"] > 0


# --- step sizes that fall ------------------------------------------------------------------------------------------------


def test_step_sizes_fall_from_one_to_nothing():
    for name, decay in DECAYS.items():
        values = [decay(i / 100) for i in range(101)]
        assert values[0] == 1
        assert values == sorted(values, reverse=True)
        assert values[-1] == pytest.approx(1 if name == "none" else 0, abs=1e-15)
    assert DECAYS["cosine"](0.5) == pytest.approx(0.5)
    assert DECAYS["cosine"](1 / 3) == pytest.approx(0.75)
    assert DECAYS["linear"](0.25) == 0.75


@pytest.mark.parametrize("decay", DECAYS)
def test_gradient_descent_with_a_falling_step_is_its_formula(decay):
    config = made(method="sgd", lr=0.2, momentum=0.5, decay=decay, precision="float64")
    run, other = ImageRun(config), ImageRun(config)
    velocity = [torch.zeros_like(p) for p in other.network.parameters()]
    for draw, _ in enumerate(run):
        loss = other.task.losses(other.network, other.task.batch(draw))["cross_entropy"]
        slopes = torch.autograd.grad(loss, list(other.network.parameters()))
        for p, v, g in zip(other.network.parameters(), velocity, slopes, strict=True):
            v.mul_(0.5).add_(g)
            p.data.sub_(0.2 * DECAYS[decay](draw / run.total) * v)
    assert draw == run.total - 1
    for p, q in zip(run.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)


def test_the_first_step_of_adam_has_the_length_of_its_step_size():
    """m / sqrt(v) is the sign of the gradient then, but for epsilon: the last of two steps is as long as its factor says."""
    task = ImageTask(load("digits"), 1437, dtype=torch.float64)
    for steps, factor in ((1, 1.0), (2, 0.5)):
        net = network()
        lengths = []
        before = [p.detach().clone() for p in net.parameters()]
        for _ in train(net, task, [Stage("adam", steps, {"lr": 1e-3, "betas": (1e-9, 1e-9)}, "linear")]):
            after = [p.detach().clone() for p in net.parameters()]
            lengths.append(max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)))
            before = after
        assert lengths[-1] == pytest.approx(1e-3 * factor, rel=1e-3)


def test_a_stage_of_a_problem_may_decay_too_each_over_its_own_steps():
    stages = [{"method": "adam", "steps": 10, "decay": "cosine"}, {"method": "lbfgs", "steps": 5}]
    config = make_config({"problem": "p", "train": stages})
    assert [stage.stage().decay for stage in config.train.schedule] == ["cosine", "none"]
    assert make_config({"problem": "p", "train": {"method": "sgd", "decay": "linear"}}).train.schedule[0].decay == "linear"


def test_a_decay_where_there_is_no_step_size_is_refused():
    why = "lbfgs finds the length of each step itself, so there is no lr that could decay: leave it out"
    with pytest.raises(ConfigError, match=rf"^config: train\.schedule\.0\.decay: {why}"):
        make_config({"problem": "p", "train": {"method": "lbfgs", "decay": "cosine"}})
    with pytest.raises(ConfigError, match=rf"^c: train\.decay: {why}"):
        made(method="lbfgs", decay="cosine")
    with pytest.raises(ConfigError, match=r"^c: train\.decay: there is no decay 'cosin'; did you mean 'cosine'\?"):
        made(decay="cosin")
    net, task = network(), ImageTask(load("digits"), 100, dtype=torch.float64)
    with pytest.raises(ValueError, match="there is no step size that could decay"):
        next(train(net, task, [Stage("lbfgs", 3, {}, "linear")]))


# --- configuration -------------------------------------------------------------------------------------------------------

FAULTS = {
    "method": ({"method": "sketch"}, r"method: there is no method 'sketch'; did you mean 'sketched'\?"),
    "estimator": ({"estimator": "row"}, r"estimator: there is no estimator 'row'; did you mean 'rows'\?"),
    "nothing": ({"keep": 0}, "keep: expected auto or a number above 0, at most 1; got 0"),
    "more than all": ({"keep": 1.5}, "keep: expected auto or a number above 0, at most 1; got 1.5"),
    "word": ({"keep": "much"}, "keep: expected auto or a number above 0, at most 1; got 'much'"),
    "switch": ({"keep": True}, "keep: expected auto or a number above 0, at most 1; got True"),
    "convolutions": ({"convolutions": "auto"}, "convolutions: expected a number above 0, at most 1; got 'auto'"),
    "activations": ({"activations": "none"}, "activations: expected 'packed' or 'exact'; got 'none'"),
    "key": ({"rank": 4}, "there is no key 'rank' here"),
}


@pytest.mark.parametrize(("given", "why"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_section_backward_is_named_by_its_dotted_path(given, why):
    with pytest.raises(ConfigError, match=rf"^c: backward[.:] ?{why}"):
        made(given)


def test_channels_are_for_convolutions():
    with pytest.raises(ConfigError, match=r"^c: network\.channels: mlp has no convolutions: leave it out, or set kind to conv"):
        made(network={"channels": [4]})


def test_backward_is_refused_where_a_problem_is_solved_and_it_is_said_why(here):
    Path("p.yaml").write_text("problem: poisson\nbackward: {method: sketched}\n")
    ended = pinnsketch("solve", "p.yaml")
    assert ended.code == 2
    assert ended.err.startswith(
        "Error: p.yaml: backward: is for training on images alone: the loss of a problem holds derivatives"
    )
    assert "can lose its weight gradient without an error. Leave it out" in ended.err


def test_ema_is_refused_for_convolutions_unless_these_are_exact():
    with pytest.raises(ValueError, match="for linear layers"):
        ImageRun(made({"method": "sketched", "estimator": "ema"}, CONV))
    assert ImageRun(made({"method": "sketched", "estimator": "ema", "convolutions": 1}, CONV)).total


# --- compare -------------------------------------------------------------------------------------------------------------


def test_each_estimator_is_a_word_for_a_method():
    given = BackwardConfig(keep=0.5)
    for name in ESTIMATORS:
        found = backward_of(name, given)
        assert (found.method, found.estimator, found.keep) == ("sketched", name, 0.5)
    assert backward_of("sketched", BackwardConfig(estimator="rows")).estimator == "rows"


def test_compare_sets_ways_side_by_side_the_control_always_among_them():
    ended = pinnsketch("compare", "d.yaml", "--methods", "exact, rows,checkpoint", "--seeds", 2, "--out", "r", "--json")
    assert (ended.code, ended.err) == (0, "")
    result = json.loads(ended.out)
    assert result == json.loads(Path("r/compare.json").read_text())
    assert list(result["methods"]) == ["exact", "rows", "checkpoint", "frozen"]
    assert result["seeds"] == [0, 1]
    exact, rows, checkpoint, frozen = result["methods"].values()
    assert exact["runs"] == [
        {**run, "seconds": one["seconds"]} for run, one in zip(checkpoint["runs"], exact["runs"], strict=True)
    ]
    assert exact["share"] == 1
    assert rows["inputs"] < 0.3 * exact["inputs"]
    assert frozen["inputs"] == 0
    for found in result["methods"].values():
        accuracies = [run["test_accuracy"] for run in found["runs"]]
        assert found["test_accuracy"] == pytest.approx(sum(accuracies) / 2)
        assert found["spread"] == [min(accuracies), max(accuracies)]
        assert found["outcomes"] == ["trained"]
        assert found["seconds_per_epoch"] > 0
    pixels = imread("r/frontier.png")
    assert min(pixels.shape[:2]) > 400
    assert pixels[..., :3].std() > 0.05


def test_a_compared_run_is_the_run_that_train_makes():
    Path("s.yaml").write_text(TEXT + "backward: {method: sketched}\nmonitor: false\n")
    assert pinnsketch("train", "s.yaml", "--out", "t").code == 0
    result = json.loads(pinnsketch("compare", "s.yaml", "--methods", "sketched", "--json").out)
    alone = json.loads(Path("t/metrics.json").read_text())
    assert result["methods"]["sketched"]["runs"][0]["test_accuracy"] == alone["test_accuracy"]
    assert result["methods"]["sketched"]["runs"][0]["loss"] == alone["loss"]


def test_the_table_names_methods_and_memory():
    ended = pinnsketch("compare", "d.yaml", "--epochs", 1)
    assert (ended.code, ended.err) == (0, "")
    for word in ("exact", "sketched", "checkpoint", "frozen", "test accuracy", "kept", "kB"):
        assert word in ended.out
    assert "Written to runs/compare-d" in ended.out


def test_compare_says_what_it_cannot_do():
    assert pinnsketch("compare", "d.yaml", "--methods", "exakt").err.startswith(
        "Error: --methods: there is no method 'exakt'; did you mean 'exact'? (known: exact, sketched, checkpoint, frozen, "
    )
    assert pinnsketch("compare", "poisson", "--seeds", 2).err == (
        "--methods, --seeds and --epochs are for configs that train on images."
    )
    assert pinnsketch("compare", "d.yaml", "--methods", "exact", "--out", "r").code == 0
    refused = pinnsketch("compare", "d.yaml", "--methods", "exact", "--out", "r")
    assert (refused.code, refused.err) == (2, "r holds a comparison already. Choose another folder, or add --overwrite.")


def test_a_comparison_that_is_broken_off_has_what_was_finished():
    comparison = ImageComparison(made(epochs=1), ("exact",), seeds=2)
    assert comparison.total == 4 * 5
    for run, step in comparison:
        if comparison.done == 2 * run.total and step.index == 2:
            break
    result = comparison.result()
    assert {word: len(found["runs"]) for word, found in result["methods"].items()} == {"exact": 1, "frozen": 1}


def test_what_cannot_be_compared_leaves_no_folder():
    assert pinnsketch("compare", "d.yaml", "--methods", "exakt").code == 2
    assert not Path("runs").exists()
