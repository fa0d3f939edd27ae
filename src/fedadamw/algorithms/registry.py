"""Algorithms by name: the only dispatch by string."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError, create_model

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms.fedadam import FedAdam
from fedadamw.algorithms.fedadamw import FedAdamW
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.algorithms.fedcm import FedCM
from fedadamw.algorithms.fedlada import FedLADA
from fedadamw.algorithms.fedlamb import FedLAMB
from fedadamw.algorithms.fedlion import FedLion
from fedadamw.algorithms.fedmuon import FedMuon
from fedadamw.algorithms.fedprox import FedProx
from fedadamw.algorithms.local_adam import LocalAdam
from fedadamw.algorithms.local_adamw import LocalAdamW
from fedadamw.algorithms.scaffold import Scaffold
from fedadamw.blocks.blocks import Blocks
from fedadamw.validation import InputError, check_one_of, suggest
from fedadamw.vector import Layout

ALGORITHMS: dict[str, type[AnyAlgorithm]] = {
    "fedadamw": FedAdamW,
    "local-adamw": LocalAdamW,
    "local-adam": LocalAdam,
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fedcm": FedCM,
    "fedadam": FedAdam,
    "fedlada": FedLADA,
    "fedmuon": FedMuon,
    "fedlion": FedLion,
    "fedlamb": FedLAMB,
}


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of algorithm `name` with their defaults; blocks are not one, they come from the model."""
    check_one_of("algorithm.name", name, ALGORITHMS)
    fields: Any = dataclasses.fields(ALGORITHMS[name])  # type: ignore[arg-type]  # every algorithm is a dataclass
    return {f.name: f.default for f in fields if f.name != "blocks"}


def validate(name: str, values: Mapping[str, Any], *, others: Sequence[str] = ()) -> dict[str, Any]:
    """Check settings of algorithm `name` and return all of its settings, with defaults for those not in `values`.

    others: names of settings outside the section, which may be suggested for an unknown name.
    """
    defaults = settings_of(name)
    for key in values:
        if key not in defaults:
            owners = ", ".join(other for other in ALGORITHMS if key in settings_of(other))
            hint_of_owners = f"; {key} is a setting of {owners}" if owners else ""
            hint = suggest(key, [*defaults, *([] if owners else others)], ".")
            raise InputError(f"algorithm.{key} is unknown{hint}; {name} has {', '.join(defaults)}{hint_of_owners}")
    hints = {f.name: f.type for f in dataclasses.fields(ALGORITHMS[name])}  # type: ignore[arg-type]
    fields: dict[str, Any] = {key: (hints[key], default) for key, default in defaults.items()}
    try:
        settings: dict[str, Any] = create_model(name, **fields).model_validate(dict(values)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"algorithm.{where}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    accepted = {key: defaults[key] for key in ZERO_IN_OLD_RUNS if settings.get(key, -1) >= 0}
    check_startable({"name": name, **settings, **accepted})
    return settings


def check_startable(algorithm: Mapping[str, Any]) -> None:
    """Raise InputError if a new run may not start with these settings; an older run may have them."""
    try:
        make(*parse_section(algorithm), NO_BLOCKS)
    except InputError as error:
        raise InputError(f"algorithm: {error}") from None


def parse_section(algorithm: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Separate the section `algorithm` of an experiment into the algorithm's name and its settings."""
    return algorithm["name"], {key: value for key, value in algorithm.items() if key != "name"}


def make(name: str, settings: Mapping[str, Any], blocks: Blocks) -> AnyAlgorithm:
    """Make the algorithm `name`, with `blocks` if it needs them; raises InputError if a setting is out of range."""
    return ALGORITHMS[name](**settings, **({"blocks": blocks} if needs_blocks(name) else {}))


def needs_blocks(name: str) -> bool:
    """Return whether algorithm `name` needs the blocks of the model."""
    return any(f.name == "blocks" for f in dataclasses.fields(ALGORITHMS[name]))  # type: ignore[arg-type]


ZERO_IN_OLD_RUNS = ("eps",)  # may be 0 in an older run, which can be exported; no new run starts with it
NO_BLOCKS = Blocks(Layout((), ()), (), ())
