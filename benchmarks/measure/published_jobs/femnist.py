"""FEMNIST, a client each writer, from the files that people can download.

- `fed_emnist_train.h5` and `fed_emnist_test.h5` in a folder: TensorFlow Federated's, which FLUTE trains on: 3,400
  writers, 62 classes. Needs h5py.
- A folder with LEAF's JSON files: in `train/` and `test/`, or all in one, `all_data_*.json`.
- The hub's `flwrlabs/femnist`, or a folder with its Parquet files: the columns image, writer_id and character.

Where no test set comes with the files, a tenth of each writer's images is held out, as TensorFlow Federated did.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure.published_jobs.data import Data
from fedadamw.data.images import ImageOptions, ImageSource, load_images
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.validation import InputError, check

SIDE, CLASSES = 28, 62
HELD_OUT = 0.1  # of each writer's images, if the files have no test set
H5 = ("fed_emnist_train.h5", "fed_emnist_test.h5")


class Writings(NamedTuple):
    """Images of some writers, one after the other."""

    pixels: np.ndarray  # (n, 1, SIDE, SIDE) float32, 0 to 1
    labels: np.ndarray  # (n,) int64
    writers: np.ndarray  # (n,) names

    def select(self, samples: np.ndarray) -> "Writings":
        """The given images only."""
        return Writings(self.pixels[samples], self.labels[samples], self.writers[samples])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels."""
        return torch.from_numpy(self.pixels), torch.from_numpy(self.labels)


def load(source: str) -> Data:
    """Read FEMNIST from a folder or from a hub id; raises InputError if it is not there, or is something else."""
    folder = Path(source)
    if all((folder / name).is_file() for name in H5):
        train, test = (read_h5(folder / name) for name in H5)
    elif any((folder / "train").glob("*.json")):
        train, test = (read_leaf(sorted((folder / split).glob("*.json"))) for split in ("train", "test"))
    elif found := sorted(folder.glob("*.json")):
        train, test = hold_out(read_leaf(found))
    else:
        train, test = hold_out(read_parquet(source))
    _, owner = np.unique(train.writers, return_inverse=True)
    clients = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
    return Data(train.tensors(), test.tensors(), clients)


def read_h5(path: Path) -> Writings:
    """Read a file of TensorFlow Federated: examples/WRITER/pixels (n, 28, 28) and examples/WRITER/label (n,)."""
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: reading it needs h5py: pip install h5py") from None
    with h5py.File(path, "r") as file:
        users = file["examples"].items()
        return join(path, ((name, user["pixels"][()], user["label"][()]) for name, user in users))


def read_leaf(paths: Iterable[Path]) -> Writings:
    """Read LEAF's JSON files: user_data/WRITER/x, a list of 784 numbers an image, and user_data/WRITER/y."""
    paths = list(paths)
    check(bool(paths), "data: train/ has JSON files, but test/ has none")
    return join(paths[0], _users_of(paths))


def _users_of(paths: Iterable[Path]) -> Iterator[tuple[str, object, object]]:
    for path in paths:
        try:
            users = json.loads(path.read_text())["user_data"].items()
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{path}: is not a JSON file of LEAF's, with user_data") from None
        yield from ((name, user["x"], user["y"]) for name, user in users)


def join(path: Path, users: Iterable[tuple[str, object, object]]) -> Writings:
    """Put the images of all writers into arrays; raises InputError if one is not of 28 x 28, or of no class."""
    names, pixels, labels = [], [], []
    for name, x, y in users:
        images, classes = np.asarray(x, np.float32), np.asarray(y, np.int64)
        check(
            images.size == len(classes) * SIDE * SIDE, f"{path}: writer {name} has images that are not {SIDE} x {SIDE}"
        )
        check(bool(((classes >= 0) & (classes < CLASSES)).all()), f"{path}: writer {name} has classes beyond {CLASSES}")
        names.append(np.full(len(classes), name))
        pixels.append(images.reshape(-1, 1, SIDE, SIDE))
        labels.append(classes)
    check(bool(names), f"{path}: has no writers")
    return Writings(*map(np.concatenate, (pixels, labels, names)))


def read_parquet(source: str) -> Writings:
    """Read the rows of the hub's data set."""
    columns = {"image_column": "image", "label_column": "character", "group_column": "writer_id"}
    images, _ = load_images(ImageSource(source, **columns), ImageOptions(grey=True), want_test=False)
    shape = images.pixels.shape[1:]
    check(shape == (1, SIDE, SIDE), f"data={source}: has images of {shape[1]} x {shape[2]}, not {SIDE} x {SIDE}")
    check(len(images.classes) <= CLASSES, f"data={source}: has {len(images.classes)} classes, not {CLASSES}")
    assert images.groups is not None
    return Writings(np.float32(images.pixels) / 255, images.labels, np.asarray(images.groups))


def hold_out(every: Writings) -> tuple[Writings, Writings]:
    """Hold out a tenth of each writer's images, drawn with seed 0; one of a writer with few stays for training."""
    order = numpy_generator(0, Purpose.SPLIT).permutation(len(every.labels))
    _, owner = np.unique(every.writers[order], return_inverse=True)
    by_writer = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # among its writer's
    held = place < np.repeat(np.floor(HELD_OUT * sizes), sizes)
    samples = order[by_writer]
    return every.select(np.sort(samples[~held])), every.select(np.sort(samples[held]))
