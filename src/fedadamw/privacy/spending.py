"""What the clients of a run spend: how often each adds noise to a sum, and with which rate it draws.

unit=sample: a client that trains in a round takes K noisy steps, each on samples drawn with rate B / n_i. Which clients
are sampled is known to the server, so this gives no amplification. unit=client: clients are drawn with rate S / N in
each round; over Flower the server is told who is there, so they count as drawn in every round.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedadamw.privacy.accountant import Mechanism, compute_epsilon, find_noise_multiplier
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.privacy import PrivacySettings
from fedadamw.validation import InputError, check

UNKNOWN = "privacy.epsilon: the nodes' numbers of samples are not known; give privacy.noise_multiplier instead"


class Spent(NamedTuple):
    """What clients have spent, by client: a Gaussian mechanism each."""

    rates: np.ndarray  # (N,) with which samples, or clients, are drawn
    times: np.ndarray  # (N,) sums with noise

    def front(self) -> list[tuple[float, int]]:
        """Return the pairs (rate, times) that no other exceeds in both: one of them spends most, whatever the noise."""
        front: list[tuple[float, int]] = []
        for rate, times in sorted(set(zip(self.rates.tolist(), self.times.tolist(), strict=True)), reverse=True):
            if times > (front[-1][1] if front else 0):
                front.append((rate, times))
        return front

    def worst(self, noise_multiplier: float, delta: float) -> float:
        """Return the largest epsilon of a client."""
        pairs = self.front()
        return max((compute_epsilon([Mechanism(noise_multiplier, *pair)], delta) for pair in pairs), default=0.0)

    def each(self, noise_multiplier: float, delta: float) -> np.ndarray:
        """Return the epsilon of each client, (N,)."""
        pairs = list(zip(self.rates.tolist(), self.times.tolist(), strict=True))
        known = {pair: compute_epsilon([Mechanism(noise_multiplier, *pair)], delta) for pair in set(pairs)}
        return np.array([known[pair] for pair in pairs])


def settings_of(experiment: Experiment) -> PrivacySettings:
    """Return the section privacy of an experiment that has it."""
    if experiment.privacy is None:
        raise InputError("privacy: is null; this run has no differential privacy")
    return experiment.privacy


def rates_of(experiment: Experiment, sizes: Sequence[int] | np.ndarray, *, remote: bool = False) -> np.ndarray:
    """Return with which rate each client of `sizes` (N,) samples draws them or, with unit=client, is drawn; (N,)."""
    training, n = experiment.training, np.asarray(sizes, np.float64)
    if settings_of(experiment).unit == "client":
        return np.full(len(n), 1.0 if remote else min(1.0, training.clients_per_round / len(n)))
    return np.minimum(1.0, training.batch_size / np.maximum(n, 1))


class Work:
    """How many sums with noise each client takes part in, in a simulated run or, at most, in one over Flower."""

    def __init__(self, experiment: Experiment, clients: int, *, remote: bool = False) -> None:
        self.experiment, self.clients = experiment, clients
        self._by_client = settings_of(experiment).unit == "client"
        self._everyone = remote or self._by_client  # all take part in all rounds
        self._rounds, self._sampled = 0, np.zeros(clients, np.int64)  # how often each was sampled until then

    def until(self, rounds: int) -> np.ndarray:
        """Return the number of sums of each client in the first `rounds` rounds, (N,)."""
        steps = 1 if self._by_client else steps_of(self.experiment)
        if self._everyone:
            return np.full(self.clients, steps * rounds)
        for round_ in range(self._rounds, rounds):
            self._sampled[self._draw(round_)] += 1
        for round_ in range(rounds, self._rounds):
            self._sampled[self._draw(round_)] -= 1
        self._rounds = rounds
        return steps * self._sampled

    def _draw(self, round_: int) -> np.ndarray:
        """Return the clients of a round of the simulator, each once."""
        from fedadamw.randomness import sample_clients  # which imports torch

        return sample_clients(self.experiment.seed, round_, self.clients, self.experiment.training.clients_per_round)


def steps_of(experiment: Experiment) -> int:
    """Return the local steps of a client in a round, which are fixed and public."""
    steps = experiment.training.steps
    if steps is None:
        raise InputError("privacy.unit=sample needs a fixed number of local steps: training.steps, not epochs")
    return steps


def resolve_noise_multiplier(
    experiment: Experiment, sizes: Sequence[int] | np.ndarray | None, *, remote: bool = False
) -> float:
    """Return the noise multiplier of a run: as given, or the least with which no client spends more than epsilon.

    sizes: (N,) samples of each client that it trains on; None if they are unknown. remote: the clients are Flower's
    nodes, any of which may work in all rounds.
    """
    privacy = settings_of(experiment)
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    assert privacy.epsilon is not None
    if sizes is None and privacy.unit == "client":
        sizes = [1] * experiment.partition.clients
    if sizes is None:
        raise InputError(UNKNOWN)
    check(len(sizes) > 0, "privacy.epsilon: there are no clients")
    work = Work(experiment, len(sizes), remote=remote).until(experiment.training.rounds)
    return find_noise(privacy.epsilon, privacy.delta, Spent(rates_of(experiment, sizes, remote=remote), work).front())


def find_noise(epsilon: float, delta: float, pairs: Iterable[tuple[float, int]]) -> float:
    """Return the least noise multiplier with which none of the (rate, times) spends more than `epsilon`."""
    noise = 0.0
    for rate, times in pairs:
        if compute_epsilon([Mechanism(noise, rate, times)], delta) > epsilon:
            noise = find_noise_multiplier(epsilon, delta, rate, times)
    return noise


def with_noise(experiment: Experiment, noise_multiplier: float) -> Experiment:
    """Return the experiment with this noise, in place of an epsilon to keep to."""
    resolved = {"noise_multiplier": noise_multiplier, "epsilon": None}
    return experiment.model_copy(update={"privacy": settings_of(experiment).model_copy(update=resolved)})
