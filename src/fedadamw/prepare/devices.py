"""Settings that contradict simulated devices, each as one line that says what to set."""

from fedadamw.engine.ranks import Team
from fedadamw.engine.robust import check_robust
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check


def check_devices(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if settings contradict a virtual clock. remote: the clients are Flower's nodes."""
    if experiment.devices is None:
        return
    t, f = experiment.training, experiment.federation
    check(not remote, "devices: Flower's nodes are real devices, which need no clock; leave out the section devices")
    privacy = experiment.privacy
    check(privacy is None, "devices: the account of privacy knows no clients that are away or lost; leave out one")
    check_robust(t.mean, t.byzantine, f.quorum_of(t.clients_per_round), "federation.quorum")


def check_one_process(experiment: Experiment, ranks: Team) -> None:
    """Raise InputError if several ranks would share a run with devices."""
    several = experiment.devices is not None and not ranks.alone
    check(not several, f"devices: {ranks.size} ranks; a run under a virtual clock is one process: leave out --ranks")
