"""Find the columns of a data set by name or type, and read their cells."""

from collections.abc import Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from fedadamw.data.samples import Array
from fedadamw.validation import InputError, check

if TYPE_CHECKING:
    from datasets import Dataset

CLIENT_TYPES = (str, int, float, date, time, timedelta, Decimal, bytes)  # what can name a natural client
ALPHABET = 20  # different characters, above which single ones are taken for a text's
Rows = Sequence[int] | None  # the rows of a split to read; None: all


def check_columns(place: str, split: "Dataset", names: Sequence[str | None]) -> None:
    """Raise InputError if one of `names` is not a column of `split`, which is from `place`."""
    for name in names:
        if name and name not in split.features:
            raise InputError(f"{place} has no column {name!r}; it has {', '.join(split.features)}")


def find_label_column(split: "Dataset") -> str | None:
    """Return the first column of class labels, or else the column `label`."""
    import datasets

    first = next((n for n, f in split.features.items() if isinstance(f, datasets.ClassLabel)), None)
    return first or ("label" if "label" in split.features else None)


def require_column(place: str, split: "Dataset", role: str, name: str | None) -> str:
    """Return `name`; raise InputError if no column was found for its role."""
    if name is None:
        raise InputError(
            f"{place}: no {role} column found among {', '.join(split.features)}; name it with data.{role}_column"
        )
    return name


def read_groups(split: "Dataset", column: str | None, rows: Rows = None) -> Array | None:
    """Return the natural client of each row (n,), None without a column; raise InputError if a row names none."""
    if column is None:
        return None
    return read_column(split, column, CLIENT_TYPES, "a client's name is expected: a word, a number, a date", rows)


def read_column(split: "Dataset", column: str, types: tuple[type, ...], expected: str, rows: Rows) -> Array:
    """Return a column of single values (n,); raise InputError if a cell is empty or the first is not of `types`."""
    rows = range(len(split)) if rows is None else rows
    values = read_cells(split, column, rows)
    check(len(values) > 0, f"column {column!r} has no rows")
    single = _are_characters(values)
    empty = next((row + 1 for row, value in zip(rows, values, strict=True) if _is_empty(value) and not single), None)
    check(empty is None, f"column {column!r} is empty in row {empty or 0:,} of {len(split):,}")
    check(isinstance(values[0], types), f"column {column!r} holds {str(values[0])[:60]} where {expected}")
    words = isinstance(values[0], str | bytes)
    return np.asarray(values, dtype=object if words else None)  # NumPy's own strings drop trailing zero bytes


def read_cells(split: "Dataset", column: str, rows: Rows) -> list[object]:
    """Return the cells of a column as they are."""
    values: list[object] = split[column][:]
    return values if rows is None else [values[row] for row in rows]


def _are_characters(values: Sequence[object]) -> bool:
    """Whether all are single characters of a text, an alphabet's worth: among these a space is no empty cell."""
    return all(isinstance(value, str) and len(value) == 1 for value in values) and len(set(values)) > ALPHABET


def _is_empty(value: object) -> bool:
    """Whether a cell is null, NaN, NaT or blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or bool(value != value)  # noqa: PLR0124  (only NaN and NaT differ from themselves)
