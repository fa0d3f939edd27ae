"""The classes of a model's trained head: how many, their names, and which of a data set's they are."""

import warnings
from collections.abc import Sequence

from fedadamw.models.loading import config_from, loaded


def match_classes(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """The place among `classes` of each of `names`, None for a name that is not there.

    A and a are the same name only if neither side has two names that differ by case alone.
    """
    exact = {name: i for i, name in enumerate(classes)}
    if _case_matters(names) or _case_matters(classes):
        return [exact.get(name) for name in names]
    lower = {name.lower(): i for name, i in exact.items()}
    return [lower.get(name.lower()) for name in names]


def _case_matters(names: Sequence[str]) -> bool:
    return len({name.lower() for name in names}) < len(set(names))


def in_own_order(name: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """`classes` in the order that the trained head of model `name` has them in, where it knows them by their names."""
    config = loaded("model.name", name, config_from)
    own = [str(config.id2label[i]) for i in sorted(config.id2label)]
    places = [place for place in match_classes(own, classes) if place is not None]
    if len(own) == len(classes) == len(set(places)):
        return tuple(classes[place] for place in places)
    named = "id2label" in config.to_diff_dict() and not all(label.startswith("LABEL_") for label in own)
    if named and len(own) == len(classes):
        warnings.warn(f"{name!r} tells {', '.join(own)} apart; they are now called {', '.join(classes)}", stacklevel=2)
    return classes


def outputs_of(name: str) -> int | None:
    """How many classes the head of a folder's or hub id's model was trained for, None where that is not said."""
    config = loaded("model.name", name, config_from)
    return len(config.id2label) if "id2label" in config.to_diff_dict() else None
