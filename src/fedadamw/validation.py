"""Checks of settings at the edge: one clear line that says what was given and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


def check(fine: bool, complaint: str) -> None:  # noqa: FBT001  (the condition is the argument)
    """Raise ValueError with `complaint` unless `fine`."""
    if not fine:
        raise ValueError(complaint)


def one_of(name: str, given: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `given` is one of `allowed`."""
    names = list(allowed)
    check(given in names, f"{name}={given!r} is unknown{nearest(given, names)}; use one of {', '.join(names)}")


def nearest(given: str, names: Iterable[str]) -> str:
    """A hint such as ` (did you mean 'alpha'?)`, or nothing where no name is near."""
    match = get_close_matches(given, list(names), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
