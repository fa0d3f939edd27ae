"""The noise of a run with differential privacy, and the account of what its clients spend."""

from fedadamw.data.partition import Partition
from fedadamw.engine.clients import Clients
from fedadamw.privacy.account import Account, RemoteAccount, SimulatedAccount
from fedadamw.privacy.accountant import check_library
from fedadamw.privacy.spending import resolve_noise_multiplier, with_noise
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check


def resolve_noise(experiment: Experiment, partition: Partition, *, remote: bool) -> Experiment:
    """Return the experiment with its noise multiplier, which is searched for if privacy.epsilon is given.

    remote: the clients are Flower's nodes.
    """
    privacy = experiment.privacy
    if privacy is None:
        return experiment
    sizes = known_sizes(experiment, partition)
    if privacy.noise_multiplier != 0 and (sizes is not None or privacy.unit == "client"):
        check_library()  # now, not after the first round
    if privacy.epsilon is not None:
        experiment = with_noise(experiment, resolve_noise_multiplier(experiment, sizes, remote=remote))
    _check_budget(experiment, partition, remote=remote)
    return experiment


def _check_budget(experiment: Experiment, partition: Partition, *, remote: bool) -> None:
    """Raise InputError if privacy.budget allows not even one round."""
    account: Account = SimulatedAccount(experiment, partition.sizes)
    if remote:
        account = RemoteAccount(experiment, len(partition), known_sizes(experiment, partition), dict)
    budget = account.privacy.budget
    allows = budget is None or account.allows(0)
    check(allows, f"privacy.budget={budget}: one round alone spends more; see fedadamw privacy plan")


def open_account(experiment: Experiment, partition: Partition, remote: Clients | None) -> Account | None:
    """Return the account of a run, None without privacy. experiment: with its noise. remote: the nodes, if any."""
    if experiment.privacy is None:
        return None
    if remote is None:
        return SimulatedAccount(experiment, partition.sizes)
    sizes = known_sizes(experiment, partition)
    return RemoteAccount(experiment, len(partition), sizes, remote.asked, remote.sums)


def known_sizes(experiment: Experiment, partition: Partition) -> list[int] | None:
    """Return the samples of each client, None if only the nodes know them."""
    return None if experiment.partition.kind == "nodes" else [int(n) for n in partition.sizes]
