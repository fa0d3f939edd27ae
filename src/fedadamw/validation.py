"""Input checks: one clear line that says what was given and what is allowed."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path

SUGGESTED_LIKENESS = 0.6  # of two words, 0 to 1, from which one is suggested for the other
MAX_SHOWN_CHARACTERS = 200  # characters of a value in a message


class InputError(ValueError):
    """Invalid input; the message is one line that says what was given and what is allowed."""


def check(condition: bool, message: str) -> None:  # noqa: FBT001  (the condition is the argument)
    """Raise InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def parse_path(setting: str, given: str) -> Path:
    """Return the path of a setting, with ~ expanded; raises InputError if no path can have that name."""
    try:
        path = Path(given).expanduser()
        path.exists()
        path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, contains a null, or ~ of an unknown user
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{setting}={shorten(given)}: no such folder ({why})") from None
    return path


def check_one_of(name: str, given: str, allowed: Iterable[str]) -> None:
    """Raise InputError unless `given` is one of `allowed`."""
    names = list(allowed)
    check(given in names, f"{name}={shorten(given)} is unknown{suggest(given, names)}; use one of {', '.join(names)}")


def shorten(given: object) -> str:
    """Return `given` as a message shows it, cut if it is long."""
    text = repr(given)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def suggest(given: str, names: Iterable[str], separator: str = "/") -> str:
    """Return a hint such as ` (did you mean 'alpha'?)`, or "" if no name is similar.

    Names are compared by the part after their last `separator`: with a dot, `rounds` suggests `training.rounds`. Among
    equally similar names those in the section of `given` win; at most two are suggested.
    """
    section, _, word = str(given).lower().rpartition(separator)
    likeness = {name: _likeness(word, name.lower().rpartition(separator)[2]) for name in names}
    best = max(likeness.values(), default=0.0)
    near = [name for name, value in likeness.items() if value == best]
    near = [name for name in near if name.lower().rpartition(separator)[0] == section] or near
    return f" (did you mean {' or '.join(map(repr, near[:2]))}?)" if best >= SUGGESTED_LIKENESS else ""


def _likeness(given: str, name: str) -> float:
    return SequenceMatcher(None, name, given).ratio()


EXTRAS = {  # as in pyproject.toml
    "lora": ("peft>=0.17",),
    "tune": ("optuna>=4.0",),
    "track": ("accelerate>=1.10", "tensorboard>=2.15"),
    "flower": ("flwr>=1.41,<1.42", "click<8.5", "cryptography>=44", "prometheus-client>=0.21"),
}


def missing_extra_error(what: str, extra: str) -> InputError:
    """Return the error for `what`, which needs an extra that is not installed; it names the extra's packages."""
    packages = " ".join(f"'{package}'" for package in EXTRAS[extra])
    note = " (Python 3.11 or later)" if extra == "flower" else ""
    return InputError(f"{what}: pip install {packages}{note}")
