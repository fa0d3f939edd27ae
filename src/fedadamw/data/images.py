"""Images as arrays: the embedded digits, or any hub id or local folder that `datasets` can read."""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.classes import (
    Outputs,
    check_columns,
    find_label_column,
    has_fractions,
    no_head,
    read_classes,
    read_groups,
    read_labels,
)
from fedadamw.data.image_decoding import (
    CROPPED,
    MODEL_SIZE,
    OWN_SIZE,
    DecodeSummary,
    PixelFormat,
    Survey,
    describe_bad_images,
    image_to_array,
)
from fedadamw.data.pixel_cache import load_pixels, load_survey
from fedadamw.data.sources import Array, choose_held_out_split, read_held_out, read_splits
from fedadamw.models.resizing import BILINEAR, ResizeCrop
from fedadamw.validation import InputError, check

DARK = 16  # of 255; the range of 12 bits within 16


@dataclass(frozen=True, eq=False)
class Images:
    """One split of an image data set as it was stored: bytes, not floats."""

    pixels: Array  # (n, channels, height, width) uint8; in memory, or mapped from a file
    labels: Array  # (n,) int64
    classes: tuple[str, ...]
    groups: Array | None = None  # (n,) natural clients, where a column of the data names them
    size_from: str = OWN_SIZE  # or CROPPED or MODEL_SIZE
    skipped: int = 0  # rows whose picture cannot be used

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, samples: Array) -> "Images":
        """The given samples only."""
        groups = None if self.groups is None else self.groups[samples]
        return replace(self, pixels=self.pixels[samples], labels=self.labels[samples], groups=groups)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every pixel and label."""
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ImageOptions:
    """What the images are to be; what is not said is decided by the training set.

    size: the shorter side is resized to it and the middle is cut out, size x size. grey: without colour, or with.
    skip_bad: leave out pictures that cannot be used, in place of refusing them. fit: how the model's own image
    processor brings a picture to its size, taken where the data has several or a larger one. outputs: of the model's
    own head, whose classes numbers may count.
    """

    size: int | None = None
    grey: bool | None = None
    skip_bad: bool = False
    fit: Callable[[], ResizeCrop | None] = lambda: None
    outputs: Outputs = no_head


DEFAULT_OPTIONS = ImageOptions()


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
    wanted: ImageOptions = DEFAULT_OPTIONS,
) -> tuple[Images, Images]:
    """Training and held-out images of `source`: `digits`, a folder (Parquet, image folder) or a hub id.

    Columns are found by their types where they are not named: the first image column, the first class label. Both are
    of the form that the training set has. Without `want_test` the second is empty, and the data needs no test split.
    """
    place = f"data.source={source!r}"
    if source == "digits":
        check(group_column is None, f"partition.column={group_column!r}: digits have no columns")
        return _digits(_decide(place, Survey(colour=False, smallest=(8, 8), largest=(8, 8), same=True, bad={}), wanted))
    splits = read_splits(source, config, test_source)
    test_name = choose_held_out_split(place, splits, test_split) if want_test else None
    columns = _columns(place, splits["train"], image_column, label_column, group_column)
    survey = load_survey(splits["train"], columns[0])
    _check_bad(place, splits["train"], columns[0], survey.bad, wanted)
    form = _decide(place, survey, wanted)
    train = _load(place, splits["train"], columns, form, wanted)
    if test_name is None:
        return train, replace(train.select(np.arange(0)), skipped=0)
    if test_source is not None:
        place = f"data.test_source={test_source!r}"
    return train, _load(place, splits[test_name], (*columns[:2], None), form, wanted, train.classes)


def load_held_out(
    source: str,
    classes: tuple[str, ...],
    form: PixelFormat,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    test_source: str | None = None,
    test_split: str | None = None,
    wanted: ImageOptions = DEFAULT_OPTIONS,
) -> Images:
    """The held-out images of `source` alone, of the training set's `form`, their labels among `classes`."""
    if source == "digits":
        return _digits(form)[1]
    split = read_held_out(source, config, test_source, test_split)
    place = f"data.source={source!r}" if test_source is None else f"data.test_source={test_source!r}"
    columns = _columns(place, split, image_column, label_column, None)
    return _load(place, split, columns, form, wanted, classes)


