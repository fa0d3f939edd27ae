"""Names, constants and fields read from a module's source: to import the module may take two seconds, for torch."""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).parent.parent


class SourceField(NamedTuple):
    """A field of a class as it is written: `alpha: float = 0.5  # weight of ...`."""

    name: str
    annotation: str
    default: ast.expr | None
    comment: str  # "" if there is none beside it


def find_value(module: str, name: str) -> Any:
    """Return the expression that a module of this package, such as `algorithms/registry`, assigns to `name`."""
    for node in _parse(read_module(module)).body:
        targets: list[Any] = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return getattr(node, "value", None)
    raise AssertionError(f"{module} has no {name}")


def find_module(module: str, name: str) -> str:
    """Return the module of this package from which `module` imports `name`."""
    imports = [node for node in _parse(read_module(module)).body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    return homes[name].removeprefix("fedadamw.").replace(".", "/")


def read_class(source: str, name: str) -> list[SourceField]:
    """Return the annotated fields of class `name`, without its constants (ClassVar)."""
    kind = next(node for node in _parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    comments = _find_comments(source)
    fields = [
        SourceField(ast.unparse(node.target), ast.unparse(node.annotation), node.value, comments.get(node.lineno, ""))
        for node in kind.body
        if isinstance(node, ast.AnnAssign)
    ]
    return [field for field in fields if "ClassVar" not in field.annotation]


@cache
def read_module(module: str) -> str:
    """Return the source of a module of this package, such as `algorithms/fedadamw`."""
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


@cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def _find_comments(source: str) -> dict[int, str]:
    """The text of each comment by its line, from 1."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
