"""How evenly clients of unequal sizes are shared by ranks: the slowest rank's local steps against the mean.

No time is measured: the figures follow from the partition, the sampled clients and the rule.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedadamw.data.partition import partition_dirichlet
from fedadamw.engine.ranks import assign_clients
from fedadamw.randomness import sample_clients

SAMPLES, CLIENTS, CONCENTRATION, BATCH, ROUNDS = 50_000, 100, 0.1, 50, 200
Shares = list[set[int]]


def in_order(works: Sequence[int], ranks: int) -> Shares:
    """As many clients to each rank, in their order."""
    return [set(map(int, part)) for part in np.array_split(np.arange(len(works)), ranks)]


def in_turns(works: Sequence[int], ranks: int) -> Shares:
    """One client after the other to the next rank."""
    return [set(range(rank, len(works), ranks)) for rank in range(ranks)]


RULES: dict[str, tuple[str, Callable[[Sequence[int], int], Shares]]] = {
    "in order": ("samples", in_order),
    "in turns": ("samples", in_turns),
    "most samples first, to the rank with the least": ("samples", assign_clients),  # what the engine does
    "most steps first, to the rank with the least": ("steps", assign_clients),
}


def measure() -> dict[str, Any]:
    """Of each number of sampled clients and ranks: the mean over rounds of slowest / mean, by rule, in local steps."""
    labels = np.arange(SAMPLES) % 10
    sizes = partition_dirichlet(labels, CLIENTS, CONCENTRATION, 1, np.random.default_rng(0)).sizes
    found = {
        f"{sampled} clients, {ranks} ranks": compare(sizes, sampled, ranks)
        for sampled in (10, 20, 50)
        for ranks in (2, 4, 8)
    }
    largest, middle = int(sizes.max()), int(np.median(sizes))
    about = {"samples": SAMPLES, "clients": CLIENTS, "concentration": CONCENTRATION, "batch": BATCH, "rounds": ROUNDS}
    return {**about, "largest": largest, "median": middle, "slowest_of_mean": found}


def compare(sizes: np.ndarray, sampled: int, ranks: int) -> dict[str, float]:
    """The mean over rounds of the slowest rank's steps over the mean rank's, by rule, and the least possible."""
    ratios: dict[str, list[float]] = {name: [] for name in (*RULES, "least possible")}
    for round_ in range(ROUNDS):
        samples = sizes[sample_clients(0, round_, CLIENTS, sampled)]
        steps = -(-samples // BATCH)
        mean = steps.sum() / ranks
        for name, (of, assign) in RULES.items():
            works = (samples if of == "samples" else steps).tolist()
            loads = [steps[sorted(share)].sum() for share in assign(works, ranks)]
            ratios[name].append(max(loads) / mean)
        bound = max(steps.max(), -(-steps.sum() // ranks))  # one client is on one rank, and a step is whole
        ratios["least possible"].append(bound / mean)
    return {name: round(float(np.mean(found)), 3) for name, found in ratios.items()}
