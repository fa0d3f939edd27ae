"""Compares a node's own data with what the run expects: columns, their types, classes.

What does not fit is told to the server, so a phrase has names of columns and classes, never a path, a count, or values
of a column that hardly holds classes.
"""

from typing import TYPE_CHECKING

from fedadamw.data.columns import check_columns, find_label_column, require_column
from fedadamw.data.filled import check_template
from fedadamw.data.images import find_columns
from fedadamw.models.heads import match_classes
from fedadamw.prepare.images import image_source
from fedadamw.prepare.problem import Facts
from fedadamw.prepare.texts import text_columns
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check

if TYPE_CHECKING:
    from datasets import Dataset

OWN = "its data"
MAX_NAMED = 5  # classes that do not fit; if there are more, the column hardly holds classes
MAX_NAME = 40  # characters of a class that are told
MAX_SHOWN = 10  # classes of the run that are told


def check_fit(experiment: Experiment, about: Facts, split: "Dataset") -> None:
    """Raise InputError, which says all that does not fit, unless a node's `split` is what the run expects.

    experiment: the run's, with the node's data.source. about: the server's facts about the data.
    """
    problems = []
    for find in (_check_content, _check_label):
        try:
            find(experiment, about, split)
        except InputError as error:
            problems.append(str(error))
    check(not problems, "; ".join(dict.fromkeys(problems)))


def _check_content(experiment: Experiment, about: Facts, split: "Dataset") -> None:
    """Raise InputError unless there is the column of the images, or are those of the texts."""
    data = experiment.data
    if not data.is_text:
        find_columns(OWN, split, image_source(experiment))
    elif data.task != LANGUAGE:
        check_columns(OWN, split, text_columns(experiment, OWN, split))
    elif data.prompt is not None and data.response is not None:
        for template in (data.prompt, data.response):
            check_template(OWN, split, template)
    else:
        named = [column for column in (data.text_column, data.prompt_column, data.response_column) if column]
        check_columns(OWN, split, named)
        talks = data.classes is None or named or "messages" in split.features  # else each node might have another kind
        hint = "the run has conversations unless data.text_column or data.prompt_column says what it has"
        check(bool(talks), f"{OWN} has no column 'messages'; it has {', '.join(split.features)}; {hint}")


def _check_label(experiment: Experiment, about: Facts, split: "Dataset") -> None:
    """Raise InputError unless the column of the labels holds the run's classes, or numbers if these are predicted."""
    data = experiment.data
    if data.task == LANGUAGE:
        return
    label = require_column(OWN, split, "label", data.label_column or find_label_column(split))
    check_columns(OWN, split, (label,))
    kind = str(getattr(split.features[label], "dtype", "lists"))
    if about.get("edges") is not None:
        check(kind.startswith(("int", "uint", "float")), f"column {label!r} holds {kind} where numbers are expected")
        return
    classes = tuple(about["classes"])
    strange = _find_strange(split, label, classes, strict=data.classes is not None)
    many = f"column {label!r} holds many values that are no class: is it the labels' (data.label_column)?"
    check(len(strange) <= MAX_NAMED, f"{many} {_expected(classes)}")
    named = ", ".join(repr(name[:MAX_NAME]) for name in strange)
    check(not strange, f"column {label!r} has {named}; {_expected(classes)}")


def _find_strange(split: "Dataset", label: str, classes: tuple[str, ...], *, strict: bool) -> list[str]:
    """Return the values of a column, in words, that are no class of the run.

    strict: numbers are not taken for the classes' places. Empty cells are found when the labels are read.
    """
    names = getattr(split.features[label], "names", None)
    if names is None:
        values = split.unique(label)
        names = [_in_words(value) for value in values if value is not None and value == value]  # noqa: PLR0124  (NaN)
        if not strict and not any(isinstance(value, str) for value in values):
            return []
    places = match_classes(names, classes)
    return [str(name) for name, place in zip(names, places, strict=True) if place is None]


def _in_words(value: object) -> str:
    """Return a cell as the name of a class: 1.0, 1 and true are the class 1."""
    whole = isinstance(value, float | bool) and value % 1 == 0
    return str(int(value)) if whole else str(value)  # type: ignore[call-overload]


def _expected(classes: tuple[str, ...]) -> str:
    """Return the run's classes in words."""
    more = f" and {len(classes) - MAX_SHOWN} more" if len(classes) > MAX_SHOWN else ""
    return f"the run has the classes {', '.join(classes[:MAX_SHOWN])}{more}"