def _digits(form: PixelFormat) -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; every fifth is held out.

    Its file is read as it lies in the package: to import `sklearn.datasets` takes 2 s, a third of the start.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("scikit-learn, which has the digits, is not installed")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # 64 pixels of 0 to 16, and the digit
    pixels = (table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    if form.shape != pixels.shape[1:]:
        from PIL import Image

        pixels = np.stack([image_to_array(Image.fromarray(digit), form) for digit in pixels[:, 0]])
    everything = Images(
        pixels, table[:, -1].astype(np.int64), tuple(str(c) for c in range(10)), size_from=form.size_from
    )
    numbers = np.arange(len(everything))
    return everything.select(numbers[numbers % 5 != 0]), everything.select(numbers[numbers % 5 == 0])


def _columns(
    place: str, split: "Dataset", image: str | None, label: str | None, group: str | None
) -> tuple[str, str, str | None]:
    """The names of the image, label and group columns."""
    import datasets

    features = split.features
    check_columns(place, split, (image, label, group))
    image = image or next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
    label = label or find_label_column(split)
    for role, name in (("image", image), ("label", label)):
        if name is None:
            raise InputError(
                f"{place}: no {role} column found among {', '.join(features)}; name it with data.{role}_column"
            )
    assert image is not None
    assert label is not None
    kind = features[image]
    pictures = isinstance(kind, datasets.Image) or getattr(kind, "dtype", "") in ("binary", "large_binary")
    check(pictures, f"{place}: column {image!r} holds {getattr(kind, 'dtype', 'lists')}, where pictures are wanted")
    check(len(split) > 0, f"{place}: it has no rows")
    return image, label, group


def _decide(place: str, survey: Survey, wanted: ImageOptions) -> PixelFormat:
    """What every picture is made, by what the training set has."""
    grey = not survey.colour if wanted.grey is None else wanted.grey
    if wanted.size is not None:
        model, square = wanted.fit(), (wanted.size, wanted.size)
        return PixelFormat(
            grey, square, ResizeCrop(wanted.size, square, model.resample if model else BILINEAR), CROPPED
        )
    model, own = wanted.fit(), survey.smallest if survey.same else None
    if (
        model is not None
        and model.fixed_size is not None
        and (own is None or math.prod(model.fixed_size) < math.prod(own))
    ):
        return PixelFormat(
            grey, model.fixed_size, model, MODEL_SIZE
        )  # larger ones would be made smaller again in every batch
    if own is not None:
        return PixelFormat(grey, own, ResizeCrop(own))
    least, most = (f"{size[0]} x {size[1]}" for size in (survey.smallest, survey.largest) if size)
    raise InputError(
        f"{place}: the training pictures are of several sizes, {least} to {most}; "
        "set data.image_size=N, to which the shorter side is resized before the middle is cut out"
    )


def _load(
    place: str,
    split: "Dataset",
    columns: tuple[str, str, str | None],
    form: PixelFormat,
    wanted: ImageOptions,
    classes: tuple[str, ...] | None = None,
) -> Images:
    """A split in the form of the training set; it is the training set itself where there are no `classes` yet."""
    image, label, group = columns
    check_columns(place, split, columns)
    pixels, notes = load_pixels(split, image, form)
    _check_bad(place, split, image, notes.bad, wanted)
    rows, good = len(split), None
    if notes.bad:
        warnings.warn(_said(place, split, image, notes.bad) + "; left out", stacklevel=2)
        good = [row for row in range(rows) if row not in notes.bad]
    if classes is None:
        _check_as_surveyed(place, rows, form, notes)
        fractions = has_fractions(split, label, good)
        check(not fractions, f"{place}: column {label!r} holds fractions, where classes are wanted")
        classes = read_classes(split, label, wanted.outputs, good)
        if notes.brightest is not None and notes.brightest < DARK:
            said = (
                f"{place}: of the 16-bit pictures no pixel is over {notes.brightest} of 255; they should reach 65,535"
            )
            warnings.warn(said, stacklevel=2)
    elif notes.resized and form.size_from == OWN_SIZE:
        size = f"{form.size[0]} x {form.size[1]}"
        said = f"{place}: {notes.resized:,} of {rows:,} pictures are resized to the training pictures' {size}"
        warnings.warn(said, stacklevel=2)
    if notes.coloured and wanted.grey is None:
        said = f"{place}: {notes.coloured:,} of {rows:,} pictures have colour and are made grey, as all of training are"
        warnings.warn(said, stacklevel=2)
    labels, groups = read_labels(split, label, classes, good), read_groups(split, group, good)
    return Images(pixels, labels, classes, groups, size_from=form.size_from, skipped=len(notes.bad))


def _check_as_surveyed(place: str, rows: int, form: PixelFormat, notes: DecodeSummary) -> None:
    """Raise InputError where training pictures that keep their size have another one than their headers say."""
    check(
        form.size_from != OWN_SIZE or not notes.resized,
        f"{place}: {notes.resized:,} of {rows:,} pictures have another size than their files' headers say; set "
        "data.image_size=N, to which the shorter side is resized before the middle is cut out",
    )


def _check_bad(place: str, split: "Dataset", image: str, bad: Mapping[int, str], wanted: ImageOptions) -> None:
    """Raise InputError where pictures cannot be used and are not to be left out, or none is left."""
    if not bad:
        return
    said = _said(place, split, image, bad)
    check(len(bad) < len(split), f"{said}; none is left")
    check(wanted.skip_bad, f"{said}; mend or remove them, or leave them out with data.on_bad=skip")


def _said(place: str, split: "Dataset", image: str, bad: Mapping[int, str]) -> str:
    return f"{place}: {len(bad):,} of {len(split):,} pictures cannot be used: {describe_bad_images(split, image, bad)}"
