"""The account of a run: the largest epsilon of its clients by round, and whether the budget allows one more round."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedadamw.privacy.spending import Spent, Work, rates_of, settings_of, steps_of
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError


class Account(ABC):
    """What the clients of a run with differential privacy spend. experiment: with its noise multiplier."""

    def __init__(self, experiment: Experiment) -> None:
        self.privacy = settings_of(experiment)
        if self.privacy.noise_multiplier is None:
            raise InputError("privacy: the noise of the run was not searched for yet")
        self.noise_multiplier = self.privacy.noise_multiplier

    @abstractmethod
    def spent(self, rounds: int) -> Spent | None:
        """Return what clients have spent after `rounds` rounds; None if it is not known here."""

    def spent_with(self, rounds: int) -> Spent | None:
        """Return what they have spent, at most, after one more round."""
        return self.spent(rounds + 1)

    def epsilon(self, rounds: int) -> float | None:
        """Return the largest epsilon of a client after `rounds` rounds; None if it is not known here."""
        return self._worst(self.spent(rounds))

    def allows(self, rounds: int) -> bool:
        """Whether privacy.budget allows one more round after `rounds` rounds."""
        if self.privacy.budget is None:
            return True
        next_ = self._worst(self.spent_with(rounds))
        return next_ is None or next_ <= self.privacy.budget

    def describe_end(self, rounds: int, wanted: int) -> str:
        """Return the line that says why a run ended after `rounds` of the `wanted` rounds; "" if it goes on."""
        if rounds >= wanted or self.allows(rounds):
            return ""
        budget, spent, next_ = self.privacy.budget, self.epsilon(rounds), self._worst(self.spent_with(rounds))
        return (
            f"privacy.budget={budget:g} ended the run after round {rounds} of {wanted}: epsilon is {spent:.4g}, and "
            f"would be {next_:.4g} after one more round (delta {self.privacy.delta:g})"
        )

    def _worst(self, spent: Spent | None) -> float | None:
        return None if spent is None else spent.worst(self.noise_multiplier, self.privacy.delta)


class SimulatedAccount(Account):
    """The account of a simulated run: who works in which round is known beforehand, from the seed.

    sizes: (N,) samples of each client that it trains on.
    """

    def __init__(self, experiment: Experiment, sizes: Sequence[int] | np.ndarray) -> None:
        super().__init__(experiment)
        self._rates, self._work = rates_of(experiment, sizes), Work(experiment, len(sizes))

    def spent(self, rounds: int) -> Spent:
        """Return what clients have spent after `rounds` rounds."""
        return Spent(self._rates, self._work.until(rounds))


class RemoteAccount(Account):
    """The account of a federation's server.

    With unit=sample, each request to train counts, answered or not, since the node may have worked; nothing is known
    if the server does not know how many samples nodes have: then their own ledgers tell. asked: how often each client
    was asked so far. sizes: (N,) samples of each client, None if they are unknown.

    With unit=client each noisy sum counts, also of a round that was lost with the server's process and done again, with
    other noise. sums: how many there were so far.
    """

    def __init__(
        self,
        experiment: Experiment,
        clients: int,
        sizes: Sequence[int] | None,
        asked: Callable[[], Mapping[int, int]],
        sums: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(experiment)
        self._by_client = self.privacy.unit == "client"
        known = [1] * clients if self._by_client else sizes
        self._rates = None if known is None else rates_of(experiment, known, remote=True)
        self._steps = 1 if self._by_client else steps_of(experiment)
        self._retries, self._asked, self._sums = experiment.federation.retries, asked, sums

    def spent(self, rounds: int) -> Spent | None:
        """Return what clients have spent until now, and with unit=client after `rounds` rounds at least."""
        return self._count(rounds, more=0)

    def spent_with(self, rounds: int) -> Spent | None:
        """Return what they have spent if each is asked in one more round, as often as it may be."""
        return self._count(rounds, more=1 + self._retries)

    def _count(self, rounds: int, *, more: int) -> Spent | None:
        if self._rates is None:
            return None
        if self._by_client:
            return Spent(self._rates, np.full(len(self._rates), max(rounds, self._sums()) + bool(more)))
        asked = self._asked()
        times = [self._steps * (asked.get(client, 0) + more) for client in range(len(self._rates))]
        return Spent(self._rates, np.array(times, np.int64))
