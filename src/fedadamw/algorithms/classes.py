"""Checks whether a class can be an algorithm, and turns its fields into a model that checks settings."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ValidationError, create_model

from fedadamw.algorithm import Algorithm, AnyAlgorithm
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NoiseInMoments
from fedadamw.validation import InputError, check
from fedadamw.vector import Layout

BLOCKS = "blocks"  # a field that is no setting: it comes from the model
NOISE = "noise"  # if its default is a NoiseInMoments, no setting: it comes from the section `privacy`
UNEQUAL_STEPS = "unequal_steps"  # no setting either: it comes from the clients' numbers of samples, and their devices
RESERVED = {"name": "algorithm.name", "lr": "training.lr"}  # names that a setting may not have, and what has them
PLAIN = (bool, int, float, str, type(None))
NO_BLOCKS = Blocks(Layout((), ()), (), ())


def defaults_of(kind: type[AnyAlgorithm]) -> dict[str, Any]:
    """Return an algorithm's settings with their defaults."""
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]  # every algorithm is a dataclass
    given = (BLOCKS, UNEQUAL_STEPS)
    return {f.name: f.default for f in fields if f.name not in given and not isinstance(f.default, NoiseInMoments)}


def has_blocks(kind: type[AnyAlgorithm]) -> bool:
    """Return whether an algorithm needs the blocks of the model."""
    return any(f.name == BLOCKS for f in dataclasses.fields(kind))  # type: ignore[arg-type]  # as above


def takes_noise(kind: type[AnyAlgorithm]) -> bool:
    """Return whether an algorithm subtracts known noise from its second moments."""
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]  # as above
    return any(f.name == NOISE and isinstance(f.default, NoiseInMoments) for f in fields)


def parse_settings(kind: type[AnyAlgorithm], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings, those in `values` converted to their types; raises InputError if one cannot be."""
    types = get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {key: (types[key], default) for key, default in defaults_of(kind).items()}
    model: type[BaseModel] = create_model(kind.__name__, **fields)
    try:
        return model.model_validate(dict(values)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"algorithm.{where}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def check_class(kind: object) -> type[AnyAlgorithm]:
    """Return `kind`; raises InputError if it is not a class that can be an algorithm."""
    check(isinstance(kind, type) and issubclass(kind, Algorithm), f"{kind!r} is no class derived from Algorithm")
    assert isinstance(kind, type)
    assert issubclass(kind, Algorithm)
    where = kind.__qualname__
    parameters = vars(kind).get("__dataclass_params__")
    check(parameters is not None and parameters.frozen, f"{where} is no @dataclass(frozen=True)")
    check(not inspect.isabstract(kind), f"{where} lacks {', '.join(sorted(kind.__abstractmethods__))}")
    _check_settings(where, defaults_of(kind))
    known = ["lr", *defaults_of(kind)]
    unknown = [setting for setting in kind.tuning if setting not in known]
    check(not unknown, f"{where}.tuning has {', '.join(unknown)}, which is no setting; use of {', '.join(known)}")
    _check_defaults(kind)
    return kind


def _check_settings(where: str, defaults: dict[str, Any]) -> None:
    """Raise InputError if names or defaults of settings cannot be written to and read from a file of settings."""
    for key, default in defaults.items():
        check(key not in RESERVED, f"{where}.{key} needs another name, which is not that of {RESERVED.get(key)}")
        check(default is not dataclasses.MISSING, f"{where}.{key} has no default (a value, not a factory)")
        values = default if isinstance(default, tuple) else (default,)
        plain = all(type(value) in PLAIN for value in values)
        check(plain, f"{where}.{key}={default!r} is no number, word, true or false, None, or tuple of these")


def _check_defaults(kind: type[AnyAlgorithm]) -> None:
    """Raise InputError if an algorithm's defaults are not of its settings' types or are refused by the class."""
    defaults = defaults_of(kind)
    try:
        parse_settings(kind, defaults)
    except InputError as error:
        raise InputError(f"{kind.__qualname__} has a wrong default: {error}") from None
    except Exception as error:  # pydantic's own, or whatever an annotation raises
        reason = " ".join(str(error).split())
        raise InputError(f"{kind.__qualname__}: the settings' types cannot be read ({reason})") from error
    try:
        kind(**defaults, **({BLOCKS: NO_BLOCKS} if has_blocks(kind) else {}))
    except Exception as error:
        raise InputError(f"{kind.__qualname__} cannot be made with its defaults ({error})") from error
