"""What the clients of a run in a folder have spent: from its settings, its noise and the number of its rounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedadamw.checkpoint import CheckpointError
from fedadamw.privacy.account import Account, RemoteAccount, SimulatedAccount
from fedadamw.privacy.classes import ClientClass, describe_guarantee, group_clients, list_assumptions
from fedadamw.privacy.spending import Spent, with_noise
from fedadamw.runner.asked_file import read_asked
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.noise import read_noise
from fedadamw.runner.privacy_file import NAME, read_sizes
from fedadamw.settings.load import load
from fedadamw.settings.privacy import PrivacySettings
from fedadamw.validation import InputError, check


@dataclass(frozen=True)
class SpentSoFar:
    """What the clients of a run have spent until now."""

    privacy: PrivacySettings
    done: int  # rounds
    rounds: int
    noise_multiplier: float
    remote: bool  # whether the clients are Flower's nodes
    epsilon: float | None  # of the client that spent most; None if only the nodes know
    client: int | None  # which one that is, if it is one of several
    classes: list[ClientClass]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, without numbers that are not finite."""
        return {
            "unit": self.privacy.unit,
            "delta": self.privacy.delta,
            "epsilon": _finite(self.epsilon),
            "budget": self.privacy.budget,
            "client": self.client,
            "rounds_done": self.done,
            "rounds": self.rounds,
            "noise_multiplier": self.noise_multiplier,
            "classes": [{**each._asdict(), "epsilon": _finite(each.epsilon)} for each in self.classes],
            "guarantee": describe_guarantee(self.privacy, remote=self.remote),
            "assumed": list_assumptions(self.privacy, remote=self.remote),
        }


def find_spent(path: Path) -> SpentSoFar:
    """Return what the run in `path` has spent; InputError, one line, if it has no differential privacy."""
    folder = RunFolder(path)
    check(folder.started, f"{path}: holds neither a run (config.yaml) nor a node's privacy ledger")
    experiment, records = load(str(folder.config)), folder.records()
    if experiment.privacy is None:
        raise InputError(f"{path}: a run without differential privacy (privacy is null): no epsilon is guaranteed")
    privacy, noise, asked = experiment.privacy, read_noise(folder.read_manifest()), read_asked(path)
    by_client, clients = privacy.unit == "client", folder.read_manifest()["partition"]["clients"]
    experiment, sizes = with_noise(experiment, noise), read_sizes(path)
    if (sizes is None and not by_client and asked is None) or (sizes is not None and len(sizes) != clients):
        raise CheckpointError(f"{path / NAME}: has not the samples of the run's {clients} clients")
    account: Account
    if asked is None:
        account = SimulatedAccount(experiment, sizes or [1] * clients)
    else:
        account = RemoteAccount(experiment, clients, sizes, lambda: asked.times, lambda: asked.sums)
    spent = account.spent(len(records))
    classes: list[ClientClass] = []
    if spent is not None:
        classes = group_clients([1] * clients if by_client else sizes or [], spent, noise, privacy.delta)
    about = (privacy, len(records), experiment.training.rounds, noise, asked is not None)
    worst = None if spent is None or by_client else _find_client(spent, account)
    return SpentSoFar(*about, account.epsilon(len(records)), worst, classes)


def _find_client(spent: Spent, account: Account) -> int:
    """Return the number of the client that spent most, the first of several."""
    front, pairs = set(spent.front()), zip(spent.rates.tolist(), spent.times.tolist(), strict=True)
    on_front = [i for i, pair in enumerate(pairs) if pair in front]
    if not on_front:
        return 0
    part = Spent(spent.rates[on_front], spent.times[on_front])
    return on_front[int(np.argmax(part.each(account.noise_multiplier, account.privacy.delta)))]


def _finite(number: float | None) -> float | None:
    return number if number is not None and np.isfinite(number) else None
