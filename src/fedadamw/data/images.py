"""Load the images of a data set, all in one pixel format: the digits, a hub id or a local folder."""

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedadamw.data.bad_images import check_bad_images, describe_bad_images
from fedadamw.data.classes import HeadSize, has_fractions, read_classes, read_labels
from fedadamw.data.columns import check_columns, find_label_column, read_groups, require_column
from fedadamw.data.digits import DIGITS_SURVEY, read_digits
from fedadamw.data.image_decoding import CROPPED, MODEL_SIZE, OWN_SIZE, DecodeSummary, PixelFormat, SizeSource
from fedadamw.data.image_survey import ImageSurvey
from fedadamw.data.pixel_cache import load_pixels, load_survey
from fedadamw.data.samples import Array
from fedadamw.data.sources import choose_held_out_split, read_held_out, read_splits
from fedadamw.models.resizing import BILINEAR, ResizeCrop, Size
from fedadamw.validation import InputError, check

if TYPE_CHECKING:
    from datasets import Dataset

DARK = 16  # of 255; 12 bits stored in 16 stay below it
SET_SIZE = "set data.image_size=N to resize the shorter side to N and crop the centre"


@dataclass(frozen=True, eq=False)
class Images:
    """One split of an image data set, as bytes."""

    pixels: Array  # (n, channels, height, width) uint8; in memory, or mapped from a file
    labels: Array  # (n,) int64
    classes: tuple[str, ...]
    groups: Array | None = None  # (n,) natural clients, if a column of the data names them
    size_from: SizeSource = OWN_SIZE
    skipped: int = 0  # rows whose image cannot be used

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, samples: Array) -> "Images":
        """Return the given samples only."""
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
    """How to convert images; what is None is decided by the training set.

    size: resize the shorter side to it and crop the centre, size x size. grey: without colour, or with.
    skip_bad: skip images that cannot be used rather than refuse the data set. model_resize: returns how the model's
    own image processor resizes; used if the data has several sizes or a larger one. head_size: see `read_classes`.
    """

    size: int | None = None
    grey: bool | None = None
    skip_bad: bool = False
    model_resize: Callable[[], ResizeCrop | None] | None = None
    head_size: HeadSize | None = None


DEFAULT_OPTIONS = ImageOptions()


class ImageSource(NamedTuple):
    """Where the images are: `digits`, a folder (Parquet, image folder) or a hub id, and the settings that go with it.

    Columns that are None are found by type: the first image column, the first class label.
    """

    name: str
    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None  # names the natural client of each row
    test_source: str | None = None  # see `read_splits`
    test_split: str | None = None  # see `choose_held_out_split`
    every: int = 1  # rows of the training set, see DataSettings

    @property
    def place(self) -> str:
        """The source, for errors."""
        return f"data.source={self.name!r}"

    @property
    def test_place(self) -> str:
        """The source of the held-out images, for errors."""
        return self.place if self.test_source is None else f"data.test_source={self.test_source!r}"


class ImageColumns(NamedTuple):
    """The names of a data set's columns."""

    image: str
    label: str
    group: str | None


def load_images(
    source: ImageSource, options: ImageOptions = DEFAULT_OPTIONS, *, want_test: bool = True
) -> tuple[Images, Images]:
    """Return the training and held-out images of `source`, both in the pixel format of the training set.

    Without `want_test` the second is empty, and the data needs no test split.
    """
    if source.name == "digits":
        check(source.group_column is None, f"partition.column={source.group_column!r}: digits have no columns")
        train, test = _load_digits(_choose_format(source.place, DIGITS_SURVEY, options))
        return train.select(np.arange(0, len(train), source.every)) if source.every > 1 else train, test
    splits = read_splits(source.name, source.config, source.test_source, source.every)
    test_name = choose_held_out_split(source.place, splits, source.test_split) if want_test else None
    columns = find_columns(source.place, splits["train"], source)
    survey = load_survey(splits["train"], columns.image)
    check_bad_images(source.place, splits["train"], columns.image, survey.bad, skip=options.skip_bad)
    target = _choose_format(source.place, survey, options)
    train = _load_split(source.place, splits["train"], columns, target, options)
    if test_name is None:
        return train, replace(train.select(np.arange(0)), skipped=0)
    columns = columns._replace(group=None)
    return train, _load_split(source.test_place, splits[test_name], columns, target, options, train.classes)


def load_held_out(
    source: ImageSource, classes: tuple[str, ...], target: PixelFormat, options: ImageOptions = DEFAULT_OPTIONS
) -> Images:
    """Return the held-out images of `source` in the training set's format, their labels among `classes`."""
    if source.name == "digits":
        return _load_digits(target)[1]
    split = read_held_out(source.name, source.config, source.test_source, source.test_split)
    columns = find_columns(source.test_place, split, source._replace(group_column=None))
    return _load_split(source.test_place, split, columns, target, options, classes)


