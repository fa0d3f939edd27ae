"""Image data as tensors: the embedded digits, or any hub id or local folder that `datasets` can read."""

import hashlib
import logging
import math
import os
import shutil
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

from fedadamw.validation import InputError, check

Array = np.ndarray
TEST_SPLITS = ("test", "validation", "valid", "val")


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
    test_split: str | None = None,
    want_test: bool = True,
) -> tuple[Images, Images]:
    """Training and held-out images of `source`: `digits`, a folder (Parquet, image folder) or a hub id.

    Columns are found by their types where they are not named: the first image column, the first class label.
    Without `want_test` the second is empty, and the data needs no test split.
    """
    if source == "digits":
        check(group_column is None, f"partition.column={group_column!r}: digits have no columns")
        return _digits()
    splits = _read(source, config)
    test_name = _test_split(source, splits, test_split) if want_test else None
    columns = _columns(source, splits["train"], image_column, label_column, group_column)
    classes = _classes(splits["train"], columns[1])
    train = _decode(splits["train"], *columns, classes)
    return train, _decode(splits[test_name], *columns, classes) if test_name else train.take(np.arange(0))


def _digits() -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; every fifth is held out."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pixels = (data.images * (255 / 16)).round().astype(np.uint8)[:, None]
    everything = Images(pixels, data.target.astype(np.int64), tuple(str(c) for c in range(10)))
    numbers = np.arange(len(everything))
    return everything.take(numbers[numbers % 5 != 0]), everything.take(numbers[numbers % 5 == 0])


def _read(source: str, config: str | None) -> "DatasetDict":
    import datasets

    local = source.startswith((".", "/", "~"))
    path = str(Path(source).expanduser())
    if local and not Path(path).is_dir():
        raise InputError(f"data.source={source!r}: no such folder")
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it announces each retry
    try:
        found = datasets.load_dataset(path, config)
    except Exception as error:  # hub, parser and network errors have no common class
        raise InputError(f"data.source={source!r} could not be read: {_first_line(error)}") from error
    if "train" not in found:
        raise InputError(f"data.source={source!r} has no split named 'train'; it has {', '.join(found)}")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _test_split(source: str, splits: "DatasetDict", wanted: str | None) -> str:
    names = (wanted,) if wanted else TEST_SPLITS
    for name in names:
        if name in splits:
            return name
    raise InputError(
        f"data.source={source!r} has no split named {' or '.join(names)}; it has {', '.join(splits)}: "
        "name one with data.test_split, or hold out some training samples with data.validation"
    )


def _columns(
    source: str, split: "Dataset", image: str | None, label: str | None, group: str | None
) -> tuple[str, str, str | None]:
    """The names of the image, label and group columns."""
    import datasets

    features = split.features
    for given in (image, label, group):
        if given and given not in features:
            raise InputError(f"data.source={source!r} has no column {given!r}; it has {', '.join(features)}")
    image = image or next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
    label = label or next((n for n, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    label = label or ("label" if "label" in features else None)
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

    groups = None if group is None else np.asarray(split[group])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "fedadamw-pixels" / f"{split._fingerprint}-{image}.npy"
    try:
        pixels = np.load(cache, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        pixels = np.load(cache, mmap_mode="r") if _keep(split, image, cache) else _pixels(split, image)
    return Images(pixels, _labels(split, label, classes), classes, groups)


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


def _classes(train: "Dataset", column: str) -> tuple[str, ...]:
    """Class names, whether the column is a class label, numbers from 0 or words."""
    names = getattr(train.features[column], "names", None)
    values = np.unique(np.asarray(train[column]))
    if names is not None:
        return tuple(names)
    if np.issubdtype(values.dtype, np.integer):
        return tuple(str(c) for c in range(int(values.max()) + 1))
    return tuple(str(v) for v in values)


def _labels(split: "Dataset", column: str, classes: tuple[str, ...]) -> Array:
    """Labels (n,) as numbers of `classes`."""
    values = np.asarray(split[column])
    numbers = np.issubdtype(values.dtype, np.integer)
    labels = values.astype(np.int64) if numbers else _positions(values.astype(str), classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"column {column!r} holds {values[wrong[0]]!r}, which is not one of the {len(classes)} training classes"
        )
    return labels


def _positions(values: Array, classes: tuple[str, ...]) -> Array:
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number.get(value, -1) for value in values], dtype=np.int64)
