"""Prompts and responses that a template makes of a row: which columns it needs, and how their cells become words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedadamw.data.columns import check_columns
from fedadamw.settings.templates import fill_template, list_columns
from fedadamw.validation import InputError, shorten

if TYPE_CHECKING:
    from datasets import Dataset

Names = Mapping[str, Sequence[str]]  # of the classes in a column of class labels


def read_class_names(split: "Dataset", columns: Sequence[str]) -> Names:
    """Return the names of the classes of those columns that hold class labels."""
    features = {column: split.features[column] for column in columns}
    return {column: tuple(feature.names) for column, feature in features.items() if hasattr(feature, "names")}


def check_template(place: str, split: "Dataset", template: str) -> list[str]:
    """Return the columns that a template names; raises InputError if `split`, which is from `place`, lacks one."""
    columns = list_columns(template)
    check_columns(place, split, columns)
    return columns


def fill_row(template: str, row: Mapping[str, Any], names: Names) -> str:
    """Return the template filled with a row's cells; raises InputError if one is no text, number or class."""
    return fill_template(template, {column: _in_words(column, row[column], names) for column in list_columns(template)})


def _in_words(column: str, cell: object, names: Names) -> str:
    if isinstance(cell, str):
        return cell
    if column in names and isinstance(cell, int) and 0 <= cell < len(names[column]):
        return names[column][cell]
    if column in names or not isinstance(cell, int | float) or cell != cell:  # noqa: PLR0124  (NaN)
        raise InputError(f"column {column!r} holds {shorten(cell)} where a text, a number or a class is expected")
    return str(cell)
