"""Statistics over seeds: intervals of a mean, paired tests, and how many seeds a difference needs."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

CONFIDENCE = 0.95
LEVEL = 0.05  # of a two-sided test
POWER = 0.8
BOOTSTRAP_FROM = 10  # seeds; with fewer, a bootstrap's intervals are too narrow
RESAMPLES = 2000
MAX_SEEDS = 10_000  # that are searched for


class Interval(NamedTuple):
    """A 95% interval of a mean."""

    low: float
    high: float
    method: Literal["t", "bootstrap"]


class PairedTest(NamedTuple):
    """Two variants compared by seed: the differences' mean and what can be said of it."""

    seeds: int
    difference: float  # mean of the first less the second
    interval: Interval | None  # None with one seed
    p: float | None  # of the paired t-test; None with one seed, or if all differences are equal
    p_wilcoxon: float | None  # of the signed-rank test, from ten seeds on
    seeds_needed: int | None  # to find a difference of this size; None if unknown or more than MAX_SEEDS


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95% interval of the mean of `values`: Student t, from ten values on BCa bootstrap; None of one."""
    return _mean_interval(tuple(values)) if len(values) > 1 else None


@lru_cache(maxsize=100_000)  # charts and tables ask for the same
def _mean_interval(values: tuple[float, ...]) -> Interval:
    from scipy import stats  # here and below: it takes half a second, which only a study's page needs

    mean, error = float(np.mean(values)), float(stats.sem(values))
    if len(values) < BOOTSTRAP_FROM:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
        return Interval(mean - half, mean + half, "t")
    if _are_equal(values):
        return Interval(mean, mean, "bootstrap")
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, random_state=np.random.default_rng(0)
    ).confidence_interval
    return Interval(float(found.low), float(found.high), "bootstrap")


def compare_pairs(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Compare the scores of two variants; entry i of both has the same seed."""
    from scipy import stats

    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, count = float(np.mean(differences)), len(differences)
    interval = mean_interval(differences)
    if interval is None or _are_equal(differences):
        return PairedTest(count, mean, interval, None, None, None)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    wilcoxon = float(stats.wilcoxon(differences).pvalue) if count >= BOOTSTRAP_FROM else None
    return PairedTest(count, mean, interval, p, wilcoxon, seeds_needed(mean / float(np.std(differences, ddof=1))))


def seeds_needed(effect: float) -> int | None:
    """Return the seeds with which a paired t-test finds `effect` (mean over standard deviation) with 80% power.

    None if they are more than MAX_SEEDS.
    """
    if power(effect, MAX_SEEDS) < POWER:
        return None
    low, high = 1, MAX_SEEDS  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle) >= POWER else (middle, high)
    return high


def power(effect: float, seeds: int) -> float:
    """Return the power of a two-sided paired t-test at the 5% level, from the noncentral t distribution."""
    from scipy import stats

    shift, freedom = abs(effect) * seeds**0.5, seeds - 1
    if shift > 50:
        return 1.0  # farther out, scipy's distribution fails
    limit = float(stats.t.ppf(1 - LEVEL / 2, freedom))
    wrong_side = stats.nct.cdf(-limit, freedom, shift) if shift < 4 else 0.0  # beyond, scipy returns nan
    return float(stats.nct.sf(limit, freedom, shift) + wrong_side)


def adjust_holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's corrected p values: below a level together they are wrong no more often than it says."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min((len(ps) - rank) * ps[i], 1.0))
        adjusted[i] = largest
    return adjusted


def _are_equal(values: Sequence[float]) -> bool:
    return bool(np.ptp(values) <= 1e-12 * max(1.0, *map(abs, values)))
