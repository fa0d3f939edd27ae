"""The rules that were fixed before any run: how a run is scored, how many seeds there are, what a difference says.

Scores and differences are in points, hundredths of the metric.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from scipy import stats

FEWEST, MOST = 5, 20  # seeds
WIDTH = 2.0  # points; a 95% interval narrower than this needs no more seeds
TAIL = 0.1  # share of the rounds whose evaluations are averaged
MARGIN = 1.0  # points; an interval that ends above minus this is "not below"
FIRST_SEED = 10  # of the reported ones; 0 to 2 were looked at before the rules
TUNING_SEEDS = (0, 1)  # the second only where the two best learning rates of the first are closer than
CLOSE = 1.0  # points
GROWTH = 3  # rungs of the ladder that a grid grows by at each end, at most


class Paired(NamedTuple):
    """A variant less the base, by seed."""

    n: int
    difference: float  # points
    low: float  # of the 95% interval, Student t; minus infinity for one seed
    high: float
    effect: float | None  # difference over its standard deviation; None if there is none

    @property
    def verdict(self) -> str:
        """What the interval says, in words."""
        if self.n < FEWEST:
            return "too few seeds"
        if self.low > 0:
            return "above"
        if self.high < 0:
            return "below"
        return "not told apart"

    @property
    def is_not_below(self) -> bool:
        """Whether a loss of MARGIN points or more is excluded."""
        return self.n >= FEWEST and self.low > -MARGIN


def tail_score(rounds: Sequence[int], scores: Sequence[float | None], last: int) -> float | None:
    """Return the mean score in the last tenth of `last` rounds; None if one of them is not finite."""
    tail = [score for round_, score in zip(rounds, scores, strict=True) if round_ > (1 - TAIL) * last + 1e-9]
    finite = [score for score in tail if score is not None]
    return mean(finite) if tail and len(finite) == len(tail) else None


def compare(ours: Mapping[int, float], base: Mapping[int, float]) -> Paired | None:
    """Compare scores by seed, in points, over the seeds that both have; None if there are none."""
    differences = [ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())]
    n = len(differences)
    if n < 2:
        return Paired(n, differences[0], float("-inf"), float("inf"), None) if n else None
    middle, deviation = mean(differences), stdev(differences)
    half = half_width(deviation, n)
    return Paired(n, middle, middle - half, middle + half, middle / deviation if deviation > 0 else None)


def half_width(deviation: float, n: int) -> float:
    """Return half of the 95% interval of a mean of `n` values with this standard deviation."""
    return float(stats.t.ppf(0.975, n - 1)) * deviation / n**0.5


def seeds_wanted(ours: Mapping[int, float], base: Mapping[int, float], most: int = MOST) -> int:
    """Return how many seeds the rule wants now: one more than there are, as long as the interval is too wide."""
    paired = compare(ours, base)
    if paired is None or paired.n < FEWEST:
        return FEWEST
    enough = paired.high - paired.low < WIDTH or paired.n >= most
    return paired.n if enough else paired.n + 1


def seeds_expected(ours: Mapping[int, float], base: Mapping[int, float]) -> int:
    """Return how many seeds the rule will want if the differences go on to vary as they do; MOST if unknown."""
    paired = compare(ours, base)
    if paired is None or paired.n < 3 or paired.effect is None:
        return MOST
    deviation = paired.difference / paired.effect if paired.effect else 0.0
    enough = (n for n in range(max(FEWEST, paired.n), MOST) if 2 * half_width(abs(deviation), n) < WIDTH)
    return next(enough, MOST)


Trial = tuple[float, int]  # learning rate and seed
Tried = Mapping[Trial, float | None]  # score on held-out training data; None: diverged


def next_trials(tried: Tried, first: Sequence[float], rungs: Sequence[float]) -> list[Trial]:
    """Return the trials that choosing a learning rate still needs; none once it can be chosen."""
    seed, second = TUNING_SEEDS
    grid = list(first)
    while True:
        missing = [(lr, seed) for lr in grid if (lr, seed) not in tried]
        if missing:
            return missing
        more = _rung_beyond(tried, grid, first, rungs)
        if more is None:
            return [(lr, second) for lr in _close_ones(tried, grid) if (lr, second) not in tried]
        grid = sorted([*grid, more])


def best_rate(tried: Tried) -> float | None:
    """Return the learning rate with the best mean score, of those tried with most seeds that never diverged.

    None if all diverged.
    """
    diverged = {lr for (lr, _), score in tried.items() if score is None}
    by_rate: dict[float, list[float]] = {}
    for (lr, _), score in sorted(tried.items()):
        if score is not None and lr not in diverged:
            by_rate.setdefault(lr, []).append(score)
    return max(by_rate, key=lambda lr: (len(by_rate[lr]), mean(by_rate[lr])), default=None)


def _rung_beyond(tried: Tried, grid: Sequence[float], first: Sequence[float], rungs: Sequence[float]) -> float | None:
    """Return a learning rate beyond the best of the first seed, if that is at an end of the grid that may grow."""
    best = _two_best(tried, grid)[0]
    place = rungs.index(best)
    if best == grid[0] and sum(lr < first[0] for lr in grid) < GROWTH and place > 0:
        return rungs[place - 1]
    if best == grid[-1] and sum(lr > first[-1] for lr in grid) < GROWTH and place + 1 < len(rungs):
        return rungs[place + 1]
    return None


def _close_ones(tried: Tried, grid: Sequence[float]) -> list[float]:
    """Return the two best learning rates of the first seed if they are close, else none."""
    scores = [tried[lr, TUNING_SEEDS[0]] for lr in _two_best(tried, grid)]
    best, next_ = scores if len(scores) == 2 else (None, None)
    return [] if best is None or next_ is None or best - next_ >= CLOSE else _two_best(tried, grid)


def _two_best(tried: Tried, grid: Sequence[float]) -> list[float]:
    """Return the two best learning rates with the first seed, a diverged one last."""
    first = {lr: tried[lr, TUNING_SEEDS[0]] for lr in grid}
    return sorted(grid, key=lambda lr: (first[lr] is None, -(first[lr] or 0.0), lr))[:2]
