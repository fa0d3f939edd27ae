"""Templates of prompts and responses: text with names of columns in braces, and nothing else of a format string."""

from collections.abc import Mapping
from functools import cache
from string import Formatter

from fedadamw.validation import InputError, check, shorten

Parts = tuple[tuple[str, str | None], ...]  # words, and the column whose cell follows them, None for none


def parse_template(setting: str, template: str) -> Parts:
    """Return the parts of a template; raises InputError if a brace holds anything but a name."""
    what = f"{setting}={shorten(template)}"
    try:
        parts = tuple(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{what}: {error}; a brace itself is written twice, as {{{{") from None
    for _, column, form, conversion in parts:
        bare = column is None or (column != "" and not form and not conversion)
        check(bare, f"{what}: braces hold the name of a column and nothing else, as {{sentence}}")
    return tuple((words, column) for words, column, *_ in parts)


@cache
def _read(template: str) -> Parts:
    """Return the parts of a valid template, which is read once for all rows."""
    return parse_template("template", template)


def list_columns(template: str) -> list[str]:
    """Return the columns that a valid template names, each once."""
    return list(dict.fromkeys(column for _, column in _read(template) if column is not None))


def fill_template(template: str, cells: Mapping[str, str]) -> str:
    """Return a valid template with the cells of one row, by column; braces in a cell stay as they are."""
    return "".join(words + ("" if column is None else cells[column]) for words, column in _read(template))
