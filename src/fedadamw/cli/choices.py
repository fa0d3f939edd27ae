"""What there is to choose from, read from the package's files without importing them: torch alone takes two seconds.

`fedadamw list` and the shell's completion ask here; a test holds it to what the modules say of themselves.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent


def algorithms() -> dict[str, dict[str, Any]]:
    """Names of the algorithms, each with its settings and their defaults."""
    table = _value("algorithms/registry", "ALGORITHMS")
    found = {}
    for key, kind in zip(table.keys, table.values, strict=True):
        fields = _fields(_home("algorithms/registry", kind.id), kind.id)
        found[ast.literal_eval(key)] = {f.target.id: ast.literal_eval(f.value) for f in fields if f.value}
    return found


def models() -> list[str]:
    """Names of the image classifiers that come with the package."""
    found: list[str] = []
    for name in _value("models/vision", "NAMES").elts:
        if isinstance(name, ast.Starred):  # of the keys of a dictionary
            found += map(ast.literal_eval, _value("models/vision", ast.unparse(name.value)).keys)
        else:
            found.append(ast.literal_eval(name))
    return found


def settings() -> list[str]:
    """The paths of all settings but the algorithms' own: seed, data.source, training.rounds, ..."""
    return [path for path in _settings("settings/experiment", "Experiment") if path != "algorithm"]


def _settings(module: str, section: str) -> Iterator[str]:
    for field in _fields(module, section):
        words = [node.id for node in ast.walk(field.annotation) if isinstance(node, ast.Name)]
        inner = next((word for word in words if _class(_home(module, word), word)), None)
        if inner is None:
            yield field.target.id
        else:
            yield from (f"{field.target.id}.{key}" for key in _settings(_home(module, inner), inner))


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))


def _home(module: str, name: str) -> str:
    """The module of this package that `module` has `name` from: another, or itself."""
    imports = [node for node in _tree(module).body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    home = homes.get(name, "")
    return home.removeprefix("fedadamw.").replace(".", "/") if home.startswith("fedadamw.") else module


def _value(module: str, name: str) -> Any:
    """The expression that a module assigns to a name."""
    for node in _tree(module).body:
        targets: list[Any] = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return getattr(node, "value", None)
    raise AssertionError(f"{module} has no {name}")


def _class(module: str, name: str) -> ast.ClassDef | None:
    return next((node for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _fields(module: str, name: str) -> list[Any]:
    """The annotated fields of a class, without its constants."""
    found = _class(module, name)
    assert found is not None
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    return [field for field in fields if "ClassVar" not in ast.unparse(field.annotation)]
