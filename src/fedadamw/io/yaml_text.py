"""Read untrusted YAML: a small text whose aliases expand to gigabytes is refused before its value is built."""

from typing import Any

import yaml

from fedadamw.validation import InputError, check

MAX_YAML_CHARACTERS = 100_000  # of a text with its aliases expanded
CHARACTERS_PER_NODE = 20  # that each value counts in addition to its text
MAX_INTEGER = 2**63  # Python cannot print integers of over 4,300 digits
MAX_DEPTH = 20  # of nested sections and lists
TAG_ERRORS = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)  # raised for !!int x, 1:01.5, ...


def read_yaml(name: str, text: str) -> Any:
    """Return the value of YAML `text`; raises InputError, which calls it `name`, if it is invalid or too large."""
    try:
        _check_size(name, text)
        value = yaml.safe_load(text)
        _check_numbers(name, value)
        return value
    except InputError:
        raise
    except (yaml.YAMLError, *TAG_ERRORS) as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from None


def _check_numbers(name: str, value: Any) -> None:
    """Raise InputError if an integer in `value`, which has no cycles, is too large for any setting."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        for inner in value:
            _check_numbers(name, inner)
    check(not isinstance(value, int) or abs(value) < MAX_INTEGER, f"{name}: contains an integer beyond 2**63")


def _check_size(name: str, text: str) -> None:
    """Raise InputError if the text, with its aliases expanded, is too long or too deeply nested."""
    too_large = (
        f"{name}: is too large for settings: more than {MAX_YAML_CHARACTERS:,} characters, with aliases expanded"
    )
    check(len(text) <= MAX_YAML_CHARACTERS, too_large)
    sizes: dict[str, int] = {}  # by anchor
    open_nodes: list[tuple[str | None, int]] = []  # open sections and lists: their anchor, and the total before them
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            check(
                anchor not in [outer for outer, _ in open_nodes],
                f"{name}: *{anchor} is inside the value that it refers to",
            )
            total += CHARACTERS_PER_NODE + sizes.get(anchor or "", 0)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[anchor or ""] = CHARACTERS_PER_NODE + len(event.value)
            total += CHARACTERS_PER_NODE + len(event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, total))
            total += CHARACTERS_PER_NODE
            if len(open_nodes) > MAX_DEPTH:
                raise InputError(f"{name}: is too deep for settings: more than {MAX_DEPTH} sections or lists")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor or ""] = total - before
        check(total <= MAX_YAML_CHARACTERS, too_large)
