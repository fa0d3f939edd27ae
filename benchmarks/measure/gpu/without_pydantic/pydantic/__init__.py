"""What the package's settings need of pydantic, on a machine without it: defaults and their own checks.

Types and ranges are not checked here: the benchmark writes its settings itself, and the tests run it with pydantic too.
"""

import inspect
from collections.abc import Callable
from typing import Any

MISSING = object()


class ValidationError(ValueError):
    """Never raised here."""


class ValidationInfo:
    """What a check is told about the field."""

    def __init__(self, field_name: str) -> None:
        self.field_name = field_name


class FieldInfo:
    """A field's default."""

    def __init__(self, default: Any = MISSING, default_factory: Callable[[], Any] | None = None) -> None:
        self.default, self.default_factory = default, default_factory

    def make(self) -> Any:
        """The default; TypeError without one."""
        if self.default_factory is not None:
            return self.default_factory()
        if self.default is MISSING:
            raise TypeError("a setting without a default is missing")
        return self.default


def Field(default: Any = MISSING, *, default_factory: Any = None, **_about: Any) -> Any:  # noqa: N802  (pydantic's name)
    return FieldInfo(default, default_factory)


def ConfigDict(**config: Any) -> dict[str, Any]:  # noqa: N802  (pydantic's name)
    return config


def field_validator(*names: str, mode: str = "after") -> Callable[[Any], Any]:
    def mark(method: Any) -> Any:
        function = getattr(method, "__func__", method)
        function.checked_fields = names
        return method

    return mark


def model_validator(*, mode: str) -> Callable[[Any], Any]:
    def mark(method: Any) -> Any:
        if mode == "after":
            method.checks_model = True
        return method

    return mark


class BaseModel:
    """Settings with defaults; values are taken as they are given."""

    def __init__(self, **values: Any) -> None:
        fields = {name: getattr(type(self), name, MISSING) for kind in type(self).__mro__ for name in own_fields(kind)}
        unknown = values.keys() - fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        for name, default in fields.items():
            given = (
                default.make() if isinstance(default, FieldInfo) and name not in values else values.get(name, default)
            )
            self.__dict__[name] = self.checked(name, given) if name in values else given
        for name in dir(type(self)):
            method = getattr(type(self), name)
            if getattr(method, "checks_model", False):
                method(self)

    @classmethod
    def checked(cls, name: str, value: Any) -> Any:
        """The value after the class's own checks of this field."""
        for of in dir(cls):
            method = getattr(cls, of)
            if name in getattr(getattr(method, "__func__", method), "checked_fields", ()):
                told = [ValidationInfo(name)] if len(inspect.signature(method).parameters) > 1 else []
                value = method(value, *told)
        return value

    def model_copy(self, *, update: dict[str, Any]) -> Any:
        """The same settings with some changed."""
        return type(self)(**{**self.__dict__, **update})

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]


def own_fields(kind: type) -> list[str]:
    """The names of the fields that a class itself declares."""
    annotated = inspect.get_annotations(kind)
    return [name for name in annotated if not name.startswith("_") and name != "model_config"]


def create_model(name: str, **fields: Any) -> Any:
    raise NotImplementedError("settings of algorithms are checked by pydantic, which is not installed")
