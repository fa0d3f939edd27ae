"""The algorithms' names and settings, read from their source: importing them takes two seconds, for torch.

What a setting means, and its range in brackets, are in the comment beside its field.
"""

import ast
import re
from typing import Any, NamedTuple

from fedadamw.io.source_code import SourceField, find_module, find_value, read_class, read_module

REGISTRY = "algorithms/registry"
IN_BRACKETS = re.compile(r"(?P<about>.*?)(?: \((?P<range>[^()]*)\))?$")


class AlgorithmField(NamedTuple):
    """A setting of one algorithm."""

    name: str
    annotation: str  # as in Python: "tuple[float, float]"
    default: Any
    about: str  # what it does
    range: str  # "at least 0", or "one of none, m, v"; "" if any value will do


class AlgorithmSource(NamedTuple):
    """What an algorithm's source says about it."""

    title: str  # the module's first sentence: name, paper, idea
    fields: tuple[AlgorithmField, ...]


def list_algorithms() -> dict[str, dict[str, Any]]:
    """Return the algorithms' names, each with its settings and their defaults."""
    return {name: {field.name: field.default for field in read_algorithm(name).fields} for name in list_names()}


def list_names() -> list[str]:
    """Return the algorithms' names."""
    return [ast.literal_eval(key) for key in find_value(REGISTRY, "ALGORITHMS").keys]


def read_algorithm(name: str) -> AlgorithmSource:
    """Return what the source of algorithm `name` says about it and its settings."""
    table = find_value(REGISTRY, "ALGORITHMS")
    kinds = {ast.literal_eval(key): kind.id for key, kind in zip(table.keys, table.values, strict=True)}
    source = read_module(find_module(REGISTRY, kinds[name]))
    _, fields = read_class(source, kinds[name])
    title = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    return AlgorithmSource(" ".join(title.split()), tuple(_describe(field) for field in fields if field.default))


def _describe(field: SourceField) -> AlgorithmField:
    match = IN_BRACKETS.fullmatch(field.comment)
    assert match is not None
    default = ast.literal_eval(field.default) if field.default else None
    return AlgorithmField(field.name, field.annotation, default, match["about"], match["range"] or "")
