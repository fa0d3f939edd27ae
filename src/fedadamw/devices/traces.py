"""Reads the traces of devices: CSV files with how fast they are, and when they are there."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedadamw.settings.devices import SHORTEST_STAY_S
from fedadamw.validation import InputError, check, parse_path

RATES = ("samples_per_s", "down_mbps", "up_mbps")
CLASS = "class"
TIMES = ("device", "from_s", "to_s")


class Traits(NamedTuple):
    """What a trace says of R devices."""

    rates: dict[str, NDArray[np.float64]]  # (R,) each, by name; only the file's columns
    classes: list[str] | None  # (R,)


class Times(NamedTuple):
    """When D devices are there in a day: the times of device i are those at places first[i] to first[i + 1]."""

    first: NDArray[np.int64]  # (D + 1,)
    from_s: NDArray[np.float64]  # (T,) rising for each device, without overlaps
    to_s: NDArray[np.float64]


def read_traits(path: str) -> Traits:
    """Read devices.trace; InputError if the file is not as its description says."""
    setting = "devices.trace"
    columns, rows = _read(setting, path)
    known = (*RATES, CLASS)
    unknown = next((name for name in columns if name not in known), None)
    check(bool(columns), f"{setting}={path!r}: is empty; columns are {', '.join(known)}")
    check(unknown is None, f"{setting}={path!r}: has a column {unknown!r}; columns are {', '.join(known)}")
    rates: dict[str, list[float]] = {name: [] for name in columns if name != CLASS}
    classes = []
    for place, row in rows:
        for name, values in rates.items():
            values.append(_number(place, name, row[name]))
            check(values[-1] > 0, f"{place}: {name}={row[name]} must be above 0")
        if CLASS in row:
            classes.append(row[CLASS])
    check(bool(classes) or any(rates.values()), f"{setting}={path!r}: has no row of a device")
    return Traits({name: np.array(values) for name, values in rates.items()}, classes or None)


def read_times(path: str, day_s: float) -> Times:
    """Read devices.availability.trace; InputError if the file is not as its description says, or beyond `day_s`."""
    setting = "devices.availability.trace"
    columns, rows = _read(setting, path)
    missing = next((name for name in TIMES if name not in columns), None)
    check(missing is None, f"{setting}={path!r}: has no column {missing!r}; columns are {', '.join(TIMES)}")
    times: dict[str, list[tuple[float, float]]] = {}
    for place, row in rows:
        begin, end = _number(place, "from_s", row["from_s"]), _number(place, "to_s", row["to_s"])
        check(0 <= begin < end, f"{place}: from_s={begin:g} must be at least 0 and less than to_s={end:g}")
        check(end - begin >= SHORTEST_STAY_S, f"{place}: lasts {end - begin:g} s, less than {SHORTEST_STAY_S:g} s")
        check(end <= day_s, f"{place}: to_s={end:g} is more than devices.availability.day_s={day_s:g}")
        times.setdefault(row["device"], []).append((begin, end))
    check(bool(times), f"{setting}={path!r}: has no row of a device")
    joined = [_join(sorted(own)) for own in times.values()]
    first = np.cumsum([0, *map(len, joined)])
    table = np.array([span for own in joined for span in own])
    return Times(first, table[:, 0], table[:, 1])


def _join(times: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return sorted times without overlaps: those that meet are one."""
    joined = [times[0]]
    for begin, end in times[1:]:
        before = joined[-1]
        if begin <= before[1]:
            joined[-1] = (before[0], max(before[1], end))
        else:
            joined.append((begin, end))
    return joined


def _read(setting: str, path: str) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Return the columns of a CSV file, and its rows with where they are."""
    file = parse_path(setting, path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"{setting}={path!r}: cannot be read ({reason})") from None
    try:
        lines = list(csv.reader(text.splitlines(), strict=True))
    except csv.Error as error:
        raise InputError(f"{setting}={path!r}: is no CSV file ({error})") from None
    columns = [name.strip() for name in lines[0]] if lines else []
    twice = next((name for name in columns if columns.count(name) > 1), None)
    check(twice is None, f"{setting}={path!r}: has two columns {twice!r}")
    return columns, _rows(file, columns, lines[1:])


def _rows(file: Path, columns: Sequence[str], lines: Sequence[list[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    for number, values in enumerate(lines, start=2):
        place = f"{file}: line {number}"
        if values:
            check(len(values) == len(columns), f"{place} has {len(values)} values for {len(columns)} columns")
            yield place, dict(zip(columns, map(str.strip, values), strict=True))


def _number(place: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    check(math.isfinite(value), f"{place}: {name}={text!r} is not a number")
    return value
