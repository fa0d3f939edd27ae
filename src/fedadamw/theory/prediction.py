"""What convergence theory predicts on a quadratic: the rate P and the learning rate that reaches it.

f(x) = L/2 |x|^2, gradients with noise of variance sigma^2 in total. For a small learning rate the mean over the rounds
of |grad f|^2 is Delta/(e R) + e L sigma^2 kappa/(2 S K), with e the length of a round; at the best e it is P.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np


class Quadratic(NamedTuple):
    """The problem: as steep in every direction."""

    d: int = 32  # coordinates
    smoothness: float = 1.0  # L
    gap: float = 0.5  # Delta = f(x_0) - min f, so |x_0| = sqrt(2 Delta / L)
    sigma: float = 10.0  # root of the noise's variance, all coordinates together


class Point(NamedTuple):
    """How long a run is, and how many take part in it."""

    clients: int  # S
    steps: int  # K
    rounds: int  # R


def kappa(steps: int, beta1: float) -> float:
    """Return how much momentum that restarts each round raises the noise of `steps` steps: K sum w^2 / (sum w)^2.

    w_j = sum over k >= j of (1 - beta1) beta1^(k-j) / (1 - beta1^k) is the weight of gradient j in the round's update.
    """
    k, j = np.arange(1, steps + 1)[:, None], np.arange(1, steps + 1)
    parts = np.where(k >= j, (1 - beta1) * beta1 ** np.maximum(k - j, 0.0) / (1 - beta1 ** k.astype(float)), 0.0)
    w = parts.sum(0)
    return float(steps * (w**2).sum() / w.sum() ** 2)


def predict(problem: Quadratic, point: Point, beta1: float) -> float:
    """Return P = sqrt(2 L Delta sigma^2 kappa / (S K R))."""
    noise = problem.sigma**2 * kappa(point.steps, beta1) / (point.clients * point.steps * point.rounds)
    return sqrt(2 * problem.smoothness * problem.gap * noise)


def best_lr(problem: Quadratic, point: Point, beta1: float) -> float:
    """Return the learning rate of SGD's steps that reaches P: sqrt(2 Delta S / (L K R sigma^2 kappa))."""
    length = point.steps * point.rounds * problem.sigma**2 * kappa(point.steps, beta1)
    return sqrt(2 * problem.gap * point.clients / (problem.smoothness * length))
