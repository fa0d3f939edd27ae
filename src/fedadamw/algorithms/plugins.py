"""Algorithms of other packages: entry points of the group `fedadamw.algorithms`, found without importing anything.

[project.entry-points."fedadamw.algorithms"]
fedavgm = "fedavgm:FedAvgM"
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from fedadamw.validation import InputError, check

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "fedadamw.algorithms"


@dataclass(frozen=True)
class Plugin:
    """One algorithm of another package."""

    name: str  # of the algorithm
    package: str
    version: str
    entry: "EntryPoint"

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    def load(self) -> Any:
        """Import what the entry point names; raises InputError if that fails."""
        try:
            return self.entry.load()
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{self.entry.value} cannot be imported ({reason})") from error


@cache
def find_plugins() -> Mapping[str, tuple[Plugin, ...]]:
    """Return the installed plug-ins by the algorithm's name, sorted: more than one if packages use the same name."""
    from importlib.metadata import entry_points  # which takes a seventh of `fedadamw --help`

    plugins = [
        Plugin(entry.name, entry.dist.name, entry.dist.version, entry)
        for entry in entry_points(group=GROUP)
        if entry.dist is not None  # entry_points() sets it
    ]
    found: dict[str, tuple[Plugin, ...]] = {}
    for plugin in sorted(plugins, key=lambda plugin: (plugin.name, plugin.package)):
        found[plugin.name] = (*found.get(plugin.name, ()), plugin)
    return found


def check_unambiguous(name: str, built_in: Collection[str]) -> None:
    """Raise InputError if algorithm `name` is of two packages, or of a package and one of the names `built_in`."""
    plugins = find_plugins().get(name, ())
    packages = " and ".join(map(str, plugins))
    check(
        not plugins or name not in built_in,
        f"algorithm {name!r} is fedadamw's own, but package {packages} has one of the same name: uninstall it",
    )
    check(len(plugins) < 2, f"algorithm {name!r} is of two packages, {packages}: uninstall one")
