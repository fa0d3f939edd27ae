"""When devices are there: always, for a share of each day, or in the times of a trace, which repeat.

Times are seconds of the virtual clock. What is so at an instant is looked up a microsecond later: a device is there at
the very time that `next_online` gives, and is gone at the one that `leaves` gives, whatever their last bits are.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedadamw.devices.traces import Times

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.int64]
LATER_S = 1e-6


class Availability(Protocol):
    """Tells for devices (n,) by number, or for all if they are None."""

    def online(self, of: Places | None, time_s: float | Floats) -> Bools:
        """Return whether each is there at `time_s`."""

    def next_online(self, of: Places | None, time_s: float | Floats) -> Floats:
        """Return when each is there next; `time_s` if it is there then."""

    def leaves(self, of: Places | None, time_s: float | Floats) -> Floats:
        """Return when each that is there at `time_s` leaves; inf: never. One that is not there left by `time_s`."""


@dataclass(frozen=True)
class Always:
    """All `devices` are there at any time."""

    devices: int

    def online(self, of: Places | None, time_s: float | Floats) -> Bools:
        return np.ones(self._count(of), bool)

    def next_online(self, of: Places | None, time_s: float | Floats) -> Floats:
        return np.zeros(self._count(of)) + time_s

    def leaves(self, of: Places | None, time_s: float | Floats) -> Floats:
        return np.full(self._count(of), math.inf)

    def _count(self, of: Places | None) -> int:
        return self.devices if of is None else len(of)


@dataclass(frozen=True)
class Daily:
    """Each device is there for the first `online_s` of its day of `day_s`, which began `phase_s` (N,) before time 0."""

    phase_s: Floats
    online_s: float
    day_s: float

    def online(self, of: Places | None, time_s: float | Floats) -> Bools:
        return self._hour(of, time_s) < self.online_s

    def next_online(self, of: Places | None, time_s: float | Floats) -> Floats:
        hour = self._hour(of, time_s)
        return np.where(hour < self.online_s, time_s, time_s + LATER_S + (self.day_s - hour))

    def leaves(self, of: Places | None, time_s: float | Floats) -> Floats:
        hour = self._hour(of, time_s)
        ends = time_s + LATER_S + (self.online_s - hour)
        return np.where(hour < self.online_s, ends if self.online_s < self.day_s else math.inf, time_s)

    def _hour(self, of: Places | None, time_s: float | Floats) -> Floats:
        """Return the time of day (n,) of each device, in seconds."""
        return np.mod(time_s + LATER_S + (self.phase_s if of is None else self.phase_s[of]), self.day_s)


class Traced:
    """Client i of `devices` is there in the times of device i mod D of `times`, which repeat after `day_s`.

    Who of all is there follows from who was at an earlier time of day: few come and go between two rounds.
    """

    def __init__(self, devices: int, times: Times, day_s: float) -> None:
        self.devices, self.times, self.day_s = devices, times, day_s
        owner = np.repeat(np.arange(len(times.first) - 1), np.diff(times.first))
        changes = np.concatenate([times.from_s, times.to_s])
        order = np.argsort(changes)
        self._changes_s, self._changing = changes[order], np.concatenate([owner, owner])[order]
        self._comes = order < len(owner)
        self._there, self._done = np.zeros(len(times.first) - 1, bool), 0  # after so many of the changes

    def online(self, of: Places | None, time_s: float | Floats) -> Bools:
        if of is None and isinstance(time_s, float):
            return np.resize(self._all_online(time_s), self.devices)
        device, hour, _ = self._look(of, time_s)
        place = self._last_begun(device, hour)
        return (place >= self.times.first[device]) & (hour < self.times.to_s[place])

    def _all_online(self, time_s: float) -> Bools:
        """Return whether each of the trace's devices (D,) is there."""
        done = int(np.searchsorted(self._changes_s, np.mod(time_s + LATER_S, self.day_s), side="right"))
        if done < self._done:  # another day
            self._there[:], self._done = False, 0
        new = slice(self._done, done)
        self._there[self._changing[new]] = self._comes[new]  # the last of several changes of a device stays
        self._done = done
        return self._there

    def next_online(self, of: Places | None, time_s: float | Floats) -> Floats:
        times, (device, hour, day) = self.times, self._look(of, time_s)
        place = self._last_begun(device, hour)
        there = (place >= times.first[device]) & (hour < times.to_s[place])
        over = place + 1 == times.first[device + 1]  # for today
        following = np.where(over, times.first[device], place + 1)
        return np.where(there, time_s, day + times.from_s[following] + np.where(over, self.day_s, 0.0))

    def leaves(self, of: Places | None, time_s: float | Floats) -> Floats:
        times, (device, hour, day) = self.times, self._look(of, time_s)
        place, first = self._last_begun(device, hour), times.first[device]
        there = (place >= first) & (hour < times.to_s[place])
        goes_on = (times.to_s[place] == self.day_s) & (times.from_s[first] == 0)  # into the next day
        ends = np.where(goes_on, self.day_s + times.to_s[first], times.to_s[place])
        ends = np.where(goes_on & (times.to_s[first] == self.day_s), math.inf, ends)
        return np.where(there, day + ends, time_s)

    def _look(self, of: Places | None, time_s: float | Floats) -> tuple[Places, Floats, Floats]:
        """Return the traced device (n,) of each client, the time of day, and when the day began."""
        device = (np.arange(self.devices) if of is None else np.asarray(of)) % (len(self.times.first) - 1)
        later = np.zeros(len(device)) + time_s + LATER_S
        hour = np.mod(later, self.day_s)
        return device, hour, later - hour

    def _last_begun(self, device: Places, hour: Floats) -> Places:
        """Return the place of each device's last time that began by `hour` (n,); the one before its first if none."""
        low, high = self.times.first[device] - 1, self.times.first[device + 1] - 1
        while (low < high).any():  # all at once: each halves its own part of the times
            middle = (low + high + 1) // 2
            begun = self.times.from_s[middle] <= hour
            low, high = np.where(begun, middle, low), np.where(begun, high, middle - 1)
        return low
