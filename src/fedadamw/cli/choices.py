"""Names of algorithms and models, read from the source files: importing them takes two seconds, for torch.

`fedadamw list` and the shell's completion use them; a test compares them with the modules.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent


def list_algorithms() -> dict[str, dict[str, Any]]:
    """Return the built-in algorithms' names, each with its settings and their defaults."""
    table = _find_value("algorithms/registry", "BUILT_IN")
    algorithms = {}
    for key, kind in zip(table.keys, table.values, strict=True):
        fields = _fields_of(_module_of("algorithms/registry", kind.id), kind.id)
        algorithms[ast.literal_eval(key)] = {f.target.id: ast.literal_eval(f.value) for f in fields if f.value}
    return algorithms


def list_models() -> list[str]:
    """Return the names of the built-in image classifiers."""
    models: list[str] = []
    for name in _find_value("models/vision", "NAMES").elts:
        if isinstance(name, ast.Starred):  # the keys of a dictionary
            models += map(ast.literal_eval, _find_value("models/vision", ast.unparse(name.value)).keys)
        else:
            models.append(ast.literal_eval(name))
    return models


@cache
def _parse(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def _module_of(module: str, name: str) -> str:
    """The module of this package from which `module` imports `name`."""
    imports = [node for node in _parse(module).body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    return homes[name].removeprefix("fedadamw.").replace(".", "/")


def _find_value(module: str, name: str) -> Any:
    """The expression that a module assigns to `name`."""
    for node in _parse(module).body:
        targets: list[Any] = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return getattr(node, "value", None)
    raise AssertionError(f"{module} has no {name}")


def _fields_of(module: str, name: str) -> list[Any]:
    """The annotated fields of a class, without its constants."""
    kind = next(node for node in _parse(module).body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = [node for node in kind.body if isinstance(node, ast.AnnAssign)]
    return [field for field in fields if "ClassVar" not in ast.unparse(field.annotation)]
