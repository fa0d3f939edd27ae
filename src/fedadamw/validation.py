"""Checks of settings at the edge: one clear line that says what was given and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_SHOWN = 200  # characters of a value in a message


class InputError(ValueError):
    """What was given is not what is allowed; the message is one line that says both."""


def check(fine: bool, complaint: str) -> None:  # noqa: FBT001  (the condition is the argument)
    """Raise InputError with `complaint` unless `fine`."""
    if not fine:
        raise InputError(complaint)


def one_of(name: str, given: str, allowed: Iterable[str]) -> None:
    """Raise InputError unless `given` is one of `allowed`."""
    names = list(allowed)
    check(given in names, f"{name}={brief(given)} is unknown{nearest(given, names)}; use one of {', '.join(names)}")


def brief(given: object) -> str:
    """What was given, as a message shows it: a long value is cut."""
    text = repr(given)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def nearest(given: str, names: Iterable[str]) -> str:
    """A hint such as ` (did you mean 'alpha'?)`, or nothing where no name is near."""
    match = get_close_matches(str(given), list(names), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
