"""Unequal numbers of local steps: which settings need equal ones, and which updates can be normalised by theirs."""

from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check


def check_local_steps(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if steps by device contradict other settings, or if updates cannot be normalised.

    remote: the clients are Flower's nodes.
    """
    devices, privacy = experiment.devices, experiment.privacy
    if devices is not None and privacy is not None and (setting := devices.sets_steps):
        equal = f"privacy.unit={privacy.unit} counts training.steps local steps of every client"
        raise InputError(f"{setting}: {equal}; leave it out with privacy")
    if experiment.training.normalize:
        _check_normalized(experiment, remote=remote)


def _check_normalized(experiment: Experiment, *, remote: bool) -> None:
    t, lora, privacy, f = experiment.training, experiment.lora, experiment.privacy, experiment.federation
    given = "training.normalize=true"
    check(t.mean == "weighted", f"{given} is of a mean of all updates; set training.mean=weighted, not {t.mean!r}")
    if lora is not None:
        products = f"{given}: lora.aggregate={lora.aggregate!r} takes the clients' mean as it is"
        check(not lora.changes_base, f"{products}; set lora.aggregate=factors, frozen-a or alternate")
        lacking = f"{given}: with lora.ranks what a client lacks counts as 0, which is no update of its steps"
        check(lora.ranks is None, f"{lacking}; leave out lora.ranks")
    equal = f"{given}: with privacy.unit=client all clients take training.steps, and updates are clipped as they are"
    check(privacy is None or privacy.unit != "client", f"{equal}; set training.normalize=false")
    if remote and t.epochs:
        unknown = f"{given}: with training.epochs={t.epochs} a node's steps follow from its number of samples"
        check(f.sample_counts, f"{unknown}; set federation.sample_counts=true, or training.steps")
        bound = f"{given}: federation.max_norm={f.max_norm} bounds updates, of any number of steps, as they are sent"
        check(f.max_norm is None, f"{bound}; leave it out with training.epochs (federation.norm_factor bounds them)")
