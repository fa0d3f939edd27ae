"""The classes of a model's trained head: how many, their names, and which of a data set's classes they are."""

import warnings
from collections.abc import Sequence

from fedadamw.models.pretrained import Pretrained


def match_classes(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """Return the index in `classes` of each of `names`, None for a name that is not there.

    A and a are the same name, unless either side has two names that differ by case alone.
    """
    exact = {name: i for i, name in enumerate(classes)}
    if _case_matters(names) or _case_matters(classes):
        return [exact.get(name) for name in names]
    lower = {name.lower(): i for name, i in exact.items()}
    return [lower.get(name.lower()) for name in names]


def _case_matters(names: Sequence[str]) -> bool:
    return len({name.lower() for name in names}) < len(set(names))


def sort_like_head(pretrained: Pretrained, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return `classes` in the order of the model's trained head, if it has the same names; else unchanged."""
    names = class_names(pretrained)
    indices = [index for index in match_classes(names, classes) if index is not None]
    if len(names) == len(classes) == len(set(indices)):
        return tuple(classes[index] for index in indices)
    unnamed = count_outputs(pretrained) is None or all(name.startswith("LABEL_") for name in names)
    if not unnamed and len(names) == len(classes):
        warnings.warn(
            f"the head of {pretrained.name!r} has the classes {', '.join(names)}; they are renamed to "
            f"{', '.join(classes)}",
            stacklevel=2,
        )
    return classes


def class_names(pretrained: Pretrained) -> list[str]:
    """The names of the head's classes in their order: LABEL_0, LABEL_1 if the configuration has none."""
    labels = pretrained.config.id2label
    return [str(labels[i]) for i in sorted(labels)]


def count_outputs(pretrained: Pretrained) -> int | None:
    """How many classes the head was trained for, None if the configuration does not say."""
    config = pretrained.config
    return len(config.id2label) if "id2label" in config.to_diff_dict() else None
