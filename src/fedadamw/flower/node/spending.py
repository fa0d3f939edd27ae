"""What a node's trainings spend: charged to its ledger before they begin, if its own budget allows that."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedadamw.flower.node.config import state_folder
from fedadamw.flower.node.demands import Demands, read_demands
from fedadamw.flower.node.ledger import Charge, Ledger, LedgerError, compose
from fedadamw.flower.protocol import DeclinedError, NodeConfig
from fedadamw.settings.experiment import Experiment


@dataclass(frozen=True)
class Spending:
    """What the trainings of one run spend of a node's data.

    training: one of its trainings, of any round. accounted: whether it has privacy of samples; one that has not is
    charged, as one without noise, only if a ledger has been begun.
    """

    demands: Demands
    ledger: Ledger
    training: Charge
    accounted: bool

    @staticmethod
    def of(experiment: Experiment, config: NodeConfig, run: str, client: int, samples: int) -> "Spending":
        """Return the spending of a node with so many `samples` in the run of this name."""
        demands, privacy, training = read_demands(config), experiment.privacy, experiment.training
        accounted = privacy is not None and privacy.unit == "sample"
        noise = privacy.noise_multiplier if accounted and privacy is not None else None
        rate = min(1.0, training.batch_size / samples) if accounted else 1.0
        budget = (None, None) if demands.epsilon is None else (demands.epsilon, demands.delta)
        charge = Charge(run, client, 0, noise or 0.0, rate, training.steps or 1, *budget)
        return Spending(demands, Ledger.of(state_folder(config)), charge, accounted)

    def check(self) -> None:
        """Raise DeclinedError if the node's budget does not cover a training, or if that cannot be known."""
        with _decline_if_damaged():
            if self.accounted:
                self.demands.check_total(compose([*self.ledger.charges(), self.training]))

    def charge(self, round_: int) -> None:
        """Charge the training of round `round_` (from 0); errors as of `check`, and then nothing may be trained."""
        with _decline_if_damaged():
            if self.accounted or self.ledger.begun:
                self.ledger.charge(self.training._replace(round=round_ + 1), self.demands.check_total)


@contextmanager
def _decline_if_damaged() -> Iterator[None]:
    try:
        yield
    except LedgerError as error:
        raise DeclinedError("its privacy ledger cannot be charged", str(error)) from None
