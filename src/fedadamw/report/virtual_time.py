"""Virtual time, the clock of simulated devices: its units, and how it is written.

Buffered rounds of a federation have a clock of real time in its place.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedadamw.report.run_files import RecordDict

UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
SHORT = {"days": "days", "hours": "h", "minutes": "min", "seconds": "s"}
UNITS_FROM = 3.0  # times a unit, from which times are given in it


class Unit(NamedTuple):
    """What an axis counts virtual time in."""

    name: str
    seconds: float

    def title(self, time: str = "virtual time") -> str:
        """Return the title of an axis."""
        return f"{time}, {self.name}"


def has_clock(records: Sequence[RecordDict]) -> bool:
    """Whether a run had a virtual clock, so that its records have virtual seconds."""
    return bool(records) and all(record.get("virtual_s") is not None for record in records)


def name_time(records: Iterable[RecordDict]) -> str:
    """Return what the clock of a run shows: virtual time, or that of a federation's nodes."""
    return "time" if any(record.get("federation") for record in records) else "virtual time"


def choose_unit(seconds: float) -> Unit:
    """Return the unit for times up to `seconds`."""
    return next((Unit(name, size) for name, size in UNITS if seconds >= UNITS_FROM * size), Unit("seconds", 1.0))


def format_virtual(seconds: float) -> str:
    """Format virtual seconds with three digits, in the unit that suits them: `41.7 min`."""
    unit = choose_unit(seconds)
    value = seconds / unit.seconds
    return f"{value:,.0f} {SHORT[unit.name]}" if value >= 1000 else f"{value:.3g} {SHORT[unit.name]}"


def is_buffered(devices: Iterable[Mapping[str, Any] | None]) -> bool:
    """Whether records with these numbers of devices are of versions, which buffers made, and not of rounds."""
    return any(numbers is not None and numbers.get("staleness_mean") is not None for numbers in devices)
