"""Names of algorithms and models, read from the source files: importing them takes two seconds, for torch.

`fedadamw list` and the shell's completion use them; a test compares them with the modules.
"""

import ast

from fedadamw.algorithms.fields import list_algorithms
from fedadamw.io.source_code import find_value

__all__ = ["list_algorithms", "list_models"]


def list_models() -> list[str]:
    """Return the names of the built-in image classifiers."""
    models: list[str] = []
    for name in find_value("models/vision", "NAMES").elts:
        if isinstance(name, ast.Starred):  # the keys of a dictionary
            models += map(ast.literal_eval, find_value("models/vision", ast.unparse(name.value)).keys)
        else:
            models.append(ast.literal_eval(name))
    return models
