"""The devices of all clients: how long a job takes on each, and whether it is lost; arrays, no object a device."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedadamw.devices.availability import Always, Availability, Bools, Daily, Floats, Places, Traced
from fedadamw.devices.traces import Traits, read_times, read_traits
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.devices import AvailabilitySettings, DevicesSettings, SpeedSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import check

Z_90 = 1.2815515655446004  # nine tenths of a standard normal variable are below
HALF_NORMAL_MEDIAN = 0.6744897501960817  # of the absolute value of one
EQUAL_JOB_S = 1.0  # what every job takes without devices
ONE_CLASS = "all"  # name of the class if there are none
BITS_PER_BYTE, MEGA = 8, 1e6
CLASSES, SPEEDS, LINKS, DAYS = range(4)  # what is drawn once for all devices


@dataclass(frozen=True)
class Fleet:
    """The devices of N clients. Without settings every job takes EQUAL_JOB_S, and none is lost."""

    settings: DevicesSettings | None
    seed: int
    class_names: tuple[str, ...]
    class_of: Places  # (N,) places in class_names
    samples_per_s: Floats  # (N,)
    down_bytes_per_s: Floats  # (N,); inf: no time
    up_bytes_per_s: Floats
    availability: Availability

    @classmethod
    def of(cls, settings: DevicesSettings | None, clients: int, seed: int) -> "Fleet":
        """Draw the devices of `clients` clients; InputError if a trace cannot be read."""
        unlimited = np.full(clients, math.inf)
        if settings is None:
            equal = (np.zeros(clients, np.int64), np.ones(clients), unlimited, unlimited)
            return cls(None, seed, (ONE_CLASS,), *equal, Always(clients))
        traits = Traits({}, None) if settings.trace is None else read_traits(settings.trace)
        names, class_of = _name_classes(settings, traits, clients, seed)
        rates, link = traits.rates, settings.link
        if "samples_per_s" in rates:
            speeds = np.resize(rates["samples_per_s"], clients)
        else:
            speeds = settings.speed.samples_per_s * _draw_speeds(settings.speed, clients, seed)
            speeds *= np.array([one.speed for one in settings.classes.values()] or [1.0] * len(names))[class_of]
        factors = _log_normal(link.spread, numpy_generator(seed, Purpose.DEVICES, LINKS).standard_normal(clients))
        down, up = (
            np.resize(rates[name], clients) if name in rates else (median or math.inf) * factors
            for name, median in (("down_mbps", link.down_mbps), ("up_mbps", link.up_mbps))
        )
        links = down * MEGA / BITS_PER_BYTE, up * MEGA / BITS_PER_BYTE
        return cls(settings, seed, names, class_of, speeds, *links, _draw_availability(settings, clients, seed))

    def __len__(self) -> int:
        return len(self.class_of)

    @property
    def fingerprint(self) -> str:
        """A digest of all that was drawn and read."""
        a = self.availability
        times = [a.phase_s] if isinstance(a, Daily) else list(a.times) if isinstance(a, Traced) else []
        arrays = [self.class_of, self.samples_per_s, self.down_bytes_per_s, self.up_bytes_per_s, *times]
        return hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)).hexdigest()[:16]

    def online(self, clients: ArrayLike | None, time_s: float) -> Bools:
        """Return whether each of these clients' devices (n,), or each of all, is there at `time_s`."""
        return self.availability.online(None if clients is None else np.asarray(clients, np.int64), time_s)

    def next_online(self, clients: ArrayLike | None, time_s: float) -> Floats:
        """Return when each is there next; `time_s` if it is there then."""
        return self.availability.next_online(None if clients is None else np.asarray(clients, np.int64), time_s)

    def steps_of(self, client: int, training: TrainingSettings, samples: int) -> int | None:
        """Return how many local steps `client`, with `samples`, takes in a round; None if as many as training's."""
        s = self.settings
        if s is None:
            return None
        of_class = s.classes.get(self.class_names[self.class_of[client]])
        own = None if of_class is None else of_class.steps
        if s.time_budget_s is None:
            return own
        size = min(training.batch_size, samples)
        fits = max(1, int(s.time_budget_s * self.samples_per_s[client] / size))
        return fits if fits < training.steps_per_round(samples, own) else own

    def plan_jobs(
        self,
        clients: ArrayLike,
        versions: ArrayLike,
        repeats: ArrayLike,
        start_s: float | ArrayLike,
        samples: ArrayLike,
        down_bytes: float | ArrayLike,
        up_bytes: float | ArrayLike,
    ) -> tuple[Floats, Bools]:
        """Return when each of these jobs (n,) ends, by the virtual clock, and whether it is lost.

        samples: that it trains on, repetitions included. The end of a lost job is when its device left. InputError if
        one takes infinitely long.
        """
        of = np.asarray(clients, np.int64)
        start = np.zeros(len(of)) + np.asarray(start_s, np.float64)
        if self.settings is None:
            return start + EQUAL_JOB_S, np.zeros(len(of), bool)
        jitter, dropout = self.settings.speed.jitter, self.settings.availability.dropout
        drawn = np.zeros((len(of), 3))  # the logarithm of its speed; whether it drops out, and where
        if jitter or dropout:
            keys = zip(np.asarray(versions).tolist(), of.tolist(), np.asarray(repeats).tolist(), strict=True)
            for row, key in zip(drawn, keys, strict=True):
                generator = numpy_generator(self.seed, Purpose.JOBS, *key)
                row[:] = jitter * generator.standard_normal(), *generator.random(2)
        drops = drawn[:, 1] < dropout
        with np.errstate(over="ignore", invalid="ignore"):  # said below
            compute = np.asarray(samples) / self.samples_per_s[of] * np.exp(drawn[:, 0])
            travel = np.asarray(down_bytes) / self.down_bytes_per_s[of] + np.asarray(up_bytes) / self.up_bytes_per_s[of]
            end = start + (compute + travel) * np.where(drops, drawn[:, 2], 1.0)
        check(
            bool(np.isfinite(end).all()),
            "devices: a job would take more seconds than a number can hold; take faster devices",
        )
        leaves = self.availability.leaves(of, start)
        return np.minimum(end, leaves), drops | (leaves < end)


