"""What the columns of a data set hold: classes as words, names or numbers, numbers to be predicted, natural clients."""

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.sources import Array
from fedadamw.validation import InputError, check

MOST_CLASSES = 100_000  # where labels are numbers
MOST_WITH_POINT = 100  # and where these are written with a point
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


def groups_of(split: "Dataset", column: str | None) -> Array | None:
    """The natural clients (n,) that `column` names."""
    return None if column is None else np.asarray(split[column])


def classes_of(train: "Dataset", column: str) -> tuple[str, ...]:
    """Class names, whether the column is a class label, numbers from 0 or words."""
    names = getattr(train.features[column], "names", None)
    if names is not None:
        return tuple(names)
    values = np.unique(_values(train, column))
    if np.issubdtype(values.dtype, np.integer):
        check(int(values.max()) < MOST_CLASSES, f"column {column!r} holds {values.max()}: no number of a class")
        return tuple(str(c) for c in range(int(values.max()) + 1))
    odd = [value for value in values.tolist() if not NUMBER.fullmatch(str(value))]
    mixed = 0 < 10 * len(odd) < len(values) and any("." in str(value) for value in values)  # fractions, but for a few
    check(not mixed, f"column {column!r} holds numbers, but for {_some(odd)}")
    return tuple(str(v) for v in values)


def labels_of(split: "Dataset", column: str, classes: tuple[str, ...]) -> Array:
    """Labels (n,) as numbers of `classes`."""
    values = _values(split, column)
    numbers = np.issubdtype(values.dtype, np.integer)
    names = getattr(split.features[column], "names", None)
    if numbers and names is not None and tuple(names) != classes:
        values = _renamed(values, column, names, classes)
    elif numbers and names is None:
        numbers = _are_positions(values, column, classes)
    labels = values.astype(np.int64) if numbers else _positions(values.astype(str), classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"column {column!r} holds {values[wrong[0]].item()!r}, which is not one of the {len(classes)} "
            f"training classes ({_some(classes)})"
        )
    return labels


def _are_positions(values: Array, column: str, classes: tuple[str, ...]) -> bool:
    """Whether numbers without names count `classes`: they do where no class is called by a number."""
    if classes == tuple(str(i) for i in range(len(classes))):
        return True
    if set(classes) & {str(value) for value in np.unique(values)}:
        return False  # classes some of which are words, in a file that has the others alone
    if not _unnamed(classes):
        said = f"column {column!r} holds numbers, which are taken for the classes in their order: {_some(classes)}"
        warnings.warn(said, stacklevel=2)
    return True


def _unnamed(classes: Sequence[str]) -> bool:
    """Whether these are the classes of a model that was not told their names."""
    return all(name.startswith("LABEL_") for name in classes)


def _renamed(values: Array, column: str, names: Sequence[str], classes: tuple[str, ...]) -> Array:
    """Labels that number `names` as numbers of `classes`, which have other names or another order."""
    if _unnamed(classes) and len(names) <= len(classes):
        return values
    number = {name.lower(): i for i, name in enumerate(classes)}
    missing = [name for name in names if name.lower() not in number]
    if missing:
        raise InputError(
            f"column {column!r} has a class {missing[0]!r}, which is not one of the {len(classes)} training classes "
            f"({_some(classes)})"
        )
    new = np.array([number[name.lower()] for name in names], dtype=np.int64)
    return np.where((values >= 0) & (values < len(names)), new[np.clip(values, 0, len(names) - 1)], values)


def _values(split: "Dataset", column: str) -> Array:
    """A column as an array; InputError where a row of it is empty."""
    values: list[Any] = split[column][:]
    if None in values:
        raise InputError(f"column {column!r} has nothing in row {values.index(None) + 1:,} of {len(values):,}")
    odd = next((value for value in values[:1] if not isinstance(value, str | int | float)), None)
    check(odd is None, f"column {column!r} holds {str(odd)[:60]} where a class is wanted: a word or a number")
    array = np.asarray(values)
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        row = int(np.flatnonzero(np.isnan(array))[0])
        raise InputError(f"column {column!r} has no number in row {row + 1:,} of {len(values):,}")
    return array.astype(np.int64) if array.dtype == bool or _count_classes(array) else array


def _count_classes(numbers: Array) -> bool:
    """Whether numbers with a point (1.0) are classes, written so since a row of theirs was missing once."""
    if not np.issubdtype(numbers.dtype, np.floating) or not len(numbers):
        return False
    return bool((numbers == np.round(numbers)).all() and numbers.min() >= 0 and numbers.max() < MOST_WITH_POINT)


def has_fractions(split: "Dataset", column: str) -> bool:
    """Whether a column holds numbers that are to be predicted: with a point, and not all of them small whole ones."""
    fractional = getattr(split.features[column], "dtype", "").startswith("float")
    return fractional and not _count_classes(np.asarray(split[column][:], dtype=np.float64))


def _positions(values: Array, classes: tuple[str, ...]) -> Array:
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number.get(value, -1) for value in values], dtype=np.int64)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:9])}, ... {names[-1]}"
