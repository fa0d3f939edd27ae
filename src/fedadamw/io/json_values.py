"""Values as JSON can hold them."""

from collections.abc import Mapping
from math import isfinite
from typing import Any


def replace_nan(value: Any, digits: int | None = None) -> Any:
    """Return `value`, at any depth, with None for NaN and infinities, and `digits` significant digits of the others."""
    if isinstance(value, Mapping):
        return {key: replace_nan(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(inner, digits) for inner in value]
    if not isinstance(value, float):
        return value
    if not isfinite(value):
        return None
    return value if digits is None else float(f"{value:.{digits}g}")