def _load_digits(target: PixelFormat) -> tuple[Images, Images]:
    """Return the digits; every fifth is held out."""
    pixels, labels = read_digits(target)
    digits = Images(pixels, labels, tuple(str(c) for c in range(10)), size_from=target.size_from)
    numbers = np.arange(len(digits))
    return digits.select(numbers[numbers % 5 != 0]), digits.select(numbers[numbers % 5 == 0])


def find_columns(place: str, split: "Dataset", source: ImageSource) -> ImageColumns:
    """Return the columns that `source` names or that have the right type; raise InputError if there are none."""
    import datasets

    features, group = split.features, source.group_column
    check_columns(place, split, (source.image_column, source.label_column, group))
    image = source.image_column or next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
    label = source.label_column or find_label_column(split)
    columns = ImageColumns(
        require_column(place, split, "image", image), require_column(place, split, "label", label), group
    )
    feature = features[columns.image]
    dtype = getattr(feature, "dtype", "lists")
    is_image = isinstance(feature, datasets.Image) or dtype in ("binary", "large_binary")
    check(is_image, f"{place}: column {columns.image!r} holds {dtype} where images are expected")
    check(len(split) > 0, f"{place}: it has no rows")
    return columns


def _choose_format(place: str, survey: ImageSurvey, options: ImageOptions) -> PixelFormat:
    """Return the format of all images, chosen by the options, the training set and the model in this order."""
    grey = not survey.colour if options.grey is None else options.grey
    if (found := choose_format(options, survey.smallest if survey.same else None, grey=grey)) is not None:
        return found
    smallest, largest = (f"{size[0]} x {size[1]}" for size in (survey.smallest, survey.largest) if size)
    raise InputError(f"{place}: the training images are of several sizes, {smallest} to {largest}; {SET_SIZE}")


def choose_format(options: ImageOptions, common: Size | None = None, *, grey: bool) -> PixelFormat | None:
    """Return the format of images of a `common` size, or of several or unknown ones; None if nothing says a size."""
    model = options.model_resize() if options.model_resize is not None else None
    if options.size is not None:
        square = (options.size, options.size)
        return PixelFormat(
            grey, square, ResizeCrop(options.size, square, model.resample if model else BILINEAR), CROPPED
        )
    if model is not None and model.fixed_size is not None and _is_smaller(model.fixed_size, common):
        return PixelFormat(grey, model.fixed_size, model, MODEL_SIZE)  # larger images would be resized in every batch
    if common is not None:
        return PixelFormat(grey, common, ResizeCrop(common))
    return None


def _is_smaller(size: Size, common: Size | None) -> bool:
    """Whether `size` has fewer pixels than the images' common size, or they have none."""
    return common is None or math.prod(size) < math.prod(common)


def _load_split(
    place: str,
    split: "Dataset",
    columns: ImageColumns,
    target: PixelFormat,
    options: ImageOptions,
    classes: tuple[str, ...] | None = None,
) -> Images:
    """Load a split in the target format; without `classes` it is the training set, which defines them."""
    image, label, group = columns
    check_columns(place, split, columns)
    pixels, summary = load_pixels(split, image, target)
    check_bad_images(place, split, image, summary.bad, skip=options.skip_bad)
    rows = None
    if summary.bad:
        warnings.warn(f"{describe_bad_images(place, split, image, summary.bad)}; skipped", stacklevel=2)
        rows = [row for row in range(len(split)) if row not in summary.bad]
    is_training = classes is None
    if classes is None:
        _check_header_sizes(place, len(split), target, summary)
        fractions = has_fractions(split, label, rows)
        check(not fractions, f"{place}: column {label!r} holds fractions where classes are expected")
        classes = read_classes(split, label, options.head_size, rows)
    _warn_of_changes(f"{place}: ", len(split), target, options, summary, is_training=is_training)
    labels, groups = read_labels(split, label, classes, rows), read_groups(split, group, rows)
    return Images(pixels, labels, classes, groups, target.size_from, len(summary.bad))


def _check_header_sizes(place: str, rows: int, target: PixelFormat, summary: DecodeSummary) -> None:
    """Raise InputError if training images that keep their size differ from their headers."""
    check(
        target.size_from != OWN_SIZE or not summary.resized,
        f"{place}: {summary.resized:,} of {rows:,} images have another size than their files' headers say; {SET_SIZE}",
    )


def _warn_of_changes(
    place: str, rows: int, target: PixelFormat, options: ImageOptions, summary: DecodeSummary, *, is_training: bool
) -> None:
    """Warn if training images are dark, held-out images are resized, or images lose their colour."""
    lines = []
    if is_training and summary.brightest is not None and summary.brightest < DARK:
        lines.append(
            f"no pixel of the 16-bit images is over {summary.brightest} of 255; they should use the range to 65,535"
        )
    if not is_training and summary.resized and target.size_from == OWN_SIZE:
        size = f"{target.size[0]} x {target.size[1]}"
        lines.append(f"{summary.resized:,} of {rows:,} images are resized to the training images' {size}")
    if summary.coloured and options.grey is None:
        lines.append(f"{summary.coloured:,} of {rows:,} images are converted to grey, as the training images are grey")
    for line in lines:
        warnings.warn(place + line, stacklevel=3)
