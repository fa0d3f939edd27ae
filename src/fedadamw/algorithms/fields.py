"""The algorithms' names and settings, read from their source: importing them takes two seconds, for torch.

What a setting means, and its range in brackets, are in the comment beside its field.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any, NamedTuple

from fedadamw.io.source_code import SourceField, find_module, find_value, read_class, read_module

REGISTRY = "algorithms/registry"
NO_SETTINGS = ("blocks", "unequal_steps")  # fields that are none
NOISE_TYPE = "NoiseInMoments"  # the type of another one
COMMENT = re.compile(r"(?P<about>.*?)(?: ?\((?P<range>[^()]*)\))?$")


class AlgorithmField(NamedTuple):
    """A setting of one algorithm."""

    name: str
    annotation: str  # as in Python: "tuple[float, float]"
    default: Any
    about: str  # what it does; "" if there is no comment
    range: str  # "at least 0", or "one of none, m, v"; "" if any value will do


class AlgorithmSource(NamedTuple):
    """What an algorithm's source says about it."""

    title: str  # name, paper, idea
    fields: tuple[AlgorithmField, ...]


def list_algorithms() -> dict[str, dict[str, Any]]:
    """Return the built-in algorithms' names, each with its settings and their defaults."""
    return {name: {field.name: field.default for field in read_algorithm(name).fields} for name in list_names()}


def list_names() -> list[str]:
    """Return the built-in algorithms' names."""
    return [ast.literal_eval(key) for key in find_value(REGISTRY, "BUILT_IN").keys]


def read_algorithm(name: str) -> AlgorithmSource:
    """Return what the source of the built-in algorithm `name` says: the module's first sentence, and the fields."""
    table = find_value(REGISTRY, "BUILT_IN")
    kinds = {ast.literal_eval(key): kind.id for key, kind in zip(table.keys, table.values, strict=True)}
    source = read_module(find_module(REGISTRY, kinds[name]))
    title = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    fields = [
        _describe(field, ast.literal_eval(field.default))
        for field in read_class(source, kinds[name])
        if field.default and not _is_given(field.name, field.annotation)
    ]
    return AlgorithmSource(" ".join(title.split()), tuple(fields))


def read_imported(kind: type) -> AlgorithmSource:
    """As `read_algorithm` for a class of another package: its docstring's first line, its fields and inherited ones."""
    written = {field.name: field for base in reversed(kind.__mro__) for field in _read_source_of(base)}
    fields = [
        _describe(written.get(f.name, SourceField(f.name, str(f.type), None, "")), f.default)
        for f in dataclasses.fields(kind)
        if not _is_given(f.name, f.type)
    ]
    return AlgorithmSource((inspect.getdoc(kind) or kind.__name__).splitlines()[0], tuple(fields))


def _is_given(name: str, annotation: Any) -> bool:
    """Whether a field is no setting: it comes from the model, its clients, or the section `privacy`."""
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name in NO_SETTINGS or written.rsplit(".")[-1] == NOISE_TYPE


def _read_source_of(kind: type) -> list[SourceField]:
    """The fields that a class itself declares; none if its source is not at hand."""
    try:
        return read_class(textwrap.dedent(inspect.getsource(kind)), kind.__name__)
    except (OSError, TypeError, SyntaxError):
        return []


def _describe(field: SourceField, default: Any) -> AlgorithmField:
    match = COMMENT.fullmatch(field.comment)
    assert match is not None
    return AlgorithmField(field.name, field.annotation, default, match["about"], match["range"] or "")
