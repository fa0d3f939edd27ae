"""Reading YAML that may be anybody's: a small text whose aliases stand for gigabytes is refused before it is built."""

from typing import Any

import yaml

from fedadamw.validation import InputError, check

LONGEST = 100_000  # characters of a text, and of all that its aliases stand for
NODE = 20  # characters that a value counts as, besides its own
LARGEST = 2**63  # of whole numbers: Python cannot even say those of over 4,300 digits
OF_TAGS = (
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
)  # what it raises of !!int x, 1:01.5, ...
DEEPEST = 20  # sections or lists in each other


def read_yaml(name: str, text: str) -> Any:
    """The value of YAML `text`; InputError, which calls it `name`, where it is none, or too large for settings."""
    try:
        _check_size(name, text)
        found = yaml.safe_load(text)
        _check_numbers(name, found)
        return found
    except InputError:
        raise
    except (yaml.YAMLError, *OF_TAGS) as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from None


def _check_numbers(name: str, value: Any) -> None:
    """Raise InputError where a whole number in `value`, which has no loops, is too large for any setting."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        for inner in value:
            _check_numbers(name, inner)
    check(not isinstance(value, int) or abs(value) < LARGEST, f"{name}: holds a whole number beyond 2**63")


def _check_size(name: str, text: str) -> None:
    """Raise InputError where the text, with what its aliases stand for, is too long or too deep."""
    too_large = f"{name}: is too large for settings: more than {LONGEST:,} characters, aliases written out"
    check(len(text) <= LONGEST, too_large)
    sizes: dict[str, int] = {}  # of what an anchor names
    around: list[tuple[str | None, int]] = []  # sections and lists that are open: anchor, and the total before it
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            check(anchor not in [outer for outer, _ in around], f"{name}: *{anchor} is inside what it stands for")
            total += NODE + sizes.get(anchor or "", 0)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[anchor or ""] = NODE + len(event.value)
            total += NODE + len(event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            around.append((anchor, total))
            total += NODE
            check(len(around) <= DEEPEST, f"{name}: is too deep for settings: more than {DEEPEST} sections or lists")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            sizes[anchor or ""] = total - before
        check(total <= LONGEST, too_large)