def _name_classes(settings: DevicesSettings, traits: Traits, clients: int, seed: int) -> tuple[tuple[str, ...], Places]:
    """Return the names of the classes, and the class (N,) of each client: as many of each as its share says, up to one.

    A trace's classes take the place of the shares.
    """
    names = tuple(settings.classes)
    if traits.classes is not None:
        found = tuple(dict.fromkeys(traits.classes))
        unknown = next((name for name in found if names and name not in names), None)
        known = ", ".join(names)
        check(
            unknown is None, f"devices.trace={settings.trace!r}: class {unknown!r} is none of devices.classes: {known}"
        )
        names = names or found
        return names, np.resize(np.array([names.index(name) for name in traits.classes]), clients)
    shares = [one.share for one in settings.classes.values()] or [1.0]
    ends = np.round(np.cumsum(shares) / sum(shares) * clients)
    ordered = np.searchsorted(ends, np.arange(clients), side="right")
    return names or (ONE_CLASS,), numpy_generator(seed, Purpose.DEVICES, CLASSES).permutation(ordered)


def _draw_speeds(speed: SpeedSettings, clients: int, seed: int) -> Floats:
    """Return each device's speed (N,), as a multiple of the median."""
    normal = numpy_generator(seed, Purpose.DEVICES, SPEEDS).standard_normal(clients)
    if speed.kind == "log-normal":
        return _log_normal(speed.spread, normal)
    if speed.kind == "half-normal":
        return HALF_NORMAL_MEDIAN / np.maximum(np.abs(normal), np.finfo(float).eps)
    return np.ones(clients)


def _log_normal(spread: float, normal: Floats) -> Floats:
    """Return factors whose logarithms are normal; what nine tenths are below is `spread` times that of one tenth."""
    factors: Floats = np.exp(math.log(spread) / (2 * Z_90) * normal)
    return factors


def _draw_availability(settings: DevicesSettings, clients: int, seed: int) -> Availability:
    a: AvailabilitySettings = settings.availability
    if a.trace is not None:
        return Traced(clients, read_times(a.trace, a.day_s), a.day_s)
    if a.kind == "daily":
        phases = numpy_generator(seed, Purpose.DEVICES, DAYS).random(clients) * a.day_s
        return Daily(phases, a.online * a.day_s, a.day_s)
    return Always(clients)
