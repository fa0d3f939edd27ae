"""A PAC-Bayes bound on how much worse AdamW's models do on new samples, and what weight decay has to do with it.

The last models of a run are taken as normal around the last one, x*, with AdamW's stationary variances

    s_j = lr / (2 b (sqrt(h_j) + lambda)),        v = h: moments of single samples
    s_j = lr / (2 (sqrt(b h_j) + lambda)),        v = h / b: moments of batches of b

where h_j is the curvature, measured as the mean square of a sample's gradient. The prior is normal around 0 with
variance rho. With r_j = s_j / rho,

    KL = 1/2 [ sum (r_j - 1 - ln r_j) + |x*|^2 / rho ]
    gap = sqrt( (KL + ln(2 sqrt(n) / tau)) / (2 n) )

and with probability 1 - tau over n samples the loss on new ones, which lies in [0, 1], is at most the training loss +
gap, both averaged over models drawn from that normal; x* itself is not bounded.
rho must not depend on the data; one that is the best of several costs the logarithm of their number.
"""

from collections.abc import Sequence
from math import inf, log, sqrt
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq

from fedadamw.validation import check, check_one_of

Moments = Literal["per-sample", "minibatch"]
MOMENTS: tuple[Moments, ...] = ("per-sample", "minibatch")
RHOS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TAU = 0.05
SMALLEST, GRID = 1e-12, 241  # of the lambdas that are tried: the least, in parts of the greatest, and how many


class Run(NamedTuple):
    """What the bound needs to know of a run."""

    root_h: np.ndarray  # (d,) sqrt(h_j), float64
    distance: float  # |x*|^2
    samples: int  # n
    lr: float  # before a schedule lowers it
    batch_size: int  # b
    weight_decay: float  # lambda


class Bound(NamedTuple):
    """The bound for one rho and lambda."""

    rho: float
    weight_decay: float  # lambda
    width: float  # 1/2 sum (r_j - 1 - ln r_j)
    distance: float  # |x*|^2 / (2 rho)
    gap: float

    @property
    def kl(self) -> float:
        """The divergence of the models from the prior, in nats."""
        return self.width + self.distance


class Shape(NamedTuple):
    """How the ratios depend on lambda: r_j = scale / (a_j + lambda)."""

    scale: float
    a: np.ndarray  # (d,)

    @staticmethod
    def of(run: Run, rho: float, moments: Moments) -> "Shape":
        """Return the ratios' shape for a prior's variance."""
        if moments == "per-sample":
            return Shape(run.lr / (2 * run.batch_size * rho), run.root_h)
        return Shape(run.lr / (2 * rho), run.root_h * sqrt(run.batch_size))

    def ratios(self, weight_decay: float) -> np.ndarray:
        """Return r (d,), if curvature or weight decay is above 0 everywhere."""
        return self.scale / (self.a + weight_decay)

    def width(self, weight_decay: float) -> float:
        """Return 1/2 sum (r_j - 1 - ln r_j); infinite if a coordinate has neither curvature nor weight decay."""
        if weight_decay == 0 and not (self.a > 0).all():
            return inf
        return float(kl_terms(self.ratios(weight_decay)).sum() / 2)

    def slope(self, weight_decay: float) -> float:
        """Return the derivative of `width` in lambda, times 2."""
        root = self.a + weight_decay
        return float(((root - self.scale) / root**2).sum())


def kl_terms(r: np.ndarray) -> np.ndarray:
    """Return r - 1 - ln r of each ratio of variances: 0 where both are equal, else above."""
    terms: np.ndarray = (r - 1) - np.log(r)
    return terms


def bound(run: Run, rho: float, weight_decay: float, *, moments: Moments, tries: int = 1, tau: float = TAU) -> Bound:
    """Return the bound. tries: number of values from which rho may be chosen after seeing the data."""
    width, distance = Shape.of(run, rho, moments).width(weight_decay), run.distance / (2 * rho)
    n = run.samples
    gap = sqrt((width + distance + log(2 * sqrt(n) * tries / tau)) / (2 * n))
    return Bound(rho, weight_decay, width, distance, gap)


def best_weight_decay(run: Run, rho: float, *, moments: Moments) -> float:
    """Return the lambda with the least KL; where all curvature is 0 it is lr / (2 b rho), or without b for minibatch.

    It is at most that: beyond, every term grows.
    """
    shape = Shape.of(run, rho, moments)
    tried = [*np.geomspace(SMALLEST * shape.scale, shape.scale, GRID), shape.scale]
    if (shape.a > 0).all():
        tried = [0.0, *tried]
    least = min(range(len(tried)), key=lambda i: shape.width(tried[i]))
    low, high = tried[max(least - 1, 0)], tried[min(least + 1, len(tried) - 1)]
    if shape.slope(low) >= 0 or shape.slope(high) <= 0:  # at an end
        return float(tried[least])
    return float(brentq(shape.slope, low, high, xtol=1e-15 * shape.scale, rtol=1e-12))


def list_bounds(run: Run, rhos: Sequence[float], *, moments: Moments) -> list[tuple[Bound, Bound]]:
    """Return for each rho the bound with the run's own lambda and with the best one."""
    found = []
    for rho in rhos:
        chosen = (run.weight_decay, best_weight_decay(run, rho, moments=moments))
        own, best = (bound(run, rho, value, moments=moments, tries=len(rhos)) for value in chosen)
        found.append((own, best))
    return found


def parse_moments(text: str) -> Moments:
    """Return the moments that `text` names; raises InputError for unknown ones."""
    check_one_of("--moments", text, MOMENTS)
    return MOMENTS[MOMENTS.index(text)]


def check_rhos(rhos: Sequence[float]) -> None:
    """Raise InputError unless all are variances of a prior, each given once."""
    for rho in rhos:
        check(0 < rho < inf, f"--rho {rho:g}: must be above 0 and finite, a variance")
    check(len(set(rhos)) == len(rhos), "--rho: gives one value twice")
