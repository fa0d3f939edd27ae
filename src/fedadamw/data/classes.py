"""What the columns of a data set hold: classes as words, names or numbers, numbers to be predicted, natural clients."""

import re
import warnings
from collections.abc import Callable, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.sources import Array
from fedadamw.models.heads import match_classes
from fedadamw.validation import InputError, check

MOST_CLASSES = 100_000  # where labels are numbers
MOST_WITH_POINT = 100  # and where these are written with a point
CLIENTS = (str, int, float, date, time, timedelta, Decimal, bytes)  # what a natural client may be called
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")


def check_columns(place: str, split: "Dataset", names: Sequence[str | None]) -> None:
    """Raise InputError where one of `names` is no column of `split`, which is from `place`."""
    for name in names:
        if name and name not in split.features:
            raise InputError(f"{place} has no column {name!r}; it has {', '.join(split.features)}")


def find_label_column(split: "Dataset") -> str | None:
    """The column that holds the labels: the first class label, or the one called so."""
    import datasets

    found = next((n for n, f in split.features.items() if isinstance(f, datasets.ClassLabel)), None)
    return found or ("label" if "label" in split.features else None)


Rows = Sequence[int] | None  # which of a split are wanted; None: all


def read_groups(split: "Dataset", column: str | None, rows: Rows = None) -> Array | None:
    """The natural clients (n,) that `column` names; InputError where a row of it names none."""
    if column is None:
        return None
    return _filled(split, column, CLIENTS, "a client's name is wanted: a word, a number, a date", rows)


Outputs = Callable[[], int | None]  # how many classes the model's own head was trained for, None where it has none


def no_head() -> int | None:
    """The outputs of a model without a trained head."""
    return None


def read_classes(train: "Dataset", column: str, outputs: Outputs = no_head, rows: Rows = None) -> tuple[str, ...]:
    """Class names, whether the column is a class label, whole numbers or words."""
    names = getattr(train.features[column], "names", None)
    if names is not None:
        return tuple(names)
    values = np.unique(_values(train, column, rows))
    if np.issubdtype(values.dtype, np.integer):
        return _numbered(values.tolist(), column, outputs)
    fraction = next((value for value in values.tolist() if isinstance(value, float) and value % 1 != 0), None)
    check(fraction is None, f"column {column!r} holds {fraction} where a class is wanted: a word or a whole number")
    odd = [value for value in values.tolist() if not NUMBER.fullmatch(str(value))]
    mixed = 0 < 10 * len(odd) < len(values) and any("." in str(value) for value in values)  # fractions, but for a few
    check(not mixed, f"column {column!r} holds numbers, but for {_some(odd)}")
    return tuple(str(v) for v in values)


def _numbered(numbers: list[int], column: str, outputs: Outputs) -> tuple[str, ...]:
    """Classes of these rising numbers: one for each, or all that a trained head counts if the last is its last."""
    low, high = numbers[0], numbers[-1]
    far = high if high >= MOST_CLASSES else low
    check(low > -MOST_CLASSES and high < MOST_CLASSES, f"column {column!r} holds {far}: no number of a class")
    gaps = low >= 0 and len(numbers) <= high
    if gaps and outputs() == high + 1:
        return tuple(str(c) for c in range(high + 1))
    if low == -1 and 0 in numbers:
        said = "is taken for a class; if it marks rows without a label, leave these out"
        warnings.warn(f"column {column!r} holds -1 beside 0 to {high}: it {said}", stacklevel=5)
    return tuple(str(number) for number in numbers)


def read_labels(split: "Dataset", column: str, classes: tuple[str, ...], rows: Rows = None) -> Array:
    """Labels (n,) as numbers of `classes`."""
    values = _values(split, column, rows)
    numbers = np.issubdtype(values.dtype, np.integer)
    names = getattr(split.features[column], "names", None)
    if numbers and names is not None and tuple(names) != classes:
        values = _renamed(values, column, names, classes)
    elif numbers and names is None:
        numbers = _are_positions(column, classes)
    labels = values.astype(np.int64) if numbers else _positions(values, classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"column {column!r} holds {values[wrong].tolist()[0]!r}, which is not one of the {len(classes)} "
            f"training classes ({_some(classes)})"
        )
    return labels


