"""Classes of a labelled data set: their names, and each row's label as a number among them."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedadamw.data.columns import Rows, read_cells, read_column
from fedadamw.data.samples import Array
from fedadamw.models.heads import match_classes
from fedadamw.validation import InputError, check

if TYPE_CHECKING:
    from datasets import Dataset

MAX_CLASS_NUMBER = 100_000  # exclusive, of labels that are numbers
MAX_FLOAT_CLASS_NUMBER = 100  # exclusive, of labels written with a decimal point
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
HeadSize = Callable[[], int | None]  # returns the number of classes of the model's trained head, None if it has none


def read_classes(
    train: "Dataset", column: str, head_size: HeadSize | None = None, rows: Rows = None
) -> tuple[str, ...]:
    """Return the class names of a column of class labels, whole numbers or words."""
    names = getattr(train.features[column], "names", None)
    if names is not None:
        return tuple(names)
    values = np.unique(_read_values(train, column, rows))
    if np.issubdtype(values.dtype, np.integer):
        return _name_numbers(values.tolist(), column, head_size)
    _check_no_fractions(values.tolist(), column)
    return tuple(str(v) for v in values)


def read_labels(split: "Dataset", column: str, classes: tuple[str, ...], rows: Rows = None) -> Array:
    """Return the label of each row (n,) as its place in `classes`."""
    values = _read_values(split, column, rows)
    numbers = np.issubdtype(values.dtype, np.integer)
    names = getattr(split.features[column], "names", None)
    if numbers and names is not None and tuple(names) != classes:
        values = _renumber(values, column, names, classes)
    elif numbers and names is None:
        numbers = _are_positions(column, classes)
    labels = values.astype(np.int64) if numbers else _find_positions(values, classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"column {column!r} holds {values[wrong].tolist()[0]!r}, which is not one of the {len(classes)} "
            f"training classes ({_abbreviate(classes)})"
        )
    return labels


def has_fractions(split: "Dataset", column: str, rows: Rows = None) -> bool:
    """Whether a column holds numbers to predict: floats that are not all small whole numbers."""
    is_float = getattr(split.features[column], "dtype", "").startswith("float")
    return is_float and not _are_class_numbers(np.asarray(read_cells(split, column, rows), dtype=np.float64))


def _are_class_numbers(numbers: Array) -> bool:
    """Whether floats are class numbers (1.0, or -1.0): integers become floats in a column with missing values.

    Missing and infinite values are ignored here; reading the classes refuses them.
    """
    known = numbers[np.isfinite(numbers)]
    return bool(((known == np.round(known)) & (known >= -1) & (known < MAX_FLOAT_CLASS_NUMBER)).all())


def _read_values(split: "Dataset", column: str, rows: Rows) -> Array:
    """Return a column of classes, whole numbers as integers; raise InputError if a cell is empty."""
    array = read_column(split, column, (str, int, float), "a class is expected: a word or a number", rows)
    floats = np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()
    whole = floats and (array == np.round(array)).all()
    return array.astype(np.int64) if whole or array.dtype == bool else array


def _name_numbers(numbers: list[int], column: str, head_size: HeadSize | None) -> tuple[str, ...]:
    """Name classes after these sorted numbers; if the last is the last of a trained head, after all of the head's."""
    low, high = numbers[0], numbers[-1]
    outside = high if high >= MAX_CLASS_NUMBER else low
    check(
        low > -MAX_CLASS_NUMBER and high < MAX_CLASS_NUMBER,
        f"column {column!r} holds {outside}: class numbers must be below {MAX_CLASS_NUMBER:,}",
    )
    gaps = low >= 0 and len(numbers) <= high
    if gaps and head_size is not None and head_size() == high + 1:
        return tuple(str(c) for c in range(high + 1))
    if low == -1 and 0 in numbers:
        note = "is taken for a class; if it marks rows without a label, remove these rows"
        warnings.warn(f"column {column!r} holds -1 beside 0 to {high}: it {note}", stacklevel=5)
    return tuple(str(number) for number in numbers)


def _check_no_fractions(values: Sequence[object], column: str) -> None:
    """Raise InputError if classes that are not whole numbers are fractions, or numbers but for a few words."""
    fraction = next((value for value in values if isinstance(value, float) and value % 1 != 0), None)
    check(fraction is None, f"column {column!r} holds {fraction} where a class is expected: a word or a whole number")
    words = [str(value) for value in values if not NUMBER.fullmatch(str(value))]
    mixed = 0 < 10 * len(words) < len(values) and any("." in str(value) for value in values)
    check(not mixed, f"column {column!r} holds numbers, except for {_abbreviate(words)}")


def _are_positions(column: str, classes: tuple[str, ...]) -> bool:
    """Whether numbers without names are places in `classes`: if no class is named by a number."""
    if classes == tuple(str(i) for i in range(len(classes))):
        return True
    if any(NUMBER.fullmatch(name) for name in classes):
        return False  # 1 to 5, or classes some of which are words
    if not _are_placeholders(classes):
        note = f"column {column!r} holds numbers, which are taken as the classes in order: {_abbreviate(classes)}"
        warnings.warn(note, stacklevel=5)
    return True


def _are_placeholders(classes: Sequence[str]) -> bool:
    """Whether class names are those of a model that was trained without names."""
    return all(name.startswith("LABEL_") for name in classes)


def _renumber(values: Array, column: str, names: Sequence[str], classes: tuple[str, ...]) -> Array:
    """Convert labels that number `names` to numbers of `classes`, which have other names or another order."""
    if _are_placeholders(classes) and len(names) <= len(classes):
        return values
    places = match_classes(names, classes)
    missing = [name for name, place in zip(names, places, strict=True) if place is None]
    if missing:
        raise InputError(
            f"column {column!r} has a class {missing[0]!r}, which is not one of the {len(classes)} training classes "
            f"({_abbreviate(classes)})"
        )
    new = np.array(places, dtype=np.int64)
    return np.where((values >= 0) & (values < len(names)), new[np.clip(values, 0, len(names) - 1)], values)


def _find_positions(values: Array, classes: tuple[str, ...]) -> Array:
    """Return the place in `classes` of each value (n,) by its name, -1 if it is not a class."""
    names, inverse = np.unique(values, return_inverse=True)
    places = match_classes([str(name) for name in names.tolist()], classes)
    return np.array([-1 if place is None else place for place in places], dtype=np.int64)[inverse]


def _abbreviate(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:9])}, ... {names[-1]}"
