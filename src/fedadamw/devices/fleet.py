"""The devices of all clients: how long a job takes on each, and whether it is lost; arrays, no object a device."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.devices import DevicesSettings, SpeedSettings
from fedadamw.settings.training import TrainingSettings

Floats = NDArray[np.float64]
Z_90 = 1.2815515655446004  # nine tenths of a standard normal variable are below
HALF_NORMAL_MEDIAN = 0.6744897501960817  # of the absolute value of one
EQUAL_JOB_S = 1.0  # what every job takes without devices
ONE_CLASS = "all"  # name of the class if there are none


@dataclass(frozen=True)
class Fleet:
    """The devices of N clients. Without settings every job takes EQUAL_JOB_S, and none is lost."""

    settings: DevicesSettings | None
    seed: int
    class_names: tuple[str, ...]
    class_of: NDArray[np.int64]  # (N,) places in class_names
    samples_per_s: Floats  # (N,)
    down_bytes_per_s: Floats  # (N,); inf: no time
    up_bytes_per_s: Floats

    @classmethod
    def of(cls, settings: DevicesSettings | None, clients: int, seed: int) -> "Fleet":
        """Draw the devices of `clients` clients."""
        equal, unlimited = np.ones(clients), np.full(clients, math.inf)
        if settings is None:
            return cls(None, seed, (ONE_CLASS,), np.zeros(clients, np.int64), equal, unlimited, unlimited)
        names = tuple(settings.classes) or (ONE_CLASS,)
        class_of = _draw_classes([one.share for one in settings.classes.values()] or [1.0], clients, seed)
        speeds = settings.speed.samples_per_s * _draw_factors(settings.speed, clients, seed)
        speeds *= np.array([one.speed for one in settings.classes.values()] or [1.0])[class_of]
        link = settings.link
        factors = _log_normal(link.spread, numpy_generator(seed, Purpose.DEVICES, 2).standard_normal(clients))
        rates = [unlimited if mbps is None else mbps * 1e6 / 8 * factors for mbps in (link.down_mbps, link.up_mbps)]
        return cls(settings, seed, names, class_of, speeds, *rates)

    def steps_of(self, client: int, training: TrainingSettings, samples: int) -> int | None:
        """Return how many local steps `client`, with `samples`, takes in a round; None if as many as training's."""
        s = self.settings
        if s is None:
            return None
        own = next((one.steps for one in list(s.classes.values())[self.class_of[client] :]), None)
        if s.time_budget_s is None:
            return own
        size = min(training.batch_size, samples)
        fits = max(1, int(s.time_budget_s * self.samples_per_s[client] / size))
        planned = own or training.steps or (training.epochs or 1) * -(-samples // size)
        return fits if fits < planned else own

    def plan_jobs(
        self,
        clients: ArrayLike,
        versions: ArrayLike,
        repeats: ArrayLike,
        start_s: float | ArrayLike,
        samples: ArrayLike,
        down_bytes: float | ArrayLike,
        up_bytes: float | ArrayLike,
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Return when each of these jobs (n,) ends, by the virtual clock, and whether it is lost.

        samples: that it trains on, repetitions included. The end of a lost job is when its device left.
        """
        of = np.asarray(clients)
        if self.settings is None:
            return np.asarray(start_s) + np.full(len(of), EQUAL_JOB_S), np.zeros(len(of), bool)
        keys = zip(of.tolist(), np.asarray(versions).tolist(), np.asarray(repeats).tolist(), strict=True)
        generators = [numpy_generator(self.seed, Purpose.JOBS, version, client) for client, version, _ in keys]
        drawn = np.array([(g.standard_normal(), g.random(), g.random()) for g in generators]).reshape(-1, 3)
        compute = np.asarray(samples) / self.samples_per_s[of] * np.exp(self.settings.speed.jitter * drawn[:, 0])
        travel = np.asarray(down_bytes) / self.down_bytes_per_s[of] + np.asarray(up_bytes) / self.up_bytes_per_s[of]
        lost = drawn[:, 1] < self.settings.availability.dropout
        return np.asarray(start_s) + (compute + travel) * np.where(lost, drawn[:, 2], 1.0), lost


def _draw_classes(shares: list[float], clients: int, seed: int) -> NDArray[np.int64]:
    """Return the class (N,) of each client: as many of each as its share says, up to one."""
    ends = np.round(np.cumsum(shares) / sum(shares) * clients).astype(np.int64)
    ordered = np.searchsorted(ends, np.arange(clients), side="right")
    return numpy_generator(seed, Purpose.DEVICES, 0).permutation(ordered)


def _draw_factors(speed: SpeedSettings, clients: int, seed: int) -> Floats:
    """Return the factor (N,) of each device's speed."""
    normal = numpy_generator(seed, Purpose.DEVICES, 1).standard_normal(clients)
    if speed.kind == "log-normal":
        return _log_normal(speed.spread, normal)
    if speed.kind == "half-normal":
        return HALF_NORMAL_MEDIAN / np.maximum(np.abs(normal), np.finfo(float).tiny)
    return np.ones(clients)


def _log_normal(spread: float, normal: Floats) -> Floats:
    """Return factors whose logarithms are normal; nine tenths' is `spread` times that of one tenth."""
    return np.exp(math.log(spread) / (2 * Z_90) * normal)
