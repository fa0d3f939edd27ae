"""Algorithms by name: the only dispatch by string.

They are built in, of other packages (plugins.py), or registered by a script.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms.classes import (
    BLOCKS,
    NO_BLOCKS,
    NOISE,
    check_class,
    defaults_of,
    has_blocks,
    parse_settings,
    takes_noise,
)
from fedadamw.algorithms.diloco import DiLoCo
from fedadamw.algorithms.ditto import Ditto
from fedadamw.algorithms.fadamgc import FAdamGC
from fedadamw.algorithms.fedadam import FedAdam
from fedadamw.algorithms.fedadamw import FedAdamW
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.algorithms.fedcm import FedCM
from fedadamw.algorithms.fedexp import FedExP
from fedadamw.algorithms.fedlada import FedLADA
from fedadamw.algorithms.fedlamb import FedLAMB
from fedadamw.algorithms.fedlion import FedLion
from fedadamw.algorithms.fedmuon import FedMuon
from fedadamw.algorithms.fedprox import FedProx
from fedadamw.algorithms.local_adam import LocalAdam
from fedadamw.algorithms.local_adamw import LocalAdamW
from fedadamw.algorithms.muloco import MuLoCo
from fedadamw.algorithms.plugins import Plugin, check_unambiguous, find_plugins
from fedadamw.algorithms.scaffold import Scaffold
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NO_NOISE, NoiseInMoments
from fedadamw.validation import InputError, check, shorten, suggest

BUILT_IN: dict[str, type[AnyAlgorithm]] = {
    "fedadamw": FedAdamW,
    "local-adamw": LocalAdamW,
    "local-adam": LocalAdam,
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "ditto": Ditto,
    "scaffold": Scaffold,
    "fedcm": FedCM,
    "fedadam": FedAdam,
    "fedexp": FedExP,
    "fedlada": FedLADA,
    "fadamgc": FAdamGC,
    "fedmuon": FedMuon,
    "fedlion": FedLion,
    "fedlamb": FedLAMB,
    "diloco": DiLoCo,
    "muloco": MuLoCo,
}
REGISTERED: dict[str, type[AnyAlgorithm]] = {}  # by `register`, for this process
ZERO_IN_OLD_RUNS = ("eps",)  # may be 0 in an older run, which can be exported; no new run starts with it


class Algorithms(Mapping[str, type[AnyAlgorithm]]):
    """The classes of all algorithms. Names are known without importing a package, which happens with its class.

    A class that cannot be used raises InputError, which names its package and says why.
    """

    def __init__(self) -> None:
        self._imported: dict[str, type[AnyAlgorithm]] = {}  # those of other packages

    @property
    def at_hand(self) -> list[str]:
        """The names of those whose classes are imported already, such as all built-in ones."""
        return [*(name for name in BUILT_IN if name not in find_plugins()), *self._imported, *REGISTERED]

    def __getitem__(self, name: str) -> type[AnyAlgorithm]:
        if name in REGISTERED:
            return REGISTERED[name]
        check_unambiguous(name, BUILT_IN)
        if name in BUILT_IN:
            return BUILT_IN[name]
        if name not in self._imported:
            self._imported[name] = _load_class(find_plugins()[name][0])
        return self._imported[name]

    def __contains__(self, name: object) -> bool:
        return name in BUILT_IN or name in REGISTERED or name in find_plugins()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*BUILT_IN, *find_plugins(), *REGISTERED]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


ALGORITHMS = Algorithms()


def register(name: str, algorithm: type[AnyAlgorithm], *, replace: bool = False) -> None:
    """Make an algorithm known by name in this process; raises InputError if the class or the name cannot be used.

    Other processes do not know it (those of a study, of ranks, of Flower): for them a package names it in an entry
    point of the group `fedadamw.algorithms`, see docs/adding-an-algorithm.md.
    replace: another class of this name is replaced, which is an error otherwise; a built-in one never is.
    """
    _check_name(name)
    check(name not in BUILT_IN, f"algorithm {name!r} is fedadamw's own: take another name")
    kind = check_class(algorithm)
    if any(_names(plugin, kind) for plugin in find_plugins().get(name, ())):
        return
    others = [f"of package {plugin}" for plugin in find_plugins().get(name, ())]
    if REGISTERED.get(name, kind) is not kind:
        others = ["registered"]
    check(replace or not others, f"algorithm {name!r} is {', '.join(others)} already; replace=True replaces it")
    REGISTERED[name] = kind


def find_package(name: str) -> Plugin | None:
    """Return the package that algorithm `name` comes from; None if it is built in or registered."""
    if name in BUILT_IN or name in REGISTERED:
        return None
    return find_plugins()[name][0]


def _load_class(plugin: Plugin) -> type[AnyAlgorithm]:
    """Import the class of a plug-in; raises InputError if it is no algorithm."""
    try:
        _check_name(plugin.name)
        return check_class(plugin.load())
    except InputError as error:
        raise InputError(f"package {plugin} has no usable algorithm {plugin.name!r}: {error}") from error


def _check_name(name: str) -> None:
    good = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}", name)  # also in folders' names
    check(bool(good), f"algorithm name {name!r}: use up to 50 letters, digits, - and _")


def _names(plugin: Plugin, kind: type[AnyAlgorithm]) -> bool:
    """Whether the plug-in's entry point names this class."""
    return plugin.entry.value.replace(" ", "") == f"{kind.__module__}:{kind.__qualname__}"


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of algorithm `name` with their defaults; blocks and noise are none."""
    names = ", ".join(ALGORITHMS)
    hint = f"is unknown{suggest(name, ALGORITHMS)}; use one of {names}, or install the package that has it"
    check(name in ALGORITHMS, f"algorithm.name={shorten(name)} {hint}")
    return defaults_of(ALGORITHMS[name])


def validate(name: str, values: Mapping[str, Any], *, others: Sequence[str] = ()) -> dict[str, Any]:
    """Check settings of algorithm `name` and return all of its settings, with defaults for those not in `values`.

    others: names of settings outside the section, which may be suggested for an unknown name.
    """
    defaults = settings_of(name)
    for key in values:
        if key not in defaults:
            owners = ", ".join(other for other in ALGORITHMS.at_hand if key in settings_of(other))
            hint_of_owners = f"; {key} is a setting of {owners}" if owners else ""
            hint = suggest(key, [*defaults, *([] if owners else others)], ".")
            raise InputError(
                f"algorithm.{key} is unknown{hint}; {name} has {', '.join(defaults) or 'none'}{hint_of_owners}"
            )
    settings = parse_settings(ALGORITHMS[name], values)
    unlimited = [key for key, value in settings.items() if value == math.inf and defaults[key] is None]
    settings |= dict.fromkeys(unlimited)  # no limit is null, which JSON can hold
    accepted = {key: defaults[key] for key in ZERO_IN_OLD_RUNS if settings.get(key, -1) >= 0}
    check_startable({"name": name, **settings, **accepted})
    return settings


def check_startable(algorithm: Mapping[str, Any]) -> None:
    """Raise InputError if a new run may not start with these settings; an older run may have them."""
    try:
        make(*parse_section(algorithm), NO_BLOCKS)
    except ValueError as error:  # InputError, or what another package's algorithm raises
        raise InputError(f"algorithm: {error}") from None


def parse_section(algorithm: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Separate the section `algorithm` of an experiment into the algorithm's name and its settings."""
    return algorithm["name"], {key: value for key, value in algorithm.items() if key != "name"}


def make(name: str, settings: Mapping[str, Any], blocks: Blocks, noise: NoiseInMoments = NO_NOISE) -> AnyAlgorithm:
    """Make the algorithm `name`, with `blocks` if it needs them; raises InputError if a setting is out of range.

    noise: known, in its gradients; an algorithm without second moments ignores it.
    """
    kind = ALGORITHMS[name]
    given = {BLOCKS: blocks} if has_blocks(kind) else {}
    return kind(**settings, **given, **({NOISE: noise} if takes_noise(kind) else {}))


def needs_blocks(name: str) -> bool:
    """Return whether algorithm `name` needs the blocks of the model."""
    return has_blocks(ALGORITHMS[name])
