"""Checks of settings at the edge: one clear line that says what was given and what is allowed."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path

SUGGESTED_LIKENESS = 0.6  # likeness of two words from which one may be meant for the other; 1 where they are the same

MAX_SHOWN_CHARACTERS = 200  # characters of a value in a message


class InputError(ValueError):
    """What was given is not what is allowed; the message is one line that says both."""


def check(condition: bool, message: str) -> None:  # noqa: FBT001  (the condition is the argument)
    """Raise InputError with `complaint` unless `fine`."""
    if not condition:
        raise InputError(message)


def parse_path(setting: str, given: str) -> Path:
    """The path that a setting names, with the home folder for ~; InputError where nothing could be called that."""
    try:
        path = Path(given).expanduser()
        path.exists()
        path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a null in it, or of a user that is none
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{setting}={shorten(given)}: no such folder ({why})") from None
    return path


def check_one_of(name: str, given: str, allowed: Iterable[str]) -> None:
    """Raise InputError unless `given` is one of `allowed`."""
    names = list(allowed)
    check(given in names, f"{name}={shorten(given)} is unknown{suggest(given, names)}; use one of {', '.join(names)}")


def shorten(given: object) -> str:
    """What was given, as a message shows it: a long value is cut."""
    text = repr(given)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def suggest(given: str, names: Iterable[str], separator: str = "/") -> str:
    """A hint such as ` (did you mean 'alpha'?)`, or nothing where no name is near.

    Names are compared by what follows their last `separator`: `rounds` finds `training.rounds`, with a dot. Of those
    equally near, one of the same section as `given` goes first; else two are named.
    """
    section, _, word = str(given).lower().rpartition(separator)
    likeness = {name: _likeness(word, name.lower().rpartition(separator)[2]) for name in names}
    best = max(likeness.values(), default=0.0)
    near = [name for name, how in likeness.items() if how == best]
    near = [name for name in near if name.lower().rpartition(separator)[0] == section] or near
    return f" (did you mean {' or '.join(map(repr, near[:2]))}?)" if best >= SUGGESTED_LIKENESS else ""


def _likeness(given: str, name: str) -> float:
    return SequenceMatcher(None, name, given).ratio()


EXTRAS = {  # as pyproject.toml has them
    "lora": ("peft>=0.17",),
    "tune": ("optuna>=4.0",),
    "track": ("accelerate>=1.10", "tensorboard>=2.15"),
    "flower": ("flwr>=1.41,<1.42", "click<8.5", "cryptography>=44", "prometheus-client>=0.21"),
}


def missing_extra_error(what: str, extra: str) -> InputError:
    """The error for `what`, which needs an extra that is not installed; it names the extra's packages."""
    packages = " ".join(f"'{package}'" for package in EXTRAS[extra])
    note = " (Python 3.11 or later)" if extra == "flower" else ""
    return InputError(f"{what}: pip install {packages}{note}")