def _are_positions(column: str, classes: tuple[str, ...]) -> bool:
    """Whether numbers without names count `classes`: they do if no class is called by a number."""
    if classes == tuple(str(i) for i in range(len(classes))):
        return True
    if any(NUMBER.fullmatch(name) for name in classes):
        return False  # 1 to 5, or classes some of which are words
    if not _unnamed(classes):
        said = f"column {column!r} holds numbers, which are taken for the classes in their order: {_some(classes)}"
        warnings.warn(said, stacklevel=5)
    return True


def _unnamed(classes: Sequence[str]) -> bool:
    """Whether these are the classes of a model that was not told their names."""
    return all(name.startswith("LABEL_") for name in classes)


def _renamed(values: Array, column: str, names: Sequence[str], classes: tuple[str, ...]) -> Array:
    """Labels that number `names` as numbers of `classes`, which have other names or another order."""
    if _unnamed(classes) and len(names) <= len(classes):
        return values
    places = match_classes(names, classes)
    missing = [name for name, place in zip(names, places, strict=True) if place is None]
    if missing:
        raise InputError(
            f"column {column!r} has a class {missing[0]!r}, which is not one of the {len(classes)} training classes "
            f"({_some(classes)})"
        )
    new = np.array(places, dtype=np.int64)
    return np.where((values >= 0) & (values < len(names)), new[np.clip(values, 0, len(names) - 1)], values)


def _values(split: "Dataset", column: str, rows: Rows) -> Array:
    """A column of classes as an array, whole numbers as integers; InputError where a row of it is empty."""
    array = _filled(split, column, (str, int, float), "a class is wanted: a word or a number", rows)
    floats = np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()
    whole = floats and (array == np.round(array)).all()
    return array.astype(np.int64) if whole or array.dtype == bool else array


def _filled(split: "Dataset", column: str, kinds: tuple[type, ...], wanted: str, rows: Rows) -> Array:
    """A column of single values (n,) as an array; InputError where a row has nothing, or none of `kinds`."""
    rows = range(len(split)) if rows is None else rows
    values = _cells(split, column, rows)
    check(len(values) > 0, f"column {column!r} has no rows")
    empty = next((row + 1 for row, value in zip(rows, values, strict=True) if _is_nothing(value)), None)
    check(empty is None, f"column {column!r} has nothing in row {empty or 0:,} of {len(split):,}")
    check(isinstance(values[0], kinds), f"column {column!r} holds {str(values[0])[:60]} where {wanted}")
    words = isinstance(values[0], str | bytes)
    return np.asarray(values, dtype=object if words else None)  # numpy's own words end before their last zeros


def _cells(split: "Dataset", column: str, rows: Rows) -> list[Any]:
    """What the wanted rows of a column hold."""
    values: list[Any] = split[column][:]
    return values if rows is None else [values[row] for row in rows]


def _is_nothing(value: Any) -> bool:
    """Whether a cell is empty: null, no number, or a word without a letter."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or bool(value != value)  # noqa: PLR0124  (NaN and NaT alone differ from themselves)


def _count_classes(numbers: Array) -> bool:
    """Whether numbers with a point (1.0, or -1.0) are classes, written so since a row of theirs was missing once.

    Rows that are missing now, or infinite, say nothing of it; they are refused by whatever reads them.
    """
    known = numbers[np.isfinite(numbers)]
    return bool(((known == np.round(known)) & (known >= -1) & (known < MOST_WITH_POINT)).all())


def has_fractions(split: "Dataset", column: str, rows: Rows = None) -> bool:
    """Whether a column holds numbers that are to be predicted: with a point, and not all of them small whole ones."""
    fractional = getattr(split.features[column], "dtype", "").startswith("float")
    return fractional and not _count_classes(np.asarray(_cells(split, column, rows), dtype=np.float64))


def _positions(values: Array, classes: tuple[str, ...]) -> Array:
    """The place among `classes` of each value (n,) by its name, -1 where it is none."""
    names, where = np.unique(values, return_inverse=True)
    places = match_classes([str(name) for name in names.tolist()], classes)
    return np.array([-1 if place is None else place for place in places], dtype=np.int64)[where]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:9])}, ... {names[-1]}"
