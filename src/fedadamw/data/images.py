"""Images as arrays: the embedded digits, or any hub id or local folder that `datasets` can read."""

import hashlib
import math
import os
import shutil
import uuid
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.labels import (
    Outputs,
    check_columns,
    classes_of,
    find_label_column,
    groups_of,
    labels_of,
    no_head,
)
from fedadamw.data.sources import Array, held_out_split, read, read_held_out
from fedadamw.validation import InputError, check


@dataclass(frozen=True, eq=False)
class Images:
    """One split of an image data set as it was stored: bytes, not floats."""

    pixels: Array  # (n, channels, height, width) uint8; in memory, or mapped from a file
    labels: Array  # (n,) int64
    classes: tuple[str, ...]
    groups: Array | None = None  # (n,) natural clients, where a column of the data names them

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, samples: Array) -> "Images":
        """The given samples only."""
        groups = None if self.groups is None else self.groups[samples]
        return Images(self.pixels[samples], self.labels[samples], self.classes, groups)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every pixel and label."""
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]


def load_images(
    source: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    test_source: str | None = None,
    test_split: str | None = None,
    want_test: bool = True,
    outputs: Outputs = no_head,
) -> tuple[Images, Images]:
    """Training and held-out images of `source`: `digits`, a folder (Parquet, image folder) or a hub id.

    Columns are found by their types where they are not named: the first image column, the first class label.
    Without `want_test` the second is empty, and the data needs no test split. outputs: of the model's own head, whose
    classes numbers may count.
    """
    if source == "digits":
        check(group_column is None, f"partition.column={group_column!r}: digits have no columns")
        return _digits()
    splits = read(source, config, test_source)
    test_name = held_out_split(f"data.source={source!r}", splits, test_split) if want_test else None
    columns = _columns(source, splits["train"], image_column, label_column, group_column)
    classes = classes_of(splits["train"], columns[1], outputs)
    train = _decode(splits["train"], *columns, classes)
    return train, _decode(splits[test_name], *columns[:2], None, classes) if test_name else train.take(np.arange(0))


def load_held_out(
    source: str,
    classes: tuple[str, ...],
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    test_source: str | None = None,
    test_split: str | None = None,
) -> Images:
    """The held-out images of `source` alone, their labels among `classes`."""
    if source == "digits":
        return _digits()[1]
    split = read_held_out(source, config, test_source, test_split)
    return _decode(split, *_columns(source, split, image_column, label_column, None), classes)


def _digits() -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; every fifth is held out.

    Its file is read as it lies in the package: to import `sklearn.datasets` takes 2 s, a third of the start.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("scikit-learn, which has the digits, is not installed")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # 64 pixels of 0 to 16, and the digit
    pixels = (table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    everything = Images(pixels, table[:, -1].astype(np.int64), tuple(str(c) for c in range(10)))
    numbers = np.arange(len(everything))
    return everything.take(numbers[numbers % 5 != 0]), everything.take(numbers[numbers % 5 == 0])


def _columns(
    source: str, split: "Dataset", image: str | None, label: str | None, group: str | None
) -> tuple[str, str, str | None]:
    """The names of the image, label and group columns."""
    import datasets

    features = split.features
    check_columns(f"data.source={source!r}", split, (image, label, group))
    image = image or next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
    label = label or find_label_column(split)
    for role, name in (("image", image), ("label", label)):
        if name is None:
            raise InputError(
                f"data.source={source!r}: no {role} column found among {', '.join(features)}; "
                f"name it with data.{role}_column"
            )
    assert image is not None
    assert label is not None
    return image, label, group


def _decode(split: "Dataset", image: str, label: str, group: str | None, classes: tuple[str, ...]) -> Images:
    """Every image of a split, decoded once into a file in the cache of `datasets`.

    It is mapped, so that the processes of a machine hold it once.
    """
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE) / "fedadamw-pixels" / f"{split._fingerprint}-{image}.npy"
    try:
        pixels = np.load(cache, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        pixels = np.load(cache, mmap_mode="r") if _keep(split, image, cache) else _pixels(split, image)
    return Images(pixels, labels_of(split, label, classes), classes, groups_of(split, group))


def _keep(split: "Dataset", image: str, cache: Path) -> bool:
    """Decode into a file, never all of it in memory; False where there is no disk for it.

    The file is made aside and renamed, since several processes may do it at once.
    """
    aside = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        shape, _ = _form(split, image)
        if shutil.disk_usage(cache.parent).free < 1.1 * math.prod(shape):
            return False
        pixels = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape)
        _take_space(aside)
        _fill(pixels, split, image)
        pixels.flush()
        os.replace(aside, cache)
    except OSError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _take_space(path: Path) -> None:
    """Have the disk set aside what a sparse file will hold: else a full one kills who writes to its mapping."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _pixels(split: "Dataset", image: str) -> Array:
    """The images as bytes in memory."""
    shape, _ = _form(split, image)
    pixels = np.empty(shape, dtype=np.uint8)
    _fill(pixels, split, image)
    return pixels


def _form(split: "Dataset", image: str) -> tuple[tuple[int, int, int, int], str]:
    """The shape and mode of all images: the first one's size, RGB (n, 3, h, w), or grey (n, 1, h, w) where it is."""
    first = split[0][image]
    mode = "L" if first.mode in ("L", "1", "I;16") else "RGB"
    return (len(split), 1 if mode == "L" else 3, first.height, first.width), mode


def _fill(pixels: Array, split: "Dataset", image: str) -> None:
    """Decode every image of a split into `pixels`, resized where its size is another."""
    import datasets

    (_, _, height, width), mode = _form(split, image)
    wanted = split.select_columns([image]).cast_column(image, datasets.Image(mode=mode))
    for i, row in enumerate(wanted):
        picture = row[image]
        if picture.size != (width, height):
            picture = picture.resize((width, height))
        array = np.asarray(picture)
        pixels[i] = array[None] if mode == "L" else array.transpose(2, 0, 1)
