"""Epsilon of Gaussian noise on sums over Poisson samples, by privacy loss distributions; needs the extra `privacy`.

The numbers are upper bounds, close ones: losses are rounded to a grid so that epsilon only grows.
"""

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedadamw.validation import check, missing_extra_error

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

GRID = 0.03  # cells of a grid: at most this share of a step's standard deviation of the loss,
COARSEST = 1e-3  # and of the whole run's, or this if that is below 1
MOST_CELLS = 2**22  # beyond them an epsilon, of hundreds, would take many seconds;
FEWER_CELLS = 2**20  # a grid that would have more, of small epsilons, is made coarser
TOLERANCE = 5e-4  # by which the epsilon of a noise that was searched for is below its target at most, relative
LEAST_NOISE = 0.05  # a smaller noise multiplier counts as none
MOST_NOISE = 1e18  # a larger one counts as this, and
LEAST_RATE = 1e-9  # a smaller rate as this: with either, hardly anything is told
MOST = 1000.0  # epsilon whose noise is searched for
LEAST_DELTA = 1e-14  # at which; below it probabilities are lost in float64's rounding, and epsilon is inf


class Mechanism(NamedTuple):
    """Sums of vectors of norm at most 1 over Poisson samples, each with Gaussian noise, `times` times."""

    noise_multiplier: float  # standard deviation of the noise
    rate: float  # with which each sample, or client, is drawn: 0 to 1
    times: int


def check_library() -> None:
    """Raise InputError, which says what to install, if dp-accounting is missing."""
    try:
        from dp_accounting.pld import privacy_loss_distribution  # noqa: F401
    except ImportError:
        raise missing_extra_error("an epsilon needs dp-accounting", "privacy") from None


def compute_epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Return the epsilon of all mechanisms together, at `delta`, if one sample, or client, is added or removed.

    0 if nothing was drawn; inf without noise, or with so little that it guarantees nothing.
    """
    check(0 < delta < 1, f"delta={delta:g} must be above 0 and below 1")
    times = Counter[tuple[float, float]]()
    for noise, rate, count in mechanisms:
        check(noise >= 0 and 0 <= rate <= 1 and count >= 0, f"no such mechanism: {Mechanism(noise, rate, count)}")
        if rate > 0 and count > 0:
            times[min(float(noise), MOST_NOISE), max(float(rate), LEAST_RATE)] += int(count)
    if not times:
        return 0.0
    if any(noise < LEAST_NOISE for noise, _ in times):
        return math.inf
    return _epsilon(tuple(sorted((*pair, count) for pair, count in times.items())), delta)


def find_noise_multiplier(epsilon: float, delta: float, rate: float, times: int) -> float:
    """Return the least noise multiplier with which a mechanism spends at most `epsilon`, and at most 0.1% less.

    Raises InputError if hardly any noise will do.
    """
    check(0 < epsilon <= MOST, f"privacy.epsilon={epsilon:g} must be above 0 and at most {MOST:g}")
    check(delta >= LEAST_DELTA, f"privacy.delta={delta:g} is below {LEAST_DELTA:g}, where no epsilon is computed")

    def spend(noise: float) -> float:
        return compute_epsilon([Mechanism(noise, rate, times)], delta)

    low = high = (1.0, spend(1.0))  # (noise, epsilon): too much is spent; not too much
    while high[1] > epsilon:
        low, high = high, (2 * high[0], spend(2 * high[0]))
    while low[1] <= epsilon:
        less = low[0] / 2
        check(less > LEAST_NOISE, f"privacy.epsilon={epsilon:g} is more than is spent with next to no noise; give less")
        low, high = (less, spend(less)), low
    while high[1] < epsilon * (1 - TOLERANCE) and high[0] > low[0] * (1 + 1e-9):
        noise = _interpolate(low, high, epsilon * (1 - TOLERANCE / 2))
        found = (noise, spend(noise))
        low, high = (found, high) if found[1] > epsilon else (low, found)
    return high[0]


def _interpolate(low: tuple[float, float], high: tuple[float, float], epsilon: float) -> float:
    """Return the noise between two that spends about `epsilon`: on a line if both axes are logarithmic."""
    share = 0.5
    if math.isfinite(low[1]) and high[1] > 0:
        share = math.log(low[1] / epsilon) / math.log(low[1] / high[1])
    return float(low[0] * (high[0] / low[0]) ** min(max(share, 0.05), 0.95))


@lru_cache(maxsize=4096)
def _epsilon(steps: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """As compute_epsilon, of (noise multiplier, rate, times) without zeros."""
    cell = _choose_cell(steps)
    if _count_all(steps, cell) > MOST_CELLS:  # of samples that are seldom drawn, or of kinds that are very unlike
        while cell < COARSEST and _count_all(steps, cell) > FEWER_CELLS:
            cell *= 2  # epsilon is larger then than it has to be, but known
    if _count_all(steps, cell) > MOST_CELLS:
        return math.inf
    whole = None
    for noise, rate, times in steps:
        part = _compose(noise, rate, times, cell)
        whole = part if whole is None else whole.compose(part)
    assert whole is not None
    with np.errstate(over="ignore"):  # of a quotient that is only compared: inf is as good
        return float(whole.get_epsilon_for_delta(delta))


def _choose_cell(steps: Iterable[tuple[float, float, int]]) -> float:
    """Return the width of a grid's cells: a power of two, so that grids of growing ledgers seldom change.

    Rounding to a grid adds a variance to each step's loss that is proportional to the square of the width.
    """
    variance = sum(times * _variance(noise, rate) for noise, rate, times in steps)
    count = sum(times for _, _, times in steps)
    most = COARSEST * max(1.0, math.sqrt(variance))
    return float(2.0 ** math.floor(math.log2(min(GRID * math.sqrt(variance / count), most))))


def _variance(noise: float, rate: float) -> float:
    """Return about the variance of the loss of one sum, or less."""
    strength = 1 / noise**2
    grows = math.inf if strength > 100 else rate**2 * math.expm1(strength)  # chi-squared divergence
    return min(rate * strength * (strength / 4 + 1), grows)


def _count_all(steps: Iterable[tuple[float, float, int]], cell: float) -> float:
    return sum(_count_cells(*step, cell) for step in steps)


def _count_cells(noise: float, rate: float, times: int, cell: float) -> float:
    """Return about how many cells of a grid the losses of a mechanism reach over, one sum's or all sums'."""
    one, variance = 1 / noise**2 + 20 / noise, _variance(noise, rate)
    mean = min(rate / noise**2 / 2, variance)
    return max(one, times * mean + 20 * math.sqrt(times * variance)) / cell


def _compose(noise: float, rate: float, times: int, cell: float) -> "PrivacyLossDistribution":
    if rate == 1:
        return _one_step(noise / math.sqrt(times), 1.0, cell)
    return _one_step(noise, rate, cell).self_compose(times)


@lru_cache(maxsize=64)
def _one_step(noise: float, rate: float, cell: float) -> "PrivacyLossDistribution":
    check_library()
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=cell, use_connect_dots=True
    )
